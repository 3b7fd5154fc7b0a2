"""One regression test for each fault of the original page hinting series of 2019, by its name."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from allocators import real
from hosts import RecordingHost

import pagehint as ph

GRANULE = 512  # pages, by default

# Some of the faults hang in compiled code, where a signal's handler is never run: a thread has to notice.
pytestmark = pytest.mark.timeout(60, method="thread")


def bits(pages):
    """PFNs of the granules hinted in all zones."""
    found = []
    for zone in pages.zones:
        for i in np.flatnonzero(np.unpackbits(zone.hint_bitmap.view(np.uint8), bitorder="little")):
            found.append(zone.hint_base_pfn + (int(i) << pages.min_order))
    return found


def granules(blocks, size=GRANULE):
    return sorted(g for pfn, order in blocks for g in range(pfn, pfn + (1 << order), size))


def test_bitmap_allocated_under_the_spinlock_and_lock_kept_on_failure(host):
    """The bitmap is part of the zone's metadata, and a failed enable leaves every lock free and nothing hinted."""
    pages = real("64MiB")

    def no_time():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pages.enable_hinting(host.callbacks, workqueue="manual", clock=no_time)
    assert not pages.hinting_enabled
    assert bits(pages) == []
    pages.free_pages(pages.alloc_pages(9), 9)
    assert bits(pages) == []
    assert host.calls == []
    for bad in ({"threshold": 0}, {"delay": -1}, {"max_report_order": 99}, {"workqueue": "none"}):
        with pytest.raises(ValueError, match=r".+"):
            pages.enable_hinting(host.callbacks, **bad)
        assert not pages.hinting_enabled
        assert bits(pages) == []
        pages.free_pages(pages.alloc_pages())  # would hang if a lock were kept
    before, bitmap = pages.zones[0].metadata_bytes, pages.zones[0].hint_bitmap
    pages.enable_hinting(host.callbacks, workqueue="manual")
    assert pages.zones[0].metadata_bytes == before
    assert bitmap.any()  # it is where it was; enabling allocates none
    assert np.shares_memory(bitmap, pages.zones[0].hint_bitmap)
    pages.disable_hinting()


def test_zone_index_over_populated_zones(host):
    """Zones are told apart by identity: one without any memory online before the others shifts nobody's hints."""
    pages = real([ph.ZoneSpec("DMA", 0, 32768), ph.ZoneSpec("Normal", 32768, 32768)])
    pages.offline(0, 32768)  # the first zone is empty now
    zones = set()
    host.answer = lambda blocks: zones.update(blocks["zone"].tolist())
    with pages.hinting(host.callbacks, workqueue="manual", mark_free=False):
        pages.free_pages(pages.alloc_pages(9), 9)
        assert all(pfn >= 32768 for pfn in bits(pages))
        pages.flush_hinting()
    [(pfn, order)] = host.blocks
    assert pfn >= 32768
    assert order == 9
    assert zones == {1}
    pages.verify()


@pytest.mark.parametrize("nr_pages", [GRANULE, 3 * GRANULE, 1025 * GRANULE, 64 * GRANULE + 17])
def test_bitmap_size_rounded_to_the_order_instead_of_the_granule(host, nr_pages):
    """Zones of an odd number of granules have a bit for each, the last one too."""
    pages = real([ph.ZoneSpec("Normal", 0, nr_pages)])
    with pages.hinting(host.callbacks, workqueue="manual"):
        assert len(bits(pages)) == nr_pages // GRANULE
        last = (nr_pages // GRANULE - 1) * GRANULE
        assert last in bits(pages)
        pages.alloc_pages_at(last, 9)
        assert last not in bits(pages)
        pages.free_pages(last, 9)
        assert last in bits(pages)
        pages.verify()


def test_endless_loop_on_an_offline_page(host):
    """A scan over offline sections ends, and reports what is beyond them."""
    pages = real("512MiB")
    pages.enable_hinting(host.callbacks, workqueue="manual")
    pages.offline(32768, 32768)
    pages.flush_hinting()
    pages.disable_hinting()
    reported = granules(host.blocks)
    assert reported == [*range(0, 32768, GRANULE), *range(65536, 131072, GRANULE)]
    pages.verify()


@pytest.mark.parametrize("start", [1, 511, 513, 777, 1023, 1025])
def test_unaligned_zone_base_losing_every_hint(host, start):
    """Granules are aligned by PFN, wherever the zone begins."""
    pages = real([ph.ZoneSpec("Normal", start, 40 * GRANULE)])
    with pages.hinting(host.callbacks, workqueue="manual"):
        pages.flush_hinting()
    first = -(-start // GRANULE) * GRANULE
    assert granules(host.blocks) == list(range(first, (start + 40 * GRANULE) // GRANULE * GRANULE, GRANULE))


@pytest.mark.parametrize("answer", [-1, RuntimeError("not now")])
def test_counter_lost_or_negative_after_a_failed_prepare(host, answer):
    """A prepare that fails consumes nothing: same bits, same count, and all is reported by the next run."""
    pages = real("64MiB")
    pages.enable_hinting(host.callbacks, workqueue="manual")
    hinted = bits(pages)
    host.prepare_answer = answer
    for _ in range(3):
        pages.flush_hinting()
        assert bits(pages) == hinted
        assert pages.stats().hints_pending == len(hinted) == 32
        assert host.calls.pop() == "prepare"  # and neither hint_pages nor cleanup
    assert pages.stats().prepare_errors == 3
    host.prepare_answer = 0
    pages.flush_hinting()
    assert pages.stats().hints_pending == 0
    assert granules(host.blocks) == hinted
    pages.disable_hinting()


def test_disable_racing_with_a_free():
    """Frees on other threads while hinting goes on and off: nobody writes into a bitmap that is no longer used."""
    pages = real("256MiB")
    stop = threading.Event()
    errors = []

    def churn():
        try:
            while not stop.is_set():
                pages.free_pages_bulk(pages.alloc_pages_bulk(40, 9), 9)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    after, stale = [], set()
    for _ in range(150):
        live = []
        callbacks = ph.PageHintingCallbacks(lambda blocks, live=live: live.append(len(blocks)), 4)
        pages.enable_hinting(callbacks, delay=0.0)
        pages.flush_hinting()
        pages.disable_hinting()
        after.append((live, len(live)))
        stale.update(bits(pages))
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(len(live) == count for live, count in after)  # no callback after disable
    assert stale == set()
    pages.verify()
    assert pages.stats().reporting_pages == 0


def test_disable_racing_with_a_free_in_the_same_instant():
    """Frees that spend nearly all their time at the zone's lock, one of them in the midst of every disable."""
    pages = real("64MiB", min_order=0)
    bitmap = pages.zones[0].hint_bitmap
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            pages.free_pages_bulk(pages.alloc_pages_bulk(8000))

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    stale = []
    for _ in range(150):
        pages.enable_hinting(
            RecordingHost().callbacks, workqueue="manual", threshold=1 << 20, delay=None, mark_free=False
        )
        while not bitmap.any():
            pass
        pages.disable_hinting()
        if bitmap.any() or pages.stats().hints_pending:
            stale.append(pages.stats().hints_pending)
    stop.set()
    for thread in threads:
        thread.join()
    assert stale == []
    pages.verify()


def test_put_back_merging_with_a_neighbour_freed_meanwhile(few_host):
    """A buddy freed while a block is out merges with it at put-back, and keeps its own hint."""
    pages = real("16MiB")
    for second in (1536, 512):  # behind the cursor, ahead of it
        first = second ^ 512
        pages.alloc_pages_at(first, 9), pages.alloc_pages_at(second, 9)
        with pages.hinting(few_host.callbacks, workqueue="manual", threshold=100, mark_free=False):
            pages.free_pages(first, 9)
            few_host.answer = lambda blocks, second=second: (
                pages.free_pages(second, 9) if len(few_host.batches) == 1 else None
            )
            pages.flush_hinting()
            pages.flush_hinting()
            assert pages.zones[0].nr_free == (0,) * 10 + (4,)
            assert few_host.take() == [(first, 9), (second, 9)]
            pages.verify()


def test_split_losing_the_other_half(few_host):
    """Isolating or allocating one half of a free block leaves the other half hinted."""
    pages = real("4MiB")
    pages.enable_hinting(few_host.callbacks, workqueue="manual", max_report_order=9)
    assert bits(pages) == [0, 512]
    pages.alloc_pages_at(3)  # breaks the lower granule
    assert bits(pages) == [512]
    pages.free_pages(3)
    assert bits(pages) == [0, 512]
    pages.max_pages = 1  # one half at a time
    pages.flush_hinting()
    assert few_host.batches == [[(0, 9)], [(512, 9)]]
    assert pages.zones[0].nr_free == (0,) * 10 + (1,)


def test_refused_isolation_eating_the_hint(host):
    """Under the watermark gate nothing is isolated and no hint is lost; when memory is back, all is reported."""
    pages = real("64MiB", watermarks=(0, 4096, 8192))
    taken = pages.alloc_pages_bulk(24, 9)
    pages.enable_hinting(host.callbacks, workqueue="manual")
    hinted = bits(pages)
    assert len(hinted) == 8
    pages.flush_hinting()
    assert host.blocks == []
    assert bits(pages) == hinted
    assert pages.stats().isolation_refused > 0
    pages.verify()
    pages.free_pages_bulk(taken, 9)
    pages.run_pending()
    assert granules(host.blocks) == list(range(0, 16384, GRANULE))
    pages.disable_hinting()


def test_refused_isolation_is_tried_again_when_the_gate_opens(host):
    """Memory that is freed and hints nothing, being parts of granules, is enough of a wake-up."""
    pages = real("64MiB", watermarks=(0, 4096, 8192))
    halves = pages.alloc_pages_bulk(48, 8)
    pages.enable_hinting(host.callbacks, workqueue="manual", threshold=8, delay=None)
    hinted = bits(pages)
    assert len(hinted) == 8
    assert pages.run_pending() == 1
    assert host.blocks == []
    pages.free_pages_bulk(halves[halves % GRANULE == 0], 8)
    assert bits(pages) == hinted
    assert pages.run_pending() == 1
    assert granules(host.blocks) == hinted
    pages.disable_hinting()


def test_published_before_initialised():
    """The first free after the hook is on already finds callbacks, settings and bitmap."""
    for _ in range(100):
        pages = real("16MiB")
        block = pages.alloc_pages(9)
        seen = []
        go = threading.Barrier(2)

        def free(pages=pages, block=block, go=go):
            go.wait()
            pages.free_pages(block, 9)

        thread = threading.Thread(target=free)
        thread.start()
        go.wait()
        pages.enable_hinting(ph.PageHintingCallbacks(lambda b, seen=seen: seen.extend(b.tolist()), 1), delay=0.0)
        thread.join()
        pages.flush_hinting()
        pages.disable_hinting()
        assert granules([(pfn, order) for pfn, order, _ in seen]) == list(range(0, 4096, GRANULE))
        assert pages.last_error is None


def test_published_before_initialised_as_seen_from_inside(host):
    """Until all is set the hook is off, and nothing that the last time has left is acted on."""
    pages = real("64MiB")
    block = pages.alloc_pages(9)
    seen = []

    def clock():  # asked in the midst of enabling, and before anything has been asked for
        if not seen:
            pages.free_pages(block, 9)
            seen.append((pages.hinting_enabled, bits(pages)))
        return 0.0

    with pages.hinting(RecordingHost().callbacks, workqueue="manual", threshold=1, delay=None):
        pages.flush_hinting()
    queued = pages.stats().work_queued
    pages.enable_hinting(host.callbacks, workqueue="manual", threshold=33, delay=None, clock=clock)
    assert seen == [(False, [])]
    assert pages.run_pending() == 0
    assert pages.stats().work_queued == queued
    pages.flush_hinting()
    assert granules(host.blocks) == list(range(0, 16384, GRANULE))
    pages.disable_hinting()


def test_remainder_below_the_threshold_never_reported(make, host, clock):
    """What stays under the threshold goes out when the delay is over."""
    pages = make("64MiB")
    block = pages.alloc_pages(9)
    pages.enable_hinting(host.callbacks, workqueue="manual", mark_free=False, delay=2.0, clock=clock)
    pages.free_pages(block, 9)
    clock.sleep(1.9)
    assert pages.run_pending() == 0
    clock.sleep(0.2)
    assert pages.run_pending() == 1
    assert host.blocks == [(block, 9)]
    assert pages.run_pending() == 0
    pages.disable_hinting()


def test_remainder_below_the_threshold_is_reported_by_the_worker_too():
    pages = real("64MiB")
    block = pages.alloc_pages(9)
    reported = threading.Event()
    with pages.hinting(ph.PageHintingCallbacks(lambda blocks: reported.set()), mark_free=False, delay=0.01):
        pages.free_pages(block, 9)
        assert reported.wait(30)


def test_free_memory_at_enable_never_reported(make, host):
    """What is free when hinting begins is reported without being used once more."""
    pages = make("64MiB")
    used = pages.alloc_pages()
    pages.enable_hinting(host.callbacks, workqueue="manual")
    pages.run_pending()
    assert granules(host.blocks) == [g for g in range(0, 16384, GRANULE) if not g <= used < g + GRANULE]
    pages.disable_hinting()


def test_isolate_pageblock_reported(make, host, clock):
    """Blocks in isolate pageblocks are not reported; their hints wait, and go out without a flush when they may."""
    pages = make("64MiB")
    pages.set_migratetype(1024, 1024, "isolate")
    pages.enable_hinting(host.callbacks, workqueue="manual", clock=clock)
    pages.flush_hinting()
    assert granules(host.take()) == [g for g in range(0, 16384, GRANULE) if g not in (1024, 1536)]
    pages.set_migratetype(1024, 1024, "movable")
    assert pages.run_pending() == 0
    clock.sleep(2.1)
    assert pages.run_pending() == 1
    assert granules(host.take()) == [1024, 1536]
    pages.disable_hinting()


def test_pageblock_retyped_by_reporting(host):
    """Reporting changes no pageblock's type, whatever its neighbours' are."""
    pages = real("64MiB")
    for pfn, migratetype in ((512, "unmovable"), (1024, "reclaimable"), (2048, "isolate"), (4096, "unmovable")):
        pages.set_migratetype(pfn, 512, migratetype)
    before = pages.pagetypeinfo()
    with pages.hinting(host.callbacks, workqueue="manual"):
        pages.flush_hinting()
        assert host.blocks
        assert pages.pagetypeinfo() == before
    pages.verify()


def test_failed_report_taken_for_success(make, few_host, clock):
    """What fails is hinted again and retried with back-off, by exception and by mask, block by block."""
    pages = make("16MiB")
    few_host.answer = OSError("the host is gone")
    pages.enable_hinting(few_host.callbacks, workqueue="manual", delay=None, clock=clock)
    pages.flush_hinting()
    assert pages.stats().hints_pending == 8
    assert pages.stats().blocks_reported == 0
    assert isinstance(pages.last_error, OSError)
    few_host.take()
    assert pages.run_pending() == 0  # backs off
    few_host.answer = lambda blocks: blocks["pfn"] != 1024
    clock.sleep(0.11)
    assert pages.run_pending() == 1
    assert pages.stats().blocks_reported == 3
    assert pages.stats().hints_pending == 2
    few_host.answer = None
    few_host.take()
    clock.sleep(0.11)
    assert pages.run_pending() == 0  # the second pause is longer
    clock.sleep(0.11)
    assert pages.run_pending() == 1
    assert few_host.take() == [(1024, 10)]
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_one_page_freed_re_reporting_the_whole_4_mib_block(make, few_host):
    """Only the granule that was touched is reported again."""
    pages = make("4MiB")
    pages.enable_hinting(few_host.callbacks, workqueue="manual")
    pages.flush_hinting()
    assert few_host.take() == [(0, 10)]
    pages.alloc_pages_at(700)
    pages.free_pages(700)
    pages.flush_hinting()
    assert few_host.take() == [(512, 9)]
    pages.flush_hinting()
    assert few_host.take() == []
    pages.disable_hinting()


def test_two_nodes(few_host):
    """Each node's zones are scanned, and blocks say which zone they are of."""
    pages = ph.PageAllocator.x86_64("8GiB", nodes=2, pcp=False, watermarks=None)
    names = [(zone.node, zone.name) for zone in pages.zones]
    assert names == [(0, "DMA"), (0, "DMA32"), (0, "Normal"), (1, "Normal")]
    zones = set()
    few_host.answer = lambda blocks: zones.update(blocks["zone"].tolist())
    with pages.hinting(few_host.callbacks, workqueue="manual"):
        pages.flush_hinting()
    assert zones == {0, 1, 2, 3}
    for pfn, order in few_host.blocks:
        [zone] = [z for z in pages.zones if z.start_pfn <= pfn < z.start_pfn + z.spanned_pages]
        assert pfn + (1 << order) <= zone.start_pfn + zone.spanned_pages
    assert len({pfn for pfn, _ in few_host.blocks}) == len(few_host.blocks)
    taken = sum(1 << order for _, order in few_host.blocks)
    assert taken == sum((z.managed_pages + z.start_pfn % GRANULE) // GRANULE * GRANULE for z in pages.zones) - GRANULE


def test_zone_growth_by_hotplug(make, host):
    """A zone that grows while hinting is on has hints and reports for the new memory too; older views stay good."""
    pages = make("256MiB")
    pages.enable_hinting(host.callbacks, workqueue="manual")
    if make is real:
        old_view = pages.zones[0].hint_bitmap
    pages.flush_hinting()
    host.take()
    pages.online(1 << 20, 32768)  # far above: the gap becomes a hole
    assert pages.zones[0].spanned_pages == (1 << 20) + 32768
    assert pages.zones[0].managed_pages == 65536 + 32768
    pages.flush_hinting()
    assert granules(host.take()) == list(range(1 << 20, (1 << 20) + 32768, GRANULE))
    with pytest.raises(ph.BadPageError):
        pages.alloc_pages_at(1 << 19)
    pages.alloc_pages_at((1 << 20) + 32767)
    pages.verify()
    if make is real:
        assert not old_view.any()
    pages.disable_hinting()


def test_re_enable_without_disable(make, few_host):
    """A second enable is refused and changes nothing; the first goes on."""
    pages = make("16MiB")
    pages.enable_hinting(few_host.callbacks, workqueue="manual", threshold=5)
    other = RecordingHost(2)
    with pytest.raises(ph.HintingActiveError):
        pages.enable_hinting(other.callbacks, workqueue="manual", threshold=1)
    assert pages.threshold == 5
    pages.flush_hinting()
    assert other.blocks == []
    assert granules(few_host.take()) == list(range(0, 4096, GRANULE))
    with pytest.raises(ph.HintingActiveError):
        pages.enable_hinting(other.callbacks, workqueue="manual")
    assert pages.stats().hints_pending == 0  # nor has it hinted anew what is reported
    pages.disable_hinting()
    pages.enable_hinting(other.callbacks, workqueue="manual")
    pages.disable_hinting()
