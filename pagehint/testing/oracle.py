"""The specification in the simplest code that is obviously right: the oracle that `pagehint.testing` checks against.

It has the names of `pagehint.PageAllocator`. What depends on placement cannot be compared directly, as the oracle takes
the first place that fits: the checker tells the oracle where the allocator has put a block (`alloc_run_at`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import pagehint as ph
from pagehint.sizes import parse_size
from pagehint.testing.oracle_memory import OracleMemory
from pagehint.testing.oracle_zone import OracleZone

MOST_PASSES = 64  # of one `run_pending`
LOOKS = 8  # at most, at a zone whose hints are all too young, in the time of each age

COUNTS = (
    "hints_set",
    "hints_cleared_by_alloc",
    "work_queued",
    "work_runs",
    "scans",
    "blocks_isolated",
    "isolation_refused",
    "reports",
    "blocks_reported",
    "pages_reported",
    "blocks_failed",
    "report_errors",
    "prepare_errors",
    "blocks_returned",
)


class Ripe(NamedTuple):
    """What one look at a zone takes for ripe."""

    now: int
    any_age: bool
    min_age: int
    reserve_age: int
    reserve_end: float  # granules below are in the reserve

    def age(self, granule: int) -> int:
        return self.reserve_age if granule < self.reserve_end else self.min_age

    def until(self, granule: int) -> int:
        return self.now - self.age(granule)


class OracleAllocator(OracleMemory):
    """The whole: memory, and the hinting of what is free in it. The work is done by the caller, as with "manual"."""

    def __init__(self, memory: str | int | Iterable[ph.ZoneSpec], **options: Any) -> None:
        super().__init__(memory, **options)
        self.count = SimpleNamespace(**dict.fromkeys(COUNTS, 0))
        self.hinting_enabled = self.inside = False
        self.last_error: BaseException | None = None
        self.deadline: int | None = None
        self.work_at, self.not_before, self.failures = math.inf, 0, 0
        self._age: int | None = None
        self._reserve, self._reserve_age = 0, 0

    # -- what memory tells

    def _granules_used(self, zone: OracleZone, granules: Iterable[int]) -> None:
        hinted = zone.hints & set(granules)
        self.count.hints_cleared_by_alloc += len(hinted)
        zone.hints -= hinted

    def _granules_free(self, zone: OracleZone, granules: list[int], evaluate: bool = True) -> None:
        if not (self.hinting_enabled and granules):
            return
        if self._has_ages():
            now = self._now()
            all_in_reserve = len(zone.hints) + len(granules) <= self._reserve
            due = now + (self._longest_age() if all_in_reserve else self._age or 0)
            if not zone.hints or due < zone.look_at:
                zone.look_at = due
                if zone.queued:
                    self._queue(zone)
            zone.freed_at.update(dict.fromkeys(granules, now))
        self.count.hints_set += len(set(granules) - zone.hints)
        zone.hints.update(granules)
        if evaluate:
            self._evaluate(zone)

    def _watermarks_set(self, zone: OracleZone) -> None:
        if zone.gated:
            zone.gate = self._gate(zone)

    def _evaluate(self, zone: OracleZone) -> None:
        """Ask for a run if the count calls for one; under the gate nothing is asked for until it opens."""
        if not self.hinting_enabled or not zone.hints or zone.gated or zone.queued:
            return
        if len(zone.hints) >= self._threshold():
            self.count.work_queued += 1
            self._queue(zone)
        elif self._delay is not None and self.deadline is None:
            self.deadline = self._now() + int(self._delay * 10**9)

    def _settle(self) -> None:
        """After every operation: zones that were short of memory and are no longer have their hints looked at."""
        for zone in self.zones:
            if zone.gated and zone.usable_free >= zone.gate:
                zone.gated = False
                self._evaluate(zone)

    # -- hinting, on the caller

    def _queue(self, zone: OracleZone) -> None:
        zone.queued = True
        self.work_at = min(self.work_at, zone.look_at)

    def _now(self) -> int:
        """In nanoseconds, as the real one: seconds with a fraction add up to other numbers."""
        return int(self.clock() * 10**9)

    def _has_ages(self) -> bool:
        return self._longest_age() > 0

    def _longest_age(self) -> int:
        return max(self._age or 0, self._reserve_age if self._reserve else 0)

    def _ripe(self, zone: OracleZone, ripe: Ripe) -> set[int]:
        return {granule for granule in zone.hints if ripe.any_age or zone.freed_at[granule] <= ripe.until(granule)}

    def _threshold(self) -> int:
        return self._limit or self._most

    def _batch(self, zone: OracleZone) -> int:
        """Blocks that are out at once: in a small zone no more granules than an eighth of its memory."""
        return min(self._most, max(zone.managed_pages // 8 >> self.min_order, 1))

    def _gate(self, zone: OracleZone) -> int:
        return zone.watermarks.low + (self._batch(zone) << self.min_order)

    def enable_hinting(
        self,
        callbacks: ph.PageHintingCallbacks,
        *,
        workqueue: str = "manual",
        threshold: int | None = None,
        delay: float | None = 2.0,
        max_report_order: int | None = None,
        mark_free: bool = True,
        min_age: float | None = None,
        reserve: str | int | None = None,
        reserve_age: float = 1.5,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if self.hinting_enabled:
            raise ph.HintingActiveError("on already")
        if isinstance(min_age, str):
            raise ValueError(f"the oracle learns no age: min_age must be seconds or None, not {min_age!r}")
        self.callbacks, self.clock = callbacks, clock or time.monotonic
        self._most, self._limit, self._delay = callbacks.max_pages, threshold, delay
        top = min(10, self.max_page_order) if max_report_order is None else max_report_order
        self.report_order = max(top, self.min_order)
        self._age = None if min_age is None else int(min_age * 10**9)
        granule = self.page_size << self.min_order
        self._reserve = 0 if reserve is None else -(-parse_size(reserve) // granule)
        self._reserve_age = int(reserve_age * 10**9)
        self.work_at, self.deadline, self.not_before, self.failures = math.inf, None, 0, 0
        self.last_error = None
        self.hinting_enabled = True
        for zone in self.zones:
            zone.queued = zone.gated = False
            zone.look_at = 0
            if mark_free:
                self._granules_free(
                    zone, [g for g in range(len(zone.free) >> self.min_order) if zone.granule_is_free(g)]
                )

    def disable_hinting(self) -> None:
        if self.inside:
            raise ph.HintingActiveError("inside a callback")
        self.hinting_enabled = False
        for zone in self.zones:
            zone.hints.clear()
            zone.queued = zone.gated = False

    @contextmanager
    def hinting(self, callbacks: ph.PageHintingCallbacks, **options: Any) -> Iterator[OracleAllocator]:
        self.enable_hinting(callbacks, **options)
        try:
            yield self
        finally:
            self.disable_hinting()

    def _require(self) -> None:
        if not self.hinting_enabled:
            raise ph.HintingInactiveError("off")
        if self.inside:
            raise ph.HintingActiveError("inside a callback")

    def flush_hinting(self) -> None:
        self._require()
        self._run(everything=True, flush=True)

    def mark_free(self, pfn: int | None = None, nr_pages: int | None = None) -> int:
        if not self.hinting_enabled:
            raise ph.HintingInactiveError("off")
        marked = 0
        for zone in self.zones if pfn is None else [self._zone(pfn)]:
            granules = set(zone.with_host())
            if pfn is not None and nr_pages is not None:
                if pfn + nr_pages > zone.end_pfn:
                    raise ph.BadPageError("not inside one zone")
                granules &= set(zone.granules(pfn - zone.base, nr_pages))
            self._granules_free(zone, sorted(granules))
            marked += len(granules)
        return marked

    def _ask(self, zone: OracleZone) -> None:
        """Hint again what was reported, and its host has again."""
        granules = zone.with_host()
        if not self.callbacks.is_dropped or not granules:
            return
        blocks = np.array(
            [(zone.base + (g << self.min_order), self.min_order, zone.index) for g in granules], ph.BLOCK_DTYPE
        )
        blocks.flags.writeable = False
        dropped = self._call(self.callbacks.is_dropped, blocks)
        if dropped is not None and not isinstance(dropped, Exception):
            back = ~np.broadcast_to(dropped, len(granules))
            self._granules_free(zone, [g for g, is_back in zip(granules, back, strict=True) if is_back])

    def run_pending(self) -> int:
        self._require()
        runs = 0
        while runs < MOST_PASSES and self._now() >= self.not_before and (self._now() >= self.work_at or self._late()):
            self._run(everything=self._late() or self.failures > 0)
            runs += 1
        return runs

    def _late(self) -> bool:
        return self.deadline is not None and self._now() >= self.deadline

    def _run(self, everything: bool, flush: bool = False) -> None:
        self.work_at = math.inf
        now = self._now()
        self.count.work_runs += 1
        if everything:
            self.deadline = None
        prepared, failed = False, False
        for zone in self.zones:
            if not (everything or zone.queued):
                continue
            if flush:
                self._ask(zone)
            zone.queued = False
            if zone.hints and not flush and now < zone.look_at:
                zone.gated = False
                self._queue(zone)
                continue
            if not zone.hints or not self._passes_gate(zone):
                continue
            self.count.scans += 1
            if self._has_ages():
                zone.look_at = now + self._longest_age()
            ripe = self._ripe_now(zone, now, flush)
            young = zone.hints - self._ripe(zone, ripe)
            next_looks = [max(zone.freed_at[g] + ripe.age(g), now + ripe.age(g) // LOOKS) for g in young]
            whole, zone_failed = True, False
            if self._ripe(zone, ripe):
                prepared = prepared or self._prepare()
                whole, zone_failed = self._scan(zone, ripe) if prepared else (False, True)
            failed |= zone_failed
            if self._has_ages() and (not whole or zone_failed):
                zone.look_at = 0
            elif next_looks and zone.hints:
                zone.look_at = min(zone.look_at, *next_looks)
                self._queue(zone)
            if zone_failed and not prepared:
                break
        if prepared and self.callbacks.cleanup:
            self._call(self.callbacks.cleanup)
        self.failures = self.failures + 1 if failed else 0
        self.not_before = self._now() + min(10**8 << min(self.failures - 1, 20), 30 * 10**9) if failed else 0
        if failed:
            self.work_at = 0

    def _ripe_now(self, zone: OracleZone, now: int, flush: bool) -> Ripe:
        hints = sorted(zone.hints)
        reserve_end = hints[self._reserve] if len(hints) > self._reserve else math.inf
        return Ripe(now, flush or not self._has_ages(), self._age or 0, self._longest_age(), reserve_end)

    def _passes_gate(self, zone: OracleZone) -> bool:
        if zone.usable_free >= self._gate(zone):
            return True
        self.count.isolation_refused += 1
        zone.gated, zone.gate = True, self._gate(zone)
        return False

    def _call(self, function: Any, *args: Any) -> Any:
        """The function's result, or its exception."""
        self.inside = True
        try:
            return function(*args)
        except Exception as error:
            self.last_error = error
            return error
        finally:
            self.inside = False

    def _prepare(self) -> bool:
        result = self._call(self.callbacks.prepare) if self.callbacks.prepare else None
        if isinstance(result, Exception) or (result is not None and result < 0):
            self.count.prepare_errors += 1
            self.last_error = self.last_error or ph.PageHintError(f"prepare returned {result}")
            return False
        return True

    def _scan(self, zone: OracleZone, ripe: Ripe) -> tuple[bool, bool]:
        """Whether all ripe hints have been looked at, and whether anything failed."""
        cursor, failed = 0, False
        while any(granule >= cursor for granule in self._ripe(zone, ripe)):
            if not self._passes_gate(zone):
                return False, failed
            batch: list[tuple[int, int]] = []
            while len(batch) < self._batch(zone):
                granules = sorted(self._ripe(zone, ripe))
                ahead = [g for g in granules if g >= cursor and not zone.isolate[g << self.min_order]]
                if not ahead:
                    cursor = len(zone.free)
                    break
                page, order = self._largest(zone, ahead[0], set(granules))
                zone.hints -= set(zone.granules(page, 1 << order))
                zone.free[page : page + (1 << order)] = False
                zone.out += 1 << order
                batch.append((page, order))
                cursor = (page + (1 << order)) >> self.min_order
            if batch:
                failed |= self._report(zone, batch)
        return True, failed

    def _largest(self, zone: OracleZone, granule: int, ripe: set[int]) -> tuple[int, int]:
        """The largest block from this granule on that is all ripe and part of one free block."""
        page = granule << self.min_order
        source = next(o for p, o in zone.blocks() if p <= page < p + (1 << o))
        for order in range(min(source, self.report_order), self.min_order, -1):
            if page % (1 << order) == 0 and set(zone.granules(page, 1 << order)) <= ripe:
                return page, order
        return page, self.min_order

    def _report(self, zone: OracleZone, batch: list[tuple[int, int]]) -> bool:
        blocks = np.array([(zone.base + page, order, zone.index) for page, order in batch], ph.BLOCK_DTYPE)
        result = self._call(self.callbacks.hint_pages, blocks)
        if isinstance(result, Exception):
            taken = np.zeros(len(batch), bool)
        else:
            taken = np.broadcast_to(True if result is None else result, len(batch))
        self.count.reports += 1
        self.count.report_errors += not taken.all()
        for (page, order), ok in zip(batch, taken, strict=True):
            zone.free[page : page + (1 << order)] = True
            zone.out -= 1 << order
            self.count.blocks_isolated += 1
            self.count.blocks_returned += 1
            if ok:
                self.count.blocks_reported += 1
                self.count.pages_reported += 1 << order
            else:
                self.count.blocks_failed += 1
                again = set(zone.granules(page, 1 << order))
                self.count.hints_set += len(again - zone.hints)
                zone.hints |= again
        self._settle()
        return not taken.all()

    def _change(self) -> None:
        for zone in self.zones:
            zone.gated = False
            self._evaluate(zone)

    @property
    def max_pages(self) -> int:
        return self._most

    @max_pages.setter
    def max_pages(self, value: int) -> None:
        self._most = value
        self._change()

    @property
    def threshold(self) -> int:
        return self._threshold()

    @threshold.setter
    def threshold(self, value: int | None) -> None:
        self._limit = value
        self._change()

    @property
    def delay(self) -> float | None:
        return self._delay

    @delay.setter
    def delay(self, value: float | None) -> None:
        self._delay, self.deadline = value, None
        self._change()

    @property
    def min_age(self) -> float | None:
        return None if self._age is None else self._age / 10**9

    @property
    def reserve(self) -> int | None:
        return self._reserve * (self.page_size << self.min_order) or None

    @property
    def reserve_age(self) -> float:
        return self._reserve_age / 10**9

    # -- counts

    def stats(self) -> SimpleNamespace:
        zones = self.zones
        free, managed = sum(z.free_pages for z in zones), sum(z.managed_pages for z in zones)
        out = sum(z.out for z in zones)
        return SimpleNamespace(
            managed_pages=managed,
            free_pages=free,
            pcp_pages=0,
            reporting_pages=out,
            allocated_pages=sum(sum(z.used.values()) for z in zones),
            nr_free=tuple(sum(counts) for counts in zip(*[z.nr_free for z in zones], strict=True)),
            hints_pending=sum(len(z.hints) for z in zones),
            **vars(self.count),
        )
