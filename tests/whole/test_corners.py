"""Lines that only unusual shapes come to; found by `.ci/coverage`."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
from processes import survives

import pagehint as ph
from pagehint.virtio import SplitQueue


def test_less_than_a_page_and_pages_that_no_pc_has():
    with pytest.raises(ValueError, match="less than a page of 4096 bytes"):
        ph.PageAllocator("100B")
    with pytest.raises(ValueError, match="a PC has pages of 4096 bytes"):
        ph.PageAllocator.x86_64("1GiB", page_size=16384)


@pytest.mark.parametrize("pcp", [False, True])
def test_a_page_inside_a_large_block_is_not_a_block(pcp):
    pages = ph.PageAllocator("64MiB", pcp=pcp)
    pages.alloc_pages_at(1024, 9)
    for free in (lambda: pages.free_pages(1024 + 3), lambda: pages.free_pages_bulk(np.array([1024 + 3], np.uint64))):
        with pytest.raises(ph.BadPageError, match="0x403"):
            free()
    pages.verify()
    pages.free_pages(1024, 9)


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


def test_blocks_of_more_granules_than_a_word_has_bits():
    """The bits of a block of 128 granules fill two words of the bitmap."""
    pages = ph.PageAllocator("4GiB", max_page_order=20, min_order=9, pcp=False)
    pages.alloc_pages_at(0)
    reported = []
    callbacks = ph.PageHintingCallbacks(reported.append, 4)
    with pages.hinting(callbacks, workqueue="manual", max_report_order=16, delay=None):
        pages.flush_hinting()
        assert max(block["order"] for blocks in reported for block in blocks) == 16
        assert pages.stats().pages_reported == (1 << 20) - 512
        # One granule of such a block in use and free again: only it is reported again.
        reported.clear()
        pages.alloc_pages_at((1 << 19) + 512, 9)
        pages.free_pages((1 << 19) + 512, 9)
        pages.flush_hinting()
        assert [int(block["pfn"]) for blocks in reported for block in blocks] == [(1 << 19) + 512]
        # And half of one, 64 granules, for which the free block around them is twice as large.
        reported.clear()
        pages.alloc_pages_at(1 << 19, 15)
        pages.free_pages(1 << 19, 15)
        pages.flush_hinting()
        assert [(int(b["pfn"]), int(b["order"])) for blocks in reported for b in blocks] == [(1 << 19, 15)]


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


def test_a_scan_that_finds_nothing_for_eight_gibibytes_goes_on():
    pages = ph.PageAllocator("32GiB", pcp=False)
    for _ in range(4096 + 2048):  # 24 GiB, more than one word of the bitmap's second level stands for
        pages.alloc_pages(10)
    taken = pages.alloc_pages_bulk(8, 9)
    reported = []
    with pages.hinting(ph.PageHintingCallbacks(reported.append, 4), workqueue="manual", delay=None, mark_free=False):
        pages.free_pages_bulk(taken[-1:], 9)
        pages.flush_hinting()
        assert [int(block["pfn"]) for blocks in reported for block in blocks] == [int(taken[-1])]


def test_a_virtqueue_on_a_machine_whose_numbers_are_not_little_endian(monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(NotImplementedError, match="little-endian"):
        SplitQueue(bytearray(4096), 0, 8)


def test_a_logging_filter_that_raises_does_not_take_the_worker_with_it():
    def refuse(record):
        raise KeyError("in a filter")

    def hint_pages(blocks):
        raise RuntimeError("not taken")

    log = logging.getLogger("pagehint")
    log.addFilter(refuse)
    try:
        pages = ph.PageAllocator("64MiB", pcp=False)
        with pages.hinting(ph.PageHintingCallbacks(hint_pages, 1), delay=None):
            pages.flush_hinting()
            assert isinstance(pages.last_error, RuntimeError)
            pages.flush_hinting()
    finally:
        log.removeFilter(refuse)
    pages.verify()


def test_a_limit_on_address_space_leaves_no_thread_that_no_interrupt_may_tear():
    """There is no address space for its stack: nothing has been done then."""
    survives("""
        import resource
        from pagehint.virtio.undisturbed import undisturbed
        done = []
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), -1))
        try:
            undisturbed(done.append, 1)
        except RuntimeError as error:
            assert "start new thread" in str(error)
        else:
            raise AssertionError("there was a thread")
        assert not done
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        undisturbed(done.append, 1)
        assert done == [1]
    """)
