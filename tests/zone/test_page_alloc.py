"""Where a request is served: the zone, the node, the exact place asked for."""

from __future__ import annotations

import pytest

import pagehint as ph


def test_requests_fall_back_to_lower_zones_and_never_to_higher(make):
    pages = make([ph.ZoneSpec("DMA", 0, 1024), ph.ZoneSpec("Normal", 1024, 1024)])
    assert pages.alloc_pages(10) >= 1024
    assert pages.alloc_pages(9) < 1024  # Normal is full
    pages = make([ph.ZoneSpec("DMA", 0, 1024), ph.ZoneSpec("Normal", 1024, 1024)])
    assert pages.alloc_pages(10, zone="DMA") == 0
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages(0, zone="DMA")


def test_requests_fall_back_to_other_nodes(make):
    pages = make([ph.ZoneSpec("Normal", 0, 1024, node=0), ph.ZoneSpec("Normal", 1024, 1024, node=1)])
    assert pages.alloc_pages(10) == 0
    assert pages.alloc_pages(10) == 1024


def test_exact_place(make):
    pages = make("16MiB")
    assert pages.alloc_pages_at(1234) == 1234
    assert pages.alloc_pages_at(2048, 10) == 2048
    for pfn, order in ((1234, 0), (1024, 9), (2048, 0), (2560, 9), (1235, 1)):
        with pytest.raises(ph.BadPageError):
            pages.alloc_pages_at(pfn, order)
    pages.free_pages(1234)
    pages.free_pages(2048, 10)
    assert pages.stats().free_pages == 4096
    pages.verify()


def test_asking_for_a_place_in_a_hole_emptied_the_page_sets():
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 0, 131072, holes=[(60000, 100)])])
    pages.offline(98304, 32768)
    pages.alloc_pages()
    held = pages.stats().pcp_pages
    assert held
    for pfn, order, words in (
        (60001, 0, "in a hole"),
        (59904, 8, "reaches into a hole at PFN 0xea60"),
        (100000, 3, "in an offline section"),
        (131072 - 1024, 10, "in an offline section"),
    ):
        with pytest.raises(ph.BadPageError, match=words):
            pages.alloc_pages_at(pfn, order)
        assert pages.stats().pcp_pages == held
