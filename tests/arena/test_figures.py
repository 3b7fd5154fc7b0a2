"""An arena's figures: what they count, and that they cost by what is used, not by the arena's size."""

from __future__ import annotations

import mmap
import tracemalloc

import numpy as np
import pytest

import pagehint as ph

MIB = 1 << 20
PAGE = mmap.PAGESIZE


@pytest.fixture
def arena():
    with ph.Arena("1GiB", hugepages=False) as arena:
        yield arena


# ---- given back


def test_memory_that_was_never_resident_was_given_back(arena):
    """`np.empty(1 << 27)`, deleted, five times: nothing was in memory."""
    with arena.hinting(delay=None, workqueue="manual", max_pages=1) as pages:
        for _ in range(5):
            with arena.numpy():
                array = np.empty(1 << 26)
            del array
            pages.flush_hinting()
        assert pages.stats().pages_reported >= 5 * (1 << 29) // PAGE - 512
    assert arena.status().given_back == 0


def test_what_was_resident_is_what_is_given_back(arena):
    array = arena.empty(100 * MIB, "u1")
    array[: 70 * PAGE] = 1
    array[50 * MIB] = 1
    del array
    assert arena.trim() == 71 * PAGE
    assert arena.status().given_back == 71 * PAGE
    assert arena.trim() == 0
    assert arena.status().given_back == 71 * PAGE


def test_what_is_given_back_twice_counts_twice(arena):
    with arena.hinting(delay=None, workqueue="manual", max_pages=1) as pages:
        for times in (1, 2):
            arena.empty(8 * MIB, "u1")[:] = 1
            pages.flush_hinting()
            assert arena.status().given_back == times * 8 * MIB


def test_trim_with_advice_free_has_dropped_nothing_yet(arena):
    with arena.hinting("free", delay=None, workqueue="manual"):
        arena.empty(8 * MIB, "u1")[:] = 1
        assert arena.trim() == 0
        assert arena.status().given_back == 8 * MIB


def test_memory_that_is_zero_already_beside_some_that_is_not(arena):
    """One report of both. The kernel is told of the second only, and both read as zero afterwards."""
    array = arena.empty(16 * MIB, "u1")
    array[:] = 5
    del array
    arena.trim()
    half = arena.empty(4 * MIB, "u1")
    other = arena.empty(4 * MIB, "u1")
    half[:], other[:] = 6, 7
    place = other.ctypes.data
    del other
    assert arena.trim() == 4 * MIB
    with arena.numpy():
        zeros = np.zeros(8 * MIB, np.uint8)
    assert place <= zeros.ctypes.data + zeros.nbytes
    assert not zeros.any()
    assert (half == 6).all()
    assert arena.numpy_counts.cleared == 0
    del half, zeros


# ---- what is where


def test_warm_is_the_same_figure_everywhere(arena):
    """Granules that are entirely free and in memory; free pages beside others in use are not among them."""
    small = [arena.empty(MIB, "u1") for _ in range(7)]
    large, untouched = arena.empty(20 * MIB, "u1"), arena.empty(40 * MIB, "u1")
    for array in (*small, large):
        array[:] = 1
    del array, small[1], large, untouched
    for hinting in (False, True):
        if hinting:
            arena.pages.enable_hinting(arena._mapping.callbacks("dontneed", 16), workqueue="manual", min_age=1000.0)
        status = arena.status()
        explanation = arena.pages.explain()
        assert (status.used_bytes, status.resident_bytes) == (6 * MIB, 27 * MIB)
        assert status.fragmented_bytes == 2 * MIB  # one beside each end of the small ones
        assert explanation["warm"].bytes == status.warm_bytes == 19 * MIB
    arena.trim()
    assert arena.status().warm_bytes == arena.pages.explain().warm.bytes == 0
    arena.pages.disable_hinting()


@pytest.mark.parametrize("hugepages", [False, True])
def test_status_is_what_the_kernel_says_of_every_granule(hugepages):
    with ph.Arena("256MiB", hugepages) as arena:
        rng = np.random.default_rng(7)
        arrays = [arena.empty(int(n) * PAGE, "u1") for n in rng.integers(1, 3000, 30)]
        for array in arrays[::2]:
            array[:] = 1
        del arrays[5:25:3], array
        arena.trim()
        status = arena.status()
        in_use = np.zeros(arena.size // PAGE, bool)
        for array in arrays:
            first = (array.ctypes.data - arena.address(0)) // PAGE
            in_use[first : first + len(array) // PAGE] = True
        expected = in_use.reshape(-1, 512).sum(axis=1)
        used = np.zeros(len(expected), int)
        used[status.granules] = status.used
        assert (used == expected).all()
        assert status.used_bytes == in_use.sum() * PAGE
        assert status.resident_bytes == arena.resident_bytes
        assert (np.diff(status.granules) > 0).all()
        assert (status.used + status.resident > 0).all()
        arrays.clear()
        del array


# ---- the cost


def test_figures_of_sixteen_tebibytes_cost_what_is_used():
    """Their memory, since a test of their time would fail on a busy machine. Something is in use at either end."""
    with ph.Arena(PAGE << 32, hugepages=False) as arena:
        high = arena.pages.alloc_pages_at((1 << 32) - 1)
        low = arena.empty(100 * MIB, "u1")
        low[:] = 1
        repr(arena.status())
        tracemalloc.start()
        status = arena.status()
        assert repr(arena)
        assert repr(status)
        assert status._repr_html_().count("<rect") <= 512
        assert arena.resident_bytes == 100 * MIB
        assert arena.pages.explain().warm.bytes == 0
        assert tracemalloc.get_traced_memory()[1] < MIB
        tracemalloc.stop()
        assert len(status.granules) == len(status.used) == len(status.resident) == 50 + 1
        assert status.used_bytes == 100 * MIB + PAGE
        arena.pages.free_pages(high)
        del low
