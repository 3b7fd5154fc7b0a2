"""Recordings of Linux against their ground truth: the small one of `tests/data`, and those in $PAGEHINT_TRACES.

The ground truth is the state of the buddy allocator at the end, read from the guest's memory, and every block that
Linux's free page reporting isolated.
"""

from __future__ import annotations

import dataclasses
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from kernel_model import applied
from recordings import DATA

from pagehint.traces import Event, Operation, operations_of, read, read_snapshot
from pagehint.traces.snapshots.snapshot import PAGE_FREE, PAGE_USED
from pagehint.traces.views.places import places_of

SMALL = DATA / "frag-2g-smp2-thp"
FOLDERS = [SMALL, *sorted(path.parent for path in Path(os.environ.get("PAGEHINT_TRACES", "/none")).glob("*/meta.json"))]


@cache
def recording(folder):
    trace = read(folder.with_suffix(".parquet") if folder == SMALL else folder / "trace.txt.gz")
    return trace, read_snapshot(folder / "before"), read_snapshot(folder / "after")


@pytest.fixture(params=FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def recorded(request):
    return recording(request.param)


@pytest.fixture
def with_kprobes(recorded):
    if Event.BULK_ALLOC not in recorded[0].counts:
        pytest.skip("a recording without kprobes")
    return recorded


def compaction_ran(trace):
    return bool((trace.events["flags"][trace.events["event"] == Event.ISOLATE_RET] & 32).any())


def percent(operations):
    return 100 * operations.wrong_pages_end / operations.managed_pages


def free_blocks(snapshot, free):
    """The maximal free blocks, (PFN, order), if these pages are free."""
    nr_pages = min(len(snapshot.pages), len(free))
    pages = np.where(snapshot.pages == PAGE_FREE, PAGE_USED, snapshot.pages).astype(np.uint8)
    pages[:nr_pages][free[:nr_pages]] = PAGE_FREE
    state = dataclasses.replace(snapshot, pages=pages, free_lists=None)
    return sorted(block for zone in state.zones for block in state.free_blocks(zone).tolist())


def test_with_kprobes_every_page_is_where_the_kernel_has_it(with_kprobes):
    trace, before, after = with_kprobes
    operations = operations_of(trace, "all", before, after)
    assert operations.contradictions == {}
    assert operations.wrong_pages_end == 0
    kernels = sorted(after.free_lists[["pfn", "order"]].tolist())
    assert free_blocks(after, operations.free_at_end) == kernels
    assert (applied(operations, places_of(before).free) == operations.free_at_end).all()


def test_with_kprobes_every_block_that_linux_reported_was_free(with_kprobes):
    trace, before, _ = with_kprobes
    operations = operations_of(trace, "all", before)
    assert operations.reports.blocks == trace.counts[Event.PUTBACK] > 0
    assert operations.reports.wrong_blocks == 0
    ops = operations.table["op"].tolist()
    assert ops.count(Operation.ISOLATE) == ops.count(Operation.PUTBACK) == operations.reports.blocks
    assert operations.table["flags"][operations.table["op"] == Operation.PUTBACK].all()  # no report has failed


def test_with_kprobes_every_pageblock_has_the_kernels_type(with_kprobes):
    trace, before, after = with_kprobes
    types = before.pageblocks.copy()
    for _, pfn, _, op, order, migratetype, _ in operations_of(trace, "all", before).table.tolist():
        if op == Operation.SET_TYPE:
            types[pfn >> 9 : (pfn + (1 << order)) >> 9] = migratetype
    assert (types == after.pageblocks).all()


def test_without_snapshots_nothing_contradicts(with_kprobes):
    trace, _, after = with_kprobes
    assert operations_of(trace, "all").contradictions == {}
    assert operations_of(trace, "all", None, after).wrong_pages_end == 0


def test_the_kernels_own_events_in_one_pass(recorded):
    trace, before, after = recorded
    operations = operations_of(trace, "kmem", before, after, passes=1)
    assert (applied(operations, places_of(before).free) == operations.free_at_end).all()
    if compaction_ran(trace):
        assert 0.05 < percent(operations) < 4
    else:
        assert percent(operations) <= 0.05
        assert operations.reports.wrong_blocks == 0


def test_the_kernels_own_events_in_two_passes(recorded):
    trace, before, after = recorded
    operations = operations_of(trace, "kmem", before, after)
    assert percent(operations) <= 0.05
    assert (applied(operations, places_of(before).free) == operations.free_at_end).all()
    assert operations.reports.wrong_blocks == 0


def free_at(operations, free, times):
    """The free pages at each of these times."""
    table, begin = operations.table, 0
    for time in times:
        end = int(np.searchsorted(table["time"], time))
        free = applied(dataclasses.replace(operations, table=table[begin:end]), free)
        begin = end
        yield free


def test_in_two_passes_the_pages_are_right_at_any_time(with_kprobes):
    """The end alone proves nothing, since the second pass knows it."""
    trace, before, after = with_kprobes
    times = np.linspace(trace.events["time"][0], trace.events["time"][-1], 100)
    start = places_of(before).free
    exact = free_at(operations_of(trace, "all", before, after), start, times)
    twice = free_at(operations_of(trace, "kmem", before, after), start, times)
    wrong = [int((a != b).sum()) for a, b in zip(exact, twice, strict=True)]
    assert 100 * np.mean(wrong) / places_of(before).managed.sum() <= 0.05


def test_allocations_and_frees_alone_are_wrong_by_what_lies_on_lists(recorded):
    trace, before, after = recorded
    operations = operations_of(trace, "user", before, after)
    assert 0.1 < percent(operations) < 7
    assert operations.view == "user"
