"""Threads with canaries. `PAGEHINT_CANARY_SECONDS` makes it long; the default is for everybody's every run."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import numpy as np
import pytest
from allocators import real
from hosts import RecordingHost
from threads import SECONDS, in_threads, keeper_of_canaries

import pagehint as ph


@pytest.mark.parametrize("advice", ["dontneed", "free"])
def test_canaries_in_real_memory(advice):
    """What a thread has written stays, while all the rest is given back every millisecond."""
    arena = ph.Arena("256MiB")
    checked = []
    with arena.hinting(advice, delay=0.001, max_pages=4, threshold=2):
        in_threads([keeper_of_canaries(arena, 20, checked)] * 4)
        stats = arena.pages.stats()
        assert stats.blocks_reported > 0
        assert stats.blocks_failed == 0
    assert checked
    assert arena.live_arrays == 0
    arena.pages.verify()
    stats = arena.pages.stats()
    assert stats.allocated_pages == stats.reporting_pages == 0
    arena.close()


@pytest.mark.parametrize("pcp", [True, False])
def test_nobody_has_a_page_twice(pcp):
    """Every page has one owner at a time: a caller, or the host while it is reported. Owners write their name on it."""
    pages = ph.PageAllocator([ph.ZoneSpec("DMA", 1, 8191), ph.ZoneSpec("Normal", 8192, 24576)], pcp=pcp)
    owner = np.zeros(32768, np.int64)

    def claim(pfn, n, me):
        assert not owner[pfn : pfn + n].any(), "a page in two hands"
        owner[pfn : pfn + n] = me

    def release(pfn, n, me):
        assert (owner[pfn : pfn + n] == me).all(), "a page in two hands"
        owner[pfn : pfn + n] = 0

    def hint_pages(blocks):
        for block in blocks.tolist():
            claim(block[0], 1 << block[1], -1)
        time.sleep(0)
        for block in blocks.tolist():
            release(block[0], 1 << block[1], -1)
        return np.array([block[0] % 7 != 0 for block in blocks.tolist()])

    def work(stop, rng):
        me = rng.randrange(1, 1 << 40)
        mine = []
        while not stop.is_set():
            order = rng.choice([0, 0, 0, 1, 2, 3, 5, 7, 9, 10])
            if rng.random() < 0.1:
                try:
                    many = pages.alloc_pages_bulk(rng.randrange(100), order % 4)
                except ph.OutOfMemoryError:
                    continue
                for pfn in many.tolist():
                    claim(pfn, 1 << order % 4, me)
                for pfn in many.tolist():
                    release(pfn, 1 << order % 4, me)
                pages.free_pages_bulk(many, order % 4)
            if mine and rng.random() < 0.5:
                pfn, freed = mine.pop(rng.randrange(len(mine)))
                release(pfn, 1 << freed, me)
                pages.free_pages(pfn, freed)
            else:
                try:
                    pfn = pages.alloc_pages(order, rng.choice(["movable", "unmovable"]), rng.choice([None, "DMA"]))
                except ph.OutOfMemoryError:
                    continue
                claim(pfn, 1 << order, me)
                mine.append((pfn, order))
            while len(mine) > 60:
                pfn, freed = mine.pop()
                release(pfn, 1 << freed, me)
                pages.free_pages(pfn, freed)
        for pfn, freed in mine:
            release(pfn, 1 << freed, me)
            pages.free_pages(pfn, freed)

    def verify(stop, rng):
        while not stop.wait(0.01):
            pages.verify()

    pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 2), delay=0.001, threshold=1)
    in_threads([work] * 4 + [verify])
    assert pages.last_error is None or isinstance(pages.last_error, ph.PageHintError), pages.last_error
    assert pages.stats().blocks_reported > 0
    pages.disable_hinting()
    pages.verify()
    pages.drain_pcp()
    assert pages.stats().free_pages == pages.stats().managed_pages
    assert not owner.any()


def test_enable_and_disable_storm():
    """Any number of threads enable, disable, flush, change settings, free: each enable has its own callbacks' end."""
    pages = ph.PageAllocator("256MiB")
    live = set()

    def switch(stop, rng):
        while not stop.is_set():
            token = object()

            def hint_pages(blocks, token=token):
                assert token in live, "a callback after disable_hinting has returned"

            live.add(token)
            try:
                pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, rng.randrange(1, 9)), delay=0.0)
            except ph.HintingActiveError:
                live.discard(token)
                continue
            time.sleep(rng.random() * 0.003)
            pages.disable_hinting()
            live.discard(token)

    def settings(stop, rng):
        while not stop.is_set():
            with contextlib.suppress(ph.HintingInactiveError):
                rng.choice(
                    [
                        pages.flush_hinting,
                        lambda: setattr(pages, "max_pages", rng.randrange(1, 30)),
                        lambda: setattr(pages, "threshold", rng.choice([None, 1, 5])),
                        lambda: setattr(pages, "delay", rng.choice([None, 0.0, 0.001])),
                        pages.drain_pcp,
                    ]
                )()
            assert pages.last_error is None

    def churn(stop, rng):
        while not stop.is_set():
            pages.free_pages_bulk(pages.alloc_pages_bulk(rng.randrange(1, 8), 9), 9)
            pages.free_pages(pages.alloc_pages())

    # One thread switches, so that a callback's end is known; the others do all else.
    in_threads([switch, settings, settings, churn])
    pages.disable_hinting()
    pages.verify()
    assert pages.stats().reporting_pages == pages.stats().hints_pending == 0


def test_many_threads_switching():
    pages = real("64MiB")

    def switch(stop, rng):
        while not stop.is_set():
            with contextlib.suppress(ph.HintingActiveError):
                pages.enable_hinting(RecordingHost(2).callbacks, delay=0.0, workqueue=rng.choice(["thread", "manual"]))
            try:
                pages.flush_hinting()
                pages.run_pending()
            except ph.PageHintError:
                pass
            pages.disable_hinting()

    in_threads([switch] * 4)
    assert not pages.hinting_enabled
    pages.verify()
    assert pages.stats().reporting_pages == 0


def test_hotplug_and_isolation_while_threads_work():
    pages = ph.PageAllocator("512MiB")

    def plug(stop, rng):
        while not stop.is_set():
            section = rng.randrange(4) * 32768
            try:
                pages.offline(section, 32768)
            except ph.BadPageError:
                continue
            pages.online(section, 32768)

    def isolate(stop, rng):
        while not stop.is_set():
            block = rng.randrange(256) * 512
            pages.set_migratetype(block, 512, "isolate")
            pages.set_migratetype(block, 512, rng.choice(["movable", "unmovable"]))

    def churn(stop, rng):
        while not stop.is_set():
            order = rng.choice([0, 3, 9])
            with contextlib.suppress(ph.OutOfMemoryError):
                pages.free_pages(pages.alloc_pages(order), order)

    with pages.hinting(RecordingHost(4).callbacks, delay=0.001):
        in_threads([plug, isolate, churn, churn])
    pages.verify()
    pages.drain_pcp()
    assert pages.stats().free_pages == pages.stats().managed_pages == 131072


def test_granules_of_several_pageblocks_are_retyped_whole():
    """A worker never sees a granule of which a part is isolated, wherever the zone begins."""
    nr_pages = (1 << 22) - 512
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 512, nr_pages)], pcp=False, max_page_order=18, min_order=17)
    for _ in range(20):
        pages.set_migratetype(512, nr_pages, "isolate")
        with pages.hinting(RecordingHost(4).callbacks, delay=None, threshold=1):
            pages.set_migratetype(512, nr_pages, "movable")
            pages.flush_hinting()
        pages.verify()
        assert pages.stats().free_pages == nr_pages


def test_out_of_memory_only_without_memory():
    """Forty pages for four threads that want nine each: whatever sets they lie in, there is always one."""
    pages = ph.PageAllocator("256MiB")
    pages.alloc_pages_bulk(pages.stats().managed_pages - 40)

    def work(stop, rng):
        while not stop.is_set():
            for pfn in [pages.alloc_pages() for _ in range(9)]:
                pages.free_pages(pfn)

    in_threads([work] * 4)
    pages.verify()


def test_of_two_large_requests_one_is_served():
    pages = ph.PageAllocator("1GiB", pcp=False)
    count = pages.stats().managed_pages * 6 // 10
    for _ in range(100):
        barrier, got = threading.Barrier(2), []

        def ask(barrier=barrier, got=got):
            barrier.wait()
            with contextlib.suppress(ph.OutOfMemoryError):
                got.append(pages.alloc_pages_bulk(count))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got
        for pfns in got:
            pages.free_pages_bulk(pfns)


@pytest.mark.parametrize("pcp", [True, False])
def test_nobody_sleeps_beside_a_free_lock(pcp):
    """More threads than CPUs want one lock without the GIL: they look, sleep, are woken, and none is forgotten."""
    pages = ph.PageAllocator("4GiB", pcp=pcp)

    def churn(stop, rng):
        while not stop.is_set():
            pages.free_pages_bulk(pages.alloc_pages_bulk(rng.randrange(1, 60000)))

    in_threads([churn] * 6)
    locks = pages.stats(locks=True)
    assert locks.lock_contended > 0
    assert locks.locks.longest_wait_ns > 0
    pages.verify()


@pytest.mark.parametrize("cpus", [1, None])
def test_page_sets_shared_by_more_threads_than_cpus(cpus, monkeypatch):
    """Whoever is interrupted on the way into a set that was its own comes back when others are in it."""
    if cpus:
        monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    pages = ph.PageAllocator("1GiB")
    trace = np.zeros(8192, ph.OP_DTYPE)
    trace["slot"] = np.arange(8192) // 2 % 8
    trace["op"][1::2] = ph.OP_FREE

    def churn(stop, rng):
        pfns = np.zeros(8, np.uint64)
        while not stop.is_set():
            pages.run_ops(trace, pfns)  # refused if somebody else has freed what is ours

    in_threads([churn] * 8)
    pages.verify()
    assert pages.stats().allocated_pages == 0


def test_the_check_is_not_alarmed_by_bulk_calls_on_their_way():
    """They withhold, and make small blocks of large ones, without the zone lock."""
    pages = ph.PageAllocator("256MiB")

    def churn(stop, rng):
        while not stop.is_set():
            pages.free_pages_bulk(pages.alloc_pages_bulk(rng.randrange(1, 20000)))

    def check(stop, rng):
        while not stop.is_set():
            pages.verify()

    in_threads([churn, check])


def test_a_flush_that_comes_as_a_run_begins_looks_everywhere():
    """A run for zone A's threshold, decided on a moment before the flush, must not pass for the flush's own."""
    pages = real([ph.ZoneSpec("A", 0, 4096), ph.ZoneSpec("B", 4096, 4096)])
    zone_a, zone_b = pages.zones
    lost = []

    def flush(stop, rng):
        while not stop.is_set() and not lost:
            in_a = [pages.alloc_pages(9, zone=zone_a) for _ in range(2)]
            in_b = pages.alloc_pages(9, zone=zone_b)
            pages.free_pages(in_b, 9)  # under the threshold: for the flush
            for pfn in in_a:
                pages.free_pages(pfn, 9)  # the second wakes the worker
            for _ in range(rng.randrange(200)):
                pass
            pages.flush_hinting()
            if zone_b.hint_bitmap.any():
                lost.append(in_b)

    with pages.hinting(ph.PageHintingCallbacks(lambda blocks: None, 1), threshold=2, delay=None):
        pages.flush_hinting()
        in_threads([flush])
    assert lost == []


def test_no_batch_goes_out_while_an_allocation_counts_on_it():
    """A disable let one out in front of a waiting allocation, which then found no memory where there was some."""
    end = 1 << 32
    low, high = ph.ZoneSpec("Low", 0, 2048), ph.ZoneSpec("High", 2048, end - 2048, holes=[(2048, end - 2048 - 8192)])
    pages = real([low, high])
    for pfn in range(end - 8192, end, 2048):
        pages.alloc_pages_at(pfn, 10)  # so that High has pages but no run; to look through its hole takes a while
    began = time.monotonic()
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages_exact(2049)
    a_while = time.monotonic() - began  # much longer in a build that counts lines
    out, wanted, served = threading.Event(), threading.Event(), threading.Event()

    def hint_pages(blocks):
        if not out.is_set():
            out.set()
            assert wanted.wait(200)
        else:
            assert served.wait(200)

    pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 1), threshold=1, delay=None, max_report_order=9)
    assert out.wait(60)
    got = []

    def allocate():
        try:
            got.append(pages.alloc_pages_exact(2047))  # all of Low, of which a granule is out
        except ph.OutOfMemoryError as error:
            got.append(error)
        finally:
            served.set()

    threads = [threading.Thread(target=allocate), threading.Thread(target=pages.disable_hinting)]
    threads[0].start()
    time.sleep(1 + 3 * a_while)  # it has failed, and waits for the batch
    wanted.set()
    time.sleep(0.02)  # it tries again, High first; the worker waits for it, and is told to stop
    threads[1].start()
    for thread in threads:
        thread.join(200)
    assert got == [0]
    pages.verify()


@pytest.mark.parametrize("attempt", range(10))
def test_an_interrupt_is_raised_where_its_callback_ran(attempt):
    """Another thread's flush, which was faster to go on, took it for its own, or was cut short by it."""
    pages = real("16MiB")
    go_on = threading.Event()
    said = {}

    def hint_pages(blocks):
        if not go_on.is_set():
            assert go_on.wait(60)
            raise KeyboardInterrupt

    def call(name, what):
        try:
            said[name] = what()
        except BaseException as error:
            said[name] = error

    pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 1), workqueue="manual")
    calls = [("interrupted", pages.run_pending), *[(i, pages.flush_hinting) for i in range(10)]]
    threads = [threading.Thread(target=call, args=each) for each in calls]
    for thread in threads:
        thread.start()
        time.sleep(0.02)  # the others wait for the first one's run
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert isinstance(said.pop("interrupted"), KeyboardInterrupt)
    assert said == dict.fromkeys(range(10))
    assert pages.stats().hints_pending == 0


def test_the_check_is_alarmed_by_bulk_calls_while_blocks_are_out():
    """What they hold for a moment is not out for reporting, and not lost either."""
    pages = ph.PageAllocator("256MiB", pcp=False)

    def churn(stop, rng):
        while not stop.is_set():
            pages.free_pages_bulk(pages.alloc_pages_bulk(rng.randrange(1, 20000)))
            pages.free_pages_bulk(pages.alloc_pages_bulk(rng.randrange(1, 40), 9), 9)

    def check(stop, rng):
        while not stop.is_set():
            pages.verify()

    with pages.hinting(ph.PageHintingCallbacks(lambda blocks: time.sleep(0.002), 2), delay=0.0, threshold=1):
        in_threads([churn, churn, check])


def test_statistics_read_what_runs_were_marking():
    """Atomic on the one side only: ThreadSanitizer's to find."""
    pages = real("256MiB")

    def runs(stop, rng):
        while not stop.is_set():
            n = rng.randrange(64, 5000)
            pages.free_pages_exact(pages.alloc_pages_exact(n), n)

    def statistics(stop, rng):
        while not stop.is_set():
            assert pages.stats().managed_pages == 65536

    in_threads([runs, runs, statistics], min(SECONDS, 1))
    pages.verify()


def test_a_look_read_ages_that_another_thread_was_changing():
    """So did statistics. Their outcome is a guess either way: ThreadSanitizer's to find."""
    pages = real("64MiB")

    def change(stop, rng):
        while not stop.is_set():
            pages.min_age = rng.choice([None, 0.001, 1.0])
            pages.reserve = rng.choice([None, "4MiB"])

    def churn(stop, rng):
        while not stop.is_set():
            pages.free_pages_bulk(pages.alloc_pages_bulk(rng.randrange(1, 8), 9), 9)

    def statistics(stop, rng):
        while not stop.is_set():
            pages.explain()

    with pages.hinting(RecordingHost(2).callbacks, delay=0.0, threshold=1, min_age=0.001):
        in_threads([change, churn, statistics], min(SECONDS, 1))
    pages.verify()
