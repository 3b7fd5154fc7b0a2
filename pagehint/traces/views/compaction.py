"""When did compaction take the pages that no event says it took?

Compaction takes free pages off the lists without any of the kernel's own events, moves the contents of other pages to
them, and frees those. So of each page that it took unseen, there is one that its task freed soon after, which that
task had not allocated; and it takes free pages from the end of the zone downwards. The pages that were taken are
given, from the last PFN down, one such free each: the first that is left after the page came to the free lists.

This is a rule of thumb. Where the kprobes say what happened (pressure-1g-smp2-k612: 24,862 pages, 24,874 such frees),
its dates are 0.1 s off on average; the first free of the compacting task after the page came, 0.4 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pagehint.traces.events import Event
from pagehint.traces.operations import Operation

if TYPE_CHECKING:
    _Rows = NDArray[np.int64]


def compacting_pids(
    events: NDArray[np.void], names: Mapping[int, tuple[str, ...]], table: NDArray[np.void]
) -> NDArray[np.int32]:
    """Return the tasks that compact: kcompactd of each node, and those to which compaction has handed a block.

    Parameters
    ----------
    events, table : ndarray of `EVENT_DTYPE` and `OPERATION_DTYPE`
        The recording, and the operations that a first pass has made of it.
    names : dict of int to tuple of str
        As `Trace.names`.
    """
    kernel_threads = [pid for pid, comms in names.items() if any(comm.startswith("kcompactd") for comm in comms)]
    taken = table["row"][(table["op"] == Operation.TAKE) & (table["order"] > 0)]
    handed = taken[events["event"][taken] == Event.ALLOC]
    return np.union1d(np.array(kernel_threads, np.int32), events["pid"][handed])


def moved_away(events: NDArray[np.void], pids: NDArray[np.int32]) -> _Rows:
    """Return the rows in which one of these tasks frees a single page that it has not allocated."""
    frees = np.flatnonzero((events["event"] == Event.FREE) & (events["order"] == 0) & np.isin(events["pid"], pids))
    if not len(frees):
        return frees
    allocs = np.flatnonzero((events["event"] == Event.ALLOC) & np.isin(events["pfn"], events["pfn"][frees]))
    allocs = allocs[np.lexsort((allocs, events["pfn"][allocs]))]
    before = np.searchsorted(_by_page(events, allocs), _by_page(events, frees)) - 1
    if not len(allocs):
        return frees
    latest = allocs[np.maximum(before, 0)]
    known = (before >= 0) & (events["pfn"][latest] == events["pfn"][frees])
    result: _Rows = frees[~known | (events["pid"][latest] != events["pid"][frees])]
    return result


def _by_page(events: NDArray[np.void], rows: _Rows) -> NDArray[np.void]:
    """Keys that order rows by their page, and the rows of a page by time."""
    keys = np.empty(len(rows), [("pfn", "<u8"), ("row", "<i8")])
    keys["pfn"], keys["row"] = events["pfn"][rows], rows
    return keys


def dates(pfns: NDArray[np.uint64], since: _Rows, until: _Rows, frees: _Rows) -> _Rows:
    """Return for each page the row before which it left the free lists.

    Parameters
    ----------
    pfns, since, until : ndarray, shape (pages,)
        The pages, the rows before which they can have left at the first, and at the latest.
    frees : ndarray of int64, shape (frees,)
        The rows in which compacting tasks freed what they had moved away, ascending.

    Notes
    -----
    O(n log n). A page for which no such free is left has the first one after it came, and without any, its latest row.
    """
    result = until.copy()
    left = np.arange(len(frees) + 1)  # from each free, the first that no page has yet, by paths that get shorter
    first = np.searchsorted(frees, since)
    for page in np.argsort(pfns)[::-1].tolist():
        free = int(first[page])
        while left[free] != free:
            left[free] = left[left[free]]
            free = int(left[free])
        if free < len(frees) and frees[free] < until[page]:
            result[page] = frees[free]
            left[free] = free + 1
        elif first[page] < len(frees) and frees[first[page]] < until[page]:
            result[page] = frees[first[page]]
    return result
