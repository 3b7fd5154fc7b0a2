"""Watermarks and the lowmem reserve: what an ordinary request must leave in a zone."""

from __future__ import annotations

import contextlib

import pytest
from allocators import exhaust, real

import pagehint as ph
from pagehint import layout


def test_watermarks_are_kept(make):
    pages = make("4MiB", watermarks=(100, 200, 300))
    assert len(pages.alloc_pages_bulk(924)) == 924
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages_exact(3)
    assert pages.stats().free_pages == 100


def test_each_zone_has_watermarks_of_its_own():
    pages = real([ph.ZoneSpec("DMA", 0, 1024), ph.ZoneSpec("Normal", 1024, 1024)], watermarks=(1, 2, 3))
    dma, normal = pages.zones
    pages.set_watermarks(dma, (1000, 1001, 1002))
    assert (dma.watermarks, normal.watermarks) == ((1000, 1001, 1002), (1, 2, 3))
    assert "min      1000" in pages.zoneinfo()
    assert len(pages.alloc_pages_bulk(1023 + 24)) == 1047
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages(zone="DMA")
    pages.set_watermarks("DMA", None)
    assert len(pages.alloc_pages_bulk(1000, zone="DMA")) == 1000
    assert (dma.free_pages, normal.free_pages) == (0, 1)


def test_watermarks_of_a_zone_stay_after_hotplug_and_others_follow_linux():
    pages = ph.PageAllocator.x86_64("8GiB", pcp=False)
    by_linux = pages.zones[2].watermarks
    pages.set_watermarks("DMA32", (7, 8, 9))
    pages.online((4 << 20) + pages.zones[2].spanned_pages, 1 << 20)
    assert pages.zones[1].watermarks == (7, 8, 9)
    assert pages.zones[2].watermarks > by_linux
    pages.set_watermarks("DMA32", "linux")
    assert pages.zones[1].watermarks == layout.linux_watermarks([z.managed_pages for z in pages.zones], 4096)[1]
    model = real([ph.ZoneSpec("Normal", 0, 65536)])
    model.set_watermarks("Normal", "linux")
    assert model.zones[0].watermarks == real("256MiB", watermarks="linux").zones[0].watermarks


@pytest.mark.parametrize(
    ("watermarks", "error"),
    [((3, 2, 1), ValueError), ((-1, 0, 0), ValueError), ((1, 2), ValueError), ("Linux", ValueError), (5, TypeError)],
)
def test_watermarks_of_a_zone_refused(watermarks, error):
    pages = real("4MiB", watermarks=(1, 2, 3))
    with pytest.raises(error, match=r"zone Normal \(node 0\): watermarks must be .*; nothing was changed"):
        pages.set_watermarks("Normal", watermarks)
    assert pages.zones[0].watermarks == (1, 2, 3)
    with pytest.raises(ValueError, match="no such zone"):
        pages.set_watermarks("DMA", None)


def test_linux_watermarks_and_reserve():
    pages = ph.PageAllocator.x86_64("16GiB", pcp=False)
    marks = [zone.watermarks for zone in pages.zones]
    managed = [zone.managed_pages for zone in pages.zones]
    # min_free_kbytes = 4 * sqrt(lowmem kbytes), shared out by size; low and high a quarter, or 1/1000, above.
    assert sum(mark.min for mark in marks) == pytest.approx(4 * (sum(managed) * 4) ** 0.5 / 4, rel=0.001)
    assert all(mark.high - mark.low == mark.low - mark.min for mark in marks)
    specs = [ph.ZoneSpec("DMA", 0, 10), ph.ZoneSpec("Normal", 10, 2560)]
    assert layout.lowmem_reserves(specs, layout.zone_ranks(specs), [10, 2560]) == [[0, 10], [0, 0]]
    # DMA gives nothing to requests that could have Normal memory, until it is asked for by name.
    zone = pages.zones[0]
    reserve = int(pages.zoneinfo().split("protection: (")[1].split(")")[0].split(", ")[2])
    assert reserve > zone.managed_pages
    with pytest.raises(ph.OutOfMemoryError):
        exhaust(pages)
    assert zone.free_pages == zone.managed_pages
    assert pages.alloc_pages(0, zone="DMA") < 4096


def test_watermarks_follow_hotplug(make):
    """As in Linux, every zone's are set anew when managed pages change, and the lowmem reserve with them."""
    pages = make("1GiB", watermarks="linux")
    pages.online(8 * 32768, 8 * 32768)
    assert pages.zones[0].watermarks == make("2GiB", watermarks="linux").zones[0].watermarks
    pages.offline(8 * 32768, 8 * 32768)
    assert pages.zones[0].watermarks == make("1GiB", watermarks="linux").zones[0].watermarks
    pages.offline(0, 8 * 32768)
    assert pages.zones[0].watermarks == (0, 0, 0)
    pages = make("256MiB", watermarks=(1, 2, 3))
    pages.online(65536, 32768)
    assert pages.zones[0].watermarks == (1, 2, 3)


def test_the_lowmem_reserve_follows_hotplug():
    specs = [ph.ZoneSpec("DMA", 0, 32768), ph.ZoneSpec("Normal", 32768, 32768)]
    pages = real(specs, watermarks="linux")
    pages.online(65536, 32768)
    left = pages.zones[0].watermarks.min + 65536 // 256
    pages.alloc_pages_bulk(3 * 32768 - left - pages.zones[1].watermarks.min)
    assert pages.zones[0].free_pages == left
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()


def test_lowmem_reserve_holds_in_front_of_page_sets():
    """The pages in a lower zone's set are not for requests that must leave that zone its reserve."""
    pages = ph.PageAllocator.x86_64("8GiB")
    for order in (10, 0):
        with contextlib.suppress(ph.OutOfMemoryError):
            while True:
                pages.alloc_pages(order)
    pages.free_pages(pages.alloc_pages(zone="DMA32"))
    assert pages.stats().pcp_pages > 0
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()
