"""The trace of a program's processes, as Perfetto reads it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict

import pytest
from asked import MIB
from started import environment, run

WORK = """
import os, sys, time
import numpy as np
def work(mebibytes):
    for _ in range(3):
        array = np.ones(mebibytes << 17)
        time.sleep(0.2)
        del array
        time.sleep(0.2)
if __name__ == "__main__":
    import multiprocessing
    process = multiprocessing.get_context(sys.argv[1]).Process(target=work, args=[200])
    process.start()
    print(os.getpid(), process.pid, flush=True)
    work(100)
    process.join()
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(WORK)
    return path


def tracks(events):
    """Each counter's times and values, by process and name; the names of the processes."""
    found, names = defaultdict(list), {}
    for event in events:
        if event["ph"] == "M":
            assert event["name"] == "process_name"
            names[event["pid"]] = event["args"]["name"]
        else:
            assert event["ph"] == "C"
            found[event["pid"], event["name"]].append((event["ts"], event["args"]["bytes"]))
    return found, names


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_resident_warm_and_returned_of_each_process(runtime, tmp_path, script, method):
    done = run("--trace", tmp_path / "trace.json", "--min-age", "0.1", script, method)
    assert (done.stderr, done.returncode) == ("", 0)
    program, child = map(int, done.stdout.split())
    found, names = tracks(json.loads((tmp_path / "trace.json").read_text()))
    assert set(found) == {(pid, name) for pid in (program, child) for name in ("RSS", "warm", "returned")}
    assert set(names) == {program, child}
    assert str(script) in names[program]
    for track in found.values():
        times = [time for time, _ in track]
        assert times == sorted(set(times))
        assert len(times) > 3
    for pid, size in ((program, 100), (child, 200)):
        values = {name: [value for _, value in found[pid, name]] for name in ("RSS", "warm", "returned")}
        assert max(values["RSS"]) >= size * MIB
        assert max(values["warm"]) >= 50 * MIB
        assert values["returned"] == sorted(values["returned"])
        assert values["returned"][-1] >= 30 * MIB


def test_a_trace_of_what_was_killed_has_all_but_its_end(runtime, tmp_path, script):
    """The closing bracket may be missing, by the format."""
    command = [sys.executable, "-m", "pagehint", "run", "--trace", str(tmp_path / "trace.json"), str(script), "spawn"]
    with subprocess.Popen(command, env=environment(), cwd="/", stdout=subprocess.PIPE, text=True) as process:
        program = int(process.stdout.readline().split()[0])
        while b"returned" not in (tmp_path / "trace.json").read_bytes():
            pass
        process.kill()
        process.wait()
        os.kill(program, signal.SIGTERM)
    text = (tmp_path / "trace.json").read_text()
    whole = text[: text.rindex("\n{") if not text.endswith("}") else None].rstrip(",\n")
    found, _ = tracks(json.loads(whole + "]"))
    assert (program, "RSS") in found


def test_a_program_without_an_arena_has_an_empty_trace(tmp_path):
    (tmp_path / "program.py").write_text("print('fine')\n")
    done = run("--trace", tmp_path / "trace.json", tmp_path / "program.py")
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)
    assert json.loads((tmp_path / "trace.json").read_text()) == []


def test_a_file_that_cannot_be_written_is_refused_before_the_program_begins(tmp_path):
    (tmp_path / "program.py").write_text("print('begun')\n")
    done = run("--trace", tmp_path / "missing/trace.json", tmp_path / "program.py")
    assert (done.stdout, done.returncode) == ("", 1)
    assert "No such file or directory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_full_disk_ends_the_trace_and_not_the_program(runtime, tmp_path):
    (tmp_path / "program.py").write_text("import numpy, time; time.sleep(0.5); print('fine'); raise SystemExit(4)\n")
    done = run("--trace", "/dev/full", tmp_path / "program.py")
    assert (done.stdout, done.returncode) == ("fine\n", 4)
    assert done.stderr == "pagehint: the trace ends here: [Errno 28] No space left on device\n"


def test_a_stopped_process_does_not_keep_the_others_from_being_looked_at(runtime, tmp_path):
    text = """
import multiprocessing, os, signal, time
import numpy as np
def work(ready):
    array = np.ones(20 << 17); del array
    ready.release()
    time.sleep(30)
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ready = context.Semaphore(0)
    processes = [context.Process(target=work, args=[ready]) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        ready.acquire()
    time.sleep(0.5)
    os.kill(processes[0].pid, signal.SIGSTOP)
    time.sleep(1.5)
    for process in processes:
        process.kill()
    print(processes[0].pid, processes[1].pid)
"""
    (tmp_path / "program.py").write_text(text)
    done = run("--trace", tmp_path / "trace.json", tmp_path / "program.py")
    assert done.returncode == 0, done.stderr
    stopped, other = map(int, done.stdout.split())
    found, _ = tracks(json.loads((tmp_path / "trace.json").read_text()))
    assert len(found[other, "warm"]) > len(found[stopped, "warm"])
    assert len(found[stopped, "RSS"]) > len(found[stopped, "warm"])
