"""Threads and forked children find what they have written, while all the rest is given back."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy_arrays import MIB, nothing_left
from processes import in_child
from threads import in_threads

import pagehint as ph

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")

MADV_PAGEOUT = 21  # Linux's


def take_back(arena):
    """Have the kernel take what MADV_FREE has offered, as when memory is short. What is in use stays: no swap."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.madvise(arena.address(0), arena.size, MADV_PAGEOUT)


def canaries(rng, rounds):
    """Write arrays, and look at them again; returns how many were whole while others were written."""
    mine, checked = [], 0
    for _ in range(rounds):
        if len(mine) > 8 or (mine and rng.random() < 0.4):
            array, canary = mine.pop(rng.randrange(len(mine)))
            assert (array == canary).all(), "another thread has written here, or the page was given back"
            checked += 1
        n, canary = rng.choice([100, 8192, 12_500, 125_000, 262_144, 655_360]), rng.getrandbits(62) | 1
        if rng.random() < 0.3:
            array = np.zeros(n, np.uint64)
            assert not array.any(), "stale bytes"
            array[:] = canary
        else:
            array = np.full(n, canary, np.uint64)
        if rng.random() < 0.3:
            array.resize(rng.randrange(1, 2 * n), refcheck=False)
            array[n:] = canary
        mine.append((array, canary))
    for array, canary in mine:
        assert (array == canary).all()
    return checked


@pytest.mark.parametrize("others", ["threads", "forks"])
@pytest.mark.parametrize("advice", ["dontneed", "free"])
def test_canaries(advice, others):
    """What a thread has written is there when it looks again, and zeros are zero, while all the rest is given back."""
    arena = ph.Arena("256MiB")
    checked = []

    def work(stop, rng):
        while not stop.is_set():
            checked.append(canaries(rng, 50))

    def forks(stop, rng):
        while not stop.wait(0.05):
            array = np.full(100_000, rng.getrandbits(62), np.uint64)
            canary = array[0]

            def child():
                canaries(rng, 20)
                assert (array == canary).all()  # noqa: B023
                array[:] = 5  # noqa: B023
                arena.pages.verify()

            in_child(child)
            assert (array == canary).all()

    def texts(stop, rng):
        text = " ".join(map(str, range(30_000)))
        while not stop.is_set():
            assert np.fromstring(text, sep=" ")[-1] == 29_999  # grows without the GIL

    def installs(stop, rng):
        while not stop.wait(0.01):
            ph.numpy.uninstall()
            ph.numpy.install(arena)

    def trims(stop, rng):
        while not stop.wait(0.01):
            arena.limit = rng.choice([None, 1, 64 * MIB])
            assert arena.trim() >= 0
            take_back(arena)

    ph.numpy.install(arena)
    try:
        with arena.hinting(advice, delay=0.001, max_pages=4, threshold=2):
            in_threads([work, work, work, texts, installs, trims, *[forks] * (others == "forks")])
            assert arena.pages.stats().blocks_reported > 0
            assert arena.pages.last_error is None
    finally:
        ph.numpy.uninstall()
    counts = arena.numpy_counts
    assert sum(checked) > 0
    assert counts.arena > 0
    assert counts.cleared > 0
    assert (counts.spared > 0) or advice == "free"
    nothing_left(arena)
    arena.close()
