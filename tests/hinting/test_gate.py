"""The watermark gate: a zone that is short of memory reports nothing, until it has enough again."""

from __future__ import annotations

import pytest
from allocators import real
from waiting import wait_for

import pagehint as ph


def test_a_zone_under_the_gate_wakes_when_hotplug_lowers_its_watermarks(host):
    """Linux's watermarks are shares of one reserve: memory that comes online elsewhere lowers everybody else's."""
    specs = [ph.ZoneSpec("DMA", 0, 32768), ph.ZoneSpec("Normal", 32768, 32768)]
    pages = real(specs, watermarks="linux")
    dma = pages.zones[0]
    gate = dma.watermarks.low + (8 << 9)
    pages.alloc_pages_at(0, 10)
    for pfn in range(1, (32768 - gate) // 1024):
        pages.alloc_pages_at(pfn * 1024, 10)
    pages.alloc_pages_bulk(dma.free_pages - gate + 1, zone="DMA")
    with pages.hinting(host.callbacks, workqueue="manual", threshold=8, delay=None):
        pages.run_pending()
        assert all(pfn >= 32768 for pfn, _ in host.take())
        pages.online(65536, 32768)
        assert dma.free_pages >= dma.watermarks.low + (8 << 9)
        pages.run_pending()
        assert any(pfn < 32768 for pfn, _ in host.take())


def test_a_zone_under_the_gate_wakes_when_its_watermarks_are_lowered(few_host):
    """Its own only: another zone's change nothing for it."""
    pages = real([ph.ZoneSpec("DMA", 0, 16384), ph.ZoneSpec("Normal", 16384, 16384)])
    dma = pages.zones[0]
    pages.set_watermarks(dma, (0, 16384, 16384))
    with pages.hinting(few_host.callbacks, workqueue="manual", threshold=1, delay=None):
        pages.run_pending()
        assert {pfn < 16384 for pfn, _ in few_host.take()} == {False}
        pages.set_watermarks("Normal", (0, 1, 1))
        assert pages.run_pending() == 0
        pages.set_watermarks("DMA", (0, 16384 - 1023, 16384))
        assert pages.run_pending() == 0  # a page short of the two blocks of its batch
        pages.set_watermarks("DMA", (0, 16384 - 1024, 16384))
        assert pages.run_pending() == 1
        assert {pfn < 16384 for pfn, _ in few_host.take()} == {True}
        assert pages.stats().hints_pending == 0
        pages.set_watermarks("DMA", (0, 16384, 16384))
        pages.free_pages(pages.alloc_pages_at(0, 10), 10)
        pages.run_pending()
        assert few_host.take() == []


def test_a_worker_that_waits_for_the_gate_wakes_when_the_watermarks_are_lowered(few_host):
    pages = real("64MiB", watermarks=(0, 16384, 16384))
    with pages.hinting(few_host.callbacks, threshold=1, delay=None):
        pages.flush_hinting()
        assert few_host.blocks == []
        pages.set_watermarks("Normal", None)
        wait_for(lambda: pages.stats().hints_pending == 0, "the report")


def test_a_gate_that_opens_with_no_hint_behind_it_made_a_pass_for_nothing(make, few_host, clock):
    """What was hinted under the gate is in use by the time that there is memory enough."""
    pages = make("64MiB", watermarks=(0, 512, 512))
    for pfn in range(0, 16384, 256):
        pages.alloc_pages_at(pfn, 8)
    with pages.hinting(few_host.callbacks, workqueue="manual", threshold=1, delay=2.0, clock=clock):
        pages.free_pages(0, 8)
        pages.free_pages(256, 8)
        pages.run_pending()
        pages.alloc_pages_at(0, 8)
        for granule in range(1, 8):
            pages.free_pages(512 * granule, 8)
        assert (pages.stats().isolation_refused, pages.stats().hints_pending) == (1, 0)
        clock.sleep(3)
        assert pages.run_pending() == 0
        assert pages.stats().work_runs == 1
        pages.free_pages(768, 8)
        pages.run_pending()
        assert few_host.blocks == [(512, 9)]


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
    pages = real("64MiB", watermarks=(0, 16384 - 1024, 16384 - 1024))
    few_host.answer = True
    pages.enable_hinting(few_host.callbacks, workqueue="manual", delay=None, threshold=1)
    pages.max_pages = 100
    assert pages.run_pending() == 1
    assert few_host.blocks == []
    pages.max_pages = 2
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


@pytest.mark.parametrize(
    ("memory", "options"),
    [
        ([ph.ZoneSpec("Normal", 1 << 20, 28 << 8)], {}),  # what Host("3100MiB") has above 4 GiB
        ([ph.ZoneSpec("DMA", 1, 4095)], {"watermarks": "linux"}),
        ("4GiB", {"page_size": 65536, "max_page_order": 13}),  # granules of 256 MiB
        ("2MiB", {}),
    ],
)
def test_a_zone_smaller_than_its_gate_never_reported(make, host, memory, options):
    """In a small zone a batch has fewer blocks, at least one, so that the gate can open."""
    pages = make(memory, **options)
    zone = pages.zones[0]
    with pages.hinting(host.callbacks, workqueue="manual"):
        pages.flush_hinting()
    granule = 1 << pages.min_order
    whole = zone.spanned_pages // granule - (zone.start_pfn % granule != 0)
    most = max(zone.managed_pages // 8 // granule, 1)
    reported = sum(1 << order for _, order in host.blocks)
    assert max(map(len, host.batches)) <= most
    assert whole * granule - reported <= zone.watermarks.low + most * granule - granule
    assert reported
    pages.verify()
