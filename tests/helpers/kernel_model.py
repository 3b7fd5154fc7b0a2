"""Recordings made by hand: events one by one, and a small model of a kernel that records what it does."""

from __future__ import annotations

import numpy as np

import pagehint as ph
from pagehint.traces import EVENT_DTYPE, NO_ORDER, NO_PFN, NO_TYPE, Event, Flag, Operation, Snapshot, Trace
from pagehint.traces.proc_files import SnapshotZone
from pagehint.traces.snapshot import PAGE_FREE, PAGE_PCP, PAGE_USED, PCP_LIST_DTYPE

MILLISECOND = 1_000_000


def event(kind, pfn=NO_PFN, order=NO_ORDER, migratetype=NO_TYPE, *, cpu=0, pid=1, value=0, flags=0, fallback=(-1, -1)):
    """A row, without its time."""
    return (0, pfn, pid, value, cpu, kind, flags, order, migratetype, *fallback)


def trace_of(*rows, names=None, marks=(), **metadata):
    """A recording of these rows, a millisecond apart."""
    events = np.array(list(rows), EVENT_DTYPE)
    events["time"] = MILLISECOND * np.arange(len(rows))
    return Trace(events, names=names or {}, marks=list(marks), metadata={"format": "ftrace", **metadata})


def snapshot_of(pages, lists=()):
    """A snapshot of one zone from PFN 0 on. `lists` are blocks of CPUs' lists, (PFN, order)."""
    pages = np.asarray(pages, np.uint8)
    listed = np.zeros(len(lists), PCP_LIST_DTYPE)
    for at, (pfn, order) in enumerate(lists):
        listed[at]["pfn"], listed[at]["order"] = pfn, order
    n = len(pages)
    zone = SnapshotZone(0, "Normal", 0, 0, n, n, n, int((pages == PAGE_FREE).sum()), ph.Watermarks(0, 0, 0), (0,), 0)
    return Snapshot(
        (zone,),
        max_page_order=10,
        pages=pages,
        migratetype_names=("Unmovable", "Movable", "Reclaimable"),
        pageblocks=np.ones(-(-n // 512), np.uint8),
        pcp_lists=listed,
    )


def applied(operations, free):
    """The free pages after these operations, from those before. Each must make sense."""
    free = free.copy()
    for _, pfn, row, op, order, *_ in operations.table.tolist():
        if op not in (Operation.TAKE, Operation.GIVE, Operation.ISOLATE, Operation.PUTBACK):
            continue
        block = free[pfn : pfn + (1 << order)]
        assert len(block) == 1 << order, (row, op, pfn, order)
        assert block.all() if op != Operation.GIVE else not block.any(), (row, Operation(op).name, pfn, order)
        if op in (Operation.TAKE, Operation.GIVE):
            block[:] = op == Operation.GIVE
    return free


class Kernel:
    """A kernel of 64 pages and two CPUs. It records all that it does, with the events of Linux 6.1 or 6.12."""

    NR_PAGES = 64
    PID, COMPACTING = 1, 9

    def __init__(self, new: bool) -> None:
        self.new = new
        self.free = np.ones(self.NR_PAGES, bool)
        self.lists: list[tuple[int, int]] = []  # blocks, (PFN, order)
        self.used: list[tuple[int, int]] = []
        self.out: list[tuple[int, int]] = []
        self.rows: list[tuple[int, ...]] = []

    def record(self, kind, *columns, **more):
        self.rows.append(event(kind, *columns, **more))

    def find(self, order, number):
        """A free block, or None."""
        whole = np.flatnonzero(self.free.reshape(-1, 1 << order).all(1))
        return int(whole[number % len(whole)]) << order if len(whole) else None

    def set_free(self, pfn, order, free):
        self.free[pfn : pfn + (1 << order)] = free

    def take(self, number, order, cpu):
        pfn = self.find(order, number)
        if pfn is None:
            return
        if number % 5 == 0 and self.new:  # the removal is the line itself, or follows that of the same page
            if number % 2:
                self.record(Event.ZONE_LOCKED, pfn, order, 0, cpu=cpu)
            self.record(Event.EXTFRAG, pfn, order, 0, cpu=cpu, fallback=(10, 1))
            self.record(Event.ALLOC, pfn, order, cpu=cpu)
            self.set_free(pfn, order, False)
            self.used.append((pfn, order))
            return
        if number % 5 == 0:
            self.record(Event.EXTFRAG, pfn, order, 0, cpu=cpu, fallback=(10, 1))
        self.record(Event.ZONE_LOCKED, pfn, order, 0, cpu=cpu)
        self.set_free(pfn, order, False)
        self.lists.append((pfn, order))

    def alloc(self, number, order, cpu):
        if self.lists:
            block = self.lists.pop(number % len(self.lists))
            bulk = block[1] == 0 and number % 3 == 0
            self.record(Event.BULK_ALLOC if bulk else Event.ALLOC, *block, cpu=cpu)
            self.used.append(block)

    def give_back(self, number, order, cpu):
        if not self.used:
            return
        block = self.used.pop(number % len(self.used))
        parts = [(pfn, 0) for pfn in range(block[0], block[0] + (1 << block[1]))] if number % 4 == 0 else [block]
        for pfn, size in parts:
            self.record(Event.FREE, pfn, size, cpu=cpu)
            self.record(Event.FREE_BATCHED, pfn, 0, cpu=cpu)
            if size > 3 or number % 7 == 0:
                self.record(Event.FREE_DIRECT, pfn, size, cpu=cpu)
                self.set_free(pfn, size, True)
            else:
                self.lists.append((pfn, size))

    def drain(self, number, order, cpu):
        if self.lists:
            pfn, size = self.lists.pop(number % len(self.lists))
            self.record(Event.PCPU_DRAIN, pfn, size, 0, cpu=cpu)
            self.set_free(pfn, size, True)

    def isolate(self, pfn, order, cpu, value, by, pid=PID):
        self.record(Event.ISOLATE, pfn, order, cpu=cpu, pid=pid)
        self.record(Event.ISOLATE_RET, cpu=cpu, value=value, flags=by, pid=pid)

    def report(self, number, order, cpu):
        pfn = self.find(order, number)
        if pfn is None:
            return
        refused = number % 6 == 0
        self.isolate(pfn, order, cpu, 0 if refused else 1 << order, Flag.BY_REPORTING)
        if not refused:
            self.record(Event.REPORT_CALL, value=1)
            self.record(Event.REPORT_CALL_END, value=0)
            self.record(Event.PUTBACK, pfn, order, 0, cpu=cpu)

    def compact(self, number, order, cpu):
        """Contents of used pages move to a free block, page by page, and the rest of that is freed."""
        pfn = self.find(order, number)
        if pfn is None:
            return
        self.isolate(pfn, order, cpu, 1 << order, Flag.BY_COMPACTION, self.COMPACTING)
        self.set_free(pfn, order, False)
        singles = [block for block in self.used if block[1] == 0]
        for page in range(pfn, pfn + (1 << order)):
            target = (page, 0)
            if singles and number % 3:
                moved = singles.pop()
                self.used[self.used.index(moved)] = target
                target = moved
            self.record(Event.FREE, *target, cpu=cpu, pid=self.COMPACTING)
            self.lists.append(target)

    def capture(self, number, order, cpu):
        """Compaction hands a block to the task that it runs for, as its last page is drained."""
        if self.lists and self.lists[-1][1] == 0:
            pfn, _ = self.lists[-1]
            block = pfn & ~1
            if self.free[block : block + 2].sum() == 1:
                self.lists.pop()
                self.record(Event.PCPU_DRAIN, pfn, 0, 0, cpu=cpu, pid=self.COMPACTING)
                self.record(Event.ALLOC, block, 1, cpu=cpu, pid=self.COMPACTING)
                self.set_free(block, 1, False)
                self.used.append((block, 1))

    STEPS = (take, take, alloc, alloc, give_back, give_back, drain, drain, report, compact, capture)

    def run(self, steps):
        """Do steps, each a number of `STEPS`, a number to choose by, an order and a CPU; return the recording."""
        for step, number, order, cpu in steps:
            self.STEPS[step % len(self.STEPS)](self, number, order, cpu)
        return trace_of(*self.rows)

    def snapshot(self):
        pages = np.where(self.free, PAGE_FREE, PAGE_USED)
        for pfn, order in self.lists:
            pages[pfn : pfn + (1 << order)] = PAGE_PCP
        return snapshot_of(pages, self.lists)
