"""A state that was read while pages changed is made that of the moment when its reading ended."""

from __future__ import annotations

import numpy as np
from recordings import made_by_hand

import pagehint as ph
from pagehint.traces import EVENT_DTYPE, Event
from pagehint.traces.folder import read_recording, recording_files
from pagehint.traces.views.settling import settled

BUDDY = 1 << 10
FREE, PCP, USED = 4, 5, 3


def recorded(rows, marks=("REC SNAP0 BEGIN", "REC SNAP0")):
    """A recording of rows (event, pfn, order); a text among them is a mark."""
    table = np.zeros(len(rows), EVENT_DTYPE)
    for number, row in enumerate(rows):
        each = table[number]
        each["time"] = number
        if isinstance(row, str):
            each["event"], each["value"] = Event.MARK, marks.index(row)
        else:
            each["event"], each["pfn"], each["order"] = row
            each["migratetype"] = 1
    return ph.traces.Trace(table, marks=list(marks))


def snapshot_of(tmp_path, free):
    flags = np.zeros(1024, np.uint64)
    flags[free] = BUDDY
    return ph.traces.read_snapshot(made_by_hand(tmp_path / "before", flags))


def test_pages_that_changed_while_the_state_was_read(tmp_path):
    """Each page is read before or after its event; either way it ends where the event has put it."""
    before = snapshot_of(tmp_path, [0, 1, 2, 3, 600, 601])
    trace = recorded(
        [
            (Event.ZONE_LOCKED, 600, 0),  # before the reading: of no account
            "REC SNAP0 BEGIN",
            (Event.ZONE_LOCKED, 0, 0),  # read before it was taken
            (Event.ALLOC, 0, 0),
            (Event.ZONE_LOCKED, 100, 0),  # read after it was taken
            (Event.ALLOC, 100, 0),
            (Event.FREE, 200, 0),  # read before it was freed; it is on a CPU's list
            (Event.FREE, 300, 0),  # ... and on the free lists
            (Event.PCPU_DRAIN, 300, 0),
            (Event.ZONE_LOCKED, 2, 0),  # taken and given back
            (Event.PCPU_DRAIN, 2, 0),
            "REC SNAP0",
            (Event.ZONE_LOCKED, 3, 0),  # after it: of no account
        ]
    )
    pages = settled(trace, before, "REC SNAP0").pages
    assert {pfn: int(pages[pfn]) for pfn in (0, 1, 2, 3, 100, 200, 300, 600)} == {
        0: USED, 1: FREE, 2: FREE, 3: FREE, 100: USED, 200: PCP, 300: FREE, 600: FREE,
    }  # fmt: skip
    assert before.pages[0] == FREE, "the one that was read stays as it is"


def test_a_state_of_one_moment_stays(tmp_path):
    before = snapshot_of(tmp_path, [0])
    trace = recorded(["REC SNAP0", (Event.ZONE_LOCKED, 0, 0)])
    assert settled(trace, before, "REC SNAP0") is before


def test_the_parts_of_a_folder(tmp_path):
    (tmp_path / "before").mkdir()
    (tmp_path / "trace.txt").write_text("")
    assert recording_files(tmp_path) == (tmp_path / "trace.txt", tmp_path / "before", None)
    (tmp_path / "trace.parquet").write_bytes(b"")
    assert recording_files(tmp_path).trace.name == "trace.parquet", "the fastest to read"
    assert recording_files(tmp_path / "trace.txt") == (tmp_path / "trace.txt", None, None)


def test_a_live_recording_ends_as_the_kernel_has_it(live_recording):
    """This machine's own pages while it works, by six events: the state at the end is nearly the kernel's."""
    trace, before, after = read_recording(live_recording)
    assert trace.counts[Event.ALLOC] > 0
    found = ph.traces.check(trace, before, after)
    kmem = next(view for view in found.views if view.name == "kmem")
    assert kmem.wrong_pages_end <= 0.001 * kmem.managed_pages
    assert found.lost["events"] == 0
