"""The table of intervals in which granules were entirely free, against a hand, and against plain Python."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operation_tables import GIVE, SMALL, TAKE, recordings, table_of

import pagehint as ph
from pagehint.policies import Recording
from pagehint.traces import OPERATION_DTYPE, Operation
from pagehint.traces.intervals import OPEN, granule_intervals

ALL = np.ones(64, bool)


def rows_of(intervals):
    return [tuple(row) for row in intervals.table.tolist()]


def test_a_granule_is_broken_by_its_first_page_and_whole_with_its_last():
    table = table_of((10, TAKE, 8, 0), (20, TAKE, 12, 2), (30, GIVE, 12, 2), (40, GIVE, 8, 0), (50, TAKE, 0, 0))
    found = granule_intervals(table, ALL[:16], granule_order=3)
    assert rows_of(found) == [(0, 10, 50, 0, 4), (8, 10, 10, 0, 0), (8, 40, 50, 4, OPEN)]
    assert (found.begin, found.end, found.doubtful_pages) == (10, 50, 0)


def test_a_block_of_several_granules_breaks_and_makes_each_of_them():
    table = table_of((1, TAKE, 16, 4), (2, GIVE, 16, 3), (5, GIVE, 24, 3), (9, Operation.MARK, 0, -1))
    found = granule_intervals(table, ALL[:32], granule_order=3)
    assert rows_of(found)[2:] == [
        (16, 1, 1, 0, 0),
        (24, 1, 1, 0, 0),
        (16, 2, 9, 2, OPEN),
        (24, 5, 9, 3, OPEN),
    ]


def test_what_is_whole_when_a_policy_is_switched_on_begins_then():
    table = table_of((10, TAKE, 0, 3), (20, TAKE, 8, 3), (30, GIVE, 0, 3))
    found = granule_intervals(table, ALL[:24], granule_order=3, begin=15)
    assert rows_of(found) == [(8, 15, 20, 1, 1), (16, 15, 30, 1, OPEN), (0, 30, 30, 3, OPEN)]


def test_what_is_isolated_for_a_report_stays_free():
    table = table_of((1, Operation.ISOLATE, 0, 3), (2, Operation.PUTBACK, 0, 3, 1, 1), (3, Operation.MARK, 0, -1))
    assert rows_of(granule_intervals(table, ALL[:8], granule_order=3)) == [(0, 1, 3, 0, OPEN)]


@pytest.mark.parametrize(
    ("row", "doubtful"),
    [((1, GIVE, 0, 2), 4), ((1, TAKE, 64, 0), 1), ((1, TAKE, 3, 1), 1), ((1, TAKE, 0, 63), 1), ((1, TAKE, 0, -1), 1)],
    ids=["given though free", "no such page", "not aligned", "no such order", "no order"],
)
def test_operations_on_what_is_not_there_are_counted_and_change_nothing(row, doubtful):
    found = granule_intervals(table_of(row, (2, Operation.MARK, 0, -1)), ALL, granule_order=3)
    assert found.doubtful_pages == doubtful
    assert len(found) == 8
    assert (found.table["end_position"] == OPEN).all()


def test_a_page_taken_twice_is_missing_once():
    table = table_of((1, TAKE, 0, 0), (2, TAKE, 0, 0), (3, GIVE, 0, 0), (4, Operation.MARK, 0, -1))
    found = granule_intervals(table, ALL[:8], granule_order=3)
    assert rows_of(found) == [(0, 1, 1, 0, 0), (0, 3, 4, 3, OPEN)]
    assert found.doubtful_pages == 1


def test_an_empty_recording_and_an_empty_memory():
    assert len(granule_intervals(table_of(), ALL, granule_order=3)) == 8
    assert len(granule_intervals(table_of(), ALL[:0])) == 0


def test_mistakes_are_refused():
    with pytest.raises(ph.BadPageError, match="array of bool"):
        granule_intervals(table_of(), np.ones(64, np.uint8))
    with pytest.raises(ValueError, match="order of granules must be from 0 to 20, not 21"):
        granule_intervals(table_of(), ALL, granule_order=21)


def naive(recording: Recording, granule_order: int):
    """The same by counting all pages after each operation."""
    pages, size, found, current = recording.free.copy(), 1 << granule_order, [], {}
    table = recording.operations

    def look(time, position):
        for pfn in range(0, len(pages), size):
            if pages[pfn : pfn + size].all() and pfn not in current:
                current[pfn] = len(found)
                found.append([pfn, time, recording.end, position, OPEN])

    for position, row in enumerate(table):
        if position == recording.begin_position:
            look(recording.begin, position)
        order, pfn = int(row["order"]), int(row["pfn"])
        pages[pfn : pfn + (1 << order)] = row["op"] == GIVE
        if position < recording.begin_position:
            continue
        for broken in range(pfn // size * size, pfn + (1 << order), size):
            if row["op"] == TAKE and broken in current:
                number = current.pop(broken)
                found[number][2], found[number][4] = int(row["time"]), position
        look(int(row["time"]), position + 1)
    if recording.begin_position == len(table):
        look(recording.begin, len(table))
    return [tuple(row) for row in found]


@given(recordings(), st.integers(0, 5))
def test_as_counted_in_plain_python(recording, granule_order):
    found = granule_intervals(recording.operations, recording.free, granule_order=granule_order, begin=recording.begin)
    assert rows_of(found) == naive(recording, granule_order)
    assert found.doubtful_pages == 0


@given(recordings())
def test_the_changes_are_the_intervals_ends_in_order(recording):
    changes, whole = recording.changes, set()
    assert (np.diff(changes["time"]) >= 0).all()
    assert (np.diff(changes["position"].astype(int)) >= 0).all()
    for row in changes:
        assert (int(row["pfn"]) in whole) != bool(row["whole"])
        whole ^= {int(row["pfn"])}
    assert len(whole) == (recording.intervals.table["end_position"] == OPEN).sum()


def test_a_recording_is_saved_and_mapped(tmp_path):
    recording = Recording.of(table_of((1, TAKE, 0, 3), (2, GIVE, 0, 3)), ALL, resident=~ALL, name="x", **SMALL)
    recording.save(tmp_path / "x")
    again = Recording.load(tmp_path / "x")
    assert isinstance(again.operations, np.memmap)
    assert rows_of(again.intervals) == rows_of(recording.intervals)
    assert (again.name, again.begin, again.granule_order) == ("x", 1, 3)
    assert not again.charged_words.any()
    with pytest.raises(ph.PageHintError, match="holds no recording"):
        Recording.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"operations": np.zeros(3)},
        {"operations": np.zeros((1, 1), OPERATION_DTYPE)},
        {"free": np.zeros(64, np.uint8)},
        {"zones": np.zeros(1)},
        {"types": np.zeros(4, np.int64)},
        {"blocks": np.zeros(1)},
        {"resident": np.ones(5, bool)},
        {"granule_order": -1},
        {"granule_order": "3"},
        {"pageblock_order": 63},
        {"pageblock_order": -1},
        {"max_order": 2},
        {"page_size": 0},
        {"begin": 2**64},
        {"begin": "x"},
        {"name": 5},
    ],
    ids=str,
)
def test_a_saved_recording_from_elsewhere_is_looked_at(tmp_path, change):
    Recording.of(table_of((1, TAKE, 0, 3), (2, GIVE, 0, 3)), ALL, resident=~ALL, **SMALL).save(tmp_path)
    [(name, value)] = change.items()
    if isinstance(value, np.ndarray):
        np.save(tmp_path / f"{name}.npy", value)
    else:
        numbers = json.loads((tmp_path / "recording.json").read_text())
        (tmp_path / "recording.json").write_text(json.dumps(numbers | change))
    with pytest.raises(ph.PageHintError, match="holds no recording"):
        Recording.load(tmp_path)


def test_a_recording_of_what_does_not_fit_together_is_refused():
    with pytest.raises(ph.BadPageError, match="8 pages are said to be resident or not, but 64 free or not"):
        Recording.of(table_of(), ALL, resident=ALL[:8])
    with pytest.raises(ValueError, match="no mark of the recording has 'start'"):
        Recording.of(table_of(), ALL, begin="start")
    with pytest.raises(TypeError, match="OPERATION_DTYPE"):
        Recording.of(np.zeros(3), ALL)
    with pytest.raises(ValueError, match="out of range"):
        Recording.of(table_of(), ALL, granule_order=11)
