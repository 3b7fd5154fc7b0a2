"""What is done for a worker while it lives: looking at its memory, and having what is kept given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from distributed import Worker
from tornado.ioloop import PeriodicCallback

from pagehint.dask.unmanaged import unmanaged
from pagehint.errors import PageHintError
from pagehint.memory import release
from pagehint.refusals import say_once

METRIC: Final = "pagehint"
_TICK: Final = 0.5  # seconds
_BETWEEN_LOOKS: Final = 5.0
_BETWEEN_RELEASES: Final = 10.0  # while the worker is near its target
_SHARE: Final = 50  # what took a second is not done again for so many
_NEAR: Final = 0.9  # of the target: before the worker begins to spill, which is above it

T = TypeVar("T")


class Attendant:
    """Attends to one worker, on its event loop. What takes time is done by a thread, one thing at a time.

    Parameters
    ----------
    worker : Worker
        Of this process.
    idle : float or None
        Seconds without work after which what is kept is given back; None: never.
    """

    def __init__(self, worker: Worker, idle: float | None) -> None:
        self._worker, self._idle = worker, idle
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pagehint")
        self._ticks = PeriodicCallback(self._tick, _TICK * 1000)
        self._transitions = -1  # of tasks, when looked at last
        self._quiet_since = time.monotonic()
        self._released_in_quiet = False
        self._next_look = self._next_release = 0.0
        self._found: dict[str, Any] = {}
        self._found_at = 0.0
        self._released = self._releases = 0

    def begin(self) -> None:
        """Begin, on the worker's event loop."""
        self._ticks.start()

    def end(self) -> None:
        """End. What its thread is doing goes on to its end, and changes nothing any more."""
        self._ticks.stop()
        self._worker.metrics.pop(METRIC, None)
        self._thread.shutdown(wait=False)

    async def _tick(self) -> None:
        now = time.monotonic()
        if self._works():
            self._quiet_since, self._released_in_quiet = now, False
        try:
            if self._is_idle(now) or (self._is_near_its_target() and now >= self._next_release):
                await self._release()
            elif now >= self._next_look:
                await self._look()
        except PageHintError as error:  # no /proc/self/smaps: it will not come
            say_once("looking at a worker's memory", str(error), "nothing of it is in its metrics, nor released")
            self.end()

    def _works(self) -> bool:
        """Whether tasks run, or data come, or either has been so since the last time."""
        state = self._worker.state
        before, self._transitions = self._transitions, state.transition_counter
        return before != self._transitions or bool(state.all_running_tasks) or state.in_flight_tasks_count > 0

    def _is_idle(self, now: float) -> bool:
        return self._idle is not None and not self._released_in_quiet and now - self._quiet_since >= self._idle

    def _is_near_its_target(self) -> bool:
        manager = self._worker.memory_manager
        share = manager.memory_target_fraction or manager.memory_spill_fraction
        if not manager.memory_limit or not share:
            return False
        return self._worker.monitor.get_process_memory() >= _NEAR * share * manager.memory_limit

    async def _release(self) -> None:
        self._released_in_quiet = True
        brought, seconds = await self._by_the_thread(release)
        self._released += max(brought.total, 0)
        self._releases += 1
        self._next_release = time.monotonic() + max(_BETWEEN_RELEASES, _SHARE * seconds)
        self._next_look = 0.0

    async def _look(self) -> None:
        process, managed = self._worker.monitor.get_process_memory(), self._managed()
        self._found, seconds = await self._by_the_thread(lambda: unmanaged(process, managed))
        self._found_at = time.monotonic()
        self._next_look = self._found_at + max(_BETWEEN_LOOKS, _SHARE * seconds)
        if self._ticks.is_running():  # it may have ended meanwhile
            self._worker.metrics[METRIC] = self._metric

    def _managed(self) -> int:
        """Return the bytes of data that are in memory, as Dask counts them."""
        spilled, _ = getattr(self._worker.data, "spilled_total", (0, 0))
        return max(self._worker.state.nbytes - spilled, 0)

    async def _by_the_thread(self, work: Callable[[], T]) -> tuple[T, float]:
        """Return what work returns, and how many seconds it took."""

        def timed() -> tuple[T, float]:
            begin = time.monotonic()
            return work(), time.monotonic() - begin

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)

    def _metric(self, worker: Worker) -> dict[str, Any]:
        age = time.monotonic() - self._found_at
        return {**self._found, "released": self._released, "releases": self._releases, "age": age}
