"""Many blocks in one call: all of them or none."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from allocators import real, refuse

import pagehint as ph


def test_a_bulk_request_that_cannot_be_met_takes_nothing_and_clears_no_hint(make, few_host):
    pages = make("16MiB")
    with pages.hinting(few_host.callbacks, workqueue="manual"):
        pages.flush_hinting()
        refuse(pages, pages.alloc_pages_bulk, 4097, error=ph.OutOfMemoryError)
        refuse(pages, pages.alloc_pages_bulk, 5, 10, error=ph.OutOfMemoryError)
        assert pages.stats().hints_pending == 0


@pytest.mark.parametrize("orders", [False, True])
def test_an_array_changed_while_it_is_freed_broke_the_zone(orders):
    """A bulk free goes over its arrays twice without the GIL, so they are its own."""
    pages = real("2GiB")
    array, scratch = np.zeros(500_000, np.uint64), np.zeros(500_000, np.uint32)
    good, stop = [0], threading.Event()

    def change():
        while not stop.is_set():
            array[-1], scratch[-1] = 7, 3
            array[-1], scratch[-1] = good[0], 0

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(60):
            pfns = pages.alloc_pages_bulk(500_000)
            array[:] = pfns
            good[0] = pfns[-1]
            try:
                pages.free_pages_bulk(array, scratch if orders else 0)
            except ph.BadPageError:
                pages.free_pages_bulk(pfns)
            pages.verify()
            assert pages.stats().allocated_pages == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("pcp", [True, False])
def test_a_bulk_free_of_two_zones_that_meet_within_a_leaf_was_refused(pcp):
    """Pages of one word of the metadata may be of two zones, each with a word of its own."""
    pages = ph.PageAllocator([ph.ZoneSpec("DMA", 0, 100), ph.ZoneSpec("Normal", 100, 1000)], pcp=pcp)
    for pair in ([99, 100], [100, 99], [99, 100, 98, 101]):
        for pfn in pair:
            pages.alloc_pages_at(pfn)
        pages.free_pages_bulk(pair)
    pages.verify()
    assert pages.stats().allocated_pages == 0


@pytest.mark.parametrize("order", [0, 3, 6, 9])
def test_a_bulk_call_over_two_zones_and_with_one_that_is_wrong(order):
    pages = ph.PageAllocator([ph.ZoneSpec("DMA32", 0, 1 << 15), ph.ZoneSpec("Normal", 1 << 15, 1 << 15)], pcp=False)
    pfns = np.random.default_rng(1).permutation(pages.alloc_pages_bulk(3 << 14 >> order, order))
    wrong = pfns.copy()
    wrong[len(wrong) // 2] = wrong[0]
    with pytest.raises(ph.BadPageError):
        pages.free_pages_bulk(wrong, order)
    pages.free_pages_bulk(pfns[-1:], order)
    with pytest.raises(ph.BadPageError):
        pages.free_pages_bulk(pfns, order)
    pages.free_pages_bulk(pfns[:-1], order)
    pages.verify()
    assert pages.stats().free_pages == 1 << 16


@pytest.mark.parametrize("pcp", [False, True])
def test_a_bulk_free_of_a_good_block_and_a_bad_one_of_the_same_leaf(pcp):
    """The first is withheld before the second is refused, and allocated again then."""
    pages = ph.PageAllocator("64MiB", pcp=pcp)
    pages.alloc_pages_at(8)
    with pytest.raises(ph.BadPageError, match=r"PFN 0x9.*index 1"):
        pages.free_pages_bulk(np.array([8, 9], np.uint64))
    pages.verify()
    pages.free_pages_bulk(np.array([8], np.uint64))
    pages.drain_pcp()
    assert pages.stats().free_pages == pages.stats().managed_pages


def test_a_bulk_allocation_goes_on_in_the_next_zone_where_what_is_left_is_too_small():
    zones = [ph.ZoneSpec("DMA32", 0, 4096), ph.ZoneSpec("Normal", 4096, 4096)]
    pages = ph.PageAllocator(zones, pcp=False)
    for pfn in range(4096, 8192 - 512, 1024):  # of two blocks of order 9, one is left
        pages.alloc_pages_at(pfn + 256)
    pfns = pages.alloc_pages_bulk(6, 9)
    assert (pfns >= 4096).sum() == 4
    assert (pfns < 4096).sum() == 2
    pages.verify()


@pytest.mark.parametrize("order", [1, 5, 7, 9])
def test_a_bulk_allocation_where_enough_is_free_and_nothing_large_enough(order):
    pages = ph.PageAllocator("16MiB", pcp=False)
    pfns = pages.alloc_pages_bulk(4096 >> order - 1, order - 1)
    pages.free_pages_bulk(np.sort(pfns)[::2], order - 1)
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages_bulk(2, order)
    pages.verify()
