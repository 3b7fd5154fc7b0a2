"""Arrays that are something else, too: of another type or order, in the same memory, changed by another thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hostile import (
    misaligned,
    readonly,
)
from worlds import World

import pagehint as ph


@pytest.mark.parametrize(
    "like",
    [
        lambda pfns: pfns.astype(">u8"),
        lambda pfns: np.repeat(pfns, 2)[::2],
        lambda pfns: pfns[::-1],
        readonly,
        list,
        tuple,
        lambda pfns: pfns.astype(object),
        lambda pfns: pfns.view(np.ma.MaskedArray),
        lambda pfns: pfns.view(np.recarray),
        lambda pfns: pfns.astype(np.uint16),
        memoryview,
    ],
)
def test_blocks_in_any_array_of_whole_numbers_are_freed(like):
    world = World()
    before = world.pages.stats().allocated_pages
    world.pages.free_pages_bulk(like(world.bulk), 2)
    assert before - world.pages.stats().allocated_pages == 5 << 2
    world.pages.verify()


def test_pfns_and_orders_in_the_same_memory():
    pages = ph.PageAllocator("64MiB", pcp=False)
    both = np.array([pages.alloc_pages_at(4, 0), pages.alloc_pages_at(2, 0), pages.alloc_pages_at(0, 0)], np.uint64)
    with pytest.raises(ph.BadPageError):
        pages.free_pages_bulk(both, both)
    assert pages.stats().allocated_pages == 3
    pages.verify()


def test_a_trace_in_the_memory_of_its_table():
    """The operations are read before the first of them writes to the table."""
    world = World()
    table = np.zeros(8, np.uint64)
    ops = table.view(ph.OP_DTYPE)
    ops[:] = [(slot, slot % 3, ph.OP_ALLOC) for slot in range(4)] + [(slot, slot % 3, ph.OP_FREE) for slot in range(4)]
    before = world.pages.stats().allocated_pages
    world.pages.run_ops(ops, table)
    world.pages.verify()
    assert world.pages.stats().allocated_pages == before


@pytest.mark.parametrize("pcp", [True, False])
def test_a_table_that_another_thread_scribbles_on(pcp):
    """Whatever is read there is checked as if it had been passed: refused, or a block that is freed."""
    pages = ph.PageAllocator("64MiB", pcp=pcp)
    table = np.zeros(64, np.uint64)
    ops = np.zeros(5000, ph.OP_DTYPE)
    ops["slot"] = np.arange(5000) % 64
    ops["op"] = np.arange(5000) // 64 % 2
    stop = threading.Event()

    def scribble():
        rng = np.random.default_rng(1)
        while not stop.is_set():
            table[rng.integers(0, 64, 8)] = rng.integers(0, 1 << 15, 8)
            ops["order"][rng.integers(0, 5000, 8)] = rng.integers(0, 1 << 16, 8)

    thread = threading.Thread(target=scribble)
    thread.start()
    refused = 0
    try:
        for _ in range(300):
            try:
                pages.run_ops(ops, table)
            except ph.PageHintError:
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert refused
    pages.drain_pcp()
    pages.verify()
    stats = pages.stats()
    assert stats.managed_pages == stats.free_pages + stats.allocated_pages


def test_a_table_that_is_not_aligned_was_taken():
    with pytest.raises(TypeError, match="aligned"):
        World().pages.run_ops(np.zeros(1, ph.OP_DTYPE), misaligned())
