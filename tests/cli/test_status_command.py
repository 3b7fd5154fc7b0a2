"""`pagehint status`."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from asked import program

from pagehint.cli import main
from pagehint.observing import places

HOLDS = """
    import os, sys
    import numpy as np
    array, other = np.ones(40 << 17), np.ones(60 << 17)
    del other
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_nobody(runtime, capsys):
    assert main(["status"]) == 0
    assert "no process of this user has pagehint" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["processes"] == []


def test_a_process_that_is_not_there(runtime, capsys):
    assert main(["status", "1"]) == 1
    assert "pagehint: error: process 1 of this user has no pagehint" in capsys.readouterr().err


def test_a_line_for_each_process_and_why_for_one(runtime, capsys):
    with program(HOLDS) as (_, [pid]), program(HOLDS, "--min-age=60") as (_, [other]):
        assert main(["status"]) == 0
        head, *lines, _, _ = capsys.readouterr().out.splitlines()
        assert head.split("  ")[0] == "process"
        assert sorted(line.split()[0] for line in lines) == sorted([pid, other])
        assert main(["status", other]) == 0
        said = capsys.readouterr().out
        assert pid not in said
        assert "too young" in said
        assert "free for less than min_age" in said
        assert main(["status", "--json"]) == 0
        found = {each["pid"]: each for each in json.loads(capsys.readouterr().out)["processes"]}
        [arena] = found[int(other)]["arenas"]
        assert arena["free"]["too young"] >= 60 << 20
        assert arena["given_back"] == 0


def test_a_process_that_does_not_answer_is_shown(runtime, capsys):
    with program(HOLDS) as (process, [pid]):
        process.send_signal(signal.SIGSTOP)
        assert main(["status"]) == 0
        process.send_signal(signal.SIGCONT)
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == pid]
        assert "it has not answered within 5 s; it may be stopped" in line


def test_somebody_elses_folder(runtime, capsys, monkeypatch):
    monkeypatch.setattr(places, "TEMPORARY", runtime / "tmp")
    (runtime / "pagehint").mkdir(mode=0o777)
    (runtime / "pagehint").chmod(0o777)
    assert main(["status"]) == 1
    assert "is not a folder of this user alone" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["potato"], ["--watch", "0"], ["--watch", "soon"], ["1", "2"], ["--potato"]])
def test_what_it_refuses(args, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["status", *args])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(" (see pagehint status --help)\n")


# What other tests run is not to be seen.
ALONE = """
import pathlib, sys
from pagehint.cli import main
from pagehint.observing import places
places.TEMPORARY = pathlib.Path("/nowhere")
sys.exit(main(sys.argv[1:]))
"""
COMMAND = [sys.executable, "-P", "-c", ALONE, "status", "--watch", "0.05"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_watch_ends_with_ctrl_c(runtime, options):
    with program(HOLDS) as (_, [pid]):
        with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
            lines = [watch.stdout.readline() for _ in range(6)]
            watch.send_signal(signal.SIGINT)
            _, err = watch.communicate(timeout=30)
        assert (watch.returncode, err) == (0, "")
        if options:
            assert all(json.loads(line)["processes"][0]["pid"] == int(pid) for line in lines)
        else:
            assert sum(line.split()[0] == pid for line in lines) >= 1


def test_a_watch_in_a_terminal(runtime):
    """Drawn anew in place, and processes that come while it watches are shown."""
    pytest.importorskip("rich")
    terminal, other_end = pty.openpty()
    with subprocess.Popen(
        COMMAND, stdout=other_end, stderr=other_end, env={**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    ) as watch:  # fmt: skip
        os.close(other_end)
        said = b""
        while b"no process" not in said:
            said += os.read(terminal, 4096)
        with program(HOLDS) as (_, [pid]):
            while pid.encode() not in said:
                said += os.read(terminal, 4096)
        watch.send_signal(signal.SIGINT)
        until = time.monotonic() + 30
        while watch.poll() is None and time.monotonic() < until:
            try:
                said += os.read(terminal, 4096)
            except OSError:  # it has ended
                break
        assert watch.wait(30) == 0
    os.close(terminal)
    assert b"Traceback" not in said
    assert said.rstrip().endswith(b"\x1b[?25h")  # the cursor is shown again


def test_whoever_reads_the_output_may_have_enough(runtime):
    done = subprocess.run(
        f"{sys.executable} -P -m pagehint status --watch 0.05 | head -1", shell=True, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
