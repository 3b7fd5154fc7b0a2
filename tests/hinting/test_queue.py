"""When work is queued and run: the threshold, the delay, the watermark gate, the back-off."""

from __future__ import annotations

import time

import pytest
from allocators import real
from hosts import RecordingHost

import pagehint as ph


def test_work_is_queued_once_at_the_threshold(make, few_host):
    pages = make("64MiB")
    blocks = [pages.alloc_pages(9) for _ in range(20)]
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, threshold=5, delay=None):
        for i, block in enumerate(blocks[:10]):
            assert pages.stats().work_queued == (i >= 5)
            pages.free_pages(block, 9)
        assert few_host.blocks == []
        assert pages.run_pending() == 1
        assert pages.stats().hints_pending == 0
        assert pages.run_pending() == 0
        for block in blocks[10:]:
            pages.free_pages(block, 9)
        assert pages.stats().work_queued == 2


def test_a_free_during_a_run_makes_it_run_again(few_host):
    pages = real("64MiB")
    extra = [pages.alloc_pages_at(pfn, 9) for pfn in (0, 512)]
    last = pages.alloc_pages_at(8192, 9)
    few_host.answer = lambda blocks: pages.free_pages(extra.pop(), 9) if extra else None
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, threshold=1, delay=None):
        pages.free_pages(last, 9)
        assert pages.run_pending() > 1  # the callback freed behind the cursor
        assert sorted(few_host.blocks) == [(0, 9), (512, 9), (8192, 9)]


def test_back_off_is_exponential(make, few_host, clock):
    pages = make("16MiB")
    few_host.answer = OSError("no")
    pages.enable_hinting(few_host.callbacks, workqueue="manual", clock=clock, delay=None)
    assert pages.run_pending() == 1
    for pause in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0):
        clock.sleep(pause - 0.01)
        assert pages.run_pending() == 0
        clock.sleep(0.02)
        assert pages.run_pending() == 1
    few_host.answer = None
    clock.sleep(31)
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_settings_change_while_it_runs(make, few_host, clock):
    pages = make("128MiB")
    few_host.answer = lambda blocks: setattr(pages, "max_pages", 7)
    pages.enable_hinting(few_host.callbacks, workqueue="manual", clock=clock)
    assert (pages.max_pages, pages.threshold, pages.delay) == (2, 2, 2.0)
    pages.flush_hinting()
    assert [len(batch) for batch in few_host.batches][:3] == [2, 7, 7]
    pages.run_pending()
    few_host.take()
    assert pages.threshold == 7  # follows max_pages unless set
    pages.threshold, pages.delay = 50, None
    blocks = pages.alloc_pages_bulk(20, 9)
    pages.free_pages_bulk(blocks, 9)
    clock.sleep(1000)
    assert pages.run_pending() == 0
    pages.threshold = 10
    assert pages.run_pending() == 1
    pages.threshold, pages.delay = None, 5.0
    assert pages.threshold == 7
    pages.free_pages(pages.alloc_pages(9), 9)
    clock.sleep(5.1)
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_settings_are_checked():
    pages = real("16MiB")
    for name in ("max_pages", "threshold", "delay"):
        with pytest.raises(ph.HintingInactiveError):
            getattr(pages, name)
        with pytest.raises(ph.HintingInactiveError):
            setattr(pages, name, 1)
    with pages.hinting(RecordingHost().callbacks, workqueue="manual"):
        for name, value in (
            ("max_pages", 0),
            ("threshold", -1),
            ("delay", -1.0),
            ("delay", float("nan")),
            ("delay", 1e99),
        ):
            with pytest.raises(ValueError, match=r".+"):
                setattr(pages, name, value)
    for bad in ({"max_pages": 0}, {"max_pages": 1 << 40}):
        with pytest.raises(ValueError, match="max_pages"):
            ph.PageHintingCallbacks(print, **bad)
    for bad in ({"hint_pages": 3}, {"hint_pages": print, "prepare": 3}, {"hint_pages": print, "cleanup": "x"}):
        with pytest.raises(TypeError):
            ph.PageHintingCallbacks(**bad)
    with pytest.raises(TypeError):
        pages.enable_hinting(print)
    with pytest.raises(ValueError, match="clock"):
        pages.enable_hinting(RecordingHost().callbacks, clock=time.monotonic)


def test_what_needs_hinting_says_so():
    pages = real("16MiB")
    for call in (pages.flush_hinting, pages.run_pending):
        with pytest.raises(ph.HintingInactiveError):
            call()
    pages.disable_hinting()  # nothing to do
    with pages.hinting(RecordingHost().callbacks), pytest.raises(ph.PageHintError, match="manual"):
        pages.run_pending()
    assert not pages.hinting_enabled


def test_a_zone_under_the_gate_wakes_when_hotplug_lowers_its_watermarks(host):
    """Linux's watermarks are shares of one reserve: memory that comes online elsewhere lowers everybody else's."""
    specs = [ph.ZoneSpec("DMA", 0, 32768), ph.ZoneSpec("Normal", 32768, 32768)]
    pages = real(specs, watermarks="linux")
    dma = pages.zones[0]
    gate = dma.watermarks.low + (16 << 9)
    pages.alloc_pages_at(0, 10)
    for pfn in range(1, (32768 - gate) // 1024):
        pages.alloc_pages_at(pfn * 1024, 10)
    pages.alloc_pages_bulk(dma.free_pages - gate + 1, zone="DMA")
    with pages.hinting(host.callbacks, workqueue="manual", delay=None):
        pages.run_pending()
        assert all(pfn >= 32768 for pfn, _ in host.take())
        pages.online(65536, 32768)
        assert dma.free_pages >= dma.watermarks.low + (16 << 9)
        pages.run_pending()
        assert any(pfn < 32768 for pfn, _ in host.take())


def test_every_free_queueing_a_run_under_the_gate(few_host):
    """While a zone is gated, only memory coming back wakes the engine; and then it does."""
    pages = real("64MiB", watermarks=(0, 8192, 8192))
    taken = pages.alloc_pages_bulk(24, 9)
    pages.enable_hinting(few_host.callbacks, workqueue="manual", delay=None, threshold=1)
    pages.run_pending()
    before = pages.stats()
    for _ in range(100):
        pages.free_pages(pages.alloc_pages(9), 9)
        pages.run_pending()
    after = pages.stats()
    assert (after.work_queued, after.work_runs) == (before.work_queued, before.work_runs)
    assert few_host.blocks == []
    pages.free_pages_bulk(taken, 9)
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_a_smaller_batch_opens_the_gate(few_host):
    """The gate moves with `max_pages`, also for a zone that waits at it."""
    pages = real("64MiB")
    few_host.answer = True
    pages.enable_hinting(few_host.callbacks, workqueue="manual", delay=None, threshold=1)
    pages.max_pages = 100
    assert pages.run_pending() == 1
    assert few_host.blocks == []
    pages.max_pages = 2
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()
