"""Both runs of the demo, each in a process of its own, so that neither inherits memory from the other.

A run's process is `python -m pagehint.demo.child`. It writes JSON objects to its standard output, one a line:
`{"done": 0.5, "rss": 123456789}` many times a second, and `{"measured": {...}}`, the fields of `Measured`, at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import TypeAlias

from pagehint.demo.outcome import Measured, Outcome
from pagehint.errors import PageHintError

Tell: TypeAlias = Callable[[str, float, int], None]


def run_both(size: int, seconds: float, advice: str, progress: Tell, host: str = "os") -> Outcome:
    """Run the workload with hinting off and then on.

    Parameters
    ----------
    size : int
        Bytes of the arena.
    seconds : float
        Time for both runs. They take longer if the work does.
    advice : {"dontneed", "free"}
        How memory is given back.
    progress : callable
        Told, many times a second, which run ("off" or "on") is how far (0 to 1), and its RSS in bytes.
    host : {"os", "qemu"}
        Whose memory it is.

    Raises
    ------
    PageHintError
        If a run fails; its standard error is in the message.
    """
    _warm_up(size)
    runs = [_run_child(size, seconds / 2, advice if hint else "", progress, host) for hint in (False, True)]
    return Outcome(*runs)


def _warm_up(size: int) -> None:
    """Touch as much memory as the runs will, in a process that ends.

    In a virtual machine the first touch since boot costs several times any later one, and the first run would pay it.
    """
    touch = "import sys, numpy; numpy.ones(int(sys.argv[1]), numpy.uint8)"
    subprocess.run([sys.executable, "-P", "-c", touch, str(size)], check=False)


def _run_child(size: int, seconds: float, advice: str, progress: Tell, host: str) -> Measured:
    name = "on" if advice else "off"
    # -P: the installed package is imported, not a source tree that happens to be the working directory.
    command = [sys.executable, "-P", "-m", "pagehint.demo.child", str(size), str(seconds), advice, host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            for message in map(json.loads, child.stdout):
                if "measured" in message:
                    progress(name, 1.0, message["measured"]["rss_end"])
                    return Measured(**message["measured"])
                progress(name, message["done"], message["rss"])
            raise PageHintError(f"the run with hinting {name} failed:\n{child.stderr.read().strip()}")
        finally:
            child.kill()  # also after Ctrl-C
