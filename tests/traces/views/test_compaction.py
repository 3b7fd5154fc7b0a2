"""When compaction took what no event says it took."""

from __future__ import annotations

import numpy as np
from kernel_model import event, trace_of

from pagehint.traces import OPERATION_DTYPE, Event, Operation
from pagehint.traces.views.compaction import compacting_pids, dates, moved_away


def rows(*numbers):
    return np.array(numbers, np.int64)


def pages(*pfns):
    return np.array(pfns, np.uint64)


def test_pages_get_dates_from_the_last_downwards():
    since, until = rows(0, 0, 0), rows(99, 99, 99)
    assert dates(pages(5, 9, 7), since, until, rows(10, 20, 30)).tolist() == [30, 10, 20]


def test_a_page_is_dated_after_it_came():
    assert dates(pages(5, 9), rows(0, 15), rows(99, 99), rows(10, 20, 30)).tolist() == [10, 20]


def test_a_page_is_dated_before_it_is_freed():
    assert dates(pages(9, 5), rows(0, 0), rows(25, 15), rows(20, 40)).tolist() == [20, 15]


def test_more_pages_than_frees_have_the_first_that_can_be():
    assert dates(pages(9, 8, 7), rows(0, 0, 0), rows(99, 99, 99), rows(10, 20)).tolist() == [10, 20, 10]
    assert dates(pages(9, 8), rows(0, 0), rows(50, 99), rows()).tolist() == [50, 99]


def test_who_compacts():
    trace = trace_of(event(Event.ALLOC, 8, 3, pid=7), event(Event.ZONE_LOCKED, 16, 3, pid=8), event(Event.ALLOC, 1, 0))
    table = np.zeros(3, OPERATION_DTYPE)
    table["op"], table["row"], table["order"] = Operation.TAKE, [0, 1, 2], [3, 3, 0]
    names = {44: ("kcompactd0",), 45: ("swapper", "kcompactd1"), 7: ("wl",), 3: ("not-kcompactd",)}
    assert compacting_pids(trace.events, names, table).tolist() == [7, 44, 45]


def test_what_a_compacting_task_frees_of_others_is_what_it_moved():
    trace = trace_of(
        event(Event.ALLOC, 1, 0, pid=5),
        event(Event.ALLOC, 2, 0, pid=9),
        event(Event.FREE, 1, 0, pid=9),  # of another
        event(Event.FREE, 2, 0, pid=9),  # its own
        event(Event.FREE, 3, 0, pid=9),  # of nobody knows whom
        event(Event.ALLOC, 1, 0, pid=9),
        event(Event.FREE, 1, 0, pid=9),  # its own by now
        event(Event.FREE, 4, 1, pid=9),  # no single page
        event(Event.FREE, 5, 0, pid=8),  # no compaction
    )
    assert moved_away(trace.events, np.array([9], np.int32)).tolist() == [2, 4]
    assert moved_away(trace.events, np.array([], np.int32)).tolist() == []
    assert moved_away(trace.events[2:3], np.array([9], np.int32)).tolist() == [0]
