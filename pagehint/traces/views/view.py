"""`operations_of`: what happened to the free lists, by a view of a recording.

A view is a choice of what to believe. "all" takes every event that there is. "kmem" takes the kernel's own alone, as
if there were no kprobes: no event then says what the bulk allocator hands out, what compaction takes, and which frees
go past the CPUs' lists. "user" takes allocations and frees alone, as if the CPUs had no lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagehint.traces.events import Event
from pagehint.traces.operations import OPERATION_DTYPE, Contradiction, Operation, Operations, Reports
from pagehint.traces.snapshots.snapshot import Snapshot
from pagehint.traces.table import Trace
from pagehint.traces.views.compaction import compacting_pids, dates, moved_away
from pagehint.traces.views.contradictions import Cause
from pagehint.traces.views.derive import derive
from pagehint.traces.views.places import PLACE_MASK, Place, Places, places_of, unknown_places

if TYPE_CHECKING:
    _View = Literal["all", "kmem", "user"]

VIEWS: tuple[_View, ...] = ("all", "kmem", "user")

# The marks at which the snapshots of a recording were taken, if it has them.
BEFORE_MARK, AFTER_MARK = "REC SNAP0", "REC SNAP1"
_OF_LISTS = (Event.ZONE_LOCKED, Event.PCPU_DRAIN)
_OF_KPROBES = range(Event.BULK_ALLOC, Event.REPORT_CALL_END + 1)
NO_CORRECTIONS = np.empty(0, OPERATION_DTYPE)


class _Pass(NamedTuple):
    """One way through a recording: what `derive` returns, and where the pages lie in the end."""

    table: NDArray[np.void]
    late: NDArray[np.void]
    found: list[tuple[int, list[tuple[int, int, int]]]]
    nr_at_start: int
    since: NDArray[np.uint32]
    figures: tuple[int, int, int, int]
    end: Places


def operations_of(
    trace: Trace,
    view: _View = "all",
    before: Snapshot | None = None,
    after: Snapshot | None = None,
    *,
    passes: Literal[1, 2] | None = None,
) -> Operations:
    """Return what happened to the free lists.

    Parameters
    ----------
    trace : Trace
        The recording.
    view : {"all", "kmem", "user"}
        What to believe: every event; those of the kernel alone; alloc and free alone. A recording that has no more than
        a smaller view needs is taken by that, and the result says so.
    before, after : Snapshot, optional
        The memory at the beginning and at the end; if the recording has the marks ``REC SNAP0`` and ``REC SNAP1``, at
        these, and what lies outside them is left out. Without `before`, a page is believed to be what its first event
        needs; without either, PFNs up to 64 GiB, and 16 MiB for each event, up to 1 TiB, are believed.
    passes : {1, 2}, optional
        How often the view "kmem" goes through the recording: a second time with what the first has found to have
        happened unseen, dated. That takes `after`, and is the default with it. The other views see all, or nothing
        of it, and go once.

    Returns
    -------
    Operations
        They make sense one after another: what a contradiction leaves open is added where it shows. ``row`` is an index
        into ``trace.events``.

    Raises
    ------
    ValueError
        There is no such view, or two passes are asked for without `after`.
    SnapshotError
        A snapshot does not say which pages are free.
    MemoryError
        There is no memory for the operations.

    Notes
    -----
    Linear, about 0.1 us an event of order 0, without the GIL; 5 bytes for each page of the span, and 24 for each
    operation.
    """
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}, not {view!r}")
    if passes not in (None, 1, 2) or (passes == 2 and after is None):
        raise ValueError(f"passes must be 1, or 2 with a snapshot of the end, not {passes!r}")
    view = possible_view(trace, view)
    begin, end = _extent(trace, before, after)
    events = trace.events[begin:end]
    last = None if after is None else places_of(after)
    span = None if last is None else len(last.pages)
    start = unknown_places(events["pfn"], span) if before is None else places_of(before)
    first_pass = result = pass_through(events, view, start, NO_CORRECTIONS)
    corrections = NO_CORRECTIONS
    if view == "kmem" and last is not None and passes != 1:
        corrections = _corrections(trace, events, first_pass, last)
        result = pass_through(events, view, start, corrections)
    table = result.table
    table["row"] += begin
    captured, *reports = result.figures
    return Operations(
        table,
        view,
        contradictions={cause.label: count for cause, (count, _) in zip(Cause, first_pass.found, strict=True) if count},
        examples=_examples(events, begin, first_pass),
        contradictions_at_start=first_pass.nr_at_start,
        marks=trace.marks,
        captured=captured,
        corrections=len(corrections),
        reports=Reports(*reports),
        managed_pages=int((result.end if last is None else last).managed.sum()),
        wrong_pages_end=None if last is None else _wrong_pages(result.end, last),
        free_at_end=result.end.free,
    )


def possible_view(trace: Trace, view: _View) -> _View:
    """Return the view that the recording's events allow, at most this one."""
    counts = trace.counts
    if view == "all" and not any(event in counts for event in _OF_KPROBES):
        view = "kmem"
    if view == "kmem" and not any(event in counts for event in _OF_LISTS):
        view = "user"
    return view


def _extent(trace: Trace, before: Snapshot | None, after: Snapshot | None) -> tuple[int, int]:
    """The rows between the snapshots."""
    begin, end = 0, len(trace)
    if before is not None and len(rows := rows_of_mark(trace, BEFORE_MARK)):
        begin = int(rows[0])
    if after is not None and len(rows := rows_of_mark(trace, AFTER_MARK)):
        end = int(rows[-1]) + 1
    return begin, max(begin, end)


def rows_of_mark(trace: Trace, text: str) -> NDArray[np.int64]:
    """The rows of the marks with this text."""
    numbers = [number for number, mark in enumerate(trace.marks) if mark == text]
    result: NDArray[np.int64] = np.flatnonzero(
        (trace.events["event"] == Event.MARK) & np.isin(trace.events["value"], numbers)
    )
    return result


def pass_through(events: NDArray[np.void], view: _View, start: Places, corrections: NDArray[np.void]) -> _Pass:
    """Go through the events once."""
    end = start.copy()
    rows = np.ascontiguousarray(events)
    return _Pass(*derive(rows, VIEWS.index(view), end.pages, end.types, start.pageblock_order, corrections), end)


def _corrections(trace: Trace, events: NDArray[np.void], first: _Pass, last: Places) -> NDArray[np.void]:
    """What must have happened unseen, dated: of pages that had never left, and of pages that had never come.

    The snapshot of the end has a part in it: what is free by then, and should not be, left unseen; what is on a CPU's
    list, and should be free, went past it when it was freed.
    """
    nr_pages = min(len(first.end.pages), len(last.pages))
    place, after = first.end.pages[:nr_pages] & PLACE_MASK, last.pages[:nr_pages] & PLACE_MASK
    gone = np.flatnonzero((place == Place.FREE) & (after != Place.FREE))
    come = np.flatnonzero((place == Place.LISTED) & (after == Place.FREE))
    takes, gives = (first.late[first.late["op"] == op] for op in (Operation.TAKE, Operation.GIVE))
    pfns = np.concatenate([takes["pfn"], gone.astype(np.uint64)])
    since = np.concatenate([takes["row"], first.since[gone]]).astype(np.int64)
    until = np.concatenate([takes["time"], np.full(len(gone), len(events))])
    frees = moved_away(events, compacting_pids(events, trace.names, first.table))
    result = np.zeros(len(pfns) + len(gives) + len(come), OPERATION_DTYPE)
    result["op"][: len(pfns)] = Operation.TAKE
    result["op"][len(pfns) :] = Operation.GIVE
    result["pfn"] = np.concatenate([pfns, gives["pfn"], come.astype(np.uint64)])
    result["row"] = np.concatenate([dates(pfns, since, until, frees), gives["row"], first.since[come]])
    return result[np.argsort(result["row"], kind="stable")]


def _examples(events: NDArray[np.void], begin: int, first: _Pass) -> dict[str, tuple[Contradiction, ...]]:
    """The first contradictions of each cause."""
    return {
        cause.label: tuple(
            Contradiction(begin + row, int(events["time"][row]), pfn, order) for row, pfn, order in examples
        )
        for cause, (count, examples) in zip(Cause, first.found, strict=True)
        if count
    }


def _wrong_pages(end: Places, last: Places) -> int:
    """How many managed pages are on the free lists in one and not in the other.

    What is out for a report is on none. Pages of which nothing is known do not count.
    """
    nr_pages = min(len(end.pages), len(last.pages))
    place, real = end.pages & PLACE_MASK, last.pages & PLACE_MASK
    known = (place[:nr_pages] != Place.UNKNOWN) & last.managed[:nr_pages]
    wrong = ((place[:nr_pages] == Place.FREE) != (real[:nr_pages] == Place.FREE)) & known
    return int(wrong.sum() + (place[nr_pages:] == Place.FREE).sum() + (real[nr_pages:] == Place.FREE).sum())
