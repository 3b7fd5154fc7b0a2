"""Hint bits: a bit is set for each granule that is free and unreported, and for no other."""

from __future__ import annotations

import gc
import threading

import pytest
from allocators import real
from hosts import RecordingHost

import pagehint as ph


def test_the_hook_sets_exactly_the_granules_that_became_free(make, host):
    pages = make("64MiB")
    taken = [pages.alloc_pages_at(pfn, 3) for pfn in range(1024, 2048, 8)]
    with pages.hinting(host.callbacks, workqueue="manual", mark_free=False, delay=None):
        for pfn in taken[:63]:
            pages.free_pages(pfn, 3)
        assert pages.stats().hints_pending == 0
        pages.free_pages(taken[63], 3)
        assert pages.stats().hints_pending == 1
        for pfn in taken[64:]:
            pages.free_pages(pfn, 3)
        assert pages.stats().hints_pending == 2
        pages.alloc_pages_at(1030)
        stats = pages.stats()
        assert (stats.hints_pending, stats.hints_set, stats.hints_cleared_by_alloc) == (1, 2, 1)


def test_a_free_of_many_granules_hints_them_all(make, few_host):
    pages = make("64MiB")
    block, run = pages.alloc_pages(10), pages.alloc_pages_exact(5 * 512 + 7)
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, delay=None, threshold=100):
        pages.free_pages(block, 10)
        assert pages.stats().hints_pending == 2
        pages.free_pages_exact(run, 5 * 512 + 7)
        assert pages.stats().hints_pending == 2 + 6


def test_the_bitmap_is_a_view(few_host):
    pages = real("64MiB")
    view = pages.zones[0].hint_bitmap
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    pages.enable_hinting(few_host.callbacks, workqueue="manual")
    assert view[0] == (1 << 32) - 1
    pages.disable_hinting()
    assert view[0] == 0
    del pages
    gc.collect()
    assert view[0] == 0  # the view keeps what it looks at


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


def test_switching_off_cleared_the_whole_bitmap_in_one_hold():
    """A bitmap of more granules than one lock round clears, while another thread allocates and frees."""
    pages = real("20GiB", min_order=0, max_page_order=0)
    pages.enable_hinting(RecordingHost().callbacks, workqueue="manual")
    marked = pages.stats().hints_pending
    assert marked == pages.zones[0].managed_pages > 4 << 20
    stop = threading.Event()

    def work():
        while not stop.is_set():
            pages.free_pages(pages.alloc_pages())

    thread = threading.Thread(target=work)
    thread.start()
    pages.disable_hinting()
    stop.set()
    thread.join()
    assert pages.stats().hints_pending == 0
    pages.verify()
    with pages.hinting(RecordingHost().callbacks, workqueue="manual", mark_free=False):
        assert pages.stats().hints_pending == 0
