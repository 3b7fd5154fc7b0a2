"""Which requests of NumPy an arena serves, and which the C heap."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_arrays import MIB, PAGE, empty_at_the_end, inside

arena = pytest.fixture(empty_at_the_end)


def test_large_arrays_are_in_the_arena_and_small_ones_in_the_c_heap(arena):
    before = arena.numpy_counts
    with arena.numpy() as same:
        assert same is arena
        large = [np.empty(65536, "u1"), np.zeros(100_000), np.ones((300, 300)), np.arange(1e5), np.full(10**5, 7)]
        small = [np.empty(65535, "u1"), np.zeros(10), np.ones(()), np.empty(0)]
    after = [np.empty(1 << 20), np.zeros(1 << 20)]
    assert all(inside(array, arena) for array in large)
    assert not any(inside(array, arena) for array in small + after)
    assert arena.live_arrays == len(large)
    counts = arena.numpy_counts
    assert counts.arena - before.arena == len(large)
    assert counts.heap - before.heap >= len(small)
    assert counts.full == before.full
    assert not large[1].any()


def test_whole_pages_and_no_more(arena):
    for nr_bytes in (MIB, MIB + 1, 3 * MIB - PAGE, 5 * MIB + 17, 65 * PAGE, 37 * PAGE - 1):
        with arena.numpy():
            array = np.empty(nr_bytes, "u1")
        array[:] = 1
        assert arena.pages.stats().allocated_pages == -(-nr_bytes // PAGE)
        del array
        assert arena.pages.stats().allocated_pages == 0


def test_what_the_arena_has_no_room_for_is_in_the_c_heap(arena):
    with arena.numpy():
        most = np.ones(60 * MIB, "u1")
        more = [np.ones(8 * MIB, "u1"), np.zeros(8 * MIB, "u1"), np.ones(100 * MIB, "u1")]
        fits = np.ones(4 * MIB, "u1")
    assert inside(most, arena)
    assert inside(fits, arena)
    assert not any(inside(array, arena) for array in more)
    assert not more[1].any()
    assert arena.numpy_counts.full == len(more)
    with arena.numpy(), pytest.raises(MemoryError):
        np.empty(1 << 62, "u1")
    del more, most
    assert fits.all()
