"""The worker's thread reports while the operations go on, and the oracle knows what is allocated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from pagehint.testing.checker import Checker
from pagehint.testing.faulty_host import FaultyHost, well_formed
from pagehint.testing.layouts import ZoneLayout
from pagehint.testing.operations import OPERATIONS, refusal
from pagehint.testing.page_marks import pages_of


class OwningHost(FaultyHost):
    """Owns a page from its report until the answer. Its methods run on the worker's thread."""

    checker: ThreadedChecker

    def __init__(self, checker: ThreadedChecker, callbacks: ph.PageHintingCallbacks) -> None:
        super().__init__(checker, callbacks)
        self.live, self.prepared = True, False

    def prepare(self) -> Any:
        expect = self.checker.expect
        expect(self.live, "prepare after disable_hinting")
        expect(not self.prepared, "prepare twice")
        result = super().prepare()
        self.prepared = result is None or result >= 0
        return result

    def cleanup(self) -> None:
        expect = self.checker.expect
        expect(self.live, "cleanup after disable_hinting")
        expect(self.prepared, "cleanup without prepare")
        self.prepared = False
        super().cleanup()

    def hint_pages(self, blocks: NDArray[np.void]) -> Any:
        checker, expect, order = self.checker, self.checker.expect, self.checker.pages.min_order
        checker.reports += 1
        expect(self.live, "a report after disable_hinting")
        expect(self.prepared, "a report outside prepare and cleanup")
        expect(0 < len(blocks) <= checker.most, f"{len(blocks)} blocks at once")
        for pfn, block_order, index in blocks.tolist():
            expect(checker.oracle.zones[index].has_memory(pfn, pfn + (1 << block_order)), "the wrong zone")
            expect(order <= block_order <= checker.pages.max_page_order, f"a block of order {block_order}")
        pages = pages_of(blocks)
        expect(len(np.unique(pages)) == len(pages), "a page twice in one report")
        checker.at_host[pages] = True
        try:
            expect(not checker.taken[pages].any(), "a page is reported that is not free")
            expect(not checker.closed[pages].any(), "a page is reported that is isolated")
            expect(checker.untold[pages >> order].all(), "a granule is reported twice")
            free_for = time.monotonic() - checker.freed_at[pages >> order].max()
            expect(checker.flushing or free_for >= checker.min_age, "a granule is reported too early")
            time.sleep(checker.pause)
            answer = super().hint_pages(blocks)
            expect(not checker.taken[pages].any(), "a page is handed out while it is reported")
            if well_formed(answer, len(blocks)):
                taken = np.broadcast_to(True if answer is None else answer, len(blocks))
                # Before it comes back: from then on it may be touched again.
                told = pages_of(blocks[taken])
                checker.untold[told >> order] = False
                checker.due[told >> order] = False
            return answer
        finally:
            checker.at_host[pages] = False


class ThreadedChecker(Checker):
    """The worker's thread reports while the operations run, with and without page sets.

    One thread does the operations, so what is allocated is known exactly. What is reporting, and where the next block
    will be, is not. Each side writes its own mark before it reads the other's, so that one of them sees it when a page
    has two owners.
    """

    operations: ClassVar = {**OPERATIONS, "change_pause": {"pause": (0.0, 0.001, 0.005)}}
    delays = (None, 0.0, 0.001)
    ages = (None, 0.001, "auto")
    reserve_age = 0.005

    def __init__(
        self, layout: ZoneLayout, callbacks: Callable[[], ph.PageHintingCallbacks], *, pcp: bool = False
    ) -> None:
        super().__init__(layout, callbacks, pcp=pcp)
        self.pcp, self.pause = pcp, 0.001
        self.most = self.reports = 0
        self.at_host = np.zeros(self.room, bool)
        self.taken = ~self.of_zones("free")  # allocated or absent
        self.closed = np.zeros(self.room, bool)  # isolated before the batch that is reporting was taken
        # By granule: `untold` may be reported, as it has been touched since the last report; `due` must be by a flush.
        self.untold = np.ones(self.room >> self.pages.min_order, bool)
        self.due = np.ones(self.room >> self.pages.min_order, bool)
        # When a granule may have become free, at the earliest. Page sets free later than their callers.
        self.freed_at = np.zeros(self.room >> self.pages.min_order)
        self.min_age, self.flushing = 0.0, False

    # -- who has what

    def touch(self, pages: NDArray[np.bool_]) -> None:
        for granules in (self.untold, self.due):
            granules[np.flatnonzero(pages) >> self.pages.min_order] = True

    def release(self) -> None:
        """As in `Checker`, before the allocator frees it, which may report it at once."""
        super().release()
        free = self.of_zones("free")
        self.closed &= self.of_zones("isolate")
        self.touch(free & self.taken)
        self.freed_at[np.flatnonzero(free & self.taken) >> self.pages.min_order] = time.monotonic()
        self.taken &= ~free

    def claim(self) -> None:
        """As in `Checker`, once the allocator has answered; nothing of it may be reporting."""
        new = ~self.of_zones("free") & ~self.taken
        self.taken |= new
        assert not self.at_host[new].any(), "a page is handed out that is out for reporting"
        super().claim()
        self.touch(new)
        if self.pcp:
            # Page sets take more than was asked for: what is on no free list has been touched, or is reporting.
            self.untold[self.not_in_buddy()] = True

    def not_in_buddy(self) -> NDArray[np.bool_]:
        """Return the granules that are not wholly in the free lists of the allocator."""
        absent = np.ones(self.room, bool)
        for zone in self.pages.zones:
            absent[pages_of(zone.free_blocks())] = False
        granules: NDArray[np.bool_] = np.logical_or.reduce(absent.reshape(-1, 1 << self.pages.min_order), axis=1)
        return granules

    def both(self, name: str, *args: Any) -> bool:
        """Call the oracle first: what it frees may be reported before the allocator returns."""
        expected = refusal(self.oracle, name, *args)
        self.release()
        outcome = refusal(self.pages, name, *args)
        assert outcome is expected, (name, args, outcome, expected)
        self.claim()
        return outcome is None

    def took(self, pfns: Any, nr_pages: int) -> None:
        super().took(pfns, nr_pages)
        self.claim()

    def alloc_bulk_real(self, *args: Any) -> Any:
        """A batch that is taken meanwhile makes it give everything back and begin again, which touches any granule."""
        before = self.reports
        try:
            return super().alloc_bulk_real(*args)
        finally:
            if self.reports != before:
                self.untold[:] = True

    def alloc_at_bulk(self, pick: int, runs: int, order: int, free_only: bool) -> None:
        """A batch that is taken meanwhile makes it give everything back and begin again, which touches any granule."""
        self.untold[:] = True
        super().alloc_at_bulk(pick, runs, order, free_only)

    def run_ops_real(self, freed: Any, ops: Any, table: Any) -> None:
        """Take the marks off whatever it may free, before it begins; any granule may be touched, and reported."""
        pages = np.zeros(self.room, bool)
        for pfn, order in freed:
            pages[pfn : pfn + (1 << order)] = True
        self.marks.release(np.flatnonzero(pages))
        self.taken &= ~pages
        self.touch(pages)
        self.untold[:] = True
        super().run_ops_real(freed, ops, table)

    def trace(self, seed: int, length: int, top: int) -> None:
        super().trace(seed, length, top)
        self.claim()

    # -- hinting

    def switch_on(self, most: int, **options: Any) -> None:
        host = OwningHost(self, self.new_callbacks())
        most = self.capped(host.callbacks, most)
        callbacks = ph.PageHintingCallbacks(host.hint_pages, most, host.prepare, host.cleanup)
        if self.on:
            host.live = False
            assert refusal(self.pages, "enable_hinting", callbacks) is ph.HintingActiveError
            return
        self._host, self.most = host, most
        self.min_age = 0.0 if options["min_age"] in (None, "auto") else options["min_age"]
        # Nothing is reporting now. What is free already is reported if `mark_free`, or once it has been touched.
        self.untold[:] = options["mark_free"]
        self.untold |= self.not_in_buddy()
        self.due[:] = self.untold
        self.closed = self.of_zones("isolate")
        self.pages.enable_hinting(callbacks, **options)

    def switch_off(self) -> None:
        self.pages.disable_hinting()
        if self.on:
            self._host.live = False
            assert not self._host.prepared, "no cleanup"
        assert not self.at_host.any()

    def set(self, name: str, value: float | None) -> None:
        if name == "max_pages":
            assert value is not None
            self.most = max(self.most, int(value))  # a batch of the old size may be reporting
        setattr(self.pages, name, value)

    def flush(self) -> None:
        if not self.on:
            assert refusal(self.pages, "flush_hinting") is ph.HintingInactiveError
            return
        self.flushing = True  # whatever its age
        self.pages.flush_hinting()
        self.flushing = False
        self.closed = self.of_zones("isolate")

    def everything_reportable_is_reported(self) -> None:
        if not self.on:
            return
        self.failure = "none"
        self.flush()
        assert not self.broken, self.broken
        self.same_free_blocks()
        order = self.pages.min_order
        for real, zone in self.zone_pairs():
            bits = np.unpackbits(real.hint_bitmap.view(np.uint8), bitorder="little")
            for granule in range(len(zone.free) >> order):
                reportable = zone.granule_is_free(granule) and not zone.isolate[granule << order]
                if reportable and zone.usable_free >= zone.watermarks.low + (self.pages.max_pages << order):
                    assert not self.due[(zone.base >> order) + granule], "not reported"
                    assert not bits[granule], "still to be reported"

    def change_pause(self, pause: float) -> None:
        """Set how long a report takes."""
        self.pause = pause

    # -- always

    def check(self) -> None:
        super().check()
        stats, expected = self.pages.stats(), self.oracle.stats()
        assert stats.managed_pages == expected.managed_pages
        assert stats.allocated_pages == expected.allocated_pages
        assert not (self.of_zones("free") & self.taken).any()
        if not self.on:
            assert stats.reporting_pages == stats.hints_pending == 0
            if stats.pcp_pages == 0:
                self.same_free_blocks()

    def close(self) -> None:
        self.disable()
        self.pages.drain_pcp()
        super().close()
