"""`Arena.trim`: everything that is free goes back now, hinting or not."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest

import pagehint as ph

MIB = 1 << 20


@pytest.fixture
def arena():
    with ph.Arena("64MiB", hugepages=False) as arena:
        yield arena


def test_trim_gives_back_what_is_free_and_keeps_what_is_in_use(arena):
    kept, dropped = arena.empty(8 * MIB, "u1"), arena.empty(32 * MIB, "u1")
    kept[:], dropped[:] = 3, 4
    del dropped
    assert arena.trim() == 32 * MIB
    assert arena.resident_bytes == 8 * MIB
    assert arena.trim() == 0
    assert (kept == 3).all()
    assert not arena.pages.hinting_enabled
    assert not arena.empty(32 * MIB, "u1").any()
    arena.pages.verify()
    del kept


def test_trim_with_less_than_a_batch_free(arena):
    kept = arena.empty(62 * MIB, "u1")
    dropped = arena.empty(2 * MIB, "u1")
    dropped[:] = 1
    del dropped
    assert arena.trim() == 2 * MIB
    del kept


def test_trim_leaves_free_pages_beside_those_in_use(arena):
    arrays = [arena.empty(MIB, "u1") for _ in range(2)]
    for array in arrays:
        array[:] = 7
    assert arrays[0].ctypes.data // (2 * MIB) == arrays[1].ctypes.data // (2 * MIB)
    del array, arrays[0]
    assert arena.trim() == 0
    assert (arrays[0] == 7).all()
    arrays.clear()
    assert arena.trim() == 2 * MIB


@pytest.mark.parametrize("workqueue", ["thread", "manual"])
def test_trim_does_not_wait_for_the_age_the_delay_or_the_threshold(arena, workqueue):
    with arena.hinting(min_age=1000.0, delay=None, threshold=1 << 20, workqueue=workqueue) as pages:
        for _ in range(3):
            array = arena.empty(16 * MIB, "u1")
            array[:] = 1
            del array
            assert arena.resident_bytes == 16 * MIB
            assert arena.trim() == 16 * MIB
            assert arena.resident_bytes == 0
        assert pages.hinting_enabled
        assert pages.min_age == 1000.0


def test_trim_in_a_loops_last_iteration_only(arena):
    """What `min_age` is for: the temporaries stay, and are gone when they are not wanted any more."""
    with arena.hinting(min_age=1000.0, threshold=1) as pages:
        pages.flush_hinting()
        before = pages.stats()
        for _ in range(200):
            array = arena.empty(8 * MIB, "u1")
            array[::4096] = 1
            del array
        assert pages.stats().pages_reported == before.pages_reported
        assert arena.resident_bytes == 8 * MIB
        assert arena.trim() == 8 * MIB


def test_trim_of_a_closed_arena():
    arena = ph.Arena("16MiB")
    arena.close()
    with pytest.raises(ValueError, match="closed"):
        arena.trim()


def test_trim_inside_a_callback_is_refused(arena):
    refused = []

    def hint_pages(blocks):
        with pytest.raises(ph.HintingActiveError):
            arena.trim()
        refused.append(len(blocks))

    with arena.pages.hinting(ph.PageHintingCallbacks(hint_pages, 4), workqueue="manual"):
        arena.trim()
    assert refused
    assert arena.pages.last_error is None


@pytest.mark.parametrize("on", [False, True])
def test_a_trim_that_the_system_refuses_taken_for_done(arena, on):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlock.argtypes = libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    array = arena.empty(64 * MIB, "u1")
    array[:] = 5
    if libc.mlock(array.ctypes.data + 8 * MIB, 2 * MIB):
        pytest.skip("this process may not lock memory")
    locked = (ctypes.c_char * (2 * MIB)).from_address(array.ctypes.data + 8 * MIB)
    del array
    if on:
        arena.pages.enable_hinting(
            ph.PageHintingCallbacks(arena._mapping.advise_capsule("dontneed"), 1), workqueue="manual", delay=None
        )
    with pytest.raises(ph.PageHintError, match=r"not everything was given back.*Invalid argument"):
        arena.trim()
    assert arena.pages.hinting_enabled == on
    # The rest has gone, and nothing is lost.
    assert 2 * MIB <= arena.resident_bytes <= 4 * MIB
    assert (np.frombuffer(locked, np.uint8) == 5).all()
    assert arena.pages.stats().free_pages == arena.pages.stats().managed_pages
    arena.pages.verify()
    libc.munlock(ctypes.addressof(locked), 2 * MIB)
    assert arena.trim() >= 2 * MIB
    assert arena.resident_bytes == 0
    arena.pages.disable_hinting()


def test_trim_while_others_use_the_arena_and_switch_hinting_on_and_off():
    """What is in use keeps its contents, and each trim returns."""
    broken = []
    stop = threading.Event()
    with ph.Arena("128MiB") as arena:

        def use(seed):
            rng = np.random.default_rng(seed)
            while not stop.is_set():
                array = arena.empty(int(rng.integers(1, 12 * MIB)) // 8, "u8")
                array[:] = seed
                if not (array == seed).all():
                    broken.append(seed)
                del array

        def switch():
            while not stop.is_set():
                try:
                    with arena.hinting(min_age=0.001, threshold=1):
                        stop.wait(0.002)
                except ph.HintingActiveError:
                    pass  # a trim was at it

        threads = [threading.Thread(target=use, args=(seed,)) for seed in (1, 2)] + [threading.Thread(target=switch)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(200):
                assert arena.trim() >= 0
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert not broken
        arena.pages.verify()
        assert arena.trim() >= 0
        assert arena.resident_bytes == 0
