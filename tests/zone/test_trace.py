"""`run_ops`: a trace of allocations and frees in one call."""

from __future__ import annotations

import re

import numpy as np
import pytest

import pagehint as ph


def trace(*ops):
    """Operations as (slot, order, op)."""
    return np.array(list(ops), ph.OP_DTYPE)


@pytest.mark.parametrize("pcp", [True, False])
@pytest.mark.parametrize("zones", [[ph.ZoneSpec("Normal", 0, 1 << 16)], [("DMA", 1, 4095), ("Normal", 4096, 60000)]])
def test_a_trace_does_what_its_operations_do_one_by_one(pcp, zones):
    zones = [zone if isinstance(zone, ph.ZoneSpec) else ph.ZoneSpec(*zone) for zone in zones]
    at_once, singly = (ph.PageAllocator(zones, pcp=pcp) for _ in range(2))
    rng = np.random.default_rng(5)
    pfns, live = np.zeros(300, np.uint64), {}
    mine = pfns.copy()
    for _ in range(20):
        ops = []
        for slot in rng.integers(0, 300, 500).tolist():
            order = live.pop(slot, None)
            if order is None:
                live[slot] = int(rng.integers(0, 8))
                ops.append((slot, live[slot], ph.OP_ALLOC))
                mine[slot] = singly.alloc_pages(live[slot])
            else:
                ops.append((slot, order, ph.OP_FREE))
                singly.free_pages(mine[slot], order)
        at_once.run_ops(trace(*ops), pfns)
        at_once.verify()
        assert at_once.stats().allocated_pages == singly.stats().allocated_pages == sum(1 << o for o in live.values())
        taken = [int(pfn) for slot in live for pfn in range(int(pfns[slot]), int(pfns[slot]) + (1 << live[slot]))]
        assert len(taken) == len(set(taken))
        if not pcp:
            assert np.array_equal(pfns[list(live)], mine[list(live)])


def test_a_trace_stops_at_the_first_refused_operation_and_says_where():
    pages = ph.PageAllocator("4MiB", pcp=False)
    pfns = np.zeros(4, np.uint64)
    with pytest.raises(ph.BadPageError, match=r"operation 2, order 1.*PFN|PFN .*operation 2, order 1") as refused:
        pages.run_ops(trace((0, 1, 0), (0, 1, 1), (0, 1, 1), (1, 0, 0)), pfns)
    assert refused.value.index == 2
    assert pages.stats().allocated_pages == 0
    with pytest.raises(ph.OutOfMemoryError, match="operation 1") as refused:
        pages.run_ops(trace((0, 10, 0), (1, 0, 0)), pfns)
    assert refused.value.index == 1
    assert pages.stats().allocated_pages == 1024
    for bad in ((4, 0, 0), (0, 11, 0), (0, 0, 2)):
        with pytest.raises(ph.BadPageError, match="out of range"):
            pages.run_ops(trace(bad), pfns)
    pages.run_ops(trace((0, 10, 1)), pfns)
    pages.verify()


def test_a_trace_gets_what_is_in_page_sets_and_out_for_reporting():
    pages = ph.PageAllocator("1GiB")
    pages.free_pages(pages.alloc_pages())
    pfns = np.zeros(256, np.uint64)
    pages.run_ops(trace(*[(slot, 10, ph.OP_ALLOC) for slot in range(256)]), pfns)
    assert pages.stats().free_pages == 0


@pytest.mark.parametrize(
    ("ops", "pfns"),
    [
        (np.zeros(2, np.uint64), np.zeros(2, np.uint64)),
        (np.zeros((2, 2), ph.OP_DTYPE), np.zeros(2, np.uint64)),
        (np.zeros(2, ph.OP_DTYPE), np.zeros(2)),
        (np.zeros(2, ph.OP_DTYPE), np.zeros(4, np.uint64)[::2]),
        (np.zeros(2, ph.OP_DTYPE), np.broadcast_to(np.uint64(0), 2)),
        (np.zeros(2, ph.OP_DTYPE), [0, 0]),
    ],
)
def test_a_trace_of_the_wrong_type_is_refused(ops, pfns):
    pages = ph.PageAllocator("4MiB")
    with pytest.raises(TypeError):
        pages.run_ops(ops, pfns)
    assert pages.stats().allocated_pages == 0


def test_the_fields_of_an_operation_are_documented_in_their_order():
    text = ph.PageAllocator.run_ops.__doc__
    documented = re.findall(r"``(\w+)`` \(uint\d+\)", text)
    assert tuple(documented) == ph.OP_DTYPE.names
    [example] = re.findall(r"``\((\d+), (\d+), OP_ALLOC\)`` allocates order (\d+) into slot (\d+)", text)
    slot, order, said_order, said_slot = map(int, example)
    assert (slot, order) == (said_slot, said_order)
    pages, pfns = ph.PageAllocator("16MiB"), np.full(3, 99, np.uint64)
    pages.run_ops(trace((slot, order, ph.OP_ALLOC)), pfns)
    pages.free_pages(pfns[slot], order)
