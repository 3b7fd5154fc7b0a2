"""What a policy reported, one row a block. `reports.pxd` has the same row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
