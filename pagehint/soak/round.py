"""A round: a new model and a new arena, and all threads at work on them for some seconds."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pagehint as ph
from pagehint.soak.allocating import allocate
from pagehint.soak.arrays import write_arrays
from pagehint.soak.finding import FindingError, require
from pagehint.soak.hotplug import hotplug
from pagehint.soak.shared import Shared, Task
from pagehint.soak.switching import switch_hinting

JOIN_SECONDS = 60


class Round:
    """All threads at once; each runs one of `tasks`, with a random generator of its own."""

    tasks: tuple[Task, ...] = (*[allocate] * 3, *[write_arrays] * 2, hotplug, *[switch_hinting] * 3)

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.shared = Shared()
        self.operations = [0] * len(self.tasks)  # of each thread

    @property
    def findings(self) -> list[str]:
        """What was found, with its traceback where there is one."""
        return self.shared.findings

    def run(self, seconds: float, each_second: Callable[[int], None]) -> None:
        """Run all threads for so long, or until the first finding; then check what is left.

        `each_second` is told the operations of all threads so far.
        """
        threads = [threading.Thread(target=self._work, args=each, daemon=True) for each in enumerate(self.tasks)]
        end = time.monotonic() + seconds
        stop = self.shared.stop
        try:
            for thread in threads:
                thread.start()
            while not stop.wait(min(1.0, max(end - time.monotonic(), 0.01))) and time.monotonic() < end:
                self.verify()
                each_second(sum(self.operations))
        finally:
            stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join(JOIN_SECONDS)
                    if thread.is_alive():
                        self.findings.append(f"{thread.name} hangs")
        if not self.findings:
            self.check_rest()

    def _work(self, number: int, task: Task) -> None:
        try:
            for done in task(self.shared, random.Random(f"{self.seed}/{number}"), number + 1):
                self.operations[number] += done
        except BaseException as error:
            self.shared.found(error)

    def verify(self) -> None:
        """Check what must hold at any moment, while all threads run."""
        try:
            for pages in (self.shared.model, self.shared.arena.pages):
                pages.verify()
        except ph.PageHintError as error:
            self.shared.found(error)

    def check_rest(self) -> None:
        """Check that everything is free, and where it belongs."""
        shared = self.shared
        shared.model.drain_pcp()
        self.verify()
        try:
            for pages in (shared.model, shared.arena.pages):
                stats = pages.stats()
                require(not pages.hinting_enabled, "hinting is still on")
                require(stats.allocated_pages == 0, f"{stats.allocated_pages} pages are still allocated")
                require(
                    stats.free_pages == stats.managed_pages,
                    f"only {stats.free_pages} pages of {stats.managed_pages} are free",
                )
                require(stats.hints_pending == 0, "hints are left")
            require(not shared.owner.any(), "pages are still owned")
            require(shared.arena.live_arrays == 0, f"{shared.arena.live_arrays} arrays are still alive")
            shared.arena.close()
        except (FindingError, ph.PageHintError) as error:
            shared.found(error)
