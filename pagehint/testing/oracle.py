"""The specification in the simplest code that is obviously right: the oracle that `pagehint.testing` judges by.

Same names as `pagehint.PageAllocator`, no cleverness: each zone is arrays of booleans, one a page, and a question is
answered from them anew. Placement is first fit, so only what does not depend on placement can be compared directly; the
judge tells this one where the real one has put a block (`alloc_run_at`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from pagehint import layout
from pagehint.sizes import parse_size

PAGEBLOCK = 512
BULK_CHUNK = 48  # blocks in a lock round, where each has an order of its own: BULK_STEPS
LOOKS = 8

Bools = NDArray[np.bool_]


class ReferenceZone:
    def __init__(self, spec: ph.ZoneSpec, index: int, top: int, granule_order: int, marks: ph.Watermarks) -> None:
        self.name, self.node, self.index = spec.name, spec.node, index
        self.start_pfn, self.end_pfn = spec.start_pfn, spec.end_pfn
        self.top, self.granule_order, self.watermarks = top, granule_order, marks
        self.grain = 1 << max(top, 9)
        self.base = self.start_pfn // self.grain * self.grain  # pages are counted from here
        self.absent = np.ones(self._room(), bool)  # outside, hole or offline
        self.offline = np.zeros(self._room(), bool)
        self.free = np.zeros(self._room(), bool)
        self.isolate = np.zeros(self._room(), bool)
        self.used: dict[int, int] = {}  # first page -> pages
        self.hints: set[int] = set()  # granule numbers, from base
        self.freed_at: dict[int, int] = {}  # granule -> nanoseconds
        self.look_at = 0  # no hint is ripe before
        self.queued = self.gated = False
        self.out = self.gate = 0
        for start, end in self.runs(spec.start_pfn, spec.end_pfn, spec.holes):
            self.absent[start - self.base : end - self.base] = False
        self.free[:] = ~self.absent
        self.hole = self.absent.copy()
        self.gap = np.zeros(self._room(), bool)  # hole left by growing, that may come online

    def _room(self) -> int:
        return -(-(self.end_pfn - self.base) // self.grain) * self.grain

    @staticmethod
    def runs(start: int, end: int, holes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for pfn, nr_pages in holes:
            if pfn > start:
                yield start, pfn
            start = pfn + nr_pages
        if start < end:
            yield start, end

    def grow(self, start: int, end: int) -> None:
        old, old_end = self._room(), self.end_pfn
        self.end_pfn = end
        for name in ("absent", "hole", "gap", "offline", "free", "isolate"):
            grown = np.full(self._room(), name in ("absent", "hole"))
            grown[:old] = getattr(self, name)
            setattr(self, name, grown)
        self.gap[old_end - self.base : start - self.base] = True
        self.offline[start - self.base : end - self.base] = True
        self.hole[start - self.base : end - self.base] = False

    # -- what follows from the booleans

    @property
    def spanned_pages(self) -> int:
        return self.end_pfn - self.start_pfn

    @property
    def managed_pages(self) -> int:
        return int((~self.absent).sum())

    @property
    def present_pages(self) -> int:
        return self.managed_pages

    @property
    def free_pages(self) -> int:
        return int(self.free.sum())

    @property
    def usable_free(self) -> int:
        return int((self.free & ~self.isolate).sum())

    def blocks(self) -> list[tuple[int, int]]:
        """The maximal free blocks as (page, order), by address."""
        left = self.free.copy()
        found: list[tuple[int, int]] = []
        for order in range(self.top, -1, -1):
            pages, isolate = left.reshape(-1, 1 << order), self.isolate.reshape(-1, 1 << order)
            whole = pages.all(axis=1) & (isolate.all(axis=1) | ~isolate.any(axis=1))
            found += [(int(i) << order, order) for i in np.flatnonzero(whole)]
            pages[whole] = False
        return sorted(found)

    def free_blocks(self) -> NDArray[np.void]:
        blocks = [(self.base + page, order) for page, order in self.blocks()]
        return np.array(blocks, [("pfn", "u8"), ("order", "u4")])

    @property
    def nr_free(self) -> tuple[int, ...]:
        counts = [0] * (self.top + 1)
        for _, order in self.blocks():
            counts[order] += 1
        return tuple(counts)

    def granule_is_free(self, granule: int) -> bool:
        pages = slice(granule << self.granule_order, (granule + 1) << self.granule_order)
        isolate = self.isolate[pages]
        return bool(self.free[pages].all() and (isolate.all() or not isolate.any()))

    def granules(self, page: int, nr_pages: int) -> range:
        return range(page >> self.granule_order, ((page + nr_pages - 1) >> self.granule_order) + 1)


class ReferenceAllocator:
    def __init__(
        self,
        memory: str | int | Iterable[ph.ZoneSpec],
        *,
        page_size: int = 4096,
        max_page_order: int = 10,
        min_order: int | None = None,
        pcp: bool = False,
        watermarks: Any = None,
    ) -> None:
        if isinstance(memory, (str, int)):
            memory = [ph.ZoneSpec("Normal", 0, parse_size(memory) // page_size)]
        self.page_size, self.max_page_order = page_size, max_page_order
        self.min_order = max(max_page_order - 1, 0) if min_order is None else min_order
        specs = layout.check_zones(memory)
        self.lists, self.default = layout.zonelists(specs), layout.default_zone(specs)
        self.specs, self.linux = specs, watermarks == "linux"
        marks = layout.Watermarks(*((not self.linux and watermarks) or (0, 0, 0)))
        self.zones = tuple(
            ReferenceZone(spec, i, max_page_order, self.min_order, marks) for i, spec in enumerate(specs)
        )
        self._set_watermarks()
        self.count = SimpleNamespace(**dict.fromkeys(COUNTS, 0))
        self.hinting_enabled = self.inside = False
        self.last_error: BaseException | None = None
        self.deadline: int | None = None
        self.work_at, self.not_before, self.failures = math.inf, 0, 0
        self._age: int | None = None

    def _set_watermarks(self) -> None:
        """Linux's, where they are wanted, by the memory there is now."""
        sizes, n = [zone.managed_pages for zone in self.zones], range(len(self.zones))
        self.reserve = [
            [layout.lowmem_reserve(self.specs, sizes, zone, preferred) if self.linux else 0 for preferred in n]
            for zone in n
        ]
        if self.linux:
            for zone, marks in zip(self.zones, layout.linux_watermarks(sizes, self.page_size), strict=True):
                zone.watermarks = marks
                if zone.gated:
                    zone.gate = self._gate(zone)

    # -- where

    def _zone(self, pfn: int) -> ReferenceZone:
        for zone in self.zones:
            if zone.start_pfn <= pfn < zone.end_pfn:
                return zone
        raise ph.BadPageError(f"PFN {pfn:#x}: outside every zone")

    def _order(self, order: int) -> None:
        if not 0 <= order <= self.max_page_order:
            raise ph.BadPageError(f"order {order} is out of range")

    @staticmethod
    def _aligned(pfn: int, order: int) -> None:
        if pfn % (1 << order):
            raise ph.BadPageError(f"PFN {pfn:#x}: not aligned to order {order}")

    def _zonelist(self, zone: Any) -> Iterator[tuple[ReferenceZone, int]]:
        named = (z.index for z in self.zones if zone is z or zone == z.name)
        preferred = self.default if zone is None else next(named)
        for i in self.lists[preferred]:
            yield self.zones[i], self.zones[i].watermarks.min + self.reserve[i][preferred]

    # -- allocate

    def _take(self, zone: ReferenceZone, page: int, nr_pages: int) -> None:
        for granule in zone.granules(page, nr_pages):
            if granule in zone.hints:
                zone.hints.remove(granule)
                self.count.hints_cleared_by_alloc += 1
        zone.free[page : page + nr_pages] = False
        zone.used[page] = nr_pages

    def can_alloc(self, order: int, zone: Any = None) -> tuple[ReferenceZone, int] | None:
        """Whether any zone of the list has such a block above its min watermark."""
        for each, keep in self._zonelist(zone):
            if each.usable_free - keep >= 1 << order:
                for page, free in each.blocks():
                    if free >= order and not each.isolate[page]:
                        return each, page
        return None

    def alloc_pages(self, order: int = 0, migratetype: str = "movable", zone: Any = None) -> int:
        self._order(order)
        place = self.can_alloc(order, zone)
        if place is None:
            raise ph.OutOfMemoryError(f"order {order}: no zone has the pages")
        self._take(*place, 1 << order)
        self._settle()
        return place[0].base + place[1]

    def alloc_pages_bulk(
        self, count: int, order: int = 0, migratetype: str = "movable", zone: Any = None
    ) -> NDArray[np.uint64]:
        self._order(order)
        if count < 0:
            raise ph.BadPageError("negative count")
        room = 0
        for each, keep in self._zonelist(zone):
            blocks = sum(
                1 << (free - order) for page, free in each.blocks() if free >= order and not each.isolate[page]
            )
            room += min(blocks, max(each.usable_free - keep, 0) >> order)
        if room < count:
            raise ph.OutOfMemoryError(f"{count} blocks of order {order}")
        return np.array([self.alloc_pages(order, migratetype, zone) for _ in range(count)], np.uint64)

    def alloc_pages_at(self, pfn: int, order: int = 0) -> int:
        self._order(order)
        self._aligned(pfn, order)
        self.alloc_run_at(pfn, 1 << order)
        return pfn

    def alloc_run_at(self, pfn: int, nr_pages: int) -> None:
        zone = self._zone(pfn)
        page = pfn - zone.base
        run = slice(page, page + nr_pages)
        if pfn + nr_pages > zone.end_pfn or not zone.free[run].all() or zone.isolate[run].any():
            raise ph.BadPageError(f"PFN {pfn:#x}, {nr_pages} pages, zone {zone.name}: not all free")
        self._take(zone, page, nr_pages)
        self._settle()

    def alloc_pages_exact(self, nr_pages: int, migratetype: str = "movable", zone: Any = None) -> int:
        if nr_pages <= 0:
            raise ph.BadPageError("nr_pages must be positive")
        for each, keep in self._zonelist(zone):
            if each.usable_free - keep < nr_pages:
                continue
            usable = each.free & ~each.isolate
            for page in range(0, len(usable) - nr_pages + 1, 64 if nr_pages > 32 else 1 << (nr_pages - 1).bit_length()):
                if usable[page : page + nr_pages].all():
                    self._take(each, page, nr_pages)
                    self._settle()
                    return each.base + page
        raise ph.OutOfMemoryError(f"{nr_pages} contiguous pages")

    # -- free

    def _give(self, zone: ReferenceZone, page: int, nr_pages: int, evaluate: bool = True) -> bool:
        zone.free[page : page + nr_pages] = True
        return self._hint(zone, [g for g in zone.granules(page, nr_pages) if zone.granule_is_free(g)], evaluate)

    def _hint(self, zone: ReferenceZone, granules: list[int], evaluate: bool = True) -> bool:
        if self.hinting_enabled and granules:
            if self._age:
                now = self._now()
                if not zone.hints or now + self._age < zone.look_at:
                    zone.look_at = now + self._age
                zone.freed_at.update(dict.fromkeys(granules, now))
            self.count.hints_set += len(set(granules) - zone.hints)
            zone.hints.update(granules)
            if evaluate:
                self._evaluate(zone)
        return bool(granules)

    def _check_used(self, pfn: int, nr_pages: int) -> ReferenceZone:
        zone = self._zone(pfn)
        if zone.used.get(pfn - zone.base) != nr_pages:
            raise ph.BadPageError(
                f"PFN {pfn:#x}, {nr_pages} pages, zone {zone.name}: not an allocated block of this size"
            )
        return zone

    def free_pages(self, pfn: int, order: int = 0) -> None:
        self._order(order)
        self._aligned(pfn, order)
        self.free_pages_exact(pfn, 1 << order)

    def free_pages_exact(self, pfn: int, nr_pages: int) -> None:
        if nr_pages <= 0:
            raise ph.BadPageError("nr_pages must be positive")
        zone = self._check_used(pfn, nr_pages)
        del zone.used[pfn - zone.base]
        self._give(zone, pfn - zone.base, nr_pages)
        self._settle()

    def free_pages_bulk(self, pfns: Iterable[Any], order: int | Iterable[Any] = 0) -> None:
        pfns = [int(pfn) for pfn in pfns]
        orders = [order] * len(pfns) if isinstance(order, int) else [int(each) for each in order]
        for pfn, each in zip(pfns, orders, strict=True):
            self._order(each)
            self._aligned(pfn, each)
            self._check_used(pfn, 1 << each)
        if len(set(pfns)) < len(pfns):
            raise ph.BadPageError("a PFN is there twice")
        # The count is looked at when a lock round ends: so many blocks of one zone.
        blocks = [(self._zone(pfn), pfn, 1 << each) for pfn, each in zip(pfns, orders, strict=True)]
        while blocks:
            zone = blocks[0][0]
            round_ = list(takewhile(lambda block: block[0] is blocks[0][0], blocks[:BULK_CHUNK]))
            hinted = False
            for _, pfn, nr_pages in round_:
                del zone.used[pfn - zone.base]
                hinted |= self._give(zone, pfn - zone.base, nr_pages, evaluate=False)
            if hinted:
                self._evaluate(zone)
            self._settle()
            del blocks[: len(round_)]

    def drain_pcp(self) -> None:
        pass

    # -- hotplug and migratetypes

    def _sections(self, pfn: int, nr_pages: int) -> None:
        section = max((128 << 20) // self.page_size, 1)
        edges = {z.start_pfn for z in self.zones if z.start_pfn == pfn} | {
            z.end_pfn for z in self.zones if z.start_pfn <= pfn < z.end_pfn
        }
        if nr_pages <= 0 or any(edge % section and edge not in edges for edge in (pfn, pfn + nr_pages)):
            raise ph.BadPageError("not whole sections")

    def offline(self, pfn: int, nr_pages: int) -> None:
        self._sections(pfn, nr_pages)
        zone = self._zone(pfn)
        run = slice(pfn - zone.base, pfn - zone.base + nr_pages)
        memory = ~zone.hole[run]
        if pfn + nr_pages > zone.end_pfn or zone.offline[run].any() or not zone.free[run][memory].all():
            raise ph.BadPageError(f"PFN {pfn:#x}: in use, already offline, or not in one zone")
        granules = zone.hints & {int(page) >> self.min_order for page in run.start + np.flatnonzero(memory)}
        self.count.hints_cleared_by_alloc += len(granules)
        zone.hints -= granules
        zone.free[run] = False
        zone.absent[run] = True
        zone.offline[run] = True
        self._set_watermarks()
        self._settle()

    def online(self, pfn: int, nr_pages: int) -> None:
        self._sections(pfn, nr_pages)
        end = pfn + nr_pages
        if not any(z.start_pfn <= pfn < z.end_pfn for z in self.zones):
            below = [z for z in self.zones if z.end_pfn <= pfn]
            if not below or any(pfn < z.end_pfn and z.start_pfn < end for z in self.zones):
                raise ph.BadPageError("no zone could grow there")
            max(below, key=lambda z: z.end_pfn).grow(pfn, end)
        zone = self._zone(pfn)
        run = slice(pfn - zone.base, end - zone.base)
        if end > zone.end_pfn or not (zone.offline | zone.gap)[run].all():
            raise ph.BadPageError("not all offline")
        zone.offline[run] = False
        zone.hole[run] &= ~zone.gap[run]
        zone.gap[run] = False
        memory = run.start + np.flatnonzero(~zone.hole[run])
        zone.absent[memory] = False
        zone.free[memory] = True
        granules = {int(page) >> self.min_order for page in memory}
        self._hint(zone, [g for g in granules if zone.granule_is_free(g)])
        self._set_watermarks()
        self._settle()

    def set_migratetype(self, pfn: int, nr_pages: int, migratetype: str) -> None:
        zone = self._zone(pfn)
        unit, end = max(PAGEBLOCK, 1 << self.min_order), pfn + nr_pages
        edges = (zone.start_pfn, zone.end_pfn)
        if nr_pages <= 0 or end > zone.end_pfn or any(edge % unit and edge not in edges for edge in (pfn, end)):
            raise ph.BadPageError("not whole pageblocks of one zone")
        first, last = (pfn - zone.base) // PAGEBLOCK * PAGEBLOCK, -(-(end - zone.base) // PAGEBLOCK) * PAGEBLOCK
        zone.isolate[first:last] = migratetype == "isolate"
        zone.look_at = 0
        self._evaluate(zone)
        self._settle()

    # -- hinting, on the caller

    def _evaluate(self, zone: ReferenceZone) -> None:
        """Ask for a run if the count calls for one; under the gate nothing is asked for until it opens."""
        if not self.hinting_enabled or not zone.hints or zone.gated or zone.queued:
            return
        if len(zone.hints) >= self._threshold():
            self.count.work_queued += 1
            self._queue(zone)
        elif self._delay is not None and self.deadline is None:
            self.deadline = self._now() + int(self._delay * 10**9)

    def _queue(self, zone: ReferenceZone) -> None:
        zone.queued = True
        self.work_at = min(self.work_at, zone.look_at)

    def _now(self) -> int:
        """In nanoseconds, as the real one: seconds with a fraction add up to other numbers."""
        return int(self.clock() * 10**9)

    def _ripe(self, zone: ReferenceZone, until: float) -> set[int]:
        return {granule for granule in zone.hints if not self._age or zone.freed_at[granule] <= until}

    def _threshold(self) -> int:
        return self._limit or self._most

    def _gate(self, zone: ReferenceZone) -> int:
        return zone.watermarks.low + (self._most << self.min_order)

    def _settle(self) -> None:
        """After every operation: zones that were short of memory and are no longer have their hints looked at."""
        for zone in self.zones:
            if zone.gated and zone.usable_free >= zone.gate:
                zone.gated = False
                self._evaluate(zone)

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
        clock: Callable[[], float] | None = None,
    ) -> None:
        if self.hinting_enabled:
            raise ph.HintingActiveError("on already")
        self.callbacks, self.clock = callbacks, clock or time.monotonic
        self._most, self._limit, self._delay = callbacks.max_pages, threshold, delay
        top = min(10, self.max_page_order) if max_report_order is None else max_report_order
        self.report_order = max(top, self.min_order)
        self._age = None if min_age is None else int(min_age * 10**9)
        self.work_at, self.deadline, self.not_before, self.failures = math.inf, None, 0, 0
        self.last_error = None
        self.hinting_enabled = True
        for zone in self.zones:
            zone.queued = zone.gated = False
            zone.look_at = 0
            if mark_free:
                self._hint(zone, [g for g in range(len(zone.free) >> self.min_order) if zone.granule_is_free(g)])

    def disable_hinting(self) -> None:
        if self.inside:
            raise ph.HintingActiveError("inside a callback")
        self.hinting_enabled = False
        for zone in self.zones:
            zone.hints.clear()
            zone.queued = zone.gated = False

    @contextmanager
    def hinting(self, callbacks: ph.PageHintingCallbacks, **options: Any) -> Iterator[ReferenceAllocator]:
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

    def run_pending(self) -> int:
        self._require()
        runs = 0
        while self._now() >= self.not_before and (self._now() >= self.work_at or self._late()):
            self._run(everything=self._late() or self.failures > 0)
            runs += 1
        return runs

    def _late(self) -> bool:
        return self.deadline is not None and self._now() >= self.deadline

    def _run(self, everything: bool, flush: bool = False) -> None:
        self.work_at = math.inf
        now = self._now()
        until = math.inf if flush else now - (self._age or 0)
        self.count.work_runs += 1
        if everything:
            self.deadline = None
        prepared, failed = False, False
        for zone in self.zones:
            if not (everything or zone.queued):
                continue
            zone.queued = False
            if zone.hints and not flush and now < zone.look_at:
                zone.gated = False
                self._queue(zone)
                continue
            if not zone.hints or not self._passes_gate(zone):
                continue
            self.count.scans += 1
            if self._age:
                zone.look_at = now + self._age
            young = [zone.freed_at[granule] for granule in zone.hints - self._ripe(zone, until)]
            whole, zone_failed = True, False
            if self._ripe(zone, until):
                prepared = prepared or self._prepare()
                whole, zone_failed = self._scan(zone, until) if prepared else (False, True)
            failed |= zone_failed
            if self._age and (not whole or zone_failed):
                zone.look_at = 0
            elif self._age and young and zone.hints:
                zone.look_at = min(zone.look_at, max(min(young) + self._age, now + self._age // LOOKS))
                self._queue(zone)
            if zone_failed and not prepared:
                break
        if prepared and self.callbacks.cleanup:
            self._call(self.callbacks.cleanup)
        self.failures = self.failures + 1 if failed else 0
        self.not_before = self._now() + min(10**8 << min(self.failures - 1, 20), 30 * 10**9) if failed else 0
        if failed:
            self.work_at = 0

    def _passes_gate(self, zone: ReferenceZone) -> bool:
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

    def _scan(self, zone: ReferenceZone, until: float) -> tuple[bool, bool]:
        """Whether all ripe hints have been looked at, and whether anything failed."""
        cursor, failed = 0, False
        while any(granule >= cursor for granule in self._ripe(zone, until)):
            if not self._passes_gate(zone):
                return False, failed
            batch: list[tuple[int, int]] = []
            while len(batch) < self._most:
                ripe = sorted(self._ripe(zone, until))
                ahead = [g for g in ripe if g >= cursor and not zone.isolate[g << self.min_order]]
                if not ahead:
                    cursor = len(zone.free)
                    break
                page, order = self._largest(zone, ahead[0], set(ripe))
                zone.hints -= set(zone.granules(page, 1 << order))
                zone.free[page : page + (1 << order)] = False
                zone.out += 1 << order
                batch.append((page, order))
                cursor = (page + (1 << order)) >> self.min_order
            if batch:
                failed |= self._report(zone, batch)
        return True, failed

    def _largest(self, zone: ReferenceZone, granule: int, ripe: set[int]) -> tuple[int, int]:
        """The largest block from this granule on that is all ripe and part of one free block."""
        page = granule << self.min_order
        source = next(o for p, o in zone.blocks() if p <= page < p + (1 << o))
        for order in range(min(source, self.report_order), self.min_order, -1):
            if page % (1 << order) == 0 and set(zone.granules(page, 1 << order)) <= ripe:
                return page, order
        return page, self.min_order

    def _report(self, zone: ReferenceZone, batch: list[tuple[int, int]]) -> bool:
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

    def verify(self) -> None:
        for zone in self.zones:
            used = np.zeros(len(zone.free), int)
            for page, nr_pages in zone.used.items():
                used[page : page + nr_pages] += 1
            assert (used + zone.free + zone.absent <= 1).all()
            assert all(zone.granule_is_free(granule) for granule in zone.hints)


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
