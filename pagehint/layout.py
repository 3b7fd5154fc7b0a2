"""What a machine looks like: its zones, the order in which requests try them, their watermarks. Only numbers."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import isqrt
from typing import Any, Literal, NamedTuple

from pagehint.sizes import shown

GIB = 1 << 30
SECTION_BYTES = 128 << 20
PFN_LIMIT = 1 << 52
MAX_NODES = 1024  # as in Linux
MOST_SPANNED = 1 << 32  # pages


class Watermarks(NamedTuple):
    """Free pages of a zone: ordinary requests leave `min`; under `low` memory is short; `high` is enough."""

    min: int
    low: int
    high: int


@dataclass(frozen=True)
class ZoneSpec:
    """One zone of a machine to be modelled.

    Parameters
    ----------
    name : str
        As in Linux: DMA, DMA32, Normal, Movable, or your own.
    start_pfn : int
        First page frame number; any, also unaligned.
    spanned_pages : int
        Pages from the first to the last, holes included.
    node : int
        NUMA node the zone belongs to.
    holes : sequence of (pfn, nr_pages)
        Runs of page frames inside the span where there is no memory, or another zone's: zones may interleave.
    span_limit : int, default 2**32
        Pages that it may ever span, when it grows by hotplug. Address space is reserved for their metadata, 0.4 byte a
        page; memory is not.

    Raises
    ------
    ValueError
        If the zone is empty, nothing but holes, or not within PFNs from 0 to 2**52, if a hole is not inside it, or if
        two holes overlap.
    TypeError
        If the name is not a string, or a number not an integer.
    """

    name: str
    start_pfn: int
    spanned_pages: int
    node: int = 0
    holes: Sequence[tuple[int, int]] = ()
    span_limit: int = MOST_SPANNED

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"a zone's name must be a string, not {self.name!r}")
        try:
            for number in ("start_pfn", "spanned_pages", "node", "span_limit"):
                object.__setattr__(self, number, operator.index(getattr(self, number)))
        except TypeError:
            raise TypeError(f"zone {self.name}: {number} must be an integer, not {getattr(self, number)!r}") from None
        end = self.start_pfn + self.spanned_pages
        where = f"zone {self.name} [{self.start_pfn:#x}, {end:#x})"
        if self.start_pfn < 0 or self.spanned_pages <= 0 or end > PFN_LIMIT:
            raise ValueError(f"{where}: a zone needs at least one page, at PFNs from 0 to 2**52")
        if self.node < 0:
            raise ValueError(f"{where}: node {shown(self.node)} is negative")
        if self.span_limit < min(self.spanned_pages, MOST_SPANNED):
            raise ValueError(f"{where}: span_limit {shown(self.span_limit)} is less than it spans")
        merged: list[tuple[int, int]] = []
        for pfn, nr_pages in self._hole_numbers():
            if nr_pages <= 0 or pfn < self.start_pfn or pfn + nr_pages > end:
                raise ValueError(f"{where}: hole of {nr_pages} pages at PFN {pfn:#x} is not inside it")
            if merged and pfn < merged[-1][0] + merged[-1][1]:
                raise ValueError(f"{where}: holes overlap at PFN {pfn:#x}")
            if merged and pfn == merged[-1][0] + merged[-1][1]:
                merged[-1] = (merged[-1][0], merged[-1][1] + nr_pages)
            else:
                merged.append((pfn, nr_pages))
        if sum(nr_pages for _, nr_pages in merged) == self.spanned_pages:
            raise ValueError(f"{where}: nothing but holes")
        object.__setattr__(self, "holes", tuple(merged))

    def _hole_numbers(self) -> list[tuple[int, int]]:
        """Return the holes as given, by address."""
        holes = []
        for hole in self.holes:
            try:
                pfn, nr_pages = map(operator.index, hole)
            except (TypeError, ValueError) as error:
                raise type(error)(f"zone {self.name}: a hole is (pfn, nr_pages), two integers, not {hole!r}") from None
            holes.append((pfn, nr_pages))
        return sorted(holes)

    @property
    def end_pfn(self) -> int:
        """The PFN after the last one."""
        return self.start_pfn + self.spanned_pages


def check_watermarks(watermarks: Any) -> Watermarks | Literal["linux"]:
    """Check what a caller of `PageAllocator` gives as watermarks, and return them: None is zero."""
    if watermarks is None:
        return Watermarks(0, 0, 0)
    if isinstance(watermarks, str) and watermarks == "linux":
        return "linux"
    wanted = "watermarks must be None, 'linux' or (min, low, high) in pages"
    if isinstance(watermarks, str):
        raise ValueError(f"{wanted}, not {watermarks!r}")
    try:
        pages = [operator.index(mark) for mark in watermarks]
    except TypeError:
        raise TypeError(f"{wanted}, not {watermarks!r}") from None
    if len(pages) != 3 or not 0 <= pages[0] <= pages[1] <= pages[2] < PFN_LIMIT:
        raise ValueError(f"{wanted}, 0 <= min <= low <= high < 2**52, not ({', '.join(map(shown, pages))})")
    return Watermarks(*pages)


def memory_ranges(zone: ZoneSpec) -> Iterator[tuple[int, int]]:
    """Return where the zone has memory, as (start, end) in PFNs."""
    start = zone.start_pfn
    for pfn, nr_pages in zone.holes:
        if pfn > start:
            yield start, pfn
        start = pfn + nr_pages
    if start < zone.end_pfn:
        yield start, zone.end_pfn


def interleaving(zones: Sequence[ZoneSpec]) -> list[list[int]]:
    """Return the indices of zones, which are by address, in groups: only within one do spans overlap."""
    groups: list[list[int]] = []
    reached = -1
    for i, zone in enumerate(zones):
        if zone.start_pfn >= reached:
            groups.append([])
        groups[-1].append(i)
        reached = max(reached, zone.end_pfn)
    return groups


def interleaved_ranges(zones: Sequence[ZoneSpec]) -> list[tuple[int, int, int]]:
    """Return whose the memory is where spans overlap, as (start, end, index of the zone) in PFNs, by address.

    Memory of one zone is one range up to where another's begins, holes included. O(holes * log holes) of such zones.
    Raises ValueError if a page is in two zones.
    """
    ranges: list[tuple[int, int, int]] = []
    for group in interleaving(zones):
        memory = [(*each, i) for i in group for each in memory_ranges(zones[i])] if len(group) > 1 else []
        for start, end, i in sorted(memory):
            if not ranges or ranges[-1][2] != i:
                ranges.append((start, end, i))
            else:
                ranges[-1] = (ranges[-1][0], end, i)
            if len(ranges) > 1 and start < ranges[-2][1]:
                below, above = zones[ranges[-2][2]], zones[i]
                raise ValueError(
                    f"zones {below.name} (node {below.node}) and {above.name} (node {above.node})"
                    f" overlap at PFN {start:#x}"
                )
    return ranges


def tails(zones: Sequence[ZoneSpec]) -> list[int | None]:
    """Return, for each zone, the PFN from which on all is its own, to its end, or None: then it never grows.

    Of zones that interleave it is the one that reaches furthest that has such a tail.
    """
    found: list[int | None] = [None] * len(zones)
    for group in interleaving(zones):
        furthest = max(group, key=lambda i: (zones[i].end_pfn, -i))
        others = [zones[i].end_pfn for i in group if i != furthest]
        found[furthest] = max(others, default=zones[furthest].start_pfn)
    return found


def check_zones(zones: Iterable[ZoneSpec]) -> tuple[ZoneSpec, ...]:
    """Return the zones by address; raise ValueError if a page is in two, or two have the same name on one node."""
    try:
        listed = list(zones)
    except TypeError:
        kind = type(zones).__name__
        raise TypeError(f"memory must be a size or an iterable of ZoneSpec, not {kind}") from None
    for zone in listed:
        if not isinstance(zone, ZoneSpec):
            raise TypeError(f"the zones of a machine must be ZoneSpec, not {type(zone).__name__}")
    ordered = sorted(listed, key=lambda zone: zone.start_pfn)
    if not ordered:
        raise ValueError("a machine needs at least one zone")
    interleaved_ranges(ordered)
    first: dict[tuple[int, str], ZoneSpec] = {}
    for zone in ordered:
        same = first.setdefault((zone.node, zone.name), zone)
        if same is not zone:
            raise ValueError(
                f"two zones of node {zone.node} are named {zone.name}:"
                f" at PFN {same.start_pfn:#x} and at PFN {zone.start_pfn:#x}"
            )
    return tuple(ordered)


def x86_64_zones(nr_bytes: int, nodes: int = 1) -> list[ZoneSpec]:
    """Return the zones of a PC: DMA, DMA32 up to 3 GiB, Normal from 4 GiB on; nodes share the memory evenly."""
    page_size = 4096
    if not 1 <= nodes <= MAX_NODES:
        raise ValueError(f"a machine has from one node to {MAX_NODES}, not {shown(nodes)}")
    nr_pages = nr_bytes // page_size
    low_end, high_start = 3 * GIB // page_size, 4 * GIB // page_size
    low = min(nr_pages, low_end)
    end = high_start + nr_pages - low if nr_pages > low else low
    dma_end = min(4096, low)
    if low <= 1:
        raise ValueError("a PC has more than one page")
    limits = [("DMA", 1, dma_end), ("DMA32", dma_end, low), ("Normal", high_start, end)]
    # Each node has the same share of the pages, in whole sections; the hole below 4 GiB does not count.
    section = SECTION_BYTES // page_size
    borders = [0]
    for node in range(1, nodes):
        share = nr_pages * node // nodes // section * section
        borders.append(share if share < low_end else share - low_end + high_start)
    borders.append(max(end, high_start))
    zones = []
    for node, (first, last) in enumerate(pairwise(borders)):
        for name, start, stop in limits:
            start, stop = max(start, first), min(stop, last)
            if start < stop:
                zones.append(ZoneSpec(name, start, stop - start, node))
    if {zone.node for zone in zones} != set(range(nodes)):
        raise ValueError(f"{nr_bytes} bytes are too few for {nodes} nodes")
    return zones


def zone_ranks(zones: Sequence[ZoneSpec]) -> list[int]:
    """Return how high each zone is; those of one name are equally high, whatever their node."""
    ranks: dict[str, int] = {}
    return [ranks.setdefault(zone.name, len(ranks)) for zone in zones]


def zonelists(zones: Sequence[ZoneSpec]) -> list[list[int]]:
    """Return, for each zone that a request may prefer, the indices of the zones to try in turn. O(zones**2).

    First come the zone and the lower ones of its node, then those of the next nodes that are no higher, as in Linux.
    """
    ranks = zone_ranks(zones)
    lists: list[list[int]] = [[] for _ in zones]
    for rank in set(ranks):
        usable = [i for i in range(len(zones)) if ranks[i] <= rank]
        usable.sort(key=lambda i: (zones[i].node, -ranks[i]))
        nodes = [zones[i].node for i in usable]
        for i in range(len(zones)):
            if ranks[i] == rank:
                first = bisect_left(nodes, zones[i].node)
                lists[i] = usable[first:] + usable[:first]
    return lists


def default_zone(zones: Sequence[ZoneSpec]) -> int:
    """Return the index of the zone for requests that name none: the highest zone of the lowest node."""
    node = min(zone.node for zone in zones)
    return max(i for i, zone in enumerate(zones) if zone.node == node)


def linux_watermarks(managed: Sequence[int], page_size: int) -> list[Watermarks]:
    """Return each zone's watermarks in pages by Linux's formulas (``min_free_kbytes``, scale factor 10)."""
    total = max(sum(managed), 1)
    kbytes = total * page_size // 1024
    min_free_kbytes = min(max(isqrt(kbytes * 16), 128), 262144)
    pages_min = min_free_kbytes * 1024 // page_size
    marks = []
    for pages in managed:
        least = pages_min * pages // total
        step = max(least // 4, pages * 10 // 10000)
        marks.append(Watermarks(least, least + step, least + 2 * step))
    return marks


_RESERVE_RATIO = {"DMA": 256, "DMA32": 256, "Normal": 32}


def lowmem_reserves(zones: Sequence[ZoneSpec], ranks: Sequence[int], managed: Sequence[int]) -> list[list[int]]:
    """Return, for each zone, the pages that it keeps from requests that prefer a zone of each of their `ranks`.

    Linux's ``lowmem_reserve_ratio``: a share of the memory of its node that is higher, and no higher than that rank.
    O(zones * ranks).
    """
    sizes = {zone.node: [0] * (max(ranks) + 1) for zone in zones}
    for zone, rank, nr_pages in zip(zones, ranks, managed, strict=True):
        sizes[zone.node][rank] += nr_pages
    table = []
    for zone, rank in zip(zones, ranks, strict=True):
        ratio = _RESERVE_RATIO.get(zone.name)
        above = accumulate(sizes[zone.node][rank + 1 :])
        table.append([0] * (rank + 1) + [pages // ratio if ratio else 0 for pages in above])
    return table
