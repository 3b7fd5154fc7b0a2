"""`Arena.limit`: warm memory yields to it, at once and no more than need be; what is in use stays."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from waiting import wait_for

import pagehint as ph

MIB = 1 << 20


@pytest.fixture
def arena():
    with ph.Arena("128MiB", hugepages=False) as arena:
        yield arena


def touched(arena, nr_bytes):
    array = arena.empty(nr_bytes, "u1")
    array[:] = 1
    return array


def kept_warm(arena, clock):
    """Hinting on, everything given back, and from now on kept for long."""
    context = arena.hinting(workqueue="manual", delay=None, min_age=1000.0, clock=clock)
    pages = context.__enter__()
    pages.flush_hinting()
    return pages


def test_warm_memory_over_the_limit_goes_back_at_once(arena, clock):
    pages = kept_warm(arena, clock)
    array = touched(arena, 64 * MIB)
    del array
    pages.run_pending()
    assert arena.resident_bytes == 64 * MIB
    arena.limit = "16MiB"
    assert arena.limit == 16 * MIB
    pages.run_pending()
    assert 12 * MIB <= arena.resident_bytes <= 16 * MIB  # no more than need be, by a block
    assert pages.explain()["warm"].bytes == arena.resident_bytes
    assert pages.run_pending() == 0
    array = touched(arena, 64 * MIB)
    del array
    pages.run_pending()
    assert 12 * MIB <= arena.resident_bytes <= 16 * MIB
    arena.limit = None
    array = touched(arena, 64 * MIB)
    del array
    pages.run_pending()
    assert arena.resident_bytes == 64 * MIB
    pages.verify()


def test_an_allocation_that_goes_over_the_limit_beside_warm_memory(arena, clock):
    pages = kept_warm(arena, clock)
    arena.limit = 48 * MIB
    first, wall = touched(arena, 32 * MIB), touched(arena, 2 * MIB)
    del first
    pages.run_pending()
    assert arena.resident_bytes == 34 * MIB
    large = arena.empty(40 * MIB, "u1")  # fits nowhere but in memory that is not warm
    pages.run_pending()
    large[:] = 1
    assert 44 * MIB <= arena.resident_bytes <= 48 * MIB
    del wall, large


def test_memory_in_use_over_the_limit_is_neither_refused_nor_lost(arena, clock):
    pages = kept_warm(arena, clock)
    arena.limit = 8 * MIB
    arrays = [touched(arena, 16 * MIB) for _ in range(3)]
    pages.run_pending()
    assert arena.resident_bytes == 48 * MIB
    arrays.pop()
    pages.run_pending()
    assert arena.resident_bytes == 32 * MIB  # nothing stays warm
    assert all((array == 1).all() for array in arrays)
    assert pages.run_pending() == 0
    arrays.clear()


def test_granules_partly_in_use_count_as_a_whole(arena, clock):
    pages = kept_warm(arena, clock)
    arena.limit = 8 * MIB
    small = [touched(arena, MIB) for _ in range(8)]
    del small[::2]  # four granules, half of each free but resident
    array = touched(arena, 4 * MIB)
    del array
    pages.run_pending()
    assert arena.resident_bytes == 8 * MIB
    small.clear()


def test_a_limit_set_before_hinting_is_on(arena, clock):
    array = touched(arena, 32 * MIB)
    del array
    arena.limit = "8MiB"
    assert arena.resident_bytes == 32 * MIB  # nobody is there to give it back
    for _ in range(2):
        with arena.hinting(workqueue="manual", delay=None, min_age=1000.0, clock=clock) as pages:
            pages.run_pending()
            assert arena.resident_bytes <= 8 * MIB
            array = touched(arena, 32 * MIB)
            del array


def test_the_worker_enforces_the_limit_below_the_threshold(arena):
    with arena.hinting(threshold=1 << 20, delay=None, min_age=1000.0) as pages:
        pages.flush_hinting()
        arena.limit = 32 * MIB
        for _ in range(5):
            array = touched(arena, 64 * MIB)
            del array
            wait_for(lambda: arena.resident_bytes <= 32 * MIB)
        assert pages.last_error is None


def test_without_an_age_the_limit_does_not_wait_for_the_threshold_either(arena):
    with arena.hinting(workqueue="manual", threshold=1 << 20, delay=None) as pages:
        pages.flush_hinting()
        arena.limit = 32 * MIB
        array = touched(arena, 64 * MIB)
        del array
        pages.run_pending()
        assert arena.resident_bytes <= 32 * MIB


def goes_over_the_limit_under_the_gate(arena, clock):
    """Hinting on with a batch of four granules; all are in use but two, which are warm. Returns what holds the rest."""
    context = arena.hinting(max_pages=4, threshold=1 << 20, workqueue="manual", delay=None, min_age=1000.0, clock=clock)
    pages = context.__enter__()
    pages.flush_hinting()
    rest = arena.empty(116 * MIB, "u1")
    arrays = [touched(arena, 4 * MIB), *(touched(arena, MIB) for _ in range(8))]
    arena.limit = 8 * MIB
    del arrays[0]
    pages.run_pending()
    assert arena.resident_bytes == 12 * MIB
    assert pages.stats().isolation_refused == 1
    return rest, arrays


def test_the_limit_was_forgotten_when_a_batch_became_free(arena, clock):
    """Under the gate nothing goes. What opens it lets the warm memory go, though it is less than the threshold."""
    rest, arrays = goes_over_the_limit_under_the_gate(arena, clock)
    del arrays[:4]
    arena.pages.run_pending()
    assert arena.resident_bytes == 4 * MIB
    del rest, arrays


def test_the_limit_was_forgotten_when_single_pages_opened_the_gate(arena, clock):
    """They leave no granule free, so no hook sees them."""
    rest, arrays = goes_over_the_limit_under_the_gate(arena, clock)
    del arrays[::2]
    arena.pages.run_pending()
    assert arena.resident_bytes == 8 * MIB
    del rest, arrays


def test_the_limit_was_forgotten_when_the_batch_became_smaller(arena, clock):
    rest, arrays = goes_over_the_limit_under_the_gate(arena, clock)
    arena.pages.max_pages = 2
    arena.pages.run_pending()
    assert arena.resident_bytes == 8 * MIB
    del rest, arrays


def test_the_limit_was_forgotten_when_isolation_ended(arena, clock):
    pages = kept_warm(arena, clock)
    pages.threshold = 1 << 20
    array = touched(arena, 8 * MIB)
    start = (array.ctypes.data - arena.address(0)) // 4096
    del array
    pages.set_migratetype(start, 2048, "isolate")
    arena.limit = MIB
    pages.run_pending()
    assert arena.resident_bytes == 8 * MIB
    pages.set_migratetype(start, 2048, "movable")
    pages.run_pending()
    assert arena.resident_bytes == 0


@pytest.mark.parametrize("bad", [0, -1, "much", 1.5, "-3MiB", [1]])
def test_a_limit_that_is_none_is_refused(arena, bad):
    arena.limit = 8 * MIB
    with pytest.raises((ValueError, TypeError)):
        arena.limit = bad
    assert arena.limit == 8 * MIB


def test_a_limit_of_any_size(arena, clock):
    pages = kept_warm(arena, clock)
    for limit in (1, 1 << 80):
        arena.limit = limit
        array = touched(arena, 16 * MIB)
        del array
        pages.run_pending()
        assert arena.resident_bytes == (0 if limit == 1 else 16 * MIB)
        assert arena.limit == limit
    arena.pages.disable_hinting()
    arena.close()
    with pytest.raises(ValueError, match="closed"):
        arena.limit = 1


def test_threads_under_a_limit_keep_what_they_write(arena):
    broken = []

    def use(seed):
        rng = np.random.default_rng(seed)
        for _ in range(300):
            array = arena.empty(int(rng.integers(1, 8 * MIB)) // 8, "u8")
            array[:] = seed
            if not (array == seed).all():
                broken.append(seed)

    with arena.hinting(min_age=0.5) as pages:
        arena.limit = 8 * MIB
        threads = [threading.Thread(target=use, args=(seed,)) for seed in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not broken
        wait_for(lambda: arena.resident_bytes <= 8 * MIB)
        pages.verify()


@pytest.fixture
def two_zones(clock):
    """Zones of 16 granules each, everything cold; a granule is reported only when a limit is exceeded."""
    pages = ph.PageAllocator([ph.ZoneSpec("DMA32", 0, 8192), ph.ZoneSpec("Normal", 8192, 8192)], pcp=False)
    callbacks = ph.PageHintingCallbacks(lambda blocks: None, max_pages=1)
    options = {"workqueue": "manual", "delay": None, "min_age": 1000.0, "max_report_order": 9, "clock": clock}
    with pages.hinting(callbacks, **options):
        pages.flush_hinting()
        yield pages


def warm(pages, zone, granules):
    """Use so many granules of a zone, and free them."""
    pages.free_pages_bulk([pages.alloc_pages(9, zone=zone) for _ in range(granules)], 9)
    pages.run_pending()


@pytest.mark.parametrize(("warm_zone", "used_zone"), [("DMA32", "Normal"), ("Normal", "DMA32")])
def test_a_limit_on_two_zones_bound_each_alone(two_zones, warm_zone, used_zone):
    """What grows in one zone has warm memory of the other reported: the limit is on the sum."""
    pages = two_zones
    pages.memory.set_limit(8 * 512)
    warm(pages, warm_zone, 6)
    assert pages.stats().hints_pending == 6
    used = [pages.alloc_pages(9, zone=used_zone) for _ in range(5)]
    pages.run_pending()
    assert pages.stats().hints_pending == 3
    used += [pages.alloc_pages(9, zone=used_zone) for _ in range(5)]
    pages.run_pending()
    assert pages.stats().hints_pending == 0
    runs = pages.stats().work_runs
    used.append(pages.alloc_pages(9, zone=used_zone))  # over the limit, but nothing is warm
    assert pages.run_pending() == 0
    assert pages.stats().work_runs == runs
    pages.free_pages_bulk(used, 9)
    pages.run_pending()
    assert pages.stats().hints_pending == 8
    pages.verify()


def test_a_limit_on_two_zones_that_are_both_warm(two_zones):
    pages = two_zones
    warm(pages, "DMA32", 5)
    warm(pages, "Normal", 7)
    pages.memory.set_limit(10 * 512)
    pages.run_pending()
    assert pages.stats().hints_pending == 10
    pages.memory.set_limit(4 * 512)
    pages.run_pending()
    assert pages.stats().hints_pending == 4
    pages.memory.set_limit(None)
    warm(pages, "DMA32", 9)
    assert pages.stats().hints_pending > 4
    pages.verify()


def test_zones_under_a_limit_in_many_threads(two_zones):
    """What the zones say they keep adds up, however their locks are taken in turn."""
    pages = two_zones
    pages.memory.set_limit(12 * 512)

    def churn(zone):
        for _ in range(400):
            blocks = [pages.alloc_pages(9, zone=zone) for _ in range(3)]
            pages.free_pages_bulk(blocks, 9)

    threads = [threading.Thread(target=churn, args=(zone,)) for zone in ("DMA32", "Normal", "DMA32", "Normal")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        pages.run_pending()
    pages.run_pending()
    assert pages.stats().hints_pending <= 12
    pages.verify()


def test_a_zone_that_went_over_the_limit_during_a_pass_that_had_passed_the_warm_one(clock):
    """It was queued already, so its request was no news: the pass came to it, found nothing, and was over."""
    pages = ph.PageAllocator([ph.ZoneSpec("DMA32", 0, 8192), ph.ZoneSpec("Normal", 8192, 8192)], pcp=False)
    used = []

    def hint_pages(blocks):
        if grow and blocks["zone"][0] == 1:
            used.extend(pages.alloc_pages_at(8192 + 512 * n, 9) for n in range(8, 14))
            grow.clear()

    grow = []
    options = {"workqueue": "manual", "delay": None, "min_age": 1000.0, "max_report_order": 9, "clock": clock}
    with pages.hinting(ph.PageHintingCallbacks(hint_pages, max_pages=1), **options):
        pages.flush_hinting()
        warm(pages, "DMA32", 4)
        old = [pages.alloc_pages_at(8192, 9)]
        pages.memory.set_limit(9 * 512)
        clock.sleep(2000)
        grow.append(True)
        young = pages.alloc_pages(9, zone="DMA32")  # nothing in DMA32 is ripe but what was there
        pages.free_pages(young, 9)
        pages.free_pages_bulk(old, 9)
        pages.run_pending()
        while pages.run_pending():
            pass
        kept = len(used) + pages.stats().hints_pending
        assert kept <= max(9, len(used))
    pages.verify()


def test_memory_that_went_offline_counted_as_kept(clock):
    """Pages are taken before they are absent, and what the hook said then was not said anew."""
    pages = ph.PageAllocator([ph.ZoneSpec("DMA32", 0, 65536), ph.ZoneSpec("Normal", 65536, 32768)], pcp=False)
    options = {"workqueue": "manual", "delay": None, "min_age": 1000.0, "clock": clock}
    with pages.hinting(ph.PageHintingCallbacks(lambda blocks: None), **options):
        pages.flush_hinting()
        warm(pages, "Normal", 10)
        pages.memory.set_limit(20 * 512)
        pages.offline(0, 32768)
        pages.run_pending()
        assert pages.stats().hints_pending == 10
        pages.online(0, 32768)
        assert pages.stats().hints_pending == 10 + 64
        pages.run_pending()
        assert pages.stats().hints_pending <= 20
        pages.verify()


def test_what_changed_while_hinting_was_off_is_said_when_it_is_on(clock):
    pages = ph.PageAllocator([ph.ZoneSpec("DMA32", 0, 8192), ph.ZoneSpec("Normal", 8192, 8192)], pcp=False)
    pages.memory.set_limit(8 * 512)
    used = [pages.alloc_pages(9, zone="Normal") for _ in range(6)]
    options = {"workqueue": "manual", "delay": None, "min_age": 1000.0, "max_report_order": 9, "clock": clock}
    with pages.hinting(ph.PageHintingCallbacks(lambda blocks: None, 1), mark_free=False, **options):
        warm(pages, "DMA32", 5)
        assert pages.stats().hints_pending == 2
    pages.free_pages_bulk(used, 9)
    with pages.hinting(ph.PageHintingCallbacks(lambda blocks: None, 1), mark_free=False, **options):
        warm(pages, "DMA32", 8)
        assert pages.stats().hints_pending == 8


def test_use_in_one_zone_does_not_wake_a_pass_for_hints_behind_a_gate(clock):
    zones = [ph.ZoneSpec("DMA32", 0, 4096), ph.ZoneSpec("Normal", 8192, 32768)]
    pages = ph.PageAllocator(zones, pcp=False, watermarks=(0, 2048, 2048))
    options = {"workqueue": "manual", "delay": None, "min_age": 1000.0, "clock": clock, "mark_free": False}
    with pages.hinting(ph.PageHintingCallbacks(lambda blocks: None, max_pages=4), **options):
        wall = [pages.alloc_pages(9, zone="DMA32") for _ in range(6)]
        warm(pages, "DMA32", 1)
        pages.memory.set_limit(512)
        pages.run_pending()
        assert pages.stats().isolation_refused
        runs = pages.stats().work_runs
        used = [pages.alloc_pages(9, zone="Normal") for _ in range(20)]
        pages.run_pending()
        assert pages.stats().work_runs <= runs + 1
        pages.free_pages_bulk(used + wall, 9)
        pages.run_pending()
    pages.verify()
