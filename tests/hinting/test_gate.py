"""The watermark gate: a zone that is short of memory reports nothing, until it has enough again."""

from __future__ import annotations

from allocators import real

import pagehint as ph


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
