"""A snapshot that took a while to read, as of the end of its reading: what happened meanwhile is in the recording.

A page that no event touched meanwhile is as it was read. Any other is where its last event has put it, whenever it was
read.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pagehint.traces.events import Event
from pagehint.traces.operations import OPERATION_DTYPE
from pagehint.traces.snapshots.snapshot import PAGE_FREE, PAGE_PCP, PAGE_USED, Snapshot
from pagehint.traces.table import Trace
from pagehint.traces.views.derive import derive
from pagehint.traces.views.places import PLACE_MASK, Place, places_of
from pagehint.traces.views.view import VIEWS, possible_view

_STATES = {
    Place.FREE: PAGE_FREE,
    Place.REPORTING: PAGE_FREE,
    Place.LISTED: PAGE_PCP,
    Place.USED: PAGE_USED,
    Place.TARGET: PAGE_USED,
}


def settled(trace: Trace, snapshot: Snapshot, mark: str) -> Snapshot:
    """Return the snapshot as of a mark, if the recording has where its reading began: the mark's text and " BEGIN".

    Parameters
    ----------
    trace : Trace
        The recording.
    snapshot : Snapshot
        Read between the two marks, while events were recorded.
    mark : str
        "REC SNAP0" or "REC SNAP1".

    Raises
    ------
    SnapshotError
        If the snapshot does not say which pages are free.
    """
    rows = [_rows_of(trace, text) for text in (f"{mark} BEGIN", mark)]
    if not all(map(len, rows)):
        return snapshot
    events = np.ascontiguousarray(trace.events[rows[0][0] : rows[1][-1]])
    start = places_of(snapshot)
    end = start.copy()
    view = VIEWS.index(possible_view(trace, "all"))
    derive(events, view, end.pages, end.types, start.pageblock_order, np.empty(0, OPERATION_DTYPE))
    pages = snapshot.known_pages().copy()
    place, before = (each.pages[: len(pages)] & PLACE_MASK for each in (end, start))
    for each, state in _STATES.items():
        pages[(place == each) & (place != before)] = state
    # What else the snapshot has is of moments in between.
    return replace(
        snapshot, pages=pages, free_lists=None, pcp_lists=None, buddyinfo=None, free_by_type=None, pageblock_counts=None
    )


def _rows_of(trace: Trace, text: str) -> list[int]:
    numbers = [number for number, each in enumerate(trace.marks) if each == text]
    marks = (trace.events["event"] == Event.MARK) & np.isin(trace.events["value"], numbers)
    return [int(row) for row in np.flatnonzero(marks)]
