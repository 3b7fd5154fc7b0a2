"""Arrays of zeros: they are zero whatever was there before, and memory that is zero is not cleared again."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import random

import numpy as np
import pytest
from numpy_arrays import MIB, PAGE, empty_at_the_end, inside
from processes import in_child

import pagehint as ph

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
arena = pytest.fixture(empty_at_the_end)


def allocate(arena, how, rng):
    """Some pages, in one of the ways to get them, and how to free them; none if there is no room."""
    pages, order = arena.pages, rng.choice([0, 3, 6, 8, 9, 10])
    if how == "alloc_pages":
        pfn = pages.alloc_pages(order)
        return [(pfn, 1 << order)], lambda: pages.free_pages(pfn, order)
    if how == "alloc_pages_bulk":
        pfns = pages.alloc_pages_bulk(rng.randrange(1, 80), order % 6)
        return [(pfn, 1 << order % 6) for pfn in pfns.tolist()], lambda: pages.free_pages_bulk(pfns, order % 6)
    if how == "alloc_pages_at":
        pfn = rng.randrange(arena.size // PAGE) >> order << order
        pages.alloc_pages_at(pfn, order)
        return [(pfn, 1 << order)], lambda: pages.free_pages(pfn, order)
    if how == "alloc_pages_exact":
        n = rng.randrange(1, 3000)
        pfn = pages.alloc_pages_exact(n)
        return [(pfn, n)], lambda: pages.free_pages_exact(pfn, n)
    if how == "run_ops":
        table = np.zeros(1, np.uint64)
        pages.run_ops(np.array([(0, order, ph.OP_ALLOC)], ph.OP_DTYPE), table)
        free = np.array([(0, order, ph.OP_FREE)], ph.OP_DTYPE)
        return [(int(table[0]), 1 << order)], lambda: pages.run_ops(free, table)
    array = arena.empty(rng.randrange(1, 6 * MIB), "u1")
    if how == "numpy":
        with arena.numpy():
            array = np.empty(rng.randrange(65536, 6 * MIB), "u1")
        if not inside(array, arena):
            raise ph.OutOfMemoryError
    else:
        assert how == "empty"
    pfn = (array.__array_interface__["data"][0] - arena.address(0)) // PAGE
    return [(pfn, -(-array.nbytes // PAGE))], [array].clear


WAYS = ["alloc_pages", "alloc_pages_bulk", "alloc_pages_at", "alloc_pages_exact", "run_ops", "empty", "numpy"]


def scribble(arena, runs):
    for pfn, n in runs:
        ctypes.memset(arena.address(pfn), 0xAB, n * PAGE)


def zeros(arena, nr_bytes):
    with arena.numpy():
        array = np.zeros(nr_bytes, "u1")
    assert not array.any(), "stale bytes"
    return array


def flush(arena, advice):
    with arena.hinting(advice, workqueue="manual", max_pages=4):
        arena.pages.flush_hinting()


def test_fresh_memory_is_not_cleared_and_not_touched(arena):
    with arena.numpy():
        array = np.zeros(40 * MIB, "u1")
    assert inside(array, arena)
    assert arena.numpy_counts[3:] == (0, 40 * MIB, 0)
    assert arena.resident_bytes == 0
    assert not array.any()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("before", ["fresh", "dontneed", "free"])
def test_memory_that_anybody_has_written_is_cleared(arena, how, before):
    """Stale bytes would be there for all to see: nothing is reported between the writing and the zeros."""
    rng = random.Random(how)
    if before != "fresh":
        array = arena.empty(arena.size, "u1")
        array[:] = 0xCD
        del array
        flush(arena, before)
    for _ in range(20):
        try:
            runs, free = allocate(arena, how, rng)
        except ph.BadPageError:
            continue
        scribble(arena, runs)
        free()
    counts = arena.numpy_counts
    array = zeros(arena, arena.size)
    assert inside(array, arena)
    assert arena.numpy_counts.dropped > counts.dropped
    assert arena.numpy_counts.cleared == counts.cleared  # the array is all granules, and large
    assert (arena.numpy_counts.spared > counts.spared) == (before != "free")
    array[:] = 1
    del array


@pytest.mark.parametrize("advice", ["dontneed", "free"])
def test_what_was_reported_is_cleared_only_if_it_may_keep_old_contents(arena, advice):
    array = arena.empty(arena.size, "u1")
    array[:] = 0xCD
    del array
    flush(arena, advice)
    array = zeros(arena, 40 * MIB)
    assert arena.numpy_counts[3:] == ((0, 40 * MIB, 0) if advice == "dontneed" else (0, 0, 40 * MIB))
    array[:] = 0xEF
    del array
    counts = arena.numpy_counts
    arrays = [zeros(arena, 10 * MIB) for _ in range(4)]  # not reported again in between
    assert arena.numpy_counts.cleared == counts.cleared + 40 * MIB
    arrays.clear()


def test_fresh_memory_stays_known_through_reports_of_either_kind(arena):
    arrays = []
    for advice in ("free", "dontneed", "free"):
        flush(arena, advice)
        arrays.append(zeros(arena, 8 * MIB))
    assert arena.numpy_counts[3:] == (0, 24 * MIB, 0)
    arrays.clear()


def test_a_part_of_a_granule_that_was_used_is_cleared_and_the_rest_is_spared(arena):
    first = zeros(arena, MIB)
    assert arena.numpy_counts[3:] == (0, MIB, 0)
    first[:] = 0xAB
    second = zeros(arena, MIB)  # the other half of the same granule
    third = zeros(arena, 3 * MIB)
    assert arena.numpy_counts[3:] == (0, 5 * MIB, 0)
    second[:] = third[:] = 0xAB
    del first
    first = zeros(arena, MIB)
    assert arena.numpy_counts[3:] == (MIB, 5 * MIB, 0)
    first[:] = 0xAB
    del second, third
    assert first.all()
    whole = zeros(arena, arena.size - 2 * MIB)
    del first, whole


def test_a_host_that_writes_into_what_is_reported_to_it(arena):
    def hint_pages(blocks):
        scribble(arena, [(int(block["pfn"]), 1 << int(block["order"])) for block in blocks])

    with arena.pages.hinting(ph.PageHintingCallbacks(hint_pages, 4), workqueue="manual"):
        arena.pages.flush_hinting()
    assert arena.pages.stats().blocks_reported > 0
    array = zeros(arena, arena.size)
    del array


def test_a_report_that_the_kernel_refuses_is_no_zero(arena):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlock.argtypes = libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    if libc.mlock(arena.address(4096), 4 * MIB):
        pytest.skip("this process may not lock memory")
    array = arena.empty(arena.size, "u1")
    array[:] = 0xCD
    del array
    flush(arena, "dontneed")
    assert arena.pages.stats().blocks_failed > 0
    array = zeros(arena, arena.size)
    # The locked part is written, and with it its neighbours that had not been reported either.
    assert 4 * MIB <= arena.numpy_counts.cleared < arena.size
    libc.munlock(arena.address(4096), 4 * MIB)
    del array


@pytest.mark.parametrize("seed", range(6))
def test_zeros_are_zero_whatever_came_before(arena, seed):
    """Everybody writes what is no zero into all that is theirs, and it is reported now and then, either way."""
    rng = random.Random(seed)
    mine = []
    for _ in range(400):
        choice = rng.random()
        if choice < 0.45:
            try:
                runs, free = allocate(arena, rng.choice(WAYS), rng)
            except (ph.OutOfMemoryError, ph.BadPageError):
                continue
            scribble(arena, runs)
            mine.append(free)
        elif choice < 0.6:
            array = zeros(arena, rng.randrange(65536, 12 * MIB))
            array[:] = 0xAB
            mine.append([array].clear)
            del array
        elif choice < 0.65:
            flush(arena, rng.choice(["dontneed", "free"]))
        elif choice < 0.67:  # now and then there is room for a large one
            while mine:
                mine.pop()()
            zeros(arena, rng.randrange(16 * MIB, 50 * MIB))[:] = 0xEF
        elif mine:
            mine.pop(rng.randrange(len(mine)))()
    for free in mine:
        free()
    counts = arena.numpy_counts
    assert counts.cleared > 0
    assert counts.spared > 0
    assert counts.dropped > 0


def test_zeros_after_an_array_of_that_size_are_as_lazy_as_fresh_ones(arena):
    """They were written, and all in memory."""
    array = arena.empty(arena.size, "u1")
    array[:] = 0xCD
    assert arena.resident_bytes == arena.size
    del array
    with arena.numpy():
        array = np.zeros(arena.size, "u1")
    assert arena.numpy_counts[3:] == (0, 0, arena.size)
    assert arena.resident_bytes == 0
    array[5 * MIB] = 1
    assert arena.resident_bytes <= 2 * MIB
    assert array.sum() == 1
    del array


def test_zeros_that_are_filled_each_time_are_written_until_they_no_longer_are(arena):
    """Zeros that fit into a cache cost half as much as page faults, if all of them are used."""

    def one(nr_bytes, fill):
        before = arena.numpy_counts
        with arena.numpy():
            array = np.zeros(nr_bytes, "u1")
        assert not array.any()
        array[:] = fill
        after = arena.numpy_counts
        assert after.cleared + after.dropped - before.cleared - before.dropped == nr_bytes
        return after.dropped > before.dropped

    array = arena.empty(arena.size, "u1")
    array[:] = 0xCD
    del array
    assert [one(20 * MIB, 1) for _ in range(33)] == [True, *[False] * 15, True, *[False] * 15, True]
    assert [one(40 * MIB, 1) for _ in range(3)] == [True] * 3
    assert [one(14 * MIB, 1) for _ in range(3)] == [False] * 3

    def unused(nr_bytes):
        before = arena.numpy_counts.dropped
        with arena.numpy():
            np.zeros(nr_bytes, "u1")
        return arena.numpy_counts.dropped > before

    assert [unused(20 * MIB) for _ in range(20)] == [*[False] * 15, *[True] * 5]


@pytest.mark.parametrize("nr_bytes", [16 * MIB, 16 * MIB + 1, 19 * MIB - 5, 20 * MIB - 5, 20 * MIB - PAGE])
@pytest.mark.parametrize("before", [0, PAGE, MIB, 2 * MIB - PAGE])
def test_only_granules_that_are_the_arrays_own_are_dropped(arena, before, nr_bytes):
    """Those at its ends may have others' pages."""
    array = arena.empty(arena.size, "u1")
    array[:] = 0xCD
    del array
    first = arena.empty(before, "u1") if before else None
    with arena.numpy():
        array = np.empty(nr_bytes, "u1")
    start = array.__array_interface__["data"][0] - arena.address(0)
    others = arena.pages.alloc_pages_bulk(arena.pages.stats().free_pages)
    every = np.frombuffer((ctypes.c_ubyte * arena.size).from_address(arena.address(0)), "u1")
    every[:] = 0xAB
    del array
    array = zeros(arena, nr_bytes)
    assert array.__array_interface__["data"][0] - arena.address(0) == start
    pages_end = start + -(-nr_bytes // PAGE) * PAGE
    assert (every[:start] == 0xAB).all()
    assert (every[pages_end:] == 0xAB).all()
    whole = min(pages_end // (2 * MIB) * 2 * MIB, start + nr_bytes) - -(-start // (2 * MIB)) * 2 * MIB
    assert arena.numpy_counts[3:] == (nr_bytes - whole, 0, whole)
    arena.pages.free_pages_bulk(others)
    del first, array


def test_zeros_where_the_system_refuses_to_drop_are_written(arena):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlock.argtypes = libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    array = arena.empty(arena.size, "u1")
    array[:] = 0xCD
    del array
    if libc.mlock(arena.address(8192), PAGE):
        pytest.skip("this process may not lock memory")
    array = zeros(arena, arena.size)
    assert arena.numpy_counts[3:] == (arena.size, 0, 0)
    libc.munlock(arena.address(8192), PAGE)
    del array


def test_zeros_in_a_forked_child(arena):
    """Its parent's knowledge, and memory, are its own from the fork on."""
    array = arena.empty(arena.size, "u1")
    array[:] = 0xCD
    del array
    flush(arena, "dontneed")

    def child():
        array = zeros(arena, 8 * MIB)
        assert arena.numpy_counts.cleared == 0
        array[:] = 0xAB
        del array
        zeros(arena, arena.size)

    in_child(child)
    array = zeros(arena, 8 * MIB)
    assert arena.numpy_counts.cleared == 0
    del array


@pytest.mark.parametrize("advice", ["dontneed", "free"])
@pytest.mark.parametrize("seed", range(3))
def test_zeros_are_zero_whatever_was_in_their_granules(advice, seed):
    """Arrays and blocks that are filled, resized, freed and reported; zeros among them in parts of granules."""
    rng = random.Random(seed)
    arena = ph.Arena("64MiB")
    live = []
    with arena.hinting(advice, delay=0.0), arena.numpy():
        for _ in range(3000):
            what = rng.random()
            if live and (what < 0.45 or len(live) > 60):
                live.pop(rng.randrange(len(live)))
            elif what < 0.75:
                array = np.zeros(rng.choice([65536, 65537, MIB, 3 * MIB, rng.randrange(65536, 4 * MIB)]), "u1")
                assert not array.any()
                if rng.random() < 0.7:
                    array[:] = rng.randrange(1, 256)
                live.append(array)
            elif what < 0.9:
                live.append(np.full(rng.randrange(65536, 3 * MIB), 7, "u1"))
            elif what < 0.93:
                order = rng.randrange(8)
                with contextlib.suppress(ph.OutOfMemoryError):
                    pfn = arena.pages.alloc_pages(order)
                    ctypes.memset(arena.address(pfn), 9, mmap.PAGESIZE << order)
                    arena.pages.free_pages(pfn, order)
            elif what < 0.96 and live:
                live[rng.randrange(len(live))].resize(rng.randrange(65536, 4 * MIB), refcheck=False)
            elif what < 0.97:
                arena.pages.flush_hinting()
    assert arena.numpy_counts.spared
    arena.pages.verify()
    del live, array
