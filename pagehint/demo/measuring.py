"""One run of the demo, measured in the process that does it.

The memory is an arena of this process, whose host is the operating system, or the RAM of a guest, whose host is QEMU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from pagehint.arena.arena import Arena
from pagehint.arena.base import BaseArena
from pagehint.demo.outcome import Measured
from pagehint.demo.workload import MIB, burst, bursts
from pagehint.errors import PageHintError
from pagehint.process_memory import rss_bytes
from pagehint.qemu.host import Host

SAMPLE_SECONDS = 0.02
HINT_DELAY = 0.2  # seconds; well inside the idle time


class Sampler(threading.Thread):
    """A thread that reads the RSS, and the guest's RAM in its host, at a steady rate until it is stopped.

    `tell` is called with the time since the start and the RSS at each sample.
    """

    def __init__(self, tell: Callable[[float, int], None], host: Host | None) -> None:
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
            passed = time.monotonic() - self._begin
            self.samples.append((passed, rss, resident))
            self._tell(passed, rss)
            if self._done.wait(SAMPLE_SECONDS):
                return

    def stop(self) -> None:
        """Take no further sample."""
        self._done.set()
        self.join()


def measure(size: int, seconds: float, advice: str, tell: Callable[[float, int], None], host: str = "os") -> Measured:
    """Run the workload in this process, and measure it.

    Parameters
    ----------
    size : int
        Bytes of the arena, or of the guest's RAM.
    seconds : float
        Time for all rounds.
    advice : {"", "dontneed", "free"}
        How memory is given back. Hinting is off if it is empty.
    tell : callable
        Told, many times a second, how far it is (0 to 1), and the RSS in bytes.
    host : {"os", "qemu"}
        Whose memory it is.
    """
    with _memory(size, host) as (arena, qemu):
        burst(arena, 2 * MIB, seed=0)  # so that what is loaded or compiled at its first use is in no figure
        if qemu is None:
            return _measure_run(arena, None, size, seconds, advice, tell)
        # A quarter of the RAM stays in use all the time: the figures of the host are compared with that.
        kept = arena.empty(size // 4 // 8, np.uint64)
        kept[:] = np.arange(len(kept))
        measured = _measure_run(arena, qemu, size * 3 // 4, seconds, advice, tell)
        intact = (kept == np.arange(len(kept))).all()
        del kept  # before the arena is closed
    if not intact:
        raise PageHintError("the host dropped memory that was in use")
    return measured


@contextmanager
def _memory(size: int, host: str) -> Iterator[tuple[BaseArena, Host | None]]:
    if host == "qemu":
        with Host(size) as qemu:
            yield qemu.arena(), qemu
    else:
        with Arena(size) as arena:
            yield arena, None


def _measure_run(
    arena: BaseArena, qemu: Host | None, size: int, seconds: float, advice: str, tell: Callable[[float, int], None]
) -> Measured:
    measured = Measured(rss_start=rss_bytes())
    with _hinting(arena, qemu, advice):
        sampler = Sampler(lambda passed, rss: tell(min(passed / seconds, 1.0), rss), qemu)
        sampler.start()
        measured.round_seconds = bursts(arena, size, seconds)
        sampler.stop()
        stats = arena.pages.stats()
        if arena.pages.last_error is not None:
            raise arena.pages.last_error
    measured.work_seconds = sum(measured.round_seconds)
    measured.reports, measured.blocks_reported = stats.reports, stats.blocks_reported
    measured.bytes_reported = stats.pages_reported * stats.page_size
    measured.samples = sampler.samples
    times, rss, resident = np.array(sampler.samples).T
    measured.rss_peak, measured.rss_end = int(rss.max()), int(rss[-1])
    measured.rss_mean = int(np.trapezoid(rss, times) / (times[-1] - times[0]))
    if qemu is not None:
        measured.host_peak, measured.host_end = int(resident.max()), int(resident[-1])
        measured.host_mean = int(np.trapezoid(resident, times) / (times[-1] - times[0]))
        measured.in_use_end = stats.allocated_pages * stats.page_size
        measured.discards, measured.bytes_discarded = qemu.discards.calls, qemu.discards.nr_bytes
    return measured


def _hinting(arena: BaseArena, qemu: Host | None, advice: str) -> AbstractContextManager[Any]:
    if not advice:
        return nullcontext()
    # QEMU decides by itself how it gives memory back.
    return arena.hinting(advice, delay=HINT_DELAY) if qemu is None else arena.hinting(delay=HINT_DELAY)
