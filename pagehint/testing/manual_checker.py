"""Manual work: the allocator and the oracle both report, with the same answers, state and reports."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from pagehint.testing.checker import Checker
from pagehint.testing.faulty_host import FaultyHost, InjectedError, well_formed
from pagehint.testing.layouts import ZoneLayout
from pagehint.testing.operations import OPERATIONS, refusal
from pagehint.testing.oracle import COUNTS

PAGE_COUNTS = ("managed_pages", "free_pages", "pcp_pages", "reporting_pages", "allocated_pages", "hints_pending")


class ManualChecker(Checker):
    """Work is done by the caller and there are no page sets, so everything is deterministic and compared each time."""

    operations: ClassVar = {**OPERATIONS, "run_pending": {"seconds": (0.0, 0.05, 1.0, 2.0, 100.0)}}
    delays = (None, 0.0, 2.0)
    ages = (None, 0.05, 2.0)
    reserve_age = 1.0

    def __init__(
        self, layout: ZoneLayout, callbacks: Callable[[], ph.PageHintingCallbacks], *, pcp: bool = False
    ) -> None:
        if pcp:
            raise ValueError(
                "with page sets the oracle does not know where a page is: pcp=True is for workqueue='thread'"
            )
        super().__init__(layout, callbacks)
        self.now = 1000.0
        self.calls: deque[tuple[str, list[Any], Any]] = deque()  # the allocator's, which the oracle must make, too
        self.came_back: set[tuple[int, int]] = set()  # PFN and zone of granules that the host has again, in a flush

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
        # With hinting on one by one: hints are compared with the threshold when a round under the lock ends, and
        # a round may have several operations.
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

    # -- callbacks: the allocator's calls are noted, and the oracle must make the same; their answers are the oracle's

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
                raise InjectedError
            past, told, outcome = self.calls.popleft()
            self.expect((past, told) == (name, blocks), f"{past} {told} was called instead of {name} {blocks}")
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return call

    def check_report(self, blocks: NDArray[np.void]) -> None:
        """Check a report of the allocator, before the oracle runs: all of it is free, hinted and not isolated."""
        for block in blocks:
            zone = self.oracle.zones[int(block["zone"])]
            page, nr_pages = int(block["pfn"]) - zone.base, 1 << int(block["order"])
            self.expect(zone.free[page : page + nr_pages].all(), f"{block} is reported and not free")
            self.expect(not zone.isolate[page : page + nr_pages].any(), f"{block} is reported and isolated")
            back = {(pfn - zone.base) >> self.pages.min_order for pfn, index in self.came_back if index == zone.index}
            self.expect(set(zone.granules(page, nr_pages)) <= zone.hints | back, f"{block} is reported twice")

    def switch_on(self, most: int, **options: Any) -> None:
        host = FaultyHost(self, self.new_callbacks())
        most = self.capped(host.callbacks, most)

        def hint_pages(blocks: NDArray[np.void]) -> Any:
            self.check_report(blocks)
            return host.hint_pages(blocks)

        def is_dropped(blocks: NDArray[np.void]) -> Any:
            answer = host.is_dropped(blocks)
            if answer is not None and well_formed(answer, len(blocks)):
                back = blocks[~np.broadcast_to(answer, len(blocks))]
                self.came_back.update(zip(back["pfn"].tolist(), back["zone"].tolist(), strict=True))
            return answer

        functions: dict[str, Callable[..., Any]] = {
            "hint_pages": hint_pages,
            "prepare": host.prepare,
            "cleanup": host.cleanup,
            "is_dropped": is_dropped,
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
        self.came_back.clear()

    def run_pending(self, seconds: float) -> None:
        self.now += seconds
        self.both("run_pending")

    def everything_reportable_is_reported(self) -> None:
        if not self.on:
            return
        self.failure = "none"
        self.flush()
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
