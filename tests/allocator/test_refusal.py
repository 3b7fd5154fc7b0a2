"""What a refused call says: the page, the order, the zone and the reason."""

from __future__ import annotations

import pytest
from allocators import exhaust, real

import pagehint as ph


def test_messages_name_the_page_the_order_and_the_zone():
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 100, 4000, node=2, holes=[(1000, 24)])])
    pfn = pages.alloc_pages_at(0x400, 3)
    for args, words in (
        ((0x400, 2), ("0x400", "order 2", "Normal", "node 2", "wrong order")),
        ((0x401, 0), ("0x401", "order 0", "inside an allocated block")),
        ((0x800, 0), ("already free", "double free")),
        ((1010, 0), ("in a hole",)),
        ((5, 0), ("outside every zone",)),
    ):
        with pytest.raises(ph.BadPageError) as error:
            pages.free_pages(*args)
        assert all(word in str(error.value) for word in words), error.value
    pages.free_pages(pfn, 3)
    with pytest.raises(ph.BadPageError, match="already free"):
        pages.free_pages(pfn, 3)
    with pytest.raises(ph.OutOfMemoryError, match=r"order 10.*Normal \(node 2\)"):
        exhaust(pages)


def test_an_order_out_of_range_is_named_with_the_page_and_the_zone():
    pages = real([ph.ZoneSpec("DMA", 0, 1024), ph.ZoneSpec("Normal", 1024, 1024, node=3)])
    for call in (
        lambda: pages.free_pages(0x500, 11),
        lambda: pages.alloc_pages_at(0x500, 11),
        lambda: pages.free_pages_bulk([0x500], 11),
        lambda: pages.free_pages_bulk([0x400, 0x500, 0x600], [0, 11, 12]),
    ):
        with pytest.raises(ph.BadPageError, match=r"PFN 0x500 .*order 11.*Normal, node 3.*from 0 to 10"):
            call()
    with pytest.raises(ph.BadPageError, match=r"PFN 0x9999 .*order -1.*outside every zone"):
        pages.free_pages(0x9999, -1)
    for call in (lambda: pages.alloc_pages(11), lambda: pages.alloc_pages_bulk(3, 11)):
        with pytest.raises(ph.BadPageError, match=r"order 11.*DMA \(node 0\), Normal \(node 3\).*from 0 to 10"):
            call()


def test_a_count_that_overflows_is_out_of_memory():
    pages = real("1GiB", max_page_order=20)
    for count, order in ((2**44, 20), (2**51, 13), (2**51, 20)):
        with pytest.raises(ph.OutOfMemoryError, match=f"{count} blocks of order {order}"):
            pages.alloc_pages_bulk(count, order)
