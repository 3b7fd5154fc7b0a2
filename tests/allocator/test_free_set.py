"""What is free, as a bitmap and around a page."""

from __future__ import annotations

import threading
from contextlib import suppress

import numpy as np
import pytest
from allocators import real
from hypothesis import given, settings
from hypothesis import strategies as st

import pagehint as ph
from pagehint.testing import LAYOUTS
from pagehint.testing.oracle import OracleAllocator


def booleans(words):
    return np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)


def test_a_bit_for_each_free_page(make):
    pages = make([ph.ZoneSpec("DMA", 1, 99), ph.ZoneSpec("Normal", 100, 5000, holes=[(1024, 10)])])
    pages.alloc_pages_at(64, 3)
    pages.alloc_pages_at(2048, 10)
    words = pages.free_bitmap()
    assert words.dtype == np.uint64
    assert words.shape == (-(-5100 // 64),)
    free = np.zeros(len(words) * 64, bool)
    free[1:5100] = True
    for pfn, nr_pages in ((64, 8), (2048, 1024), (1024, 10)):
        free[pfn : pfn + nr_pages] = False
    assert np.array_equal(booleans(words), free)


def test_a_zone_s_bitmap_begins_where_its_hint_bitmap_does():
    pages = real([ph.ZoneSpec("DMA", 1, 99), ph.ZoneSpec("Normal", 5000, 5000)])
    dma, normal = pages.zones
    assert normal.hint_base_pfn == 4096
    assert np.flatnonzero(booleans(dma.free_bitmap())).tolist() == list(range(1, 100))
    assert (np.flatnonzero(booleans(normal.free_bitmap())) + 4096).tolist() == list(range(5000, 10000))


def test_what_is_in_a_page_set_or_out_with_the_host_is_not_free():
    seen = []
    pages = ph.PageAllocator("64MiB", pcp=True)
    pages.free_pages(pages.alloc_pages())
    stats = pages.stats()
    assert stats.pcp_pages
    assert booleans(pages.free_bitmap()).sum() == stats.free_pages

    def look(blocks):
        bits = booleans(pages.free_bitmap())
        for pfn, order, _ in blocks.tolist():
            assert not bits[pfn : pfn + (1 << order)].any()
            assert pages.free_block_at(pfn) is None
        seen.append(len(blocks))

    with pages.hinting(ph.PageHintingCallbacks(look), workqueue="manual"):
        pages.flush_hinting()
    assert pages.last_error is None
    assert seen


def test_a_block_larger_than_a_round_under_the_lock():
    """A round is 2**18 pages; a free block that begins before it goes on in it."""
    pages = real("16GiB", max_page_order=22)
    assert booleans(pages.free_bitmap()).all()
    assert pages.free_block_at((1 << 22) - 1) == (0, 22)
    pages.alloc_pages_at(1 << 20, 20)
    bits = booleans(pages.free_bitmap())
    assert not bits[1 << 20 : 2 << 20].any()
    assert bits.sum() == 3 << 20


def test_the_free_block_around_a_page(make):
    pages = make([ph.ZoneSpec("Normal", 64, 5000, holes=[(1024, 10)])])
    pages.alloc_pages_at(2048, 3)
    assert pages.free_block_at(2048) is None
    assert pages.free_block_at(2055) is None
    assert pages.free_block_at(2056) == (2056, 3)
    assert pages.free_block_at(2100) == (2080, 5)
    assert pages.free_block_at(3000) == (2560, 9)
    assert pages.free_block_at(1025) is None  # a hole
    for pfn in (0, 63, 5064, 1 << 60):
        with pytest.raises(ph.BadPageError, match="outside every zone"):
            pages.free_block_at(pfn)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_around_every_page_as_the_oracle_says(layout, seed):
    rng, chosen = np.random.default_rng(seed), LAYOUTS[layout]
    pages, oracle = real(chosen.zones, **chosen.options), OracleAllocator(chosen.zones, **chosen.options)
    for pfn in rng.integers(0, max(zone.end_pfn for zone in chosen.zones), 20).tolist():
        order = int(rng.integers(0, chosen.max_page_order + 1))
        for each in (pages, oracle):
            with suppress(ph.BadPageError):
                each.alloc_pages_at(pfn >> order << order, order)
    assert np.array_equal(pages.free_bitmap(), oracle.free_bitmap())
    for zone in chosen.zones:
        for pfn in rng.integers(zone.start_pfn, zone.end_pfn, 40).tolist():
            assert pages.free_block_at(pfn) == oracle.free_block_at(pfn)


def test_a_block_is_never_seen_in_part_while_others_allocate():
    pages, stop, whole = real("256MiB"), threading.Event(), {0, 1024}

    def churn() -> None:
        while not stop.is_set():
            pages.free_pages_bulk(pages.alloc_pages_bulk(20, 10), 10)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            blocks = booleans(pages.free_bitmap()).reshape(-1, 1024).sum(axis=1)
            assert set(blocks.tolist()) <= whole
    finally:
        stop.set()
        for thread in threads:
            thread.join()
