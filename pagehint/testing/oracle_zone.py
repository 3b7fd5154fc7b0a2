"""One zone as the oracle has it: a boolean for each page, and every question answered from them anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

import pagehint as ph


class OracleZone:
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

    def has_memory(self, start: int, end: int) -> bool:
        """Whether there is memory from PFN `start` to `end`, online or offline."""
        return not self.hole[max(start - self.base, 0) : max(end - self.base, 0)].all()

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

    def with_host(self) -> list[int]:
        """The granules that are free and not hinted, while hinting is on."""
        granules = range(len(self.free) >> self.granule_order)
        return [granule for granule in granules if self.granule_is_free(granule) and granule not in self.hints]

    def granules(self, page: int, nr_pages: int) -> range:
        return range(page >> self.granule_order, ((page + nr_pages - 1) >> self.granule_order) + 1)
