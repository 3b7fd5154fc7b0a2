"""A loop that makes the same array again and again gets the same pages, as long as it does, and no longer."""

from __future__ import annotations

import os
import random
import threading
import time

import numpy as np
import pytest
from numpy_arrays import MIB, PAGE, address, empty_at_the_end, inside
from processes import in_child

import pagehint as ph

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
arena = pytest.fixture(empty_at_the_end)

SIZE = 100 << 10
PAGES = SIZE // PAGE


@pytest.fixture
def looping(arena, clock):
    """The arena, hinting as an installed one does, but by a clock of ours. After an array was freed it keeps runs."""
    options = {"threshold": 1, "delay": None, "mark_free": False, "min_age": 0.01, "reserve": "16MiB"}
    with arena.hinting(workqueue="manual", clock=clock, **options), arena.numpy():
        np.empty(SIZE, "u1")
        yield arena


def kept_pages(arena):
    return arena.pages.stats().pcp_pages


def lock_rounds(arena):
    return arena.pages.zones[0].figures()["lock_acquired"]


@pytest.mark.parametrize("hertz", [10, 50, 200])
def test_a_loop_gets_the_same_pages_and_leaves_the_zone_alone(looping, clock, hertz):
    first = address(np.empty(SIZE, "u1"))
    for tick in range(2 * hertz):
        before = lock_rounds(looping)
        array = np.full(SIZE, tick & 255, "u1")
        assert address(array) == first
        del array
        assert lock_rounds(looping) == before + 1, "that of the count itself"
        clock.sleep(1 / hertz)
        looping.pages.run_pending()
        looping.pages.verify()
    stats = looping.pages.stats()
    assert (stats.pcp_pages, stats.allocated_pages, stats.pages_reported) == (PAGES, 0, 0)
    assert looping.pages.explain()["in pcp"].pages == PAGES


def test_what_a_loop_has_left_is_given_back_two_seconds_later(looping, clock):
    np.full(SIZE, 1, "u1")
    assert kept_pages(looping) == PAGES
    for _ in range(20):
        clock.sleep(0.1)
        looping.pages.run_pending()
    assert kept_pages(looping) == 0
    assert looping.pages.stats().hints_pending == 0
    assert looping.resident_bytes == 0
    np.empty(SIZE, "u1")
    np.empty(SIZE, "u1")
    assert kept_pages(looping) == PAGES, "it begins anew"


def test_its_age_is_counted_from_when_it_was_given_up_and_not_from_when_it_was_found_so(looping, clock):
    np.full(SIZE, 1, "u1")
    for _ in range(3):  # looks are 0.375 s apart: used, and then not any more
        clock.sleep(0.376)
        looping.pages.run_pending()
    assert kept_pages(looping) == 0
    clock.sleep(0.75)
    looping.pages.run_pending()
    assert looping.pages.stats().hints_pending == 0


def test_nothing_is_kept_without_a_reserve_nor_with_hinting_off(arena, clock):
    with arena.numpy():
        np.empty(SIZE, "u1")
        np.empty(SIZE, "u1")
        assert kept_pages(arena) == 0
        with arena.hinting(workqueue="manual", clock=clock, threshold=1, min_age=0.01):
            np.empty(SIZE, "u1")
            np.empty(SIZE, "u1")
            assert kept_pages(arena) == 0


def test_what_is_longer_than_1_mib_is_not_kept(looping):
    for size in (MIB, MIB + 1):
        np.empty(size, "u1")
    assert kept_pages(looping) == MIB // PAGE


def test_six_runs_are_kept_and_the_others_are_free(looping):
    sizes = [(20 + i) * PAGE for i in range(12)]
    for size in sizes:
        np.empty(size, "u1")
        looping.pages.verify()
    assert looping.pages.stats().allocated_pages == 0
    assert kept_pages(looping) == sum(sizes[6:]) // PAGE


def test_live_arrays_never_share_pages(looping):
    rng = random.Random(5)
    live = []
    for step in range(2000):
        if len(live) == 10 or (live and rng.random() < 0.5):
            array, canary = live.pop(rng.randrange(len(live)))
            assert (array == canary).all()
        else:
            live.append((np.full(rng.choice([17, 18, 25, 40]) * PAGE, step, "u8"), step))
    for array, canary in live:
        assert (array == canary).all()
    looping.pages.verify()


def test_zeros_are_zero_where_something_was_kept(looping):
    for size in (SIZE, SIZE - 1000, SIZE):
        np.full(SIZE, 0xAB, "u1")
        assert not np.zeros(size, "u1").any()


def test_who_asks_finds_all_of_it_free(looping):
    np.full(SIZE, 1, "u1")
    status = looping.status()
    assert (status.used_bytes, status.warm_bytes) == (0, SIZE)
    np.full(SIZE, 1, "u1")
    looping.pages.drain_pcp()
    assert kept_pages(looping) == 0
    np.full(SIZE, 1, "u1")
    looping.pages.flush_hinting()
    assert looping.resident_bytes == 0
    np.full(SIZE, 1, "u1")
    assert looping.trim() >= SIZE
    assert looping.resident_bytes == 0


@pytest.mark.parametrize(
    "free",
    [
        lambda pages, pfn: pages.free_pages(pfn),
        lambda pages, pfn: pages.free_pages_exact(pfn, PAGES),
        lambda pages, pfn: pages.free_pages_bulk([pfn]),
        lambda pages, pfn: pages.split_pages(pfn, 0),
    ],
    ids=["free_pages", "free_pages_exact", "free_pages_bulk", "split_pages"],
)
def test_pages_that_are_kept_are_free_for_who_frees_them_wrongly(looping, free):
    pfn = (address(np.full(SIZE, 1, "u1")) - looping.address(0)) // PAGE
    assert kept_pages(looping) == PAGES
    with pytest.raises(ph.BadPageError, match=f"PFN {pfn:#x}"):
        free(looping.pages, pfn)
    assert looping.pages.stats().allocated_pages == 0
    looping.pages.verify()


def test_a_wrong_free_by_run_ops(looping):
    pfn = (address(np.full(SIZE, 1, "u1")) - looping.address(0)) // PAGE
    with pytest.raises(ph.BadPageError):
        looping.pages.run_ops(np.array([(0, 0, ph.OP_FREE)], ph.OP_DTYPE), np.array([pfn], np.uint64))
    looping.pages.verify()


def test_what_is_kept_can_be_had_by_whoever_wants_just_that_memory(looping):
    pfn = (address(np.full(SIZE, 1, "u1")) - looping.address(0)) // PAGE
    assert looping.pages.alloc_pages_at(pfn, 0) == pfn
    looping.pages.free_pages(pfn)
    np.full(SIZE, 1, "u1")
    everything = np.empty(looping.size, "u1")
    assert inside(everything, looping)


def test_over_the_limit_nothing_is_kept(looping, clock):
    big = np.empty(4 * MIB, "u1")
    np.full(SIZE, 1, "u1")
    looping.limit = 4 * MIB
    del big
    clock.sleep(0.001)
    looping.pages.run_pending()
    assert kept_pages(looping) == 0


@pytest.mark.parametrize(
    "change", [lambda pages: pages.disable_hinting(), lambda pages: setattr(pages, "reserve_age", 0.0)]
)
def test_what_is_kept_is_free_when_nobody_looks_any_more(arena, clock, change):
    options = {"threshold": 1, "delay": None, "min_age": 0.01, "reserve": "16MiB"}
    arena.enable_hinting(workqueue="manual", clock=clock, **options)
    with arena.numpy():
        np.empty(SIZE, "u1")
        np.empty(SIZE, "u1")
        assert kept_pages(arena) == PAGES
        change(arena.pages)
        assert kept_pages(arena) == 0
        np.empty(SIZE, "u1")
        assert kept_pages(arena) == 0
    arena.disable_hinting()


def test_a_child_keeps_runs_of_its_own():
    def child():
        array = np.full(SIZE, 2, "u1")
        place = address(array)
        del array
        assert address(np.full(SIZE, 3, "u1")) == place
        made.pages.verify()
        deadline = time.monotonic() + 20
        while made.resident_bytes and time.monotonic() < deadline:
            time.sleep(0.05)
        assert made.resident_bytes == 0
        assert made.pages.stats().allocated_pages == 0

    made = ph.numpy.install("64MiB")
    try:
        np.full(SIZE, 1, "u1")
        np.full(SIZE, 1, "u1")
        assert kept_pages(made) == PAGES
        in_child(child)
        made.pages.verify()
    finally:
        ph.numpy.uninstall()


def test_canaries_while_the_worker_gives_up_what_is_kept():
    """Looks come every quarter of a millisecond: the set is closed, emptied and opened within most arrays' lives."""
    made, seconds = ph.Arena("64MiB"), float(os.environ.get("PAGEHINT_CANARY_SECONDS", "1"))
    end = time.monotonic() + seconds
    wrong = []

    def work(seed):
        rng, live = random.Random(seed), []
        while time.monotonic() < end and not wrong:
            if len(live) == 5:
                array, canary = live.pop(rng.randrange(5))
                if not (array == canary).all():
                    wrong.append(canary)
            canary = rng.getrandbits(60)
            live.append((np.full(rng.choice([17, 25, 25, 25, 256]) * PAGE // 8, canary, "u8"), canary))
            if rng.random() < 0.01:
                time.sleep(0.001)

    with made.hinting(threshold=1, delay=None, min_age=0.0001, reserve="16MiB", reserve_age=0.001):
        with made.numpy():
            threads = [threading.Thread(target=np_in(made, work), args=(seed,)) for seed in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not wrong
        made.pages.verify()
    assert made.pages.stats().allocated_pages == 0
    made.pages.verify()


def np_in(arena, work):
    """`work` with the arena's handler in the context of the thread that it runs on."""

    def run(*args):
        with arena.numpy():
            work(*args)

    return run
