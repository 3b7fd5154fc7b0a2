"""A snapshot that took a while to read, as of the end of its reading: what happened meanwhile is in the recording.

A page that no event touched meanwhile is as it was read. Any other is where its last event has put it, whenever it was
read.
"""

from __future__ import annotations

from dataclasses import replace

from pagehint.traces.snapshots.snapshot import PAGE_FREE, PAGE_PCP, PAGE_USED, Snapshot
from pagehint.traces.table import Trace
from pagehint.traces.views.places import PLACE_MASK, Place, places_of
from pagehint.traces.views.view import NO_CORRECTIONS, pass_through, possible_view, rows_of_mark

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
    began, ended = rows_of_mark(trace, f"{mark} BEGIN"), rows_of_mark(trace, mark)
    if not len(began) or not len(ended):
        return snapshot
    start = places_of(snapshot)
    events = trace.events[began[0] : ended[-1]]
    end = pass_through(events, possible_view(trace, "all"), start, NO_CORRECTIONS).end
    pages = snapshot.known_pages().copy()
    place, before = (each.pages[: len(pages)] & PLACE_MASK for each in (end, start))
    for each, state in _STATES.items():
        pages[(place == each) & (place != before)] = state
    # What else the snapshot has is of moments in between.
    return replace(
        snapshot, pages=pages, free_lists=None, pcp_lists=None, buddyinfo=None, free_by_type=None, pageblock_counts=None
    )
