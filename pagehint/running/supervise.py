"""A program as a child of ours: for a table of its processes when it has ended, for metrics, for a trace.

Resident memory is read from outside, and what their arenas hold is asked for, so that nothing of it happens in the
program's own Python. Signals go on to it; its end is ours.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from pagehint.running.account import Balance, balance_of, processes
from pagehint.running.interpreter import environment
from pagehint.running.publishing import Address, Publisher
from pagehint.running.sample import Process
from pagehint.running.settings import Settings
from pagehint.running.tracing import Tracer

_INTERVAL: Final = 0.05  # seconds
_OF_THE_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)  # which sends them to the program, too
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


def supervise(
    command: Sequence[str], settings: Settings, metrics: Address | None = None, trace: Path | None = None
) -> tuple[int, int, list[tuple[Process, Balance | None]]]:
    """Run a program to its end.

    Parameters
    ----------
    command : sequence of str
        The program.
    settings : Settings
        Of its arenas.
    metrics : (host, port), optional
        Where its processes' metrics are, until then.
    trace : Path, optional
        The file of a trace of them.

    Returns
    -------
    int
        Its status, as of `subprocess.Popen`.
    int
        Its process.
    list of (Process, Balance or None)
        Its processes that had an arena, by when they were seen first, and what they said at their end.

    Raises
    ------
    OSError, PageHintError
        Before the program begins, if the address or the file cannot be had, or metrics need an extra.
    """
    seen: dict[int, Process] = {}
    with ExitStack() as until_the_end:
        if metrics is not None:
            until_the_end.callback(Publisher(metrics, seen).close)
        tracer = None if trace is None else Tracer(trace)
        if tracer is not None:
            until_the_end.callback(tracer.close)
        folder = Path(tempfile.mkdtemp(prefix="pagehint-run-"))
        until_the_end.callback(shutil.rmtree, folder, ignore_errors=True)
        environ = environment(replace(settings, accounts=str(folder)))
        program = subprocess.Popen(command, env=environ, close_fds=False)
        _pass_signals_on(program)
        _watch(program, folder, seen, tracer)
        ended = [(process, balance_of(folder, process.pid)) for process in seen.values()]
        return program.returncode, program.pid, ended


def _pass_signals_on(program: subprocess.Popen[bytes]) -> None:
    """Have signals go to the program. What is ignored here it ignores, too."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            program.send_signal(number)

    for number in (*_OF_THE_TERMINAL, *_PASSED_ON):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stay if number in _OF_THE_TERMINAL else pass_on)


def _stay(number: int, frame: FrameType | None) -> None:
    """Wait for the end of the program, which has the signal as well, and decides."""


def _watch(program: subprocess.Popen[bytes], folder: Path, seen: dict[int, Process], tracer: Tracer | None) -> None:
    while True:
        ended = program.poll() is not None
        for pid in processes(folder):
            if pid not in seen:
                seen[pid] = Process(pid)
        now = time.monotonic()
        for process in seen.values():
            process.sample(now)
        if tracer is not None:
            tracer.add(now, seen.values())
        if ended:
            return
        with suppress(subprocess.TimeoutExpired):
            program.wait(_INTERVAL)


def end_as(status: int) -> int:
    """Return the exit status of a program that has ended; die of the same signal if it did."""
    if status < 0:
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))  # the program's core is the one that is wanted
        with suppress(OSError, ValueError):  # SIGKILL has no handler to reset
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status if status >= 0 else 128 - status
