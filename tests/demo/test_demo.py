"""The demo on this machine's real memory: what it measures, what people see of it, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guests import without_qemu

from pagehint.demo import ROUNDS, Measured, Outcome
from pagehint.demo.table import print_outcome


def pagehint(*args, **options):
    return subprocess.run(
        [sys.executable, "-P", "-m", "pagehint", *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def wait_for(what):
    """The first true answer. Whatever it waits for comes at once, or the test's own timeout ends it."""
    while not (answer := what()):
        time.sleep(0.05)
    return answer


def workers_of(pid):
    """Return the children that run the workload."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child) for child in pids if "pagehint.demo.child" in Path(f"/proc/{child}/cmdline").read_text().split("\0")
    ]


def is_running(pid):
    """Whether the process is there and is no zombie, which nobody may have waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_memory_comes_back_with_hinting_and_not_without(tmp_path):
    plot = tmp_path / "rss.png"
    done = pagehint("demo", "--size", "256MiB", "--seconds", "5", "--json", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    kept = {}
    for name in ("off", "on"):
        run = figures[name]
        assert set(run) == {"rss_start", "rss_peak", "rss_end", "rss_mean", "work_seconds", "round_seconds"}
        assert run["rss_peak"] - run["rss_start"] > 128 << 20
        kept[name] = (run["rss_end"] - run["rss_start"]) / (run["rss_peak"] - run["rss_start"])
    assert kept["off"] > 0.9
    assert kept["on"] < 0.03
    assert figures["blocks_reported"] >= figures["reports"] > 0
    assert figures["bytes_reported"] > 128 << 20
    assert figures["overhead"] > 0
    assert len(figures["on"]["round_seconds"]) == ROUNDS
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_table_for_people(encoding):
    env = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": encoding}
    done = pagehint("demo", "--size", "64MiB", "--seconds", "1", env=env, encoding=encoding)
    assert done.returncode == 0, done.stderr
    for words in ("RSS peak", "RSS at the end", "RSS mean", "seconds of work", "hinting on", "noise"):
        assert words in done.stdout


def test_json_in_ascii():
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = pagehint("demo", "--size", "64MiB", "--seconds", "1", "--json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["reports"] > 0


def test_what_people_see_fits_in_80_columns_however_long_the_figures(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = Measured(*[1023 * (1 << 30)] * 4, 12345.67, [1234.56, 2345.67], 123_456, 1_234_567, 99 << 40)
    print_outcome(Outcome(run, run), "an arena of 1023 GiB, advice 'dontneed'")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    [title] = [line for line in lines if "1023 GiB" in line and "arena" in line]
    assert "dontneed" in title


@without_qemu
def test_a_real_host_has_what_is_in_use_and_not_more(tmp_path):
    plot = tmp_path / "rss.png"
    done = pagehint("demo", "--host", "qemu", "--size", "256MiB", "--seconds", "5", "--json", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for name in ("off", "on"):
        assert figures[name]["in_use_end"] == 64 << 20
        assert figures[name]["host_peak"] > 128 << 20
    assert figures["off"]["host_end"] / figures["off"]["in_use_end"] > 2
    assert 1 <= figures["on"]["host_end"] / figures["on"]["in_use_end"] < 1.03
    assert figures["on"]["bytes_discarded"] == figures["bytes_reported"] > 128 << 20
    assert figures["off"]["discards"] == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_table_of_a_real_host(capsys):
    run = Measured(host_peak=2 << 30, host_end=513 << 20, in_use_end=512 << 20, work_seconds=1, round_seconds=[1, 1])
    print_outcome(Outcome(run, run), "a guest")
    out = capsys.readouterr().out
    for words in (
        "host resident at the end", "513 MiB", "in use at the end", "1.002", "QEMU discarded",
        "Kept by the host beyond what is in use: 1 MiB without",
    ):  # fmt: skip
        assert words in out


def test_ctrl_c_ends_it_cleanly():
    command = [sys.executable, "-P", "-m", "pagehint", "demo", "--size", "64MiB", "--seconds", "60", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = wait_for(lambda: workers_of(process.pid))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, err) == ("", "pagehint: interrupted\n")
    wait_for(lambda: not any(map(is_running, children)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_killed_left_its_child_at_work(number):
    command = [sys.executable, "-P", "-m", "pagehint", "demo", "--size", "64MiB", "--seconds", "600", "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        children = wait_for(lambda: workers_of(process.pid))
        process.send_signal(number)
        assert process.wait(30) == -number
    wait_for(lambda: not any(map(is_running, children)))
