"""Per-CPU page sets in front of the zones."""

from __future__ import annotations

import pytest

import pagehint as ph


def test_per_cpu_page_sets():
    pages = ph.PageAllocator("1GiB")
    pfn = pages.alloc_pages()
    stats = pages.stats()
    assert stats.pcp_pages == 255  # a cache line of leaves, of 64 pages each, is reserved for this CPU
    assert stats.allocated_pages == 1
    pages.free_pages(pfn)
    with pytest.raises(ph.BadPageError, match="already free"):
        pages.free_pages(pfn)  # it is in a set, not in the buddy
    assert pages.alloc_pages_at(pfn) == pfn  # free it is, though: the sets are emptied for it
    pages.free_pages(pfn)
    pages.verify()
    pages.drain_pcp()
    assert pages.stats().pcp_pages == 0
    assert pages.zones[0].nr_free[10] == 256
    pfns = [pages.alloc_pages(order) for order in (0, 1, 2, 3) * 200]
    pages.verify()
    for i, pfn in enumerate(pfns):
        pages.free_pages(pfn, (0, 1, 2, 3)[i % 4])
    assert pages.stats().allocated_pages == 0
    pages.verify()


def test_page_sets_are_emptied_before_memory_is_short():
    pages = ph.PageAllocator("1GiB")
    pages.free_pages(pages.alloc_pages())
    assert pages.stats().pcp_pages > 0
    assert len([pages.alloc_pages(10) for _ in range(256)]) == 256
