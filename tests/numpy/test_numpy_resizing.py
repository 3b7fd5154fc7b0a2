"""Arrays that become larger and smaller, in their place or in another."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest
from numpy_arrays import MIB, PAGE, address, empty_at_the_end, inside

arena = pytest.fixture(empty_at_the_end)


def test_resizing_keeps_contents_and_whole_pages(arena):
    with arena.numpy():
        array = np.arange(20_000)
        for n in (30_000, 1_000_000, 20_001, 9_000, 400_000, 3, 100_000):
            before = array.copy()
            array.resize(n, refcheck=False)
            kept = min(n, len(before))
            assert (array[:kept] == before[:kept]).all()
            assert not array[kept:].any()
            del before
    del array


@pytest.mark.parametrize("pages", [16, 17, 64, 100, 512, 1000, 1500])
def test_growing_where_the_next_pages_are_free(arena, pages):
    with arena.numpy():
        array = np.full(pages * PAGE, 7, "u1")
        start = address(array)
        for now in (pages + 1, pages + 5, 3 * pages, 3 * pages + 1, 4 * pages):
            array.resize(now * PAGE - 5, refcheck=False)
            assert address(array) == start
            assert arena.pages.stats().allocated_pages == now
            arena.pages.verify()
        assert (array[: pages * PAGE] == 7).all()
        assert not array[pages * PAGE :].any()
        behind = arena.pages.alloc_pages_at((start - arena.address(0)) // PAGE + 4 * pages)
        array.resize(5 * pages * PAGE, refcheck=False)
        assert address(array) != start
        assert (array[: pages * PAGE] == 7).all()
        assert arena.pages.stats().allocated_pages == 5 * pages + 1
        arena.pages.verify()
    arena.pages.free_pages(behind)
    del array


@pytest.mark.parametrize("pages", [16, 17, 64, 100, 512, 1024, 5000])
def test_shrinking_gives_the_tail_back(arena, pages):
    with arena.numpy():
        array = np.full(pages * PAGE, 7, "u1")
        start = address(array)
        for now in (pages - 1, pages // 2 + 1, pages // 2, 3, 1):
            array.resize(now * PAGE, refcheck=False)
            assert address(array) == start
            assert arena.pages.stats().allocated_pages == now
            assert array.all()
            arena.pages.verify()
    array.resize(0, refcheck=False)
    assert arena.live_arrays == 1
    del array


def test_a_tail_that_was_given_back_is_reported_and_its_zeros_are_known(arena):
    with arena.hinting(workqueue="manual", max_pages=4), arena.numpy():
        array = np.full(40 * MIB, 7, "u1")
        arena.pages.flush_hinting()
        array.resize(MIB, refcheck=False)
        zero = np.zeros(10 * MIB, "u1")  # not reported yet, but for what was there beyond the 40 MiB
        assert not zero.any()
        assert arena.numpy_counts.cleared > 0
        del zero
        arena.pages.flush_hinting()
        assert arena.resident_bytes <= 4 * MIB
        array.resize(20 * MIB, refcheck=False)
        assert array[:MIB].all()
        assert not array[MIB:].any()
        array[:] = 9
        counts = arena.numpy_counts
        rest = np.zeros(40 * MIB, "u1")
        assert arena.numpy_counts.cleared == counts.cleared
        assert not rest.any()
    del array, rest


def test_growing_from_the_middle_of_a_leaf_over_its_end_broke_the_free_lists(arena):
    """An allocation in more than one leaf of 64 pages is known by its first leaf, so it must begin with one."""
    with arena.numpy():
        first = np.ones(20 * PAGE, "u1")
        array = np.full(16 * PAGE, 7, "u1")
        assert (address(array) - arena.address(0)) // PAGE % 64 != 0
        for n in (20, 33, 64, 200):
            array.resize(n * PAGE, refcheck=False)
            arena.pages.verify()
            assert (array[: 16 * PAGE] == 7).all()
        assert first.all()
    assert arena.pages.stats().allocated_pages == 220
    del first, array


@pytest.mark.parametrize("seed", range(8))
def test_sizes_that_change_at_random(arena, seed):
    """Against copies in the C heap; the allocator's own check after each step."""
    rng = random.Random(seed)
    pairs = []
    for step in range(300):
        with arena.numpy():
            if len(pairs) < 6:
                pairs.append([np.full(rng.randrange(65536, 4 * MIB), step % 251 + 1, "u1"), None])
                pairs[-1][1] = bytearray(pairs[-1][0].tobytes())
            index = rng.randrange(len(pairs))
            array, copy = pairs[index]
            if rng.random() < 0.3:
                del pairs[index]
            else:
                n = rng.choice([1, PAGE, 65536, rng.randrange(1, 6 * MIB), len(copy) + rng.randrange(9 * PAGE)])
                array.resize(n, refcheck=False)
                copy[n:] = b""
                copy.extend(bytes(n - len(copy)))
            assert array.tobytes() == copy
        del array, copy
        arena.pages.verify()
    assert all(array.tobytes() == copy for array, copy in pairs)
    pairs.clear()


def test_growing_does_not_take_pages_that_are_isolated(arena):
    with arena.numpy():
        array = np.full(2 * MIB, 7, "u1")
        start = address(array)
        arena.pages.set_migratetype(512, 1024, "isolate")
        assert start == arena.address(0)
        array.resize(3 * MIB, refcheck=False)
        assert address(array) != start
        arena.pages.set_migratetype(512, 1024, "movable")
        assert array[: 2 * MIB].all()
        del array


def test_an_array_that_outgrows_the_arena_moves_to_the_c_heap(arena):
    with arena.numpy():
        array = np.arange(5 * MIB)
        keep = np.ones(20 * MIB, "u1")
        array.resize(6 * MIB, refcheck=False)
    assert not inside(array, arena)
    assert (array[: 5 * MIB] == np.arange(5 * MIB)).all()
    assert arena.live_arrays == 1
    assert keep.all()
    del keep


def test_text_is_read_into_an_array_that_grows_without_the_gil(arena):
    text = " ".join(map(str, range(100_000)))
    with arena.numpy():
        array = np.fromstring(text, sep=" ")
        listed = np.fromiter(range(100_000), int)
    assert (array == np.arange(100_000)).all()
    assert (listed == np.arange(100_000)).all()
    assert arena.numpy_counts.arena > 0
    del array, listed


def test_freed_by_its_own_length_when_other_code_has_changed_the_shape(arena):
    """C code may write into an array's dimensions; NumPy then says another size when it frees."""
    with arena.numpy():
        array = np.ones(300_000)
    # PyArrayObject: reference count, type, data, nd, dimensions.
    dimensions = ctypes.cast(ctypes.c_void_p.from_address(id(array) + 32).value, ctypes.POINTER(ctypes.c_ssize_t))
    assert dimensions[0] == 300_000
    dimensions[0] = 100
    assert array.shape == (100,)
    del array
    assert arena.pages.stats().allocated_pages == 0
