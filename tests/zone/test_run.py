"""Runs: contiguous pages of any number, taken and freed as one."""

from __future__ import annotations

import pytest
from allocators import free_set

import pagehint as ph


@pytest.mark.parametrize("nr_pages", [1, 2, 3, 5, 31, 33, 63, 64, 65, 100, 127, 513, 1000, 1023, 1024])
def test_exact_size(make, nr_pages):
    pages = make("16MiB")
    before = free_set(pages)
    pfn = pages.alloc_pages_exact(nr_pages)
    assert pages.stats().allocated_pages == nr_pages
    pages.verify()
    for wrong in {nr_pages - 1, nr_pages + 1, nr_pages * 2} - {0}:
        with pytest.raises(ph.BadPageError):
            pages.free_pages_exact(pfn, wrong)
    if nr_pages & (nr_pages - 1):
        with pytest.raises(ph.BadPageError):
            pages.free_pages(pfn, min(nr_pages.bit_length(), 10))
    pages.free_pages_exact(pfn, nr_pages)
    assert free_set(pages) == before
    pages.verify()


def test_exact_size_beyond_the_largest_block(make):
    """A run across blocks: more than any block has."""
    pages = make("16MiB")
    before = free_set(pages)
    pfn = pages.alloc_pages_exact(4000)
    assert pages.stats().free_pages == 96
    pages.verify()
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages_exact(97)
    with pytest.raises(ph.BadPageError):
        pages.free_pages_exact(pfn, 3999)
    pages.free_pages_exact(pfn, 4000)
    assert free_set(pages) == before
    pfn = pages.alloc_pages_exact(4096)
    pages.free_pages_exact(pfn, 4096)
    assert free_set(pages) == before
    pages.verify()


def test_a_run_is_freed_at_its_own_length_only():
    pages = ph.PageAllocator("64MiB", pcp=False)
    pfn = pages.alloc_pages_exact(320)
    for wrong in (192, 319, 321, 384, 65, 1):
        with pytest.raises(ph.BadPageError, match=f"{pfn:#x}"):
            pages.free_pages_exact(pfn, wrong)
    pages.verify()
    pages.free_pages_exact(pfn, 320)


def test_a_run_in_the_leaf_of_a_page_set_is_none():
    pages = ph.PageAllocator("256MiB")
    pfns = [pages.alloc_pages() for _ in range(100)]
    for pfn in pfns:
        with pytest.raises(ph.BadPageError):
            pages.free_pages_exact(pfn, 3)
    for pfn in pfns:
        pages.free_pages(pfn)
    pages.verify()
