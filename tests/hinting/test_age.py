"""`min_age`: what has been free for long enough is reported, and what is used again soon is not."""

from __future__ import annotations

import threading
import time

import pytest
from allocators import real
from hosts import RecordingHost
from processes import in_child, survives
from waiting import wait_for

import pagehint as ph

LOOKS = 8  # in each min_age, at most


def test_a_loops_temporaries_are_not_reported(make, few_host, clock):
    pages = make("64MiB")
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, threshold=1, min_age=1.0, clock=clock):
        for _ in range(1000):
            block = pages.alloc_pages_at(1024, 10)
            clock.sleep(0.125)
            pages.free_pages(block, 10)
            pages.run_pending()
        assert few_host.calls == []  # prepare neither
        assert pages.stats().hints_pending == 2
        clock.sleep(0.875)
        pages.run_pending()
        assert few_host.blocks == []
        clock.sleep(0.125)
        pages.run_pending()
        assert few_host.blocks == [(1024, 10)]


def test_looking_at_temporaries_again_and_again(make, few_host, clock):
    """However often there is something new, a zone is looked at a few times in each `min_age`."""
    pages = make("64MiB")
    pages.enable_hinting(few_host.callbacks, workqueue="manual", mark_free=False, threshold=1, min_age=1.0, clock=clock)
    for i in range(2000):
        pages.free_pages(pages.alloc_pages_at(i % 30 * 512, 9), 9)
        clock.sleep(0.01)
        pages.run_pending()
    stats = pages.stats()
    assert stats.work_queued <= 20
    assert stats.work_runs <= 20 * LOOKS
    assert few_host.blocks == []
    pages.disable_hinting()


def test_ripe_hints_are_reported_and_young_ones_kept(make, few_host, clock):
    pages = make("64MiB")
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (1024, 4096, 8192)]
    with pages.hinting(
        few_host.callbacks, workqueue="manual", mark_free=False, threshold=2, delay=None, min_age=1.0, clock=clock
    ):
        for block in blocks:
            pages.free_pages(block, 9)
            clock.sleep(0.5)
        pages.run_pending()  # they are 1.5, 1.0 and 0.5 seconds old
        assert few_host.take() == [(1024, 9), (4096, 9)]
        assert pages.stats().hints_pending == 1
        pages.run_pending()
        assert few_host.take() == []
        clock.sleep(0.5)
        pages.run_pending()  # without being asked, though it is under the threshold
        assert few_host.take() == [(8192, 9)]
        assert pages.stats().hints_pending == 0
        runs = pages.stats().work_runs
        clock.sleep(100)
        assert pages.run_pending() == 0
        assert pages.stats().work_runs == runs


def test_below_the_threshold_the_delay_and_the_age_are_waited_for(make, few_host, clock):
    pages = make("64MiB")
    for delay, min_age in ((1.0, 3.0), (3.0, 1.0)):
        with pages.hinting(
            few_host.callbacks,
            workqueue="manual",
            mark_free=False,
            threshold=9,
            delay=delay,
            min_age=min_age,
            clock=clock,
        ):
            pages.free_pages(pages.alloc_pages_at(1024, 9), 9)
            clock.sleep(2.875)
            pages.run_pending()
            assert few_host.take() == []
            clock.sleep(0.125)
            pages.run_pending()
            assert few_host.take() == [(1024, 9)]


def test_a_granule_used_again_has_a_new_age(make, few_host, clock):
    pages = make("64MiB")
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, threshold=1, min_age=1.0, clock=clock):
        block = pages.alloc_pages_at(1024, 9)
        pages.free_pages(block, 9)
        clock.sleep(0.75)
        page = pages.alloc_pages_at(1024 + 17)
        pages.free_pages(page)
        clock.sleep(0.75)
        pages.run_pending()
        assert few_host.blocks == []
        clock.sleep(0.25)
        pages.run_pending()
        assert few_host.blocks == [(1024, 9)]


def test_a_granule_made_older_by_its_neighbour_or_the_neighbour_younger(make, few_host, clock):
    """Merging makes one block of two granules, each of which keeps its own age."""
    pages = make("64MiB")
    old, new = pages.alloc_pages_at(1024, 9), pages.alloc_pages_at(1536, 9)
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, threshold=1, min_age=1.0, clock=clock):
        pages.free_pages(old, 9)
        clock.sleep(0.75)
        pages.free_pages(new, 9)
        assert (1024, 10) in [(pfn, min(order, 10)) for pfn, order in pages.zones[0].free_blocks().tolist()]
        clock.sleep(0.25)
        pages.run_pending()
        assert few_host.take() == [(1024, 9)]
        clock.sleep(0.75)
        pages.run_pending()
        assert few_host.take() == [(1536, 9)]


def test_a_block_is_ripe_when_its_youngest_granule_is(make, few_host, clock):
    pages = make("64MiB", max_page_order=12, min_order=9)
    blocks = [pages.alloc_pages_at(4096 + 512 * i, 9) for i in range(8)]
    with pages.hinting(
        few_host.callbacks,
        workqueue="manual",
        mark_free=False,
        threshold=1,
        max_report_order=12,
        min_age=1.0,
        clock=clock,
    ):
        for block in blocks:
            pages.free_pages(block, 9)
            clock.sleep(0.0 if block != blocks[5] else 0.5)  # the last two half a second later
        clock.sleep(0.5)
        pages.run_pending()
        assert few_host.take() == [(4096, 11), (4096 + 2048, 10)]
        clock.sleep(0.5)
        pages.run_pending()
        assert few_host.take() == [(4096 + 3072, 10)]


def test_flush_reports_whatever_its_age(make, few_host, clock):
    pages = make("64MiB")
    with pages.hinting(few_host.callbacks, workqueue="manual", delay=None, min_age=100.0, clock=clock):
        pages.free_pages(pages.alloc_pages(9), 9)
        pages.run_pending()
        assert few_host.blocks == []
        pages.flush_hinting()
        assert sum(1 << order for _, order in few_host.blocks) == 1 << 14
        assert pages.stats().hints_pending == 0


def test_what_is_free_already_counts_from_then_on(make, few_host, clock):
    pages = make("16MiB")
    with pages.hinting(few_host.callbacks, workqueue="manual", threshold=1, min_age=1.0, clock=clock):
        clock.sleep(0.875)
        pages.run_pending()
        assert few_host.blocks == []
        clock.sleep(0.125)
        pages.run_pending()
        assert len(few_host.blocks) == 4


def test_a_failed_report_beginning_its_age_anew(make, few_host, clock):
    pages = make("64MiB")
    few_host.answer = OSError("no")
    with pages.hinting(
        few_host.callbacks, workqueue="manual", mark_free=False, threshold=1, delay=None, min_age=10.0, clock=clock
    ):
        pages.free_pages(pages.alloc_pages(9), 9)
        clock.sleep(10)
        assert pages.run_pending() == 1
        few_host.answer = None
        clock.sleep(0.125)  # the back-off
        assert pages.run_pending() == 1
        assert pages.stats().hints_pending == 0
        few_host.prepare_answer = -1
        pages.free_pages(pages.alloc_pages(9), 9)
        clock.sleep(10)
        assert pages.run_pending() == 1
        few_host.prepare_answer = None
        clock.sleep(0.125)
        assert pages.run_pending() == 1
        assert pages.stats().hints_pending == 0


def test_memory_that_comes_online_has_an_age(make, host, clock):
    pages = make("128MiB")
    with pages.hinting(
        host.callbacks, workqueue="manual", mark_free=False, threshold=1, delay=None, min_age=1.0, clock=clock
    ):
        pages.online(32768, 65536)  # the zone grows, and its stamps with it
        pages.run_pending()
        assert host.blocks == []
        clock.sleep(1)
        pages.run_pending()
        assert sum(1 << order for _, order in host.blocks) == 65536
        pages.verify()


def test_what_leaves_isolation_is_not_too_young_for_ever(make, few_host, clock):
    """Nor is a zone looked at again and again for what is isolated."""
    pages = make("64MiB")
    with pages.hinting(
        few_host.callbacks, workqueue="manual", mark_free=False, threshold=1, delay=None, min_age=1.0, clock=clock
    ):
        pages.free_pages(pages.alloc_pages_at(1024, 9), 9)
        pages.set_migratetype(1024, 512, "isolate")
        for _ in range(4):
            clock.sleep(1)
            pages.run_pending()
        assert few_host.blocks == []
        clock.sleep(100)
        assert pages.run_pending() == 0
        pages.set_migratetype(1024, 512, "movable")
        pages.run_pending()
        assert few_host.blocks == [(1024, 9)]


def test_ripe_hints_under_the_gate_go_out_when_it_opens(make, few_host, clock):
    pages = make("64MiB", watermarks=(0, 8192, 8192))
    taken = [pages.alloc_pages_at(pfn, 10) for pfn in range(4096, 4096 + 9 * 1024, 1024)]
    with pages.hinting(few_host.callbacks, workqueue="manual", delay=None, threshold=1, min_age=1.0, clock=clock):
        clock.sleep(1)
        pages.run_pending()
        assert pages.stats().isolation_refused == 1
        clock.sleep(5)
        assert pages.run_pending() == 0
        for block in taken:
            pages.free_pages(block, 10)
        pages.run_pending()
        assert (0, 10) in few_host.blocks
        assert all(pfn not in taken for pfn, _ in few_host.blocks)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), 1e10, "1", [1]])
def test_an_impossible_age_is_refused(bad):
    pages = real("16MiB")
    with pytest.raises((ValueError, TypeError)):
        pages.enable_hinting(RecordingHost().callbacks, min_age=bad)
    assert not pages.hinting_enabled
    with pytest.raises(ph.HintingInactiveError):
        pages.min_age  # noqa: B018


@pytest.mark.parametrize("none", [None, 0, 0.0])
def test_without_an_age_everything_is_ripe(make, few_host, clock, none):
    pages = make("16MiB")
    with pages.hinting(few_host.callbacks, workqueue="manual", threshold=1, min_age=none, clock=clock):
        assert pages.min_age == none
        pages.run_pending()
        assert len(few_host.blocks) == 4
    with pages.hinting(few_host.callbacks, workqueue="manual", min_age=1.5, clock=clock):
        assert pages.min_age == 1.5


def test_stamps_cost_nothing_unless_wanted(few_host):
    pages = real("1TiB")
    before = pages.zones[0].metadata_bytes
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False):
        assert pages.zones[0].metadata_bytes == before
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, min_age=1.0):
        assert pages.zones[0].metadata_bytes == before + 8 * (1 << 28 >> 9)


def test_no_memory_for_stamps_leaves_no_trace():
    survives("""
        import resource
        import pagehint as ph
        pages = ph.PageAllocator("64MiB", max_page_order=10, min_order=0)
        callbacks = ph.PageHintingCallbacks(print)
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), -1))
        try:
            pages.enable_hinting(callbacks, min_age=1.0)
        except MemoryError as error:
            assert "granules of zone Normal" in str(error)
        else:
            raise AssertionError("it is said to have worked")
        assert not pages.hinting_enabled
        assert pages.stats().hints_pending == 0
        with pages.hinting(ph.PageHintingCallbacks(lambda blocks: None)):
            pages.flush_hinting()
        pages.verify()
    """)


def test_the_worker_wakes_when_the_oldest_is_ripe():
    """By the real clock. Only what is reported is asserted, and in what order; and that it was free for long enough."""
    pages = real("64MiB")
    freed, reported = {}, []

    def hint_pages(blocks):
        reported.extend((int(block["pfn"]), time.monotonic()) for block in blocks)

    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (8192, 4096, 1024)]
    with pages.hinting(ph.PageHintingCallbacks(hint_pages, 2), mark_free=False, threshold=1, delay=None, min_age=0.1):
        for block in blocks:
            freed[block] = time.monotonic()
            pages.free_pages(block, 9)
            time.sleep(0.05)
        wait_for(lambda: len(reported) == 3)
        assert pages.stats().hints_pending == 0
    assert reported[0][0] == 8192
    assert all(at - freed[pfn] >= 0.1 for pfn, at in reported)


def test_hints_left_by_a_flush_are_found_when_they_are_ripe():
    """A flush ends all looking later; what is freed after it must begin it anew."""
    pages = real("64MiB")
    host = RecordingHost(2)
    with pages.hinting(host.callbacks, threshold=1, delay=None, min_age=0.02):
        for _ in range(20):
            pages.free_pages(pages.alloc_pages(9), 9)
            pages.flush_hinting()
        host.take()
        pages.free_pages(pages.alloc_pages_at(1024, 9), 9)
        wait_for(lambda: pages.stats().hints_pending == 0)
    assert host.blocks == [(1024, 9)]


@pytest.mark.parametrize("pcp", [False, True])
def test_threads_whose_temporaries_come_and_go(pcp):
    """Nothing is reported that was free for less than `min_age`, whatever frees it; in the end everything is."""
    pages = ph.PageAllocator("256MiB", pcp=pcp)
    busy = {}  # first page -> when it was freed last, or None while it is in use
    early, reported = [], []
    min_age = 0.02

    def hint_pages(blocks):
        now = time.monotonic()
        for pfn, order, _ in blocks.tolist():
            reported.append(pfn)
            for granule in range(pfn, pfn + (1 << order), 512):
                at = busy.get(granule, 0.0)
                if at is None or now - at < min_age:
                    early.append((granule, at, now))

    def use(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            blocks = [pages.alloc_pages(9) for _ in range(4)]
            for block in blocks:
                busy[block] = None
            time.sleep(0.0005)
            for block in blocks:
                busy[block] = time.monotonic()
                pages.free_pages(block, 9)

    with pages.hinting(ph.PageHintingCallbacks(hint_pages, 4), threshold=1, delay=None, min_age=min_age):
        threads = [threading.Thread(target=use, args=(0.5,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pages.drain_pcp()
        wait_for(lambda: pages.stats().hints_pending == 0)
        pages.verify()
    assert not early
    assert reported


def test_a_forked_child_begins_with_ages_of_its_own(few_host, clock):
    pages = real("64MiB")
    pages.enable_hinting(few_host.callbacks, min_age=100.0)

    def child():
        assert not pages.hinting_enabled
        host = RecordingHost(2)
        pages.free_pages(pages.alloc_pages(9), 9)
        with pages.hinting(host.callbacks, workqueue="manual", threshold=1, min_age=1.0, clock=clock):
            pages.run_pending()
            assert host.blocks == []
            clock.sleep(1)
            pages.run_pending()
            assert pages.stats().hints_pending == 0
        pages.verify()

    in_child(child)
    assert pages.stats().hints_pending == 32
    pages.disable_hinting()


def test_a_shorter_age_takes_effect_at_once(few_host, clock):
    pages = real("64MiB")
    block = pages.alloc_pages(10)
    options = {"workqueue": "manual", "mark_free": False, "threshold": 1, "delay": None, "clock": clock}
    with pages.hinting(few_host.callbacks, min_age=100.0, **options):
        pages.free_pages(block, 10)
        clock.sleep(2.0)
        pages.run_pending()
        assert few_host.blocks == []
        pages.min_age = 3.0
        assert pages.min_age == 3.0
        pages.run_pending()
        assert few_host.blocks == []
        clock.sleep(1.0)  # it counts from when it was freed
        pages.run_pending()
        assert few_host.blocks == [(block, 10)]
        pages.verify()


def test_a_longer_age_keeps_what_would_have_gone(few_host, clock):
    pages = real("64MiB")
    block = pages.alloc_pages(10)
    options = {"workqueue": "manual", "mark_free": False, "threshold": 1, "delay": None, "clock": clock}
    with pages.hinting(few_host.callbacks, min_age=1.0, **options):
        pages.free_pages(block, 10)
        pages.min_age = 10.0
        clock.sleep(9.0)
        pages.run_pending()
        assert few_host.blocks == []
        assert pages.explain()["warm"].pages == 1024
        clock.sleep(2.0)
        pages.run_pending()
        assert few_host.blocks == [(block, 10)]


@pytest.mark.parametrize("before", [None, 0])
def test_an_age_where_there_was_none_counts_from_now(few_host, clock, before):
    """The stamps of an earlier session, by another clock, say nothing of what was hinted in this one."""
    pages = real("64MiB")
    block = pages.alloc_pages(10)
    options = {"workqueue": "manual", "mark_free": False, "threshold": 1000, "delay": None}
    with pages.hinting(few_host.callbacks, min_age=5.0, clock=lambda: 1e6, **options):
        pages.free_pages(block, 10)
    pages.alloc_pages_at(block, 10)
    with pages.hinting(few_host.callbacks, min_age=before, clock=clock, **options):
        pages.free_pages(block, 10)
        clock.sleep(50.0)
        pages.min_age = 5.0
        pages.threshold = 1
        pages.run_pending()
        assert few_host.blocks == []
        clock.sleep(5.0)
        pages.run_pending()
        assert few_host.blocks == [(block, 10)]
        pages.verify()


def test_no_age_any_more_lets_everything_go(few_host, clock):
    pages = real("64MiB")
    block = pages.alloc_pages(10)
    options = {"workqueue": "manual", "mark_free": False, "threshold": 1, "delay": None, "clock": clock}
    with pages.hinting(few_host.callbacks, min_age=1e9, **options):
        pages.free_pages(block, 10)
        pages.run_pending()
        assert few_host.blocks == []
        pages.min_age = None
        assert pages.min_age is None
        pages.run_pending()
        assert few_host.blocks == [(block, 10)]


def test_a_worker_that_sleeps_until_an_age_hears_of_a_shorter_one(few_host):
    pages = real("64MiB")
    block = pages.alloc_pages(10)
    with pages.hinting(few_host.callbacks, mark_free=False, threshold=1, delay=None, min_age=3600.0):
        pages.free_pages(block, 10)
        assert pages.stats().work_queued == 1
        pages.min_age = 0.001
        wait_for(lambda: few_host.blocks)
    assert few_host.blocks == [(block, 10)]


def test_an_age_can_be_set_while_hinting_is_on_and_not_else():
    pages = real("64MiB")
    with pytest.raises(ph.HintingInactiveError):
        pages.min_age = 1.0
    with pages.hinting(RecordingHost().callbacks):
        for value, error in ((-1, ValueError), (float("nan"), ValueError), ("1", TypeError)):
            with pytest.raises(error):
                pages.min_age = value
        assert pages.min_age is None
