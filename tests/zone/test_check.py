"""A wrong free, or one of what is free already, is refused and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from allocators import refuse

import pagehint as ph


def test_mistakes_are_refused_and_change_nothing(make):
    pages = make([ph.ZoneSpec("Normal", 100, 4000, holes=[(1000, 24)])])
    block = pages.alloc_pages_at(1024, 3)
    large = pages.alloc_pages_at(2048, 8)
    exact = pages.alloc_pages_exact(100)
    single = pages.alloc_pages_at(1500)
    pages.free_pages(single)
    for pfn, order in (
        (single, 0),  # double free
        (block, 2),  # wrong orders
        (block, 4),
        (large, 7),
        (large, 9),
        (block + 1, 0),  # inside
        (large + 64, 0),
        (large + 64, 6),
        (exact, 6),
        (exact + 64, 0),
        (3000, 0),  # never allocated
        (0, 0),  # outside every zone
        (99, 0),
        (4100, 0),
        (1 << 40, 0),
        (1010, 0),  # in a hole
        (block, -1),  # no such order
        (block, 11),
    ):
        refuse(pages, pages.free_pages, pfn, order)
        refuse(pages, pages.free_pages_bulk, [block, pfn], [3, order] if order >= 0 else [3, 99])
    refuse(pages, pages.free_pages_bulk, [block, large, block], [3, 8, 3])  # twice
    refuse(pages, pages.alloc_pages, -1)
    refuse(pages, pages.alloc_pages, 11)
    refuse(pages, pages.alloc_pages_bulk, -1)
    refuse(pages, pages.alloc_pages_exact, 0)
    refuse(pages, pages.alloc_pages_exact, -5)
    refuse(pages, pages.free_pages_exact, exact, 99)
    refuse(pages, pages.free_pages_exact, exact + 64, 36)
    refuse(pages, pages.alloc_pages_at, 1010)
    refuse(pages, pages.alloc_pages_at, 4096 - 4, 3)
    refuse(pages, pages.alloc_pages_bulk, 10_000, error=ph.OutOfMemoryError)
    pages.free_pages(block, 3)
    pages.free_pages(large, 8)
    pages.free_pages_exact(exact, 100)
    assert pages.stats().allocated_pages == 0


@pytest.mark.parametrize("pcp", [False, True])
def test_a_page_inside_a_large_block_is_not_a_block(pcp):
    pages = ph.PageAllocator("64MiB", pcp=pcp)
    pages.alloc_pages_at(1024, 9)
    for free in (lambda: pages.free_pages(1024 + 3), lambda: pages.free_pages_bulk(np.array([1024 + 3], np.uint64))):
        with pytest.raises(ph.BadPageError, match="0x403"):
            free()
    pages.verify()
    pages.free_pages(1024, 9)
