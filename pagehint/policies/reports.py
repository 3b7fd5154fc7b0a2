"""What a policy reported, one row a block. `reports.pxd` has the same row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pagehint.traces.intervals.table import Intervals
from pagehint.traces.operations import Operation, OperationFlag

REPORT_DTYPE = np.dtype(
    [
        ("time", "<i8"),  # nanoseconds, by the clock of the recording: when the host has been told
        ("pfn", "<u8"),
        ("position", "<u4"),  # so many operations had happened before; it is what decides among equal times
        ("call", "<u4"),  # blocks of one call to the host have the same number
        ("order", "<i8"),
    ]
)
"""The dtype of a reported block: 32 bytes, without padding. A table of them is in the order of its positions."""


def granule_reports(
    table: NDArray[np.void], times: NDArray[np.int64], pfns: NDArray[np.uint64], order: int
) -> NDArray[np.void]:
    """Return reports of single granules at these times, after all operations that are not later."""
    reports = np.zeros(len(times), REPORT_DTYPE)
    reports["time"], reports["pfn"], reports["order"] = times, pfns, order
    reports.sort(order=("time", "pfn"))
    reports["position"] = np.searchsorted(table["time"], reports["time"], side="right")
    reports["call"] = np.unique(reports["time"], return_inverse=True)[1]
    return reports


def recorded_reports(table: NDArray[np.void]) -> NDArray[np.void]:
    """Return what the recorded kernel itself reported: blocks that it put back after a report that succeeded.

    Blocks are dated by when they were put back, since they can be used again from then on. Those of one call follow
    one another.
    """
    put_back = (table["op"] == Operation.PUTBACK) & (table["flags"] & OperationFlag.REPORTED != 0)
    where = np.flatnonzero(put_back)
    reports = np.zeros(len(where), REPORT_DTYPE)
    for column in ("time", "pfn", "order"):
        reports[column] = table[column][where]
    reports["position"] = where + 1
    isolations = np.cumsum(table["op"] == Operation.ISOLATE)[where]
    reports["call"] = np.unique(isolations, return_inverse=True)[1]
    return reports


def granules_of(blocks: NDArray[np.void], granule_order: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return the granules (of order 0: the pages) of blocks: for each the index of its block, and its number."""
    each = np.repeat(np.arange(len(blocks)), 1 << (blocks["order"].astype(np.int64) - granule_order))
    place_in_block = (np.arange(len(each)) - np.searchsorted(each, each)).astype(np.uint64)
    return each, (blocks["pfn"][each] >> np.uint64(granule_order)) + place_in_block


def _keys(granules: NDArray[np.uint64], positions: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Granules and positions as one number, which sorts by both."""
    return (granules << np.uint64(32)) | positions.astype(np.uint64)


def first_reports(intervals: Intervals, reports: NDArray[np.void]) -> NDArray[np.int64]:
    """Return for each free interval of a granule when the granule was first reported in it; -1 if it was not.

    O((intervals + reported granules) log).
    """
    table = intervals.table
    each, granules = granules_of(reports, intervals.granule_order)
    keys = _keys(granules, reports["position"][each])
    order = np.argsort(keys, kind="stable")
    keys, times = keys[order], reports["time"][each][order]
    own = table["pfn"] >> np.uint64(intervals.granule_order)
    found = np.searchsorted(keys, _keys(own, table["start_position"]))
    result = np.full(len(table), -1)
    inside = found < len(keys)
    inside[inside] = keys[found[inside]] <= _keys(own, table["end_position"])[inside]
    result[inside] = times[found[inside]]
    return result


def of_free_memory(intervals: Intervals, reports: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return for each report whether all of its block was free then. O((intervals + reported granules) log)."""
    each, granules = granules_of(reports, intervals.granule_order)
    own = intervals.table["pfn"] >> np.uint64(intervals.granule_order)
    keys = _keys(own, intervals.table["start_position"])
    order = np.argsort(keys, kind="stable")
    own, ends = own[order], intervals.table["end_position"][order]
    last = np.searchsorted(keys[order], _keys(granules, reports["position"][each]), "right") - 1
    free = last >= 0
    free[free] = (own[last] == granules)[free] & (reports["position"][each] <= ends[last])[free]
    result = np.ones(len(reports), np.bool_)
    result[each[~free]] = False
    return result
