"""When each granule was entirely free: what a policy has to decide about, and all of it that does not depend on one.

In an exact replay the kernel's placement is what it is, whatever is reported. So the times at which a granule becomes
whole, and at which it is broken, are a property of the recording alone: they are derived once, and any policy that goes
by them is a calculation on this table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pagehint.errors import BadPageError
from pagehint.traces.intervals.find import find_intervals
from pagehint.traces.operations import Operations

OPEN = 2**32 - 1
"""The ``end_position`` of an interval that does not end in the recording."""

INTERVAL_DTYPE = np.dtype(
    [
        ("pfn", "<u8"),  # the granule's first page
        ("start", "<i8"),  # nanoseconds: when its last page was freed, or the beginning
        ("end", "<i8"),  # nanoseconds: when a page of it was taken, or the recording's end
        ("start_position", "<u4"),  # so many operations had happened before it became whole
        ("end_position", "<u4"),  # and before it was broken; `OPEN` if it never was
    ]
)
"""The dtype of an interval: 32 bytes, without padding."""


@dataclass(frozen=True, eq=False)
class Intervals:
    """The free intervals of all granules.

    Attributes
    ----------
    table : ndarray of `INTERVAL_DTYPE`
        One row an interval, in the order of their beginnings.
    granule_order : int
        A granule is ``2**granule_order`` pages.
    begin, end : int
        Nanoseconds, by the clock of the recording: the stretch of time that the table is about.
    begin_position : int
        How many operations had happened before it.
    doubtful_pages : int
        Pages that operations took although they were not free, or gave although they were, or that do not exist. With
        a sound recording it is 0.
    """

    table: NDArray[np.void]
    granule_order: int
    begin: int
    end: int
    begin_position: int
    doubtful_pages: int

    def __len__(self) -> int:
        return len(self.table)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How long each interval is, in nanoseconds."""
        lengths: NDArray[np.int64] = self.table["end"] - self.table["start"]
        return lengths


def check_order(order: int) -> None:
    """Refuse an order of granules that no block has."""
    if not 0 <= order <= 20:
        raise ValueError(f"an order of granules must be from 0 to 20, not {order}")


def packed(free: NDArray[np.bool_], granule_order: int) -> NDArray[np.uint64]:
    """Return flags, one a page, as words of 64 bits; the last granule is filled up with pages that are not free."""
    flags = np.asarray(free)
    if flags.ndim != 1 or flags.dtype != bool:
        raise BadPageError(f"which pages are free must be an array of bool, one a page, not {flags.ndim}-dimensional"
                           f" of {flags.dtype}")  # fmt: skip
    unit = max(64, 1 << granule_order)
    bits = np.zeros(-(-len(flags) // unit) * (unit // 8), np.uint8)
    filled = np.packbits(flags, bitorder="little")
    bits[: len(filled)] = filled
    return bits.view("<u8")


def granule_intervals(
    operations: Operations | NDArray[np.void],
    free: NDArray[np.bool_],
    *,
    granule_order: int = 9,
    begin: int | None = None,
) -> Intervals:
    """Return when each granule was entirely free.

    Parameters
    ----------
    operations : Operations, or ndarray of `OPERATION_DTYPE`
        What happened to the free lists. ISOLATE and PUTBACK count for nothing: such memory stays free.
    free : ndarray of bool, shape (pages,)
        By PFN: the pages that are on the free lists before the first operation.
    granule_order : int, default 9
        The granule is ``2**granule_order`` pages: the least that a policy reports.
    begin : int, optional
        Nanoseconds. Operations before it are followed, but granules that are whole then have their interval begin with
        it: a policy that is switched on at that moment knows of none before. By default the time of the first one.

    Returns
    -------
    Intervals

    Raises
    ------
    BadPageError
        If `free` is not one bool a page.
    ValueError
        If `granule_order` is not from 0 to 20.

    Notes
    -----
    One compiled pass without the GIL, O(operations), 2 bits a page besides the table.
    """
    check_order(granule_order)
    table = operations.table if isinstance(operations, Operations) else operations
    times = table["time"]
    words = packed(free, granule_order)
    first = int(times[0]) if len(times) else 0
    since = first if begin is None else int(begin)
    last = max(int(times[-1]), since) if len(times) else since
    position = 0 if begin is None else int(np.searchsorted(times, since, side="left"))
    rows, doubtful = find_intervals(table, words, granule_order, position, since, last)
    return Intervals(rows.view(INTERVAL_DTYPE), granule_order, since, last, position, doubtful)
