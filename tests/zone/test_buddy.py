"""Free blocks are maximal and within one zone: after a start, a split and a merge, at any largest order."""

from __future__ import annotations

import pytest
from allocators import free_set

import pagehint as ph


def test_a_fresh_machine_is_all_free_in_maximal_blocks(make):
    pages = make("16MiB")
    assert free_set(pages) == [[(0, 10), (1024, 10), (2048, 10), (3072, 10)]]
    pages = make([ph.ZoneSpec("DMA", 1, 4095)])
    assert free_set(pages) == [[(1 << k, k) for k in range(10)] + [(1024, 10), (2048, 10), (3072, 10)]]


def test_blocks_do_not_cross_holes_nor_zones(make):
    pages = make([ph.ZoneSpec("DMA", 0, 1000), ph.ZoneSpec("Normal", 1000, 1048, holes=[(1200, 100)])])
    for zone in pages.zones:
        for pfn, order in zone.free_blocks().tolist():
            assert pfn % (1 << order) == 0
            assert zone.start_pfn <= pfn
            assert pfn + (1 << order) <= zone.start_pfn + zone.spanned_pages
            assert pfn + (1 << order) <= 1200 or pfn >= 1300
    assert [zone.managed_pages for zone in pages.zones] == [1000, 948]


def test_all_pages_can_be_had_and_given_back(make):
    pages = make([ph.ZoneSpec("DMA", 1, 300), ph.ZoneSpec("Normal", 500, 777)])
    before = free_set(pages)
    pfns = [pages.alloc_pages() for _ in range(1077)]
    assert sorted(pfns) == [*range(1, 301), *range(500, 1277)]
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()
    for pfn in reversed(pfns):
        pages.free_pages(pfn)
    assert free_set(pages) == before
    pages.verify()


@pytest.mark.parametrize("top", [0, 1, 5, 6, 7, 20])
def test_any_largest_order(make, top):
    pages = make([ph.ZoneSpec("Normal", 3, 5000)], max_page_order=top)
    before = free_set(pages)
    assert max(order for _, order in before[0]) == min(top, 11)
    pfn = pages.alloc_pages(min(top, 11))
    run = pages.alloc_pages_exact(200)
    pages.verify()
    pages.free_pages_exact(run, 200)
    pages.free_pages(pfn, min(top, 11))
    assert free_set(pages) == before
    pages.verify()
