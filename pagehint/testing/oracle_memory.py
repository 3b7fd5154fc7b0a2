"""The oracle without hinting: zones, allocation, free, hotplug and migratetypes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from pagehint import layout
from pagehint.sizes import parse_size
from pagehint.testing.oracle_zone import OracleZone

PAGEBLOCK = 512
BULK_CHUNK = 48  # blocks in a lock round, where each has an order of its own: BULK_STEPS


class OracleMemory:
    """Zones, and what is allocated in them. Placement is first fit.

    What hinting must know of is told by calling `_granules_used`, `_granules_free`, `_watermarks_set`, `_evaluate` and
    `_settle`, which do nothing here.
    """

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
        self.zones = tuple(OracleZone(spec, i, max_page_order, self.min_order, marks) for i, spec in enumerate(specs))
        self.ranks = layout.zone_ranks(specs)
        self.ranges, self.tails = layout.interleaved_ranges(specs), layout.tails(specs)
        self.edges = {pfn for start, end, _ in self.ranges for pfn in (start, end)}
        self._set_watermarks()

    def _set_watermarks(self) -> None:
        """Linux's, where they are wanted, by the memory there is now."""
        sizes = [zone.managed_pages for zone in self.zones]
        self.lowmem_reserve = [
            [reserves[rank] if self.linux else 0 for rank in self.ranks]
            for reserves in layout.lowmem_reserves(self.specs, self.ranks, sizes)
        ]
        if self.linux:
            for zone, marks in zip(self.zones, layout.linux_watermarks(sizes, self.page_size), strict=True):
                zone.watermarks = marks
                self._watermarks_set(zone)

    # -- where

    def _zone(self, pfn: int) -> OracleZone:
        """Return the zone that has memory there; in a hole, the one around it that reaches furthest."""
        around = [zone for zone in self.zones if zone.start_pfn <= pfn < zone.end_pfn]
        if not around:
            raise ph.BadPageError(f"PFN {pfn:#x}: outside every zone")
        return max(around, key=lambda zone: (zone.has_memory(pfn, pfn + 1), zone.end_pfn))

    def _range(self, pfn: int) -> tuple[int, int]:
        """Return what a lock round of a bulk call is in: a zone, and where its range around this page begins."""
        zone, tail = self._zone(pfn), self.tails[self._zone(pfn).index]
        if tail is not None and pfn >= tail:
            return zone.index, tail
        return zone.index, next(start for start, end, _ in self.ranges if start <= pfn < end)

    def _zone_of_run(self, pfn: int, nr_pages: int) -> OracleZone:
        """Return the one zone that the run is in."""
        end = pfn + nr_pages
        owners = [zone for zone in self.zones if zone.has_memory(pfn, end)] or [self._zone(pfn)]
        if len(owners) > 1 or pfn < owners[0].start_pfn or end > owners[0].end_pfn:
            raise ph.BadPageError(f"PFN {pfn:#x}, {nr_pages} pages: not in one zone")
        return owners[0]

    def _order(self, order: int) -> None:
        if not 0 <= order <= self.max_page_order:
            raise ph.BadPageError(f"order {order} is out of range")

    @staticmethod
    def _aligned(pfn: int, order: int) -> None:
        if pfn % (1 << order):
            raise ph.BadPageError(f"PFN {pfn:#x}: not aligned to order {order}")

    def _zonelist(self, zone: Any) -> Iterator[tuple[OracleZone, int]]:
        named = [z for z in self.zones if zone is z or zone == z.name]
        preferred = self.default if zone is None else min(named, key=lambda z: z.node).index
        for i in self.lists[preferred]:
            yield self.zones[i], self.zones[i].watermarks.min + self.lowmem_reserve[i][preferred]

    # -- allocate

    def _take(self, zone: OracleZone, page: int, nr_pages: int) -> None:
        self._granules_used(zone, zone.granules(page, nr_pages))
        zone.free[page : page + nr_pages] = False
        zone.used[page] = nr_pages

    def can_alloc(self, order: int, zone: Any = None) -> tuple[OracleZone, int] | None:
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

    def alloc_pages_at_bulk(self, pfns: Iterable[Any], nr_pages: int | Iterable[Any], order: int = 0) -> None:
        self._order(order)
        starts = [int(pfn) for pfn in pfns]
        counts = [nr_pages] * len(starts) if isinstance(nr_pages, int) else [int(each) for each in nr_pages]
        taken: set[tuple[int, int]] = set()
        for pfn, count in zip(starts, counts, strict=True):
            zone = self._zone(pfn)
            run = range(pfn - zone.base, pfn - zone.base + count)
            self._aligned(pfn | count, order)
            if count < 1 or pfn + count > zone.end_pfn:
                raise ph.BadPageError(f"PFN {pfn:#x}, {count} pages: not in one zone")
            pages = {(zone.index, page) for page in run}
            if taken & pages or not all(zone.free[page] and not zone.isolate[page] for page in run):
                raise ph.BadPageError(f"PFN {pfn:#x}, {count} pages, zone {zone.name}: not all free, or twice")
            taken |= pages
        for index, page in sorted(taken):
            if page % (1 << order) == 0:
                self._take(self.zones[index], page, 1 << order)
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

    def _give(self, zone: OracleZone, page: int, nr_pages: int, evaluate: bool = True) -> bool:
        """Free these pages; return whether a granule has become wholly free."""
        zone.free[page : page + nr_pages] = True
        granules = [g for g in zone.granules(page, nr_pages) if zone.granule_is_free(g)]
        self._granules_free(zone, granules, evaluate)
        return bool(granules)

    def _check_used(self, pfn: int, nr_pages: int) -> OracleZone:
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

    def split_pages(self, pfn: int, order: int) -> None:
        self._order(order)
        self._aligned(pfn, order)
        zone = self._check_used(pfn, 1 << order)
        del zone.used[pfn - zone.base]
        zone.used.update(dict.fromkeys(range(pfn - zone.base, pfn - zone.base + (1 << order)), 1))

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
        # The count is looked at when a lock round ends: so many blocks of one range of a zone.
        blocks = [(self._range(pfn), pfn, 1 << each) for pfn, each in zip(pfns, orders, strict=True)]
        while blocks:
            zone = self._zone(blocks[0][1])
            round_ = list(takewhile(lambda block: block[0] == blocks[0][0], blocks[:BULK_CHUNK]))
            whole = False
            for _, pfn, nr_pages in round_:
                del zone.used[pfn - zone.base]
                whole |= self._give(zone, pfn - zone.base, nr_pages, evaluate=False)
            if whole:
                self._evaluate(zone)
            self._settle()
            del blocks[: len(round_)]

    def drain_pcp(self) -> None:
        """There are no page sets."""

    # -- hotplug and migratetypes

    def _sections(self, pfn: int, nr_pages: int) -> None:
        section = max((128 << 20) // self.page_size, 1)
        around = [z for z in self.zones if z.start_pfn <= pfn < z.end_pfn]
        edges = {pfn for z in self.zones if z.start_pfn == pfn} | {z.end_pfn for z in around} | self.edges
        if nr_pages <= 0 or any(edge % section and edge not in edges for edge in (pfn, pfn + nr_pages)):
            raise ph.BadPageError("not whole sections")

    def offline(self, pfn: int, nr_pages: int) -> None:
        self._sections(pfn, nr_pages)
        zone = self._zone_of_run(pfn, nr_pages)
        run = slice(pfn - zone.base, pfn - zone.base + nr_pages)
        memory = ~zone.hole[run]
        if zone.offline[run].any() or not zone.free[run][memory].all():
            raise ph.BadPageError(f"PFN {pfn:#x}: in use, already offline, or not in one zone")
        self._granules_used(zone, {int(page) >> self.min_order for page in run.start + np.flatnonzero(memory)})
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
        zone = self._zone_of_run(pfn, nr_pages)
        run = slice(pfn - zone.base, end - zone.base)
        if not (zone.offline | zone.gap)[run].all():
            raise ph.BadPageError("not all offline")
        zone.offline[run] = False
        section = max((128 << 20) // self.page_size, 1)
        for first in range(-(-pfn // section) * section - zone.base, run.stop - section + 1, section):
            whole = slice(first, first + section)
            if zone.gap[whole].all():  # what is missing of a section that was there before never had memory
                zone.hole[whole] = zone.gap[whole] = False
        memory = run.start + np.flatnonzero(~zone.hole[run])
        zone.absent[memory] = False
        zone.free[memory] = True
        granules = {int(page) >> self.min_order for page in memory}
        self._granules_free(zone, [g for g in granules if zone.granule_is_free(g)])
        self._set_watermarks()
        self._settle()

    def set_migratetype(self, pfn: int, nr_pages: int, migratetype: str) -> None:
        if nr_pages <= 0:
            raise ph.BadPageError("nr_pages must be positive")
        unit, end = max(PAGEBLOCK, 1 << self.min_order), pfn + nr_pages
        owners = [zone for zone in self.zones if zone.has_memory(pfn, end)]
        if len(owners) == 1:  # the part of its first and last pageblock that exists
            [zone] = owners
            pfn = zone.start_pfn if pfn == zone.start_pfn // unit * unit else pfn
            end = zone.end_pfn if end == -(-zone.end_pfn // unit) * unit else end
        zone = self._zone_of_run(pfn, end - pfn)
        for edge, beside in ((pfn, (pfn // unit * unit, pfn)), (end, (end, -(-end // unit) * unit))):
            inside = edge in self.edges and not zone.has_memory(*beside)
            if edge % unit and edge not in (zone.start_pfn, zone.end_pfn) and not inside:
                raise ph.BadPageError("not whole pageblocks of one zone")
        first, last = (pfn - zone.base) // PAGEBLOCK * PAGEBLOCK, -(-(end - zone.base) // PAGEBLOCK) * PAGEBLOCK
        zone.isolate[first:last] = migratetype == "isolate"
        zone.look_at = 0
        self._evaluate(zone)
        self._settle()

    # -- what is free

    def free_bitmap(self) -> NDArray[np.uint64]:
        pages = np.zeros(max(zone.base + len(zone.free) for zone in self.zones), bool)
        for zone in self.zones:
            pages[zone.base : zone.base + len(zone.free)] |= zone.free
        last = max(zone.end_pfn for zone in self.zones)
        return np.packbits(pages[: -(-last // 64) * 64], bitorder="little").view(np.uint64)

    def free_block_at(self, pfn: int) -> tuple[int, int] | None:
        zone = self._zone(pfn)
        around = [(zone.base + page, order) for page, order in zone.blocks()]
        return next((block for block in around if block[0] <= pfn < block[0] + (1 << block[1])), None)

    # -- what hinting must know of

    def _granules_used(self, zone: OracleZone, granules: Iterable[int]) -> None:
        """No page of these granules may be reported any more."""

    def _granules_free(self, zone: OracleZone, granules: list[int], evaluate: bool = True) -> None:
        """These granules have become wholly free; `evaluate` whether this calls for work, too."""

    def _watermarks_set(self, zone: OracleZone) -> None:
        """The zone has new watermarks."""

    def _evaluate(self, zone: OracleZone) -> None:
        """Ask for work if the zone calls for it."""

    def _settle(self) -> None:
        """An operation is over."""

    # -- that it is sound itself

    def verify(self) -> None:
        for zone in self.zones:
            used = np.zeros(len(zone.free), int)
            for page, nr_pages in zone.used.items():
                used[page : page + nr_pages] += 1
            assert (used + zone.free + zone.absent <= 1).all()
            assert all(zone.granule_is_free(granule) for granule in zone.hints)
