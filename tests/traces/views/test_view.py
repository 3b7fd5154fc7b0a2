"""Events to operations: each trap of the recordings by itself, whole recordings of a small kernel, and hostile ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_model import Kernel, applied, event, snapshot_of, trace_of

from pagehint.errors import SnapshotError
from pagehint.traces import EVENT_DTYPE, Event, Flag, Operation, OperationFlag, Snapshot, Trace, operations_of
from pagehint.traces.snapshots.snapshot import PAGE_ABSENT, PAGE_FREE, PAGE_RESERVED, PAGE_USED
from pagehint.traces.views.places import MOST_PAGES, SURE_PAGES, places_of

REPORTING, COMPACTION = Flag.BY_REPORTING, Flag.BY_COMPACTION
KPROBE = event(Event.REPORT_NOTIFY)  # so that the recording is one with kprobes
ALL_FREE = snapshot_of([PAGE_FREE] * 1024)
ALL_USED = snapshot_of([PAGE_USED] * 1024)


def made(*rows, view="all", before=ALL_FREE, after=None, **more):
    """The operations of these events, and of a kprobe before them."""
    return operations_of(trace_of(KPROBE, *rows, **more), view, before, after)


def ops(operations):
    return [(Operation(op).name, pfn, order) for _, pfn, _, op, order, *_ in operations.table.tolist()]


def of(operations):
    """The operations and the contradictions."""
    return ops(operations), dict(operations.contradictions)


def taken(pfn, order=0, **more):
    return event(Event.ZONE_LOCKED, pfn, order, 1, **more)


def isolated(pfn, order, by, **more):
    return event(Event.ISOLATE, pfn, order, **more), event(Event.ISOLATE_RET, value=1 << order, flags=by, **more)


# ---- what the README of the recordings warns of, one by one


def test_a_block_leaves_when_it_is_taken_and_comes_when_it_is_drained():
    alloc, free = event(Event.ALLOC, 8, 2, 1), event(Event.FREE, 8, 2)
    operations = made(taken(8, 2), alloc, free, event(Event.PCPU_DRAIN, 8, 2, 1))
    assert of(operations) == ([("TAKE", 8, 2), ("GIVE", 8, 2)], {})
    assert operations.table["row"].tolist() == [1, 4]
    assert operations.table["migratetype"].tolist() == [1, 1]
    assert operations.table["time"].tolist() == [1_000_000, 4_000_000]


def test_a_second_line_for_the_same_free_does_not_count():
    rows = taken(8, 9 - 6), event(Event.ALLOC, 8, 3), event(Event.FREE, 8, 3), event(Event.FREE_BATCHED, 8, 0)
    assert of(made(*rows)) == ([("TAKE", 8, 3)], {})


@pytest.mark.parametrize("order", range(11))
def test_frees_of_orders_without_a_list_go_past_the_lists(order):
    rows = taken(0, order), event(Event.ALLOC, 0, order), event(Event.FREE, 0, order)
    given = [] if order in (0, 1, 2, 3, 9) else [("GIVE", 0, order)]
    for view in "all", "kmem":
        assert of(made(*rows, view=view)) == ([("TAKE", 0, order), *given], {})
    # with the kprobe that says so, once
    rows = *rows, event(Event.FREE_DIRECT, 0, order)
    assert of(made(*rows)) == ([("TAKE", 0, order), ("GIVE", 0, order)], {})


def test_an_interrupt_between_a_free_and_its_kprobe_gives_the_block_twice():
    rows = [each for pfn in (16, 32) for each in (taken(pfn, 4), event(Event.ALLOC, pfn, 4))]
    rows += [event(Event.FREE, 16, 4), event(Event.FREE, 32, 4), event(Event.FREE_DIRECT, 32, 4)]
    operations = made(*rows, event(Event.FREE_DIRECT, 16, 4))
    assert of(operations) == ([("TAKE", 16, 4), ("TAKE", 32, 4), ("GIVE", 16, 4), ("GIVE", 32, 4)], {})


def test_a_free_that_is_lost_is_made_good_by_its_kprobe():
    operations = made(taken(16, 4), event(Event.ALLOC, 16, 4), event(Event.FREE_DIRECT, 16, 4))
    assert of(operations) == ([("TAKE", 16, 4), ("GIVE", 16, 4)], {"give of what is in use": 1})


def test_a_failed_allocation_is_nothing():
    assert of(made(event(Event.ALLOC_FAILED, order=3))) == ([], {})


def test_the_bulk_allocator_is_seen_by_its_kprobe_alone():
    rows = taken(8), event(Event.BULK_ALLOC, 8, 0), event(Event.FREE, 8, 0), event(Event.PCPU_DRAIN, 8, 0)
    assert of(made(*rows)) == ([("TAKE", 8, 0), ("GIVE", 8, 0)], {})
    assert of(made(*rows, view="kmem")) == ([("TAKE", 8, 0), ("GIVE", 8, 0)], {"double free": 1})


def test_a_block_comes_back_in_parts():
    parts = [each for pfn in range(8, 12) for each in (event(Event.FREE, pfn, 0), event(Event.PCPU_DRAIN, pfn, 0))]
    rows = taken(8, 2), event(Event.ALLOC, 8, 2), *parts
    assert of(made(*rows)) == ([("TAKE", 8, 2), *(("GIVE", pfn, 0) for pfn in range(8, 12))], {})


def test_what_was_allocated_before_is_freed_and_what_lay_on_a_list_is_allocated():
    before = snapshot_of([PAGE_USED] * 8 + [PAGE_FREE] * 4 + [5] * 4, [(12, 2)])
    freed = event(Event.FREE, 2, 1), event(Event.PCPU_DRAIN, 2, 1)
    operations = made(event(Event.ALLOC, 12, 2), *freed, before=before)
    assert of(operations) == ([("GIVE", 2, 1)], {})
    assert made(event(Event.ALLOC, 12, 1), before=before).contradictions == {"order mismatch": 1}


@pytest.mark.parametrize("by", [COMPACTION, Flag.BY_OTHER, Flag(0)])
def test_compaction_takes_blocks_and_frees_their_rest_page_by_page(by):
    frees = event(Event.FREE, 9, 0), event(Event.PCPU_DRAIN, 9, 0)
    operations = made(*isolated(8, 2, by), *frees)
    assert of(operations) == ([("TAKE", 8, 2), ("GIVE", 9, 0)], {})
    unseen = made(*isolated(8, 2, by), *frees, view="kmem")
    assert of(unseen) == ([("TAKE", 9, 0), ("GIVE", 9, 0)], {"free of what never left": 1})


def test_compaction_hands_a_block_to_its_own_task():
    rows = [taken(9), event(Event.ALLOC, 9, 0), event(Event.FREE, 9, 0, pid=7), event(Event.PCPU_DRAIN, 9, 0, pid=7)]
    operations = made(*rows, event(Event.ALLOC, 8, 2, pid=7))
    assert of(operations) == ([("TAKE", 9, 0), ("GIVE", 9, 0), ("TAKE", 8, 2)], {})
    assert operations.captured == 1
    another = made(*rows, event(Event.ALLOC, 8, 2, pid=8))
    assert another.contradictions == {"alloc of what never left": 1}
    assert ops(another) == ops(operations)


def test_linux_61_announces_a_fallback_and_linux_612_has_it_for_the_removal():
    fallback = event(Event.EXTFRAG, 8, 0, 0, fallback=(10, 1))
    assert of(made(fallback, taken(8))) == ([("TAKE", 8, 0)], {})
    assert of(made(fallback, taken(9))) == ([("TAKE", 8, 0), ("TAKE", 9, 0)], {})
    assert of(made(taken(8), fallback)) == ([("TAKE", 8, 0)], {})
    assert of(made(fallback)) == ([("TAKE", 8, 0)], {})
    # what another CPU does in between is another matter
    assert of(made(fallback, taken(9, cpu=1), taken(8))) == ([("TAKE", 9, 0), ("TAKE", 8, 0)], {})
    assert of(made(taken(8), taken(9, cpu=1), fallback)) == ([("TAKE", 8, 0), ("TAKE", 9, 0)], {})


def test_pageblocks_that_are_taken_over_change_their_type():
    owned = event(Event.EXTFRAG, 520, 0, 0, flags=Flag.CHANGE_OWNERSHIP, fallback=(3, 1))
    two = event(Event.EXTFRAG, 0, 0, 2, flags=Flag.CHANGE_OWNERSHIP, fallback=(10, 1))
    operations = made(owned, two, two)
    assert [op for op in ops(operations) if op[0] == "SET_TYPE"] == [("SET_TYPE", 512, 9), ("SET_TYPE", 0, 10)]
    assert operations.table["migratetype"].tolist()[:3] == [0, 0, 2]
    moved = event(Event.MOVE_BLOCK, 700, migratetype=2, fallback=(-1, 1))
    assert ops(made(moved)) == [("SET_TYPE", 512, 9)]
    assert ops(made(event(Event.MOVE_BLOCK, 700, migratetype=2))) == []  # 6.1: pages move, the type stays
    assert ops(made(moved, view="kmem")) == []


def test_isolating_half_a_pageblock_makes_it_movable():
    operations = made(event(Event.MOVE_BLOCK, 512, migratetype=2, fallback=(-1, 1)), *isolated(512, 8, COMPACTION))
    assert ops(operations)[1:] == [("SET_TYPE", 512, 9), ("TAKE", 512, 8)]
    small = made(event(Event.MOVE_BLOCK, 512, migratetype=2, fallback=(-1, 1)), *isolated(512, 7, COMPACTION))
    assert ops(small)[1:] == [("TAKE", 512, 7)]


@pytest.mark.parametrize("view", ["all", "kmem", "user"])
@pytest.mark.parametrize("result", [0, -5, None])
def test_a_report_is_recorded_with_its_success(view, result):
    calls = [] if result is None else [event(Event.REPORT_CALL, value=1), event(Event.REPORT_CALL_END, value=result)]
    operations = made(*isolated(512, 9, REPORTING), *calls, event(Event.PUTBACK, 512, 9, 1), view=view)
    assert of(operations) == ([("ISOLATE", 512, 9), ("PUTBACK", 512, 9)], {})
    assert operations.table["flags"][-1] == (OperationFlag.REPORTED if result == 0 else 0)
    assert operations.reports == (1, 0, 0)
    assert operations.free_at_end[:1024].all()


def test_what_is_put_back_before_the_next_report_succeeds_is_not_reported():
    success = event(Event.REPORT_CALL, value=1), event(Event.REPORT_CALL_END, value=0)
    rows = *isolated(0, 9, REPORTING), *success, event(Event.PUTBACK, 0, 9, 1)
    operations = made(*rows, *isolated(512, 9, REPORTING), event(Event.PUTBACK, 512, 9, 1))
    assert operations.table["flags"].tolist() == [0, OperationFlag.REPORTED, 0, 0]


def test_an_isolation_that_is_refused_leaves_the_block():
    rows = event(Event.ISOLATE, 512, 9), event(Event.ISOLATE_RET, value=0, flags=REPORTING)
    assert of(made(*rows, taken(512))) == ([("TAKE", 512, 0)], {})


def test_isolations_of_two_cpus_are_told_apart():
    first, first_end = isolated(0, 9, REPORTING)
    second, second_end = isolated(512, 8, COMPACTION, cpu=1)
    assert of(made(first, second, second_end, first_end)) == ([("TAKE", 512, 8), ("ISOLATE", 0, 9)], {})


def test_a_report_of_what_is_not_free_is_counted_in_every_view():
    rows = taken(513), event(Event.ALLOC, 513, 0), *isolated(512, 9, REPORTING)
    for view in "all", "kmem", "user":
        operations = made(*rows, view=view)
        assert operations.reports == (1, 1, 1)
        assert operations.contradictions == ({"isolate of what is not free": 1} if view == "all" else {})


def test_marks_and_losses_are_operations():
    rows = event(Event.MARK, value=1), event(Event.LOST, value=40)
    operations = made(*rows, marks=["a", "b"])
    assert ops(operations) == [("MARK", 1, -1), ("LOST", 40, -1)]
    assert operations.marks == ["a", "b"]


def test_times_of_operations_never_fall():
    trace = trace_of(taken(8), taken(9), taken(10))
    trace.events["time"] = [5, 3, 9]
    assert operations_of(trace, "kmem").table["time"].tolist() == [5, 5, 9]


# ---- views and snapshots


def test_the_user_view_knows_no_lists():
    rows = event(Event.ALLOC, 8, 1, 1), taken(64, 5), event(Event.FREE, 8, 0), event(Event.PCPU_DRAIN, 8, 0)
    operations = made(*rows, event(Event.FREE, 9, 0), view="user")
    assert of(operations) == ([("TAKE", 8, 1), ("GIVE", 8, 0), ("GIVE", 9, 0)], {})
    listed = snapshot_of([PAGE_FREE] * 12 + [5] * 4, [(12, 2)])
    assert of(made(event(Event.ALLOC, 12, 2), event(Event.FREE, 12, 2), view="user", before=listed)) == (
        [("GIVE", 12, 2)],
        {},
    )


def test_a_recording_is_taken_by_the_view_that_it_has_events_for():
    alloc = event(Event.ALLOC, 8, 0)
    assert operations_of(trace_of(alloc, taken(9), KPROBE)).view == "all"
    assert operations_of(trace_of(alloc, taken(9))).view == "kmem"
    assert operations_of(trace_of(alloc)).view == "user"
    assert operations_of(trace_of(alloc, KPROBE), "kmem").view == "user"
    assert operations_of(trace_of(alloc, taken(9)), "user").view == "user"


def test_only_what_lies_between_the_snapshots_counts():
    marks = ["REC SNAP0", "other", "REC SNAP1"]
    rows = taken(1), event(Event.MARK, value=0), taken(2), event(Event.MARK, value=2), taken(3)
    trace = trace_of(*rows, marks=marks)
    takes = [[("TAKE", 1, 0)], [("MARK", 0, -1), ("TAKE", 2, 0), ("MARK", 2, -1)], [("TAKE", 3, 0)]]
    assert ops(operations_of(trace, "kmem")) == [op for part in takes for op in part]
    assert ops(operations_of(trace, "kmem", ALL_FREE)) == takes[1] + takes[2]
    between = operations_of(trace, "kmem", ALL_FREE, ALL_FREE, passes=1)
    assert ops(between) == takes[1]
    assert between.table["row"].tolist() == [1, 2, 3]


def test_reserved_memory_may_be_given_to_the_allocator_and_not_taken():
    before = snapshot_of([PAGE_RESERVED] * 16)
    assert of(made(event(Event.FREE, 8, 0), event(Event.PCPU_DRAIN, 8, 0), before=before)) == ([("GIVE", 8, 0)], {})
    assert made(taken(8), before=before).contradictions == {"use of reserved memory": 1}


def test_two_passes_date_what_compaction_took_unseen():
    before = snapshot_of([PAGE_USED] * 8 + [PAGE_FREE] * 8)
    after = snapshot_of([PAGE_USED] * 6 + [PAGE_FREE] * 8 + [PAGE_USED] * 2)
    drains = [event(Event.PCPU_DRAIN, pfn, 0, 1, pid=44) for pfn in (6, 7)]
    moved = [event(Event.FREE, pfn, 0, pid=44) for pfn in (6, 7)]
    rows = taken(8), event(Event.ALLOC, 8, 0), event(Event.FREE, 8, 0), event(Event.PCPU_DRAIN, 8, 0), *moved, *drains
    trace = trace_of(*rows, event(Event.FREE, 15, 0), taken(9), names={44: ("kcompactd0",), 1: ("wl",)})
    once = operations_of(trace, "kmem", before, after, passes=1)
    assert once.contradictions == {"free of what never left": 1}
    assert (once.wrong_pages_end, once.corrections) == (2, 0)
    twice = operations_of(trace, "kmem", before, after)
    assert twice.contradictions == once.contradictions
    assert twice.corrections == 3
    takes = [(pfn, row) for _, pfn, row, op, *_ in twice.table.tolist() if op == Operation.TAKE]
    assert takes == [(8, 0), (15, 4), (14, 5), (9, 9)]  # from the end downwards, one for each page that was moved
    assert twice.table.tolist()[-1][1:4] == (9, 9, Operation.GIVE)  # it is free at the end, and nothing else says so
    assert twice.wrong_pages_end == 0


def test_two_passes_date_what_went_past_the_lists_unseen():
    rows = taken(8), event(Event.ALLOC, 8, 1), event(Event.FREE, 8, 1), taken(16), taken(8, 0)
    trace = trace_of(taken(24), event(Event.ALLOC, 24, 0), event(Event.FREE, 24, 0), *rows)
    trace.events["order"][3] = 1
    used = [PAGE_FREE] * 32
    used[8] = used[16] = PAGE_USED
    once = operations_of(trace, "kmem", snapshot_of([PAGE_FREE] * 32))
    assert once.contradictions == {"take of what is not free": 1}
    twice = operations_of(trace, "kmem", snapshot_of([PAGE_FREE] * 32), snapshot_of(used))
    gives = [(pfn, order, row) for _, pfn, row, op, order, *_ in twice.table.tolist() if op == Operation.GIVE]
    assert gives == [(24, 0, 3), (8, 0, 6), (9, 0, 6)]
    assert twice.wrong_pages_end == 0


def test_what_is_asked_for_wrongly_is_refused():
    trace = trace_of(taken(8))
    with pytest.raises(ValueError, match="view must be one of all, kmem, user, not 'buddy'"):
        operations_of(trace, "buddy")
    with pytest.raises(ValueError, match="passes must be 1, or 2 with a snapshot of the end, not 2"):
        operations_of(trace, "kmem", passes=2)
    with pytest.raises(ValueError, match="passes must be 1, or 2 with a snapshot of the end, not 3"):
        operations_of(trace, "kmem", ALL_FREE, ALL_FREE, passes=3)
    with pytest.raises(SnapshotError, match="which pages are free"):
        operations_of(trace, "kmem", Snapshot(ALL_FREE.zones, 10))


def test_an_empty_recording_has_no_operations():
    for view in "all", "kmem", "user":
        operations = operations_of(Trace(np.zeros(0, EVENT_DTYPE)), view)
        assert (len(operations), operations.view, operations.wrong_pages_end) == (0, "user", None)
    assert operations_of(Trace(np.zeros(0, EVENT_DTYPE)), "all", ALL_FREE, ALL_FREE).wrong_pages_end == 0


# ---- contradictions, each by its cause


@pytest.mark.parametrize(
    ("cause", "rows", "before"),
    [
        ("outside every zone", [taken(5000)], ALL_FREE),
        ("outside every zone", [taken(4096, 12)], ALL_FREE),
        ("no block", [taken(9, 1)], ALL_FREE),
        ("no block", [taken(0, 14)], ALL_FREE),
        ("no block", [taken(0, -1)], ALL_FREE),
        ("use of reserved memory", [taken(8)], snapshot_of([PAGE_RESERVED] * 16)),
        ("take of what is not free", [taken(8), taken(8)], ALL_FREE),
        ("take of what is not free", [taken(8)], ALL_USED),
        ("take of what is out for a report", [*isolated(8, 3, REPORTING), taken(8)], ALL_FREE),
        ("give of what is free", [event(Event.PCPU_DRAIN, 8, 0)], ALL_FREE),
        ("give of what is in use", [event(Event.PCPU_DRAIN, 8, 0)], ALL_USED),
        ("alloc of what never left", [event(Event.ALLOC, 8, 0)], ALL_FREE),
        ("alloc of what is in use", [event(Event.ALLOC, 8, 0)], ALL_USED),
        ("free of what never left", [event(Event.FREE, 8, 0)], ALL_FREE),
        ("double free", [event(Event.FREE, 8, 0), event(Event.FREE, 8, 0)], ALL_USED),
        ("isolate of what is not free", [*isolated(8, 3, COMPACTION)], ALL_USED),
        ("half an isolation", [event(Event.ISOLATE, 8, 3)], ALL_FREE),
        ("half an isolation", [event(Event.ISOLATE_RET, value=8)], ALL_FREE),
        ("half an isolation", [event(Event.ISOLATE, 8, 3), *isolated(8, 3, COMPACTION)], ALL_FREE),
        ("put back of what is not out", [event(Event.PUTBACK, 8, 3)], ALL_FREE),
        ("order mismatch", [taken(8, 1), event(Event.ALLOC, 8, 0)], ALL_FREE),
        ("order mismatch", [taken(8), taken(9), event(Event.PCPU_DRAIN, 8, 1)], ALL_FREE),
        ("order mismatch", [*(event(Event.ALLOC, pfn, 0) for pfn in (8, 9)), event(Event.FREE, 8, 1)], None),
    ],
)
def test_a_contradiction_has_its_cause_and_is_named(cause, rows, before):
    operations = made(*rows, before=before)
    assert operations.contradictions == {cause: 1}
    [example] = operations.examples[cause]
    assert 1 <= example.row <= len(rows)
    assert example.time == 1_000_000 * example.row
    if before is not None:
        applied(operations, places_of(before).free)


def test_the_first_contradictions_are_kept():
    operations = made(*(taken(pfn) for pfn in range(20)), before=ALL_USED)
    assert operations.contradictions == {"take of what is not free": 20}
    assert operations.contradictions_at_start == 20
    examples = operations.examples["take of what is not free"]
    assert [(each.pfn, each.order, each.row) for each in examples] == [(pfn, 0, pfn + 1) for pfn in range(5)]


def test_a_contradiction_names_the_first_page_that_contradicts():
    operations = made(taken(10), taken(8, 2))
    assert operations.examples["take of what is not free"][0][2:] == (10, 2)
    assert ops(operations) == [("TAKE", 10, 0), ("GIVE", 10, 0), ("TAKE", 8, 2)]


# ---- whole recordings


STEP = st.tuples(st.integers(0, 20), st.integers(0, 1000), st.integers(0, 5), st.integers(0, 1))


@given(st.booleans(), st.lists(STEP, max_size=80))
def test_a_kernels_recording_is_followed_to_the_page(new, steps):
    kernel = Kernel(new)
    before = kernel.snapshot()
    kernel.run(steps)
    trace = trace_of(KPROBE, *kernel.rows)
    operations = operations_of(trace, "all", before, kernel.snapshot())
    assert operations.contradictions == {}
    assert operations.reports.wrong_blocks == 0
    assert operations.wrong_pages_end == 0
    assert (applied(operations, places_of(before).free) == operations.free_at_end).all()
    unknown = operations_of(trace, "all", None, kernel.snapshot())
    assert unknown.contradictions == {}
    assert unknown.wrong_pages_end == 0


@given(st.booleans(), st.lists(STEP, max_size=80))
def test_without_kprobes_the_operations_make_sense_and_the_end_is_the_kernels(new, steps):
    kernel = Kernel(new)
    before = kernel.snapshot()
    kernel.run(steps)
    trace = trace_of(*(row for row in kernel.rows if row[5] <= Event.EXTFRAG))
    for passes in 1, 2:
        operations = operations_of(trace, "kmem", before, kernel.snapshot(), passes=passes)
        assert (applied(operations, places_of(before).free) == operations.free_at_end).all()
    assert operations.wrong_pages_end == 0 or operations.view == "user"


ANY_ROW = st.tuples(
    st.integers(0, 255),
    st.one_of(st.integers(0, 40), st.sampled_from([2**63, 2**64 - 1, MOST_PAGES, SURE_PAGES - 1, 1 << 20])),
    st.integers(-128, 127) | st.integers(0, 6),
    st.integers(-128, 127),
    st.sampled_from([0, 1, 65535]),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 255),
    st.tuples(st.integers(-128, 127), st.integers(-128, 127)),
)
KINDS = st.sampled_from([int(kind) for kind in Event])


@given(
    st.lists(st.tuples(KINDS, ANY_ROW), max_size=60),
    st.sampled_from(["all", "kmem", "user"]),
    st.sampled_from([None, snapshot_of([PAGE_FREE] * 20 + [PAGE_USED] * 10 + [PAGE_ABSENT] * 5 + [PAGE_RESERVED] * 5)]),
)
def test_whatever_the_events_say_the_operations_make_sense(rows, view, before):
    events = [
        event(kind, pfn, order, mt, cpu=cpu, value=value, flags=flags, fallback=fallback)
        for kind, (_, pfn, order, mt, cpu, value, flags, fallback) in rows
    ]
    trace = trace_of(*events)
    operations = operations_of(trace, view, before, ALL_FREE)
    assert (np.diff(operations.table["time"]) >= 0).all()
    assert (operations.table["pfn"] < 8192)[operations.table["op"] <= Operation.PUTBACK].all()
    if before is not None and operations.view == "all":
        assert (applied(operations, places_of(before).free) == operations.free_at_end).all()


def test_a_pfn_alone_does_not_take_memory():
    trace = trace_of(KPROBE, taken(8), taken(2**40), taken(MOST_PAGES), taken(SURE_PAGES + 2**16))
    operations = operations_of(trace, "all")
    assert operations.contradictions == {"outside every zone": 3}
    assert len(operations.free_at_end) == 8192


def test_a_recording_whose_pages_are_all_absurd_had_neither_operations_nor_contradictions():
    operations = made(taken(2**52 - 1), event(Event.MARK, value=0), before=None)
    assert operations.contradictions == {"outside every zone": 1}
    assert [int(row["op"]) for row in operations.table] == [Operation.MARK]
