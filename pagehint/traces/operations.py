"""What a recording says that happened to the free lists, one row an operation. `operations.pxd` has the same row.

A recording's events are of three kinds mixed: what users had, what lay on the lists of the CPUs, and what the buddy
lists had. A replay needs the last alone. `operations_of` (`views.py`) derives it, from all events or from those that a
recording from elsewhere has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Operation(IntEnum):
    """What happened to free memory: the column ``op``."""

    TAKE = 1
    """A block leaves the buddy lists: it is allocated, put on a CPU's list, or taken by compaction."""
    GIVE = 2
    """Pages come to the buddy lists: a part of what was taken as one block, a whole one, or parts of several."""
    SET_TYPE = 3
    """The pageblocks of this block get this migratetype."""
    ISOLATE = 4
    """The recorded kernel's free page reporting took this free block off the lists. The memory stays free."""
    PUTBACK = 5
    """And it put the block back; `OperationFlag.REPORTED` if the host was told of it in between."""
    MARK = 6
    """A marker of the recording; ``pfn`` is its index in the list of markers."""
    LOST = 7
    """Events are missing here; ``pfn`` is how many, 0 if that is not known."""


class OperationFlag(IntFlag):
    """The column ``flags``."""

    REPORTED = 1
    """`Operation.PUTBACK`: a report with this block in it had succeeded."""


OPERATION_DTYPE = np.dtype(
    [
        ("time", "<i8"),  # nanoseconds, by the clock of the recording
        ("pfn", "<u8"),
        ("row", "<u4"),  # of the recording's events, from which it comes
        ("op", "u1"),  # an `Operation`
        ("order", "i1"),
        ("migratetype", "i1"),  # the kernel's number: of the list for TAKE and GIVE, of the pageblocks for SET_TYPE
        ("flags", "u1"),  # of `OperationFlag`
    ]
)
"""The dtype of an operation: 24 bytes, without padding. What has no order or migratetype has `NO_ORDER`, `NO_TYPE`."""


class Contradiction(NamedTuple):
    """An event that says what the events before it exclude."""

    row: int
    """Its index in the recording's events."""
    time: int
    """Nanoseconds, by the clock of the recording."""
    pfn: int
    """The first page of its block that contradicts."""
    order: int
    """Of its block."""

    def __str__(self) -> str:
        return f"row {self.row}, {self.time / 1e9:.6f} s, PFN {self.pfn:#x}, order {self.order}"


class Reports(NamedTuple):
    """The recorded kernel's free page reporting, as a check: every block that it isolates is free."""

    blocks: int = 0
    """How many it isolated."""
    wrong_blocks: int = 0
    """Those that were not wholly free by this view."""
    wrong_pages: int = 0
    """Pages in these that were not."""


@dataclass(eq=False)
class Operations:
    """What happened to the free lists in a recording, by one view of it.

    Attributes
    ----------
    table : ndarray of `OPERATION_DTYPE`
        One row an operation, in the order in which they happened; times never fall.
    view : {"all", "kmem", "user"}
        Which of the recording's events are believed in.
    contradictions : dict of str to int
        How often an event said what the events before it exclude, by cause. Some views have them always: what is not
        seen contradicts what is (`views/checking.py`).
    examples : dict of str to tuple of `Contradiction`
        The first few of each cause.
    contradictions_at_start : int
        Contradictions of pages that lay where the snapshot has them: it is these that a wrong one has.
    marks : list of str
        The texts of the rows `Operation.MARK`.
    captured : int
        Blocks that compaction handed to the task that it ran for, past the free lists.
    corrections : int
        Takes and gives of single pages that no event told, dated in a second pass.
    reports : Reports
        The check against the recorded kernel's own reports.
    managed_pages : int
        Pages that the kernel's allocator has or has handed out, as far as they are known.
    wrong_pages_end : int or None
        Managed pages that are free at the end by this view, and not by the snapshot, or the other way round; None
        without a snapshot of the end.
    free_at_end : ndarray of bool, shape (pages,)
        By PFN: whether the page is free at the end.
    """

    table: NDArray[np.void]
    view: str
    contradictions: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, tuple[Contradiction, ...]] = field(default_factory=dict)
    contradictions_at_start: int = 0
    marks: list[str] = field(default_factory=list)
    captured: int = 0
    corrections: int = 0
    reports: Reports = field(default_factory=Reports)
    managed_pages: int = 0
    wrong_pages_end: int | None = None
    free_at_end: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        if self.table.dtype != OPERATION_DTYPE or self.table.ndim != 1:
            raise TypeError(f"table must be one-dimensional and of OPERATION_DTYPE, not {self.table.dtype}")

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        found = sum(self.contradictions.values())
        return f"<Operations: {len(self)}, by the view {self.view!r}, {found} contradictions>"
