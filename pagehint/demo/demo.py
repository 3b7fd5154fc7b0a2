"""The main job, measured: a bursty workload of arrays in an arena, with hinting off and on, each in its own process.

The arena is memory of that process, whose host is the operating system, or the RAM of a guest, whose host is QEMU.

Here is the workload and its measuring; what people see of it is in `_report` and `_plot`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagehint.arena.arena import Arena
from pagehint.arena.base import BaseArena
from pagehint.errors import PageHintError
from pagehint.qemu import GuestArena, Host

MIB = 1 << 20
ROUNDS = 4
SAMPLE_SECONDS = 0.02
MIN_IDLE_SECONDS = 0.6
HINT_DELAY = 0.2  # seconds; well inside the idle time
PASSES = 6  # how often the workload goes over its arrays


@dataclass
class Measured:
    """What one run, with hinting off or on, was measured to do; sizes in bytes, times in seconds."""

    rss_start: int = 0
    rss_peak: int = 0
    rss_end: int = 0
    rss_mean: int = 0
    work_seconds: float = 0.0
    round_seconds: list[float] = field(default_factory=list)
    reports: int = 0
    blocks_reported: int = 0
    bytes_reported: int = 0
    samples: list[tuple[float, int, int]] = field(default_factory=list)  # seconds, RSS, what the host has
    # With QEMU as the host, what it has of the guest's RAM and says to have discarded of it.
    host_peak: int = 0
    host_end: int = 0
    host_mean: int = 0
    in_use_end: int = 0
    discards: int = 0
    bytes_discarded: int = 0

    def figures(self) -> dict[str, Any]:
        """Return the figures that `pagehint demo --json` prints of a run."""
        names = ["rss_start", "rss_peak", "rss_end", "rss_mean", "work_seconds", "round_seconds"]
        if self.host_peak:
            names += ["host_peak", "host_end", "host_mean", "in_use_end", "discards", "bytes_discarded"]
        return {name: getattr(self, name) for name in names}


@dataclass
class Outcome:
    """Both runs."""

    off: Measured
    on: Measured

    @property
    def overhead(self) -> float:
        """Seconds of work with hinting for each second without it. Less than `noise` away from 1 says nothing."""
        return self.on.work_seconds / self.off.work_seconds

    @property
    def noise(self) -> float:
        """By which part the rounds of one run differ, although they do the same.

        Without the first, which is special: with hinting off only it touches new memory.
        """
        rounds = [run.round_seconds[1:] for run in (self.off, self.on)]
        return max(max(each) / min(each) for each in rounds) - 1

    def to_json(self) -> str:
        """Return the figures as one JSON object."""
        figures = {
            "off": self.off.figures(),
            "on": self.on.figures(),
            "reports": self.on.reports,
            "blocks_reported": self.on.blocks_reported,
            "bytes_reported": self.on.bytes_reported,
            "overhead": self.overhead,
            "noise": self.noise,
        }
        return json.dumps(figures, indent=2)


def rss_bytes() -> int:
    """Return this process's resident memory, as the kernel counts it."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/smaps_rollup has no Rss")


def available_bytes() -> int:
    """Return how much memory the system could give to a process without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


# ---- in the parent ------------------------------------------------------------------------------------------


def run_both(
    size: int, seconds: float, advice: str, progress: Callable[[str, float, int], None], host: str = "os"
) -> Outcome:
    """Run the workload with hinting off and then on.

    Parameters
    ----------
    size : int
        Bytes of the arena.
    seconds : float
        Time for both runs; a round is filled up with idle time, and longer if the work itself is.
    advice : {"dontneed", "free"}
        How memory is given back.
    progress : callable
        Told, many times a second, which run ("off" or "on") is how far (0 to 1), and its RSS in bytes.
    host : {"os", "qemu"}
        Whose memory it is.

    Raises
    ------
    PageHintError
        If a run fails; its own words are in the message.
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


def _run_child(
    size: int, seconds: float, advice: str, progress: Callable[[str, float, int], None], host: str
) -> Measured:
    name = "on" if advice else "off"
    # -P: the package that is installed, not a source tree that happens to be the working directory.
    command = [sys.executable, "-P", "-m", "pagehint.demo.demo", str(size), str(seconds), advice, host]
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
            child.kill()


# ---- in the child -------------------------------------------------------------------------------------------


class Sampler(threading.Thread):
    """Reads the RSS, and what the host has, at a steady rate; passes the RSS on, until stopped."""

    def __init__(self, tell: Callable[[int], None], host: Host | None) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, int, int]] = []
        self._host = host
        self._begin = time.monotonic()
        self._done = threading.Event()
        self._tell = tell

    def run(self) -> None:
        """Sample."""
        while True:
            rss = rss_bytes()
            resident = self._host.resident_bytes if self._host else 0
            self.samples.append((time.monotonic() - self._begin, rss, resident))
            self._tell(rss)
            if self._done.wait(SAMPLE_SECONDS):
                return

    def stop(self) -> None:
        """Take no further sample."""
        self._done.set()
        self.join()


def array_sizes(size: int, rng: random.Random) -> list[int]:
    """Return sizes of arrays in bytes, 1 to 16 MiB (less in a small arena), three quarters of `size` in all.

    The largest first and not more in all, so that they fit for certain: what is free is not always in one piece.
    """
    left = size * 3 // 4
    most = min(16 * MIB, size // 64)
    least = most // 16
    sizes = []
    while left >= least:
        sizes.append(min(rng.randrange(least, most + 1), left))
        left -= sizes[-1]
    return sorted(sizes, reverse=True)


def work(arena: BaseArena, size: int, seed: int) -> float:
    """One burst: grow, use, free. Returns a sum, so that nothing can be left out."""
    arrays: list[NDArray[np.float64]] = []
    for nr_bytes in array_sizes(size, random.Random(seed)):
        array = arena.empty(nr_bytes // 8)
        array[:] = len(arrays)
        arrays.append(array)
    total = 0.0
    for _ in range(PASSES):
        for array in arrays:
            np.sqrt(array, out=array)
            total += float(array.sum())
    return total


@contextmanager
def memory(size: int, host: str) -> Iterator[tuple[BaseArena, Host | None]]:
    """Make the arena to work in, and the host if it is not the operating system."""
    if host == "qemu":
        with Host(size) as qemu:
            yield qemu.arena(), qemu
    else:
        with Arena(size) as arena:
            yield arena, None


def measure(size: int, seconds: float, advice: str, tell: Callable[[float, int], None], host: str = "os") -> Measured:
    """Run the workload in this process, with hinting if `advice` says how, and measure it.

    In a guest a quarter of its RAM stays in use all the time: something to hold the figures of its host against.
    """
    with memory(size, host) as (arena, qemu):
        work(arena, 2 * MIB, seed=0)  # what is loaded or compiled lazily shall not count
        kept = np.empty(0, np.uint64)
        if qemu is not None:
            kept = arena.empty(size // 4 // 8, np.uint64)
            kept[:] = np.arange(len(kept))
            size = size * 3 // 4
        measured = Measured(rss_start=rss_bytes())
        begin = time.monotonic()
        sampler = Sampler(lambda rss: tell(min((time.monotonic() - begin) / seconds, 1.0), rss), qemu)
        if advice and isinstance(arena, GuestArena):
            arena.hinting(delay=HINT_DELAY).__enter__()
        elif advice:
            arena.hinting(advice, delay=HINT_DELAY).__enter__()
        sampler.start()
        for turn in range(ROUNDS):
            started = time.monotonic()
            work(arena, size, seed=turn)
            measured.round_seconds.append(time.monotonic() - started)
            time.sleep(max(begin + seconds * (turn + 1) / ROUNDS - time.monotonic(), MIN_IDLE_SECONDS))
        sampler.stop()
        measured.rss_end = sampler.samples[-1][1]
        stats = arena.pages.stats()
        measured.samples = sampler.samples
        measured.work_seconds = sum(measured.round_seconds)
        times, sizes, resident = np.array(sampler.samples).T
        measured.rss_peak = int(sizes.max())
        measured.rss_mean = int(np.trapezoid(sizes, times) / (times[-1] - times[0]))
        if qemu is not None:
            measured.host_peak, measured.host_end = int(resident.max()), int(resident[-1])
            measured.host_mean = int(np.trapezoid(resident, times) / (times[-1] - times[0]))
            measured.in_use_end = stats.allocated_pages * stats.page_size
            measured.discards, measured.bytes_discarded = qemu.discards.calls, qemu.discards.nr_bytes
            if not (kept == np.arange(len(kept))).all():
                raise PageHintError("the host dropped memory that was in use")
        measured.reports, measured.blocks_reported = stats.reports, stats.blocks_reported
        measured.bytes_reported = stats.pages_reported * stats.page_size
        if arena.pages.last_error is not None:
            raise arena.pages.last_error
        del kept
    return measured


def _say(message: dict[str, Any]) -> None:
    try:
        print(json.dumps(message), flush=True)
    except BrokenPipeError:
        os._exit(130)  # the parent has gone; an exception would end the sampler's thread only


def _child() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("advice")
    parser.add_argument("host")
    args = parser.parse_args()
    try:
        measured = measure(
            args.size, args.seconds, args.advice, lambda done, rss: _say({"done": done, "rss": rss}), args.host
        )
        _say({"measured": asdict(measured)})
    except KeyboardInterrupt:
        sys.exit(130)  # the parent is going


if __name__ == "__main__":
    _child()
