"""`reserve`: a little free memory, at the lowest addresses, stays warm for longer than the rest, and then goes, too."""

from __future__ import annotations

import numpy as np
import pytest
from allocators import real
from hosts import RecordingHost
from processes import in_child
from waiting import wait_for

import pagehint as ph

MIB = 1 << 20


def reserved(pages, host, clock, **options):
    """Hinting on, deterministic: two granules stay for 1.5 seconds, the others for a hundredth of one."""
    options = {"threshold": 1, "delay": None, "mark_free": False, "min_age": 0.01, "reserve": "4MiB", **options}
    return pages.hinting(host.callbacks, workqueue="manual", clock=clock, **options)


def free_in_turn(pages, pfns):
    for pfn in pfns:
        pages.free_pages(pfn, 9)


def pfns_of(blocks):
    return [pfn + i for pfn, order in blocks for i in range(0, 1 << order, 512)]


@pytest.mark.parametrize("hertz", [1, 10, 50, 200])
@pytest.mark.parametrize("min_age", [None, 0.01])
def test_a_loop_at_any_pace_finds_its_memory_warm(make, few_host, clock, hertz, min_age):
    """Each tick would else have its granule dropped, and cleared again."""
    pages = make("64MiB")
    with reserved(pages, few_host, clock, min_age=min_age):
        for _ in range(4 * hertz):
            pages.free_pages(pages.alloc_pages_at(1024, 9), 9)
            clock.sleep(1 / hertz)
            pages.run_pending()
        assert few_host.calls == []
        clock.sleep(1.5)
        pages.run_pending()
        assert few_host.blocks == [(1024, 9)]


@pytest.mark.parametrize("array_bytes", [100 << 10, MIB, 8 * MIB, 32 * MIB])
def test_a_loop_over_an_arena_finds_its_memory_warm(array_bytes, clock):
    """Beside arrays that are alive."""
    with ph.Arena("256MiB", hugepages=False) as arena:
        options = {"min_age": 0.01, "threshold": 1, "delay": None, "mark_free": False}
        live = [arena.empty(300 << 10, "u1") for _ in range(40)]
        del live[::3]
        with arena.hinting(reserve="64MiB", workqueue="manual", clock=clock, **options) as pages:
            for tick in range(20):
                array = arena.empty(array_bytes, "u1")
                array[:] = tick
                del array
                clock.sleep(0.02)
                pages.run_pending()
            assert pages.stats().pages_reported == 0
            assert pages.explain()["too young"].pages == pages.stats().hints_pending * 512
            clock.sleep(1.5)
            pages.run_pending()
            assert pages.stats().hints_pending == 0
        del live


def test_the_lowest_are_the_reserve_and_the_rest_goes_early(make, few_host, clock):
    pages = make("64MiB")
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (8192, 1024, 4096, 2048)]
    with reserved(pages, few_host, clock):
        free_in_turn(pages, blocks)
        clock.sleep(0.01)
        pages.run_pending()
        assert few_host.take() == [(4096, 9), (8192, 9)]
        clock.sleep(1.48)
        assert pages.run_pending() == 0
        clock.sleep(0.01)
        pages.run_pending()
        assert few_host.take() == [(1024, 9), (2048, 9)]
        assert pages.stats().hints_pending == 0
        clock.sleep(100)
        assert pages.run_pending() == 0


def test_moved_out_of_the_reserve_by_a_lower_one_it_goes_early(make, few_host, clock):
    """Though the queue waits for a later time, which is that of the reserve."""
    pages = make("64MiB")
    high = [pages.alloc_pages_at(pfn, 9) for pfn in (8192, 8704)]
    low = pages.alloc_pages_at(1024, 9)
    with reserved(pages, few_host, clock):
        free_in_turn(pages, high)
        clock.sleep(0.5)
        assert pages.run_pending() == 0
        pages.free_pages(low, 9)
        clock.sleep(0.01)
        pages.run_pending()
        assert few_host.take() == [(8704, 9)]
        clock.sleep(1.0)
        pages.run_pending()
        assert few_host.take() == [(8192, 9)]  # its stamp is as old as it was
        clock.sleep(0.5)
        pages.run_pending()
        assert few_host.take() == [(1024, 9)]


def test_moved_into_the_reserve_as_a_lower_one_is_taken_it_stays(make, few_host, clock):
    pages = make("64MiB")
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (1024, 2048, 4096)]
    with reserved(pages, few_host, clock):
        free_in_turn(pages, blocks)
        pages.alloc_pages_at(1024, 9)
        clock.sleep(1.0)
        pages.run_pending()
        assert few_host.take() == []
        clock.sleep(0.5)
        pages.run_pending()
        assert few_host.take() == [(2048, 9), (4096, 9)]


def test_a_block_across_the_end_of_the_reserve_is_cut_there(make, few_host, clock):
    pages = make("64MiB", max_page_order=12, min_order=9)
    block = pages.alloc_pages_at(4096, 12)
    with reserved(pages, few_host, clock, max_report_order=12, reserve="6MiB"):
        pages.free_pages(block, 12)
        clock.sleep(0.01)
        pages.run_pending()
        assert few_host.take() == [(4096 + 3 * 512, 9), (4096 + 4 * 512, 11)]
        clock.sleep(1.49)
        pages.run_pending()
        assert few_host.take() == [(4096, 10), (4096 + 2 * 512, 9)]


@pytest.mark.parametrize("reserve", [1, "2MiB", "3MiB", "130MiB", "64GiB", 2**200])
def test_a_reserve_of_any_size(make, few_host, clock, reserve):
    """It is rounded up to granules; some are larger than the zone, and than a word of hints."""
    pages = make("400MiB")
    most = min(-(-(reserve if isinstance(reserve, int) else ph.sizes.parse_size(reserve)) // (2 * MIB)), 100)
    blocks = [pages.alloc_pages_at(1024 * i + 512, 9) for i in range(100)]
    with reserved(pages, few_host, clock, reserve=reserve):
        free_in_turn(pages, blocks[::-1])
        clock.sleep(0.01)
        pages.run_pending()
        assert pfns_of(few_host.take()) == blocks[most:]
        clock.sleep(1.49)
        pages.run_pending()
        assert pfns_of(few_host.take()) == blocks[:most]


def test_each_zone_has_a_reserve(make, few_host, clock):
    pages = make([ph.ZoneSpec("DMA", 0, 4096), ph.ZoneSpec("Normal", 4096, 8192)])
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (0, 1024, 2048, 4096, 6144, 8192)]
    with reserved(pages, few_host, clock):
        free_in_turn(pages, blocks)
        clock.sleep(0.01)
        pages.run_pending()
        assert few_host.take() == [(2048, 9), (8192, 9)]
        clock.sleep(1.49)
        pages.run_pending()
        assert pages.stats().hints_pending == 0


def test_ages_of_the_reserve_are_looked_at_a_few_times(make, few_host, clock):
    """However slowly or fast the granules of a reserve come of age, one after the other."""
    pages = make("1GiB")
    with reserved(pages, few_host, clock, reserve="512MiB"):
        for i in range(200):
            pages.free_pages(pages.alloc_pages_at(1024 * i, 9), 9)
            clock.sleep(0.005)
            pages.run_pending()
        for _ in range(400):
            clock.sleep(0.005)
            pages.run_pending()
        assert pages.stats().hints_pending == 0
        assert pages.stats().work_runs <= 2 * 8 + 2  # eight in each age, in the time of two


def test_loops_that_fill_the_reserve_and_more_wake_nobody_each_time(make, few_host, clock):
    """Each of these frees moves granules out of the reserve, and the engine is asked for the first of them only."""
    pages = make("64MiB")
    with reserved(pages, few_host, clock, min_age=1.0, reserve_age=10.0):
        for _ in range(1000):
            blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (1024, 2048, 4096)]
            free_in_turn(pages, blocks)
            clock.sleep(0.01)
            pages.run_pending()
        assert pages.stats().work_runs <= 10 * 8 + 2
        assert few_host.blocks == []


def test_an_age_that_is_longer_than_that_of_the_reserve_holds_for_all(make, few_host, clock):
    pages = make("64MiB")
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (1024, 2048, 4096)]
    with reserved(pages, few_host, clock, min_age=3.0):
        free_in_turn(pages, blocks)
        clock.sleep(2.875)
        assert pages.run_pending() == 0
        clock.sleep(0.125)
        pages.run_pending()
        assert few_host.take() == [(1024, 9), (2048, 9), (4096, 9)]


def test_a_reserve_without_an_age_of_the_rest(make, few_host, clock):
    pages = make("64MiB")
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (1024, 2048, 4096)]
    with reserved(pages, few_host, clock, min_age=None):
        free_in_turn(pages, blocks)
        pages.run_pending()
        assert few_host.take() == [(4096, 9)]
        clock.sleep(1.5)
        pages.run_pending()
        assert few_host.take() == [(1024, 9), (2048, 9)]
    with reserved(pages, few_host, clock, min_age=None, reserve_age=0):
        free_in_turn(pages, [pages.alloc_pages_at(1024, 9)])
        pages.run_pending()
        assert few_host.take() == [(1024, 9)]


def test_below_the_threshold_the_delay_and_the_reserve_are_waited_for(make, few_host, clock):
    pages = make("64MiB")
    for delay, reserve_age in ((1.0, 3.0), (3.0, 1.0)):
        with reserved(pages, few_host, clock, threshold=9, delay=delay, reserve_age=reserve_age):
            pages.free_pages(pages.alloc_pages_at(1024, 9), 9)
            clock.sleep(2.875)
            pages.run_pending()
            assert few_host.take() == []
            clock.sleep(0.125)
            pages.run_pending()
            assert few_host.take() == [(1024, 9)]


def test_a_flush_takes_the_reserve_too(make, few_host, clock):
    pages = make("64MiB")
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (1024, 2048, 4096)]
    with reserved(pages, few_host, clock):
        free_in_turn(pages, blocks)
        pages.flush_hinting()
        assert few_host.take() == [(1024, 9), (2048, 9), (4096, 9)]


def test_a_failed_report_of_the_reserve_is_made_again(make, few_host, clock):
    pages = make("64MiB")
    few_host.answer = OSError("no")
    with reserved(pages, few_host, clock):
        pages.free_pages(pages.alloc_pages_at(1024, 9), 9)
        clock.sleep(1.5)
        assert pages.run_pending() == 1
        assert few_host.take() == [(1024, 9)]
        few_host.answer = None
        clock.sleep(0.125)  # the back-off
        pages.run_pending()
        assert few_host.take() == [(1024, 9)]
        assert pages.stats().hints_pending == 0


def test_over_the_limit_the_reserve_goes_at_once(clock):
    with ph.Arena("128MiB", hugepages=False) as arena:
        options = {"min_age": 0.01, "delay": None, "threshold": 1, "mark_free": False}
        with arena.hinting(reserve="64MiB", workqueue="manual", clock=clock, **options) as pages:
            array = arena.empty(32 * MIB, "u1")
            array[:] = 1
            del array
            assert pages.run_pending() == 0
            assert arena.resident_bytes == 32 * MIB
            arena.limit = "16MiB"
            pages.run_pending()
            assert arena.resident_bytes <= 16 * MIB
            kept = arena.resident_bytes
            clock.sleep(1.25)
            pages.run_pending()
            assert arena.resident_bytes == kept
            clock.sleep(0.25)
            pages.run_pending()
            assert arena.resident_bytes == 0


@pytest.mark.parametrize("age", [0.5, 1000.0])
def test_trim_takes_the_reserve_too(age):
    with ph.Arena("64MiB", hugepages=False) as arena, arena.hinting(reserve="64MiB", reserve_age=age, threshold=1):
        array = arena.empty(8 * MIB, "u1")
        array[:] = 1
        del array
        arena.trim()
        assert arena.resident_bytes == 0


def test_explain_says_what_the_reserve_keeps(few_host, clock):
    pages = real("64MiB")
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (1024, 2048, 4096)]
    with reserved(pages, few_host, clock):
        free_in_turn(pages, blocks)
        assert pages.explain()["too young"].pages == 3 * 512
        clock.sleep(0.01)
        pages.max_pages = 2  # which reads the clock
        assert pages.explain()["too young"].pages == 2 * 512
        assert pages.explain()["pending"].pages == 512
        assert "reserve" in pages.explain()["too young"].why
        clock.sleep(1.49)
        pages.max_pages = 2
        assert pages.explain()["too young"].pages == 0
        assert pages.explain()["pending"].pages == 3 * 512


def test_a_session_has_the_reserve_that_it_was_given(make, few_host, clock):
    pages = make("64MiB")
    with reserved(pages, few_host, clock, reserve="3MiB"):
        assert pages.reserve == 4 * MIB
        assert pages.reserve_age == 1.5
    with reserved(pages, few_host, clock, reserve=None, reserve_age=2):
        assert pages.reserve is None
        assert pages.reserve_age == 2.0
        free_in_turn(pages, [pages.alloc_pages_at(1024, 9)])
        clock.sleep(0.01)
        pages.run_pending()
        assert few_host.take() == [(1024, 9)]


def test_a_reserve_changed_while_hinting_is_on(few_host, clock):
    pages = real("64MiB")
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (1024, 2048, 4096)]
    with reserved(pages, few_host, clock, reserve=None, min_age=0.25):
        free_in_turn(pages, blocks)
        clock.sleep(0.125)
        pages.reserve = 3 * MIB
        clock.sleep(0.125)
        pages.run_pending()
        assert few_host.take() == [(4096, 9)]
        pages.reserve = "1KiB"
        assert pages.reserve == 2 * MIB
        pages.run_pending()
        assert few_host.take() == [(2048, 9)]
        pages.reserve_age = 3
        clock.sleep(2.5)
        pages.run_pending()
        assert few_host.take() == []
        pages.reserve = None
        pages.run_pending()
        assert few_host.take() == [(1024, 9)]


def test_a_reserve_where_there_was_no_age_counts_from_now(few_host, clock):
    pages = real("64MiB")
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (1024, 2048)]
    with reserved(pages, few_host, clock, reserve=None, min_age=None, threshold=1000):
        free_in_turn(pages, blocks)
        clock.sleep(50)
        pages.reserve = "2MiB"
        pages.threshold = 1
        pages.run_pending()
        assert few_host.take() == [(2048, 9)]
        clock.sleep(1.5)
        pages.run_pending()
        assert few_host.take() == [(1024, 9)]


def test_a_worker_that_sleeps_until_the_reserve_is_old_hears_of_a_shorter_age():
    pages = real("64MiB")
    host = RecordingHost(2)
    block = pages.alloc_pages_at(1024, 9)
    with pages.hinting(host.callbacks, mark_free=False, threshold=1, delay=None, reserve="4MiB", reserve_age=3600):
        pages.free_pages(block, 9)
        pages.reserve_age = 0.001
        wait_for(lambda: host.blocks == [(1024, 9)])


@pytest.mark.parametrize(
    "bad",
    [{"reserve": 0}, {"reserve": -1}, {"reserve": "much"}, {"reserve": 1.5}, {"reserve_age": -1.0}]
    + [{"reserve_age": bad} for bad in (None, float("nan"), float("inf"), 1e10, "1")],
)
def test_an_impossible_reserve_is_refused(bad):
    pages = real("16MiB")
    with pytest.raises((ValueError, TypeError)):
        pages.enable_hinting(RecordingHost().callbacks, **{"reserve": "4MiB", **bad})
    assert not pages.hinting_enabled
    with pytest.raises(ph.HintingInactiveError):
        pages.reserve  # noqa: B018
    with pytest.raises(ph.HintingInactiveError):
        pages.reserve_age  # noqa: B018
    [(name, value)] = bad.items()
    with pytest.raises(ph.HintingInactiveError):
        setattr(pages, name, 1)
    with pages.hinting(RecordingHost().callbacks, reserve="4MiB"):
        with pytest.raises((ValueError, TypeError)):
            setattr(pages, name, value)
        assert (pages.reserve, pages.reserve_age) == (4 * MIB, 1.5)


def test_a_reserve_that_nobody_uses_goes_by_itself():
    """By the real clock: no free follows, and the worker wakes. Before that, everything else has gone."""
    pages = real("64MiB")
    host = RecordingHost(2)
    blocks = [pages.alloc_pages_at(pfn, 9) for pfn in (1024, 2048, 4096, 8192)]
    with pages.hinting(
        host.callbacks, mark_free=False, threshold=1, delay=None, min_age=0.01, reserve="4MiB", reserve_age=0.1
    ):
        free_in_turn(pages, blocks)
        wait_for(lambda: pages.stats().hints_pending == 0)
    assert pfns_of(host.blocks) == [4096, 8192, 1024, 2048]


def test_a_worker_that_waits_for_the_reserve_wakes_for_what_is_moved_out_of_it():
    """The reserve of this session never comes of age."""
    pages = real("64MiB")
    host = RecordingHost(2)
    high, low = pages.alloc_pages_at(8192, 9), pages.alloc_pages_at(1024, 9)
    with pages.hinting(
        host.callbacks, mark_free=False, threshold=1, delay=None, min_age=0.01, reserve="2MiB", reserve_age=1e6
    ):
        pages.free_pages(high, 9)
        pages.free_pages(low, 9)
        wait_for(lambda: host.blocks == [(8192, 9)])
        for _ in range(3):
            pages.alloc_pages_at(1024, 9)
            pages.free_pages(pages.alloc_pages_at(8192, 9), 9)
            pages.free_pages(1024, 9)
            host.take()
            wait_for(lambda: host.blocks == [(8192, 9)])
        assert pages.stats().hints_pending == 1


def test_a_forked_child_begins_without_a_reserve(few_host, clock):
    pages = real("64MiB")
    pages.enable_hinting(few_host.callbacks, mark_free=False, threshold=1, min_age=0.01, reserve="64MiB")
    pages.free_pages(pages.alloc_pages_at(1024, 9), 9)

    def child():
        assert not pages.hinting_enabled
        host = RecordingHost(2)
        pages.free_pages(pages.alloc_pages_at(1024, 9), 9)
        with pages.hinting(host.callbacks, workqueue="manual", threshold=1, min_age=1.0, clock=clock):
            clock.sleep(1)
            pages.run_pending()
            assert pages.stats().hints_pending == 0
        pages.verify()

    in_child(child)
    pages.disable_hinting()


def test_random_frees_leave_the_lowest_and_lose_nothing(make, few_host, clock):
    """Whatever is taken and freed between: what has gone was old enough, by the one age or the other."""
    pages = make("128MiB")
    rng = np.random.default_rng(0)
    used = {int(pfn): pages.alloc_pages_at(int(pfn), 9) for pfn in range(0, 32768, 512)}
    freed_at = {}
    with reserved(pages, few_host, clock, reserve="16MiB", min_age=0.1):
        for _ in range(150):
            for pfn in rng.choice(32768 // 512, 6, replace=False).tolist():
                pfn *= 512
                if pfn in used:
                    pages.free_pages(used.pop(pfn), 9)
                    freed_at[pfn] = clock.now
                else:
                    used[pfn] = pages.alloc_pages_at(pfn, 9)
                    freed_at.pop(pfn, None)
            clock.sleep(0.05)
            reserve = sorted(freed_at)[:8]
            pages.run_pending()
            for pfn in pfns_of(few_host.take()):
                assert clock.now - freed_at.pop(pfn) >= (1.5 if pfn in reserve else 0.1) - 1e-6
            assert pages.stats().hints_pending == len(freed_at)
            young = [pfn for pfn, at in freed_at.items() if clock.now - at < 0.2]
            assert set(freed_at) <= set(young) | set(sorted(freed_at)[: 8 + 6])
        clock.sleep(2)
        pages.run_pending()
        assert pages.stats().hints_pending == 0
