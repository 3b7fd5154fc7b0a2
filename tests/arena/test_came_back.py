"""Memory of an arena that was given back, and is there again: `trim` and a flush find it, where the kernel says so."""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading

import numpy as np
import pytest

import pagehint as ph

MIB = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
POPULATE_WRITE = 23


@pytest.fixture
def arena():
    with ph.Arena("256MiB", hugepages=False) as arena:
        yield arena


def populate(arena, first, nr_bytes):
    """What a lock on all memory does: pages that nobody uses get memory."""
    at = ctypes.c_void_p(arena.address(0) + first)
    if LIBC.madvise(at, ctypes.c_size_t(nr_bytes), POPULATE_WRITE):
        if ctypes.get_errno() != errno.EINVAL:  # Linux before 5.14
            raise OSError(ctypes.get_errno(), "madvise")
        ctypes.memset(at, 0, nr_bytes)


def in_memory(arena, first, nr_bytes):
    """Bytes in memory, as the kernel says, whatever the arena knows."""
    present = (ctypes.c_ubyte * (nr_bytes // mmap.PAGESIZE))()
    assert not LIBC.mincore(ctypes.c_void_p(arena.address(0) + first), ctypes.c_size_t(nr_bytes), present)
    return int((np.frombuffer(present, np.uint8) & 1).sum()) * mmap.PAGESIZE


def used_and_given_back(arena):
    kept, gone = arena.empty(6 * MIB, "u1"), arena.empty(150 * MIB, "u1")
    kept[:], gone[:] = 3, 4
    del gone
    return kept


@pytest.mark.parametrize("how", ["hinting on", "hinting off", "flush"])
def test_what_was_given_back_and_locked_in_again_was_never_given_back_again(arena, how):
    """Known to be zero, it was neither counted nor dropped."""
    kept = used_and_given_back(arena)
    if how != "hinting off":
        arena.enable_hinting(delay=None)
    assert arena.trim() == 150 * MIB
    populate(arena, 20 * MIB, 64 * MIB)
    assert in_memory(arena, 0, 156 * MIB) == 70 * MIB
    if how == "flush":
        arena.pages.flush_hinting()
    else:
        assert arena.trim() == 64 * MIB
    assert in_memory(arena, 0, 156 * MIB) == arena.resident_bytes == 6 * MIB
    assert arena.trim() == 0
    assert (kept == 3).all()
    arena.pages.verify()
    del kept


def test_explain_said_with_the_host_of_what_the_system_had_again(arena):
    kept = used_and_given_back(arena)
    with arena.hinting(delay=None) as pages:
        pages.flush_hinting()
        reported = pages.explain()["reported"].pages
        assert pages.explain()["came back"].pages == 0
        populate(arena, 20 * MIB + mmap.PAGESIZE, mmap.PAGESIZE)  # one page of a granule
        explanation = pages.explain()
        assert explanation["came back"].bytes == 2 * MIB
        assert explanation["reported"].pages == reported - explanation["came back"].pages
        assert "came back" in repr(explanation)
        pages.flush_hinting()
        assert pages.explain()["came back"].pages == 0
        assert pages.explain()["reported"].pages == reported
    del kept


def test_nothing_of_what_came_back_is_taken_for_zero(arena):
    """Who makes memory resident may have written to it."""
    with arena.hinting(delay=None) as pages, arena.numpy():
        gone = np.ones(16 * MIB, "u1")
        first = gone.ctypes.data - arena.address(0)
        del gone
        pages.flush_hinting()
        ctypes.memset(arena.address(0) + first, 7, 16 * MIB)
        pages.max_pages = 64  # under the gate: found, and not given back
        arena.pages.set_watermarks("Arena", (0, 1 << 40, 1 << 40))
        pages.flush_hinting()
        assert pages.stats().hints_pending == 8
        assert not np.zeros(16 * MIB, "u1").any()


def test_what_goes_when_the_system_wants_it_is_not_asked_about(arena):
    """With MADV_FREE it is in memory still, and was reported already."""
    kept = used_and_given_back(arena)
    with arena.hinting("free", delay=None) as pages:
        pages.flush_hinting()
        reported = pages.stats().pages_reported
        assert arena.trim() == 0
        assert pages.stats().pages_reported == reported
        assert pages.explain()["came back"].pages == 0
    del kept


def test_nothing_in_use_is_lost_while_others_make_free_memory_resident():
    """Threads write and check arrays; another makes everything resident, which changes no contents, and flushes."""
    arena = ph.Arena("64MiB", hugepages=False)  # opened at once
    broken, stop = [], threading.Event()

    def use(seed):
        rng = np.random.default_rng(seed)
        kept = []
        while not stop.is_set():
            array = arena.empty(int(rng.integers(1, 3 * MIB)), "u1")
            array[:] = value = int(rng.integers(1, 256))
            kept.append((array, value))
            if len(kept) > 5:
                array, value = kept.pop(int(rng.integers(len(kept))))
                if not (array == value).all():
                    broken.append(value)
                del array
        kept.clear()

    with arena.hinting(delay=0.0, threshold=1) as pages:
        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            populate(arena, 0, 64 * MIB)
            pages.flush_hinting()
            pages.mark_free()
        stop.set()
        for thread in threads:
            thread.join()
        pages.verify()
        assert not broken
        assert pages.last_error is None
        pages.flush_hinting()
        assert in_memory(arena, 0, 64 * MIB) == arena.resident_bytes == 0
