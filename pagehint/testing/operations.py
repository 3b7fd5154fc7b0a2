"""What can be done to a machine's memory, by the allocator and the oracle both, which must agree.

`OPERATIONS` has every operation and what its arguments may be. The rules of the state machine, lists of operations and
what a fuzzer decodes are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

import pagehint as ph
from pagehint.layout import SECTION_BYTES
from pagehint.testing.layouts import ZoneLayout
from pagehint.testing.oracle import OracleAllocator
from pagehint.testing.oracle_zone import OracleZone

Arguments = Mapping[str, Sequence[Any]]

_PICKS = range(10**6)
_ORDERS = range(13)
_TYPES = ("movable", "unmovable", "reclaimable")
_PAGEBLOCK_TYPES = ("isolate", "movable", "unmovable")
_FEW = (1, 2, 3) * 6 + tuple(range(1, 21))  # mostly so few that small zones are above the watermark gate
_AT_ONCE = (True, False)  # flush, too, so that something comes of it
_SWITCHED: Arguments = {
    "batch": _FEW,
    "threshold": (None, 1, 3),
    "delay": range(3),
    "least_order": (False, True),
    "mark_free": (True, False),
    "min_age": range(3),
    "reserve": (None, 1, 2, 5),
    "at_once": _AT_ONCE,
}

FAILURES = (
    "none",
    "raises",
    "raises at times",
    "refuses some",
    "wrong answer",
    "prepare raises",
    "prepare refuses",
    "cleanup raises",
)

OPERATIONS: Mapping[str, Arguments] = {
    "alloc": {"order": _ORDERS, "migratetype": _TYPES, "zone": (None, "DMA", "Normal")},
    "alloc_bulk": {"count": range(201), "order": range(4), "migratetype": _TYPES},
    "alloc_at": {"pick": _PICKS, "order": _ORDERS, "aligned": (True, False)},
    "alloc_at_bulk": {"pick": _PICKS, "runs": range(1, 6), "order": _ORDERS, "free_only": (True, True, False)},
    "alloc_exact": {"nr_pages": tuple(range(1, 71)) * 20 + tuple(range(1, 1501)), "migratetype": _TYPES},
    "free": {"pick": _PICKS},
    "free_by_order": {"pick": _PICKS},
    "free_bulk": {"pick": _PICKS, "share": range(1, 5), "twice": (False, True)},
    "free_wrongly": {"pick": _PICKS, "order": _ORDERS},
    "free_nearly_right": {"pick": _PICKS, "shift": range(-2, 3), "order": _ORDERS},
    "trace": {"seed": _PICKS, "length": range(1, 101), "top": _ORDERS},
    "churn": {"seed": _PICKS, "top": _ORDERS},
    "drain": {},
    "offline": {"pick": _PICKS, "sections": range(1, 5)},
    "online": {"pick": _PICKS, "sections": range(1, 5)},
    "online_again": {"pick": _PICKS},
    "set_migratetype": {"pick": _PICKS, "blocks": range(1, 4), "migratetype": _PAGEBLOCK_TYPES},
    "set_migratetype_where_used": {"pick": _PICKS, "at": range(4), "migratetype": _PAGEBLOCK_TYPES},
    "enable": _SWITCHED,
    "disable": {},
    "fail": {"failure": FAILURES, "at_once": _AT_ONCE},
    "restart": _SWITCHED,
    "change_max_pages": {"value": _FEW},
    "change_threshold": {"value": (None, *_FEW)},
    "change_delay": {"delay": range(3)},
    "flush": {},
    "everything_reportable_is_reported": {},
}


def refusal(allocator: object, name: str, *args: Any) -> type[ph.PageHintError] | None:
    """Call it; the type of the error, or None if it did it."""
    try:
        getattr(allocator, name)(*args)
    except ph.PageHintError as error:
        return type(error)
    return None


class Operations:
    """The operations. Who reports, and when, is for the checkers."""

    operations: ClassVar[Mapping[str, Arguments]] = OPERATIONS
    delays: tuple[float | None, ...]  # of which the operations take one
    ages: tuple[float | str | None, ...]
    reserve_age: float

    def __init__(self, layout: ZoneLayout, *, pcp: bool) -> None:
        self.pages = ph.PageAllocator(layout.zones, pcp=pcp, **layout.options)
        self.oracle = OracleAllocator(layout.zones, **layout.options)
        self.section = max(SECTION_BYTES // layout.page_size, 1)
        # PFNs are below this; zones grow, but not for ever.
        self.room = (max(zone.end_pfn for zone in layout.zones) // 65536 + 1) * 65536
        self.on = False
        self.failure = "none"  # of the callbacks
        self.limit = 1  # most blocks at once that the callbacks can take

    # -- both do it, both agree

    def both(self, name: str, *args: Any) -> bool:
        """Call both; either both refuse with the same error, or both answer. Returns whether they did it."""
        raise NotImplementedError

    def took(self, pfns: Any, nr_pages: int) -> None:
        """Tell the oracle where the allocator has put blocks of so many pages."""
        for pfn in pfns:
            self.oracle.alloc_run_at(int(pfn), nr_pages)

    def used(self) -> list[tuple[int, int]]:
        return sorted((zone.base + page, n) for zone in self.oracle.zones for page, n in zone.used.items())

    def used_blocks(self) -> list[tuple[int, int]]:
        """What is allocated as blocks: (PFN, order)."""
        top = self.pages.max_page_order
        return [(pfn, n.bit_length() - 1) for pfn, n in self.used() if n & (n - 1) == 0 and n <= 1 << top]

    def pick_used(self, pick: int) -> tuple[int, int] | None:
        used = self.used()
        return used[pick % len(used)] if used else None

    def any_pfn(self, pick: int) -> int:
        edges = [zone.start_pfn for zone in self.oracle.zones] + [zone.end_pfn for zone in self.oracle.zones]
        low, high = min(edges) - 2, max(edges) + 2
        return max(low + pick % (high - low), 0)

    # -- allocate

    def alloc(self, order: int, migratetype: Any, zone: str | None) -> None:
        order %= self.pages.max_page_order + 1
        if zone not in {each.name for each in self.pages.zones}:
            zone = None
        try:
            pfn = self.pages.alloc_pages(order, migratetype, zone)
        except ph.OutOfMemoryError:
            assert self.oracle.can_alloc(order, zone) is None
        else:
            assert pfn % (1 << order) == 0
            self.took([pfn], 1 << order)

    def alloc_bulk_real(self, count: int, order: int, migratetype: Any) -> Any:
        return self.pages.alloc_pages_bulk(count, order, migratetype)

    def alloc_bulk(self, count: int, order: int, migratetype: Any) -> None:
        if order > self.pages.max_page_order:
            assert refusal(self.pages, "alloc_pages_bulk", count, order) is ph.BadPageError
            return
        try:
            pfns = self.alloc_bulk_real(count, order, migratetype)
        except ph.OutOfMemoryError:
            assert refusal(self.oracle, "alloc_pages_bulk", count, order, migratetype) is ph.OutOfMemoryError
        else:
            assert len(pfns) == count
            self.took(pfns, 1 << order)

    def alloc_at(self, pick: int, order: int, aligned: bool) -> None:
        pfn = self.any_pfn(pick)
        self.both("alloc_pages_at", pfn >> order << order if aligned else pfn, order)

    def alloc_at_bulk(self, pick: int, runs: int, order: int, free_only: bool) -> None:
        """Runs anywhere, or parts of free blocks, in any order; of the latter the first may be there twice."""
        rng = np.random.default_rng(pick)
        order %= self.pages.max_page_order + 1
        unit = 1 << order
        if free_only:
            blocks = [block for zone in self.oracle.zones for block in zone.free_blocks().tolist() if block[1] >= order]
            chosen = [blocks[i] for i in rng.permutation(len(blocks))[:runs]]
            skipped = [int(rng.integers(0, 1 << each - order)) for _, each in chosen]
            pfns = [pfn + skip * unit for (pfn, _), skip in zip(chosen, skipped, strict=True)]
            rooms = [(1 << each - order) - skip for (_, each), skip in zip(chosen, skipped, strict=True)]
            counts = [int(rng.integers(1, room + 1)) * unit for room in rooms]
            if chosen and pick % 8 == 0:
                pfns, counts = [*pfns, pfns[0]], [*counts, unit]
        else:
            pfns = [self.any_pfn(int(rng.integers(0, 10**6))) >> order << order for _ in range(runs)]
            counts = [int(each) * unit for each in rng.integers(1, 5, runs)]
        self.both("alloc_pages_at_bulk", pfns, counts, order)

    def alloc_exact(self, nr_pages: int, migratetype: Any) -> None:
        try:
            pfn = self.pages.alloc_pages_exact(nr_pages, migratetype)
        except ph.OutOfMemoryError:
            order = (nr_pages - 1).bit_length()
            if order <= self.pages.max_page_order:
                assert self.oracle.can_alloc(order) is None
        else:
            self.took([pfn], nr_pages)

    # -- free

    def free(self, pick: int) -> None:
        if block := self.pick_used(pick):
            self.both("free_pages_exact", *block)

    def free_by_order(self, pick: int) -> None:
        if blocks := self.used_blocks():
            self.both("free_pages", *blocks[pick % len(blocks)])

    def free_bulk(self, pick: int, share: int, twice: bool) -> None:
        blocks = [block for block in self.used_blocks() if block[0] % share == pick % share]
        order = np.random.default_rng(pick).permutation(len(blocks))
        pfns = np.array([blocks[i][0] for i in order], np.uint64)
        each = np.array([blocks[i][1] for i in order], np.uint32)
        if twice and len(pfns):
            pfns, each = np.append(pfns, pfns[0]), np.append(each, each[0])
        self.both("free_pages_bulk", pfns, each)

    def free_wrongly(self, pick: int, order: int) -> None:
        self.both("free_pages", self.any_pfn(pick), order)

    def free_nearly_right(self, pick: int, shift: int, order: int) -> None:
        if block := self.pick_used(pick):
            self.both("free_pages", max(block[0] + shift, 0), order)
            self.both("free_pages_exact", block[0], max(block[1] + shift, 1))

    # -- many at once

    def run_ops_real(self, freed: Sequence[tuple[int, int]], ops: Any, table: Any) -> None:
        """Run a trace; `freed` are the blocks from before that it may free."""
        self.pages.run_ops(ops, table)

    def trace(self, seed: int, length: int, top: int) -> None:
        """Allocate, each time into a slot of its own, and free what is in any slot: a block, one that was, or none."""
        rng = np.random.default_rng(seed)
        before = self.used_blocks()[:length]
        ops = np.zeros(length, ph.OP_DTYPE)
        ops["op"] = np.where(rng.random(length) < 0.6, ph.OP_ALLOC, ph.OP_FREE)
        ops["order"] = rng.integers(0, top + 1, length)
        ops["slot"] = np.arange(len(before), len(before) + length)
        table = np.full(len(before) + length, 1 << 51, np.uint64)
        table[: len(before)] = [pfn for pfn, _ in before]
        orders = np.concatenate([[order for _, order in before], ops["order"]]).astype(np.uint16)
        for i in np.flatnonzero(ops["op"] == ph.OP_FREE):
            slot = int(rng.integers(0, len(before) + i + 1))
            ops["slot"][i], ops["order"][i] = slot, orders[slot]
        done, error = length, None
        try:
            self.run_ops_real([before[slot] for slot in ops["slot"] if slot < len(before)], ops, table)
        except ph.PageHintError as refused:
            done, error = refused.index, refused  # type: ignore[attr-defined]
        for op in ops[:done]:
            pfn, order = int(table[op["slot"]]), int(op["order"])
            if op["op"] == ph.OP_ALLOC:
                self.oracle.alloc_run_at(pfn, 1 << order)
            else:
                self.oracle.free_pages(pfn, order)
        if error is not None:
            pfn, order = int(table[ops["slot"][done]]), int(ops["order"][done])
            if order > self.pages.max_page_order or ops["op"][done] == ph.OP_FREE:
                assert refusal(self.oracle, "free_pages", pfn, order) is type(error) is ph.BadPageError
            else:
                assert isinstance(error, ph.OutOfMemoryError)
                assert self.oracle.can_alloc(order) is None

    def churn(self, seed: int, top: int) -> None:
        """A burst, without the checks between, so that much happens while one report is out."""
        rng = np.random.default_rng(seed)
        for pick, order in zip(rng.integers(0, 10**6, 20).tolist(), rng.integers(0, top + 1, 20).tolist(), strict=True):
            if pick % 4 < 2:
                self.free(pick)
            elif pick % 4 == 2:
                self.alloc(order, "movable", None)
            else:
                self.alloc_at(pick, order, True)

    def drain(self) -> None:
        self.pages.drain_pcp()

    # -- hotplug and migratetypes

    def cut(self, pick: int, pfn: int, start: int, end: int) -> tuple[int, int]:
        """Where zones interleave, now and then only what one of them has of a run: as (PFN, pages)."""
        if pick % 3:
            start = max([start, *(edge for edge in self.oracle.edges if edge <= pfn)])
            end = min([end, *(edge for edge in self.oracle.edges if edge > pfn)])
        return start, end - start

    def run_of_sections(self, pick: int, pfn: int, sections: int) -> tuple[int, int]:
        start = pfn // self.section * self.section
        return self.cut(pick, pfn, start, start + sections * self.section)

    def offline(self, pick: int, sections: int) -> None:
        self.both("offline", *self.run_of_sections(pick, self.any_pfn(pick), sections))

    def online(self, pick: int, sections: int) -> None:
        start, nr_pages = self.run_of_sections(pick, self.any_pfn(pick), sections)
        if start + nr_pages <= self.room:
            self.both("online", start, nr_pages)

    def online_again(self, pick: int) -> None:
        offline = [zone.base + int(i) for zone in self.oracle.zones for i in np.flatnonzero(zone.offline)]
        if offline:
            self.both("online", *self.run_of_sections(pick, offline[pick % len(offline)], 1))

    def set_migratetype(self, pick: int, blocks: int, migratetype: Any) -> None:
        self._retype(pick, self.any_pfn(pick), blocks, migratetype)

    def set_migratetype_where_used(self, pick: int, at: int, migratetype: Any) -> None:
        """Also of a part of a block, which must not come back as one."""
        if block := self.pick_used(pick):
            self._retype(pick, block[0] + block[1] * at // 4, 1, migratetype)

    def _retype(self, pick: int, pfn: int, blocks: int, migratetype: Any) -> None:
        unit = max(512, 1 << self.pages.min_order)
        start = pfn // unit * unit
        end = start + blocks * unit
        for zone in self.oracle.zones:
            if start < zone.end_pfn and zone.start_pfn < end:
                start, end = max(start, zone.start_pfn), min(end, zone.end_pfn)
                break
        self.both("set_migratetype", *self.cut(pick, pfn, start, end), migratetype)

    # -- hinting

    def switch_on(self, most: int, **options: Any) -> None:
        raise NotImplementedError

    def switch_off(self) -> None:
        raise NotImplementedError

    def set(self, name: str, value: float | None) -> None:
        raise NotImplementedError

    def enable(
        self,
        batch: int,
        threshold: int | None,
        delay: int,
        least_order: bool,
        mark_free: bool,
        at_once: bool,
        min_age: int = 0,
        reserve: int | None = None,
    ) -> None:
        self.switch_on(
            batch,
            threshold=threshold,
            delay=self.delays[delay],
            mark_free=mark_free,
            min_age=self.ages[min_age],
            reserve=None if reserve is None else reserve * self.oracle.page_size << self.pages.min_order,
            reserve_age=self.reserve_age,
            max_report_order=self.pages.min_order if least_order else None,
        )
        self.on = True
        if at_once:
            self.flush()

    def disable(self) -> None:
        self.switch_off()
        self.on = False

    def restart(self, **settings: Any) -> None:
        self.disable()
        self.enable(**settings)

    def fail(self, failure: str, at_once: bool) -> None:
        """From now on callbacks fail like this."""
        self.failure = failure
        if at_once:
            self.flush()

    def change_max_pages(self, value: int) -> None:
        if self.on:
            self.set("max_pages", min(value, self.limit))

    def change_threshold(self, value: int | None) -> None:
        if self.on:
            self.set("threshold", value)

    def change_delay(self, delay: int) -> None:
        if self.on:
            self.set("delay", self.delays[delay])

    def flush(self) -> None:
        raise NotImplementedError

    def everything_reportable_is_reported(self) -> None:
        raise NotImplementedError

    # -- what is the same in both

    def zone_pairs(self) -> list[tuple[ph.Zone, OracleZone]]:
        return list(zip(self.pages.zones, self.oracle.zones, strict=True))

    def same_free_blocks(self) -> None:
        """While nothing is out for reporting or in a page set."""
        for real, oracle in self.zone_pairs():
            assert real.free_blocks().tolist() == oracle.free_blocks().tolist()
        assert np.array_equal(self.pages.free_bitmap(), self.oracle.free_bitmap())
