"""Who reports, and what must hold then: twice.

With manual work the allocator and the oracle both report, and have the same answers, state and reports. With the
worker's thread only the allocator reports, while the operations go on, and the oracle knows what is allocated.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from pagehint.testing.operations import OPERATIONS, Operations, ZoneLayout, refusal
from pagehint.testing.oracle import COUNTS
from pagehint.testing.page_marks import Frames

Pages = NDArray[np.bool_]  # by PFN

PAGE_COUNTS = ("managed_pages", "free_pages", "pcp_pages", "reporting_pages", "allocated_pages", "hints_pending")


class HostError(Exception):
    """What callbacks are made to fail with."""


def pages_of(blocks: Any) -> NDArray[np.int64]:
    """Return the PFN of every page in a structured array of blocks."""
    runs = [np.arange(block["pfn"], block["pfn"] + (1 << int(block["order"])), dtype=np.int64) for block in blocks]
    return np.concatenate([*runs, np.empty(0, np.int64)])


class Host:
    """The callbacks under test for one enable, with the failures of the moment around them."""

    def __init__(self, judge: Judge, callbacks: ph.PageHintingCallbacks) -> None:
        if not callable(callbacks.hint_pages):
            raise TypeError("hint_pages must be a Python function, through which the judge can see what is reported")
        self.judge, self.callbacks = judge, callbacks

    def _guarded(self, function: Any, *args: Any) -> Any:
        """Call a callback. To the engine an exception is only a failed report; an assertion is a finding."""
        try:
            return function(*args)
        except AssertionError as error:
            self.judge.broken.append(error)
            raise

    def prepare(self) -> Any:
        if self.judge.failure == "prepare raises":
            raise HostError
        if self.judge.failure == "prepare refuses":
            return -1
        return self._guarded(self.callbacks.prepare) if self.callbacks.prepare else None

    def hint_pages(self, blocks: NDArray[np.void]) -> Any:
        failure = self.judge.failure
        if failure == "raises" or (failure == "raises at times" and int(blocks["pfn"][0]) % 3 == 0):
            raise HostError
        if failure == "wrong answer":
            return np.ones(len(blocks) + 1, bool)
        taken = np.ones(len(blocks), bool)
        if failure == "refuses some":
            taken = (blocks["pfn"] >> blocks["order"]) % 3 != 0
        if not taken.any():
            return taken
        told = blocks if taken.all() else blocks[taken]
        told.flags.writeable = False
        answer = self._guarded(self.callbacks.hint_pages, told)
        if not well_formed(answer, len(told)):
            self.judge.broken.append(f"hint_pages returned {answer!r} for {len(told)} blocks")
        elif not taken.all():
            taken[taken] = True if answer is None else answer
            return taken
        return answer

    def cleanup(self) -> None:
        if self.judge.failure == "cleanup raises":
            raise HostError
        if self.callbacks.cleanup:
            self._guarded(self.callbacks.cleanup)


def well_formed(answer: Any, nr_blocks: int) -> bool:
    """Whether `hint_pages` may return this."""
    return answer is None or (np.asarray(answer).dtype == np.bool_ and np.shape(answer) in ((), (nr_blocks,)))


class Judge(Operations):
    """An allocator, its oracle, and the memory in between, of which nothing may be lost.

    Parameters
    ----------
    layout : ZoneLayout
        The machine.
    callbacks : callable
        Returns the callbacks under test; called for every enable.
    pcp : bool
        Whether there are per-CPU page sets.
    """

    def __init__(
        self, layout: ZoneLayout, callbacks: Callable[[], ph.PageHintingCallbacks], *, pcp: bool = False
    ) -> None:
        super().__init__(layout, pcp=pcp)
        self.new_callbacks = callbacks
        self.frames = Frames(self.room)
        self.broken: list[object] = []  # findings inside callbacks, where an exception would be a failed report only

    def capped(self, host: Host, most: int) -> int:
        """Return the most blocks at once that the operation and these callbacks allow."""
        self.limit = host.callbacks.max_pages
        return min(most, self.limit)

    @staticmethod
    def pages_of(blocks: Any) -> NDArray[np.int64]:
        """Return the PFN of every page in the blocks that `hint_pages` got."""
        return pages_of(blocks)

    def expect(self, truth: object, what: str) -> None:
        if not truth:
            self.broken.append(what)

    # -- the pages, by PFN, as the oracle has them

    def of_zones(self, name: str, outside: bool = False) -> Pages:
        pages = np.full(self.room, outside)
        for zone in self.oracle.zones:
            span = slice(zone.start_pfn, zone.end_pfn)  # the arrays reach further, perhaps into the next zone
            pages[span] = getattr(zone, name)[zone.start_pfn - zone.base : zone.end_pfn - zone.base]
        return pages

    def used_pages(self) -> Pages:
        return ~(self.of_zones("free") | self.of_zones("absent", outside=True))

    def release(self) -> None:
        """What the oracle has not in use is nobody's from now on."""
        self.frames.release(np.flatnonzero(self.frames.owned & ~self.used_pages()))

    def claim(self) -> None:
        """What the oracle has in use is the caller's, who writes to it."""
        self.frames.claim(np.flatnonzero(self.used_pages() & ~self.frames.owned))

    def check(self) -> None:
        """Check whatever must hold between two operations.

        Raises
        ------
        AssertionError, PageHintError
            If it does not.
        """
        assert not self.broken, self.broken
        self.pages.verify()
        self.frames.check()

    def close(self) -> None:
        """Switch hinting off, and check once more."""
        self.disable()
        self.frames.release(np.flatnonzero(self.frames.owned))
        self.check()


def destroying_callbacks(judge: Judge) -> ph.PageHintingCallbacks:
    """Return a host that makes use of its right to drop what it is told of."""

    def hint_pages(blocks: NDArray[np.void]) -> None:
        judge.frames.memory[pages_of(blocks)] = 0xDB

    return ph.PageHintingCallbacks(hint_pages, max_pages=20)


class ManualJudge(Judge):
    """Manual work, no page sets: all is deterministic, and everything is compared after every operation."""

    operations: ClassVar = {**OPERATIONS, "run_pending": {"seconds": (0.0, 0.05, 1.0, 2.0, 100.0)}}
    delays = (None, 0.0, 2.0)
    ages = (None, 0.05, 2.0)

    def __init__(
        self, layout: ZoneLayout, callbacks: Callable[[], ph.PageHintingCallbacks], *, pcp: bool = False
    ) -> None:
        if pcp:
            raise ValueError("with page sets nobody can say where a page is: pcp=True is for workqueue='thread'")
        super().__init__(layout, callbacks)
        self.now = 1000.0
        self.calls: deque[tuple[str, list[Any], Any]] = deque()  # of the allocator, that the oracle must make too

    def both(self, name: str, *args: Any) -> bool:
        outcome = [refusal(allocator, name, *args) for allocator in (self.pages, self.oracle)]
        assert outcome[0] is outcome[1], (name, args, outcome)
        self.release()
        self.claim()
        return outcome[0] is None

    def took(self, pfns: Any, nr_pages: int) -> None:
        super().took(pfns, nr_pages)
        self.claim()

    def run_ops_real(self, freed: Any, ops: Any, table: Any) -> None:
        # With hinting on one by one, as the counts of hints are looked at when a lock round ends, and not after each.
        step = 1 if self.on else len(ops)
        for start in range(0, len(ops), step):
            try:
                self.pages.run_ops(ops[start : start + step], table)
            except ph.PageHintError as error:
                error.index += start  # type: ignore[attr-defined]
                raise

    def trace(self, seed: int, length: int, top: int) -> None:
        super().trace(seed, length, top)
        self.release()
        self.claim()

    # -- callbacks: what the allocator's answer is noted, and is the oracle's answer

    def noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            outcome: Any = None
            try:
                outcome = function(*args)
                return outcome
            except Exception as error:
                outcome = error
                raise
            finally:
                if args and not (isinstance(outcome, Exception) or well_formed(outcome, len(args[0]))):
                    outcome = TypeError("what the engine makes of such an answer")
                self.calls.append((name, [arg.tolist() for arg in args], outcome))

        return call

    def repeating(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            blocks = [arg.tolist() for arg in args]
            if not self.calls:
                self.broken.append(f"{name} {blocks} should have been called, too")
                raise HostError
            past, told, outcome = self.calls.popleft()
            self.expect((past, told) == (name, blocks), f"{past} {told} was called instead of {name} {blocks}")
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return call

    def check_report(self, blocks: NDArray[np.void]) -> None:
        """Before the oracle has had its turn: what is reported is free, hinted, and its like was not reported since."""
        for block in blocks:
            zone = self.oracle.zones[int(block["zone"])]
            page, nr_pages = int(block["pfn"]) - zone.base, 1 << int(block["order"])
            self.expect(zone.free[page : page + nr_pages].all(), f"{block} is reported and not free")
            self.expect(not zone.isolate[page : page + nr_pages].any(), f"{block} is reported and isolated")
            self.expect(set(zone.granules(page, nr_pages)) <= zone.hints, f"{block} is reported twice")

    def switch_on(self, most: int, **options: Any) -> None:
        host = Host(self, self.new_callbacks())
        most = self.capped(host, most)

        def hint_pages(blocks: NDArray[np.void]) -> Any:
            self.check_report(blocks)
            return host.hint_pages(blocks)

        functions: dict[str, Callable[..., Any]] = {
            "hint_pages": hint_pages,
            "prepare": host.prepare,
            "cleanup": host.cleanup,
        }
        noted = {name: self.noting(name, function) for name, function in functions.items()}
        repeated = {name: self.repeating(name) for name in functions}
        for allocator, calls in ((self.pages, noted), (self.oracle, repeated)):
            try:
                allocator.enable_hinting(
                    ph.PageHintingCallbacks(max_pages=most, **calls),
                    workqueue="manual",
                    clock=lambda: self.now,
                    **options,
                )
            except ph.HintingActiveError:
                assert self.on
            else:
                assert not self.on

    def switch_off(self) -> None:
        self.both("disable_hinting")

    def set(self, name: str, value: float | None) -> None:
        for allocator in (self.pages, self.oracle):
            setattr(allocator, name, value)

    def flush(self) -> None:
        self.both("flush_hinting")

    def run_pending(self, seconds: float) -> None:
        self.now += seconds
        self.both("run_pending")

    def everything_reportable_is_reported(self) -> None:
        if not self.on:
            return
        self.failure = "none"
        self.both("flush_hinting")
        for zone in self.oracle.zones:
            if not zone.gated:
                assert not [g for g in zone.hints if not zone.isolate[g << self.pages.min_order]], "not reported"

    def check(self) -> None:
        super().check()
        assert not self.calls, f"callbacks that should not have been called: {self.calls}"
        self.same_free_blocks()
        for real, oracle in self.zone_pairs():
            bits = np.unpackbits(real.hint_bitmap.view(np.uint8), bitorder="little")
            assert set(np.flatnonzero(bits).tolist()) == oracle.hints
            assert real.managed_pages == oracle.managed_pages
            assert real.nr_free == oracle.nr_free
        stats, expected = self.pages.stats(), self.oracle.stats()
        for name in (*COUNTS, *PAGE_COUNTS):
            assert getattr(stats, name) == getattr(expected, name), name
        assert stats.managed_pages == stats.free_pages + stats.allocated_pages
        assert stats.reporting_pages == 0


class OwningHost(Host):
    """Has a page from when it is reported until it answers. Runs on the worker's thread."""

    judge: ThreadedJudge

    def __init__(self, judge: ThreadedJudge, callbacks: ph.PageHintingCallbacks) -> None:
        super().__init__(judge, callbacks)
        self.live, self.prepared = True, False

    def prepare(self) -> Any:
        expect = self.judge.expect
        expect(self.live, "prepare after disable_hinting")
        expect(not self.prepared, "prepare twice")
        result = super().prepare()
        self.prepared = result is None or result >= 0
        return result

    def cleanup(self) -> None:
        expect = self.judge.expect
        expect(self.live, "cleanup after disable_hinting")
        expect(self.prepared, "cleanup without prepare")
        self.prepared = False
        super().cleanup()

    def hint_pages(self, blocks: NDArray[np.void]) -> Any:
        judge, expect, order = self.judge, self.judge.expect, self.judge.pages.min_order
        judge.reports += 1
        expect(self.live, "a report after disable_hinting")
        expect(self.prepared, "a report outside prepare and cleanup")
        expect(0 < len(blocks) <= judge.most, f"{len(blocks)} blocks at once")
        for pfn, block_order, index in blocks.tolist():
            zone = judge.pages.zones[index]
            expect(zone.start_pfn <= pfn < zone.start_pfn + zone.spanned_pages, "the wrong zone")
            expect(order <= block_order <= judge.pages.max_page_order, f"a block of order {block_order}")
        pages = pages_of(blocks)
        expect(len(np.unique(pages)) == len(pages), "a page twice in one report")
        judge.at_host[pages] = True
        try:
            expect(not judge.taken[pages].any(), "a page is reported that is not free")
            expect(not judge.closed[pages].any(), "a page is reported that is isolated")
            expect(judge.untold[pages >> order].all(), "a granule is reported twice")
            free_for = time.monotonic() - judge.freed_at[pages >> order].max()
            expect(judge.flushing or free_for >= judge.min_age, "a granule is reported too early")
            time.sleep(judge.pause)
            answer = super().hint_pages(blocks)
            expect(not judge.taken[pages].any(), "a page is handed out while it is reported")
            if well_formed(answer, len(blocks)):
                taken = np.broadcast_to(True if answer is None else answer, len(blocks))
                # Before it comes back: from then on it may be touched again.
                told = pages_of(blocks[taken])
                judge.untold[told >> order] = False
                judge.due[told >> order] = False
            return answer
        finally:
            judge.at_host[pages] = False


class ThreadedJudge(Judge):
    """The worker's thread reports while the operations run, with and without page sets.

    The operations are one thread, so what is allocated is known exactly; what is out, and where the next block will be,
    is not. Both sides write first and read the other's mark then, so that one of them sees it when a page has two
    owners.
    """

    operations: ClassVar = {**OPERATIONS, "change_pause": {"pause": (0.0, 0.001, 0.005)}}
    delays = (None, 0.0, 0.001)
    ages = (None, 0.001, 0.01)

    def __init__(
        self, layout: ZoneLayout, callbacks: Callable[[], ph.PageHintingCallbacks], *, pcp: bool = False
    ) -> None:
        super().__init__(layout, callbacks, pcp=pcp)
        self.pcp, self.pause = pcp, 0.001
        self.most = self.reports = 0
        self.at_host = np.zeros(self.room, bool)
        self.taken = ~self.of_zones("free")  # allocated or absent
        self.closed = np.zeros(self.room, bool)  # isolated, and every batch from before is back
        # By granule: what may be reported, as it has been touched since; and what must be by the end of a flush.
        self.untold = np.ones(self.room >> self.pages.min_order, bool)
        self.due = np.ones(self.room >> self.pages.min_order, bool)
        # And since when a granule may be free, at the earliest; too early for what page sets have held.
        self.freed_at = np.zeros(self.room >> self.pages.min_order)
        self.min_age, self.flushing = 0.0, False

    # -- who has what

    def touch(self, pages: Pages) -> None:
        for granules in (self.untold, self.due):
            granules[np.flatnonzero(pages) >> self.pages.min_order] = True

    def release(self) -> None:
        """What the oracle has free is nobody's, before the real one may give it to the host."""
        super().release()
        free = self.of_zones("free")
        self.closed &= self.of_zones("isolate")
        self.touch(free & self.taken)
        self.freed_at[np.flatnonzero(free & self.taken) >> self.pages.min_order] = time.monotonic()
        self.taken &= ~free

    def claim(self) -> None:
        """What the oracle has not free is ours, once the real one has answered."""
        new = ~self.of_zones("free") & ~self.taken
        self.taken |= new
        assert not self.at_host[new].any(), "a page is handed out that is out for reporting"
        super().claim()
        self.touch(new)
        if self.pcp:
            # Page sets take more than was asked for: what is not in the buddy has been touched, or is just out.
            self.untold[self.not_in_buddy()] = True

    def not_in_buddy(self) -> Pages:
        """Granules of which the real one has not every page in its zones."""
        absent = np.ones(self.room, bool)
        for zone in self.pages.zones:
            absent[pages_of(zone.free_blocks())] = False
        granules: Pages = np.logical_or.reduce(absent.reshape(-1, 1 << self.pages.min_order), axis=1)
        return granules

    def both(self, name: str, *args: Any) -> bool:
        """As for manual work, but the oracle first: what it frees may be reported before the real one returns."""
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
        """If a batch goes out in its midst, it gives back what it has and begins again: anything may be touched."""
        before = self.reports
        try:
            return super().alloc_bulk_real(*args)
        finally:
            if self.reports != before:
                self.untold[:] = True

    def run_ops_real(self, freed: Any, ops: Any, table: Any) -> None:
        """Before any of it happens, what it may free is nobody's, and whatever it takes and frees may be reported."""
        pages = np.zeros(self.room, bool)
        for pfn, order in freed:
            pages[pfn : pfn + (1 << order)] = True
        self.frames.release(np.flatnonzero(pages))
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
        most = self.capped(host, most)
        callbacks = ph.PageHintingCallbacks(host.hint_pages, most, host.prepare, host.cleanup)
        if self.on:
            host.live = False
            assert refusal(self.pages, "enable_hinting", callbacks) is ph.HintingActiveError
            return
        self._host, self.most, self.min_age = host, most, options["min_age"] or 0.0
        # Nothing is out now. What is free already is reported if it is marked, or touched once more.
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
            self.most = max(self.most, int(value))  # a batch of the old size may be out
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
        """How long a report takes; not under one switch of threads."""
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
