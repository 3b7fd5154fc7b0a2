"""The soak: that it runs, ends, and says what it has found."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import pagehint as ph
from pagehint.cli import main
from pagehint.soak import soak
from pagehint.soak.round import Round
from pagehint.soak.shared import Shared

COMMAND = [sys.executable, "-P", "-X", "faulthandler", "-m", "pagehint.soak"]


def test_five_seconds():
    done = subprocess.run(
        [*COMMAND, "--minutes", "0.083", "--seed", "7"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("seed 7: ") for line in lines)
    assert lines[-1] == "seed 7: no findings"
    assert "operations" in lines[1]
    assert [line.split()[2] for line in lines[2:-1]] == ["rss", "mappings", "files", "threads"]
    assert "soak, seed 7" in done.stderr


def test_ctrl_c_ends_it_with_the_report():
    with subprocess.Popen(
        [*COMMAND, "--minutes", "10"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert "begins" in child.stdout.readline()
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert "Traceback" not in err
    assert "interrupted after" in out
    assert out.endswith("no findings\n")


@pytest.fixture
def three_rounds(monkeypatch):
    """A soak of 1.8 seconds has three rounds, however long they take: its time passes by being looked at."""
    monkeypatch.setattr(soak, "time", SimpleNamespace(monotonic=itertools.count(0, 0.5).__next__))


def run_main(capsys, *arguments):
    status = main(["soak", "--seed", "7", *arguments])
    return status, capsys.readouterr()


def test_a_page_in_two_hands_is_found(monkeypatch, capsys):
    class Planted(Round):
        def __init__(self, seed):
            super().__init__(seed)
            self.shared.owner[:] = 99  # as if another thread had every page

    monkeypatch.setattr(soak, "Round", Planted)
    status, said = run_main(capsys, "--minutes", "1")
    assert status == 1
    assert "seed 7: FOUND" in said.err
    assert "in two hands" in said.err
    assert not said.out.endswith("no findings\n")


def test_a_dead_canary_is_found(monkeypatch, capsys):
    def drop_everything(shared: Shared, rng, me):
        time.sleep(0.2)
        # As a host that is told of too much would. What is not open yet has nothing to drop.
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(shared.arena._mapping.address), ctypes.c_size_t(shared.arena.size), mmap.MADV_DONTNEED
        )
        yield 1

    class Planted(Round):
        tasks = (*Round.tasks, drop_everything)

    monkeypatch.setattr(soak, "Round", Planted)
    status, said = run_main(capsys, "--minutes", "1")
    assert status == 1
    assert "canaries of" in said.err


def test_what_verify_finds_ends_it(monkeypatch, capsys):
    class Planted(Round):
        def verify(self):
            self.shared.found(ph.PageHintError("zone DMA: broken"))

    monkeypatch.setattr(soak, "Round", Planted)
    status, said = run_main(capsys, "--minutes", "1")
    assert status == 1
    assert "zone DMA: broken" in said.err


@pytest.mark.usefixtures("three_rounds")
@pytest.mark.parametrize("what", ["files", "threads", "mappings", "rss"])
def test_a_leak_is_found(what, monkeypatch, capsys):
    kept = []
    release = threading.Event()

    def leak():
        if what == "files":
            kept.append(open(__file__))  # noqa: PTH123, SIM115
        elif what == "threads":
            kept.append(threading.Thread(target=release.wait))
            kept[-1].start()
        elif what == "mappings":
            # Of unlike protection, or the kernel makes one of all of them.
            kept.extend(ph.Arena("2MiB") for _ in range(20))
        else:
            kept.append(b"x" * (100 << 20))  # other tests may have left what goes back meanwhile

    class Planted(Round):
        def run(self, seconds, each_second):
            if self.seed == "7/1":  # not in the first, which is what the last is compared with
                leak()

    monkeypatch.setattr(soak, "Round", Planted)
    try:
        status, said = run_main(capsys, "--minutes", "0.03")
    finally:
        release.set()
        for each in kept:
            if hasattr(each, "close"):
                each.close()
    assert status == 1
    assert f"FOUND {what} grew" in said.err


@pytest.mark.usefixtures("three_rounds")
def test_the_populating_thread_that_began_after_the_first_round_passed_for_a_leak(monkeypatch, capsys):
    """It is one for the process, and begins with the first array that is large enough. It is played by another here."""
    release = threading.Event()

    def ahead():
        Path("/proc/thread-self/comm").write_text("pagehint-ahead")
        release.wait()

    thread = threading.Thread(target=ahead)

    class Planted(Round):
        def run(self, seconds, each_second):
            if self.seed == "7/1":
                thread.start()

    monkeypatch.setattr(soak, "Round", Planted)
    try:
        status, said = run_main(capsys, "--minutes", "0.03")
    finally:
        release.set()
    assert thread.ident is not None
    assert status == 0, said.err


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--minutes", "nan"], ["--seed", "x"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run_main(capsys, *arguments)
    assert caught.value.code == 2
