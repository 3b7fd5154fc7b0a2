"""An allocated block made single pages, which are freed each for itself: `PageAllocator.split_pages`."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pagehint as ph
from pagehint.testing.oracle import OracleAllocator


def pages_of(blocks):
    return [page for pfn, order in blocks for page in range(pfn, pfn + (1 << order))]


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.booleans())
def test_what_is_split_is_freed_page_by_page(seed, pcp):
    """In any order and beside blocks that stay whole; at the end all has merged again."""
    rng = np.random.default_rng(seed)
    pages = ph.PageAllocator("16MiB", pcp=pcp)
    whole = pages.stats().nr_free
    blocks = [(pages.alloc_pages(order), order) for order in rng.integers(0, 9, 12).tolist()]
    split = [block for block in blocks if rng.random() < 0.6]
    for pfn, order in split:
        pages.split_pages(pfn, order)
        pages.verify()
    for pfn in rng.permutation(pages_of(split)).tolist():
        pages.free_pages(pfn)
    for pfn, order in set(blocks) - set(split):
        pages.free_pages(pfn, order)
    pages.drain_pcp()
    pages.verify()
    assert pages.stats().nr_free == whole


@pytest.mark.parametrize("kind", [ph.PageAllocator, OracleAllocator])
@pytest.mark.parametrize("order", [1, 5, 6, 8])
def test_a_part_that_is_given_back_splits_nothing_else(kind, order):
    pages = kind("16MiB", pcp=False)
    free = pages.stats().free_pages
    pfn = pages.alloc_pages(order)
    pages.split_pages(pfn, order)
    with pytest.raises(ph.BadPageError):
        pages.free_pages(pfn, order)
    pages.free_pages(pfn + 1)
    assert pages.stats().free_pages == free - (1 << order) + 1
    with pytest.raises(ph.BadPageError):
        pages.free_pages(pfn + 1)
    for page in {*range(pfn, pfn + (1 << order))} - {pfn + 1}:
        pages.free_pages(page)
    pages.verify()
    assert pages.stats().free_pages == free


@pytest.mark.parametrize("pcp", [False, True])
def test_what_is_no_such_block_is_refused_and_stays(pcp):
    pages = ph.PageAllocator("16MiB", pcp=pcp)
    pfn, other = pages.alloc_pages(3), pages.alloc_pages(7)
    before = [zone.free_blocks().tolist() for zone in pages.zones]
    for place, order in [(pfn, 2), (pfn, 4), (pfn + 1, 0), (pfn + 4, 2), (other, 6), (other + 64, 6), (1 << 40, 0)]:
        with pytest.raises(ph.BadPageError, match=f"{place:#x}"):
            pages.split_pages(place, order)
    with pytest.raises(ph.BadPageError):
        pages.split_pages(pfn, 99)
    assert [zone.free_blocks().tolist() for zone in pages.zones] == before
    pages.verify()
    pages.free_pages(pfn, 3)
    pages.free_pages(other, 7)
    with pytest.raises(ph.BadPageError, match=f"{other:#x}"):
        pages.split_pages(other, 7)


def test_splitting_makes_no_hint_flicker(host):
    """The granule is hinted once, when the last of its pages is free; not when it is split, nor by the first."""
    pages = ph.PageAllocator("64MiB", pcp=False)
    [zone] = pages.zones
    with pages.hinting(host.callbacks, workqueue="manual", delay=None, threshold=1):
        pages.flush_hinting()
        pfn = pages.alloc_pages(9)
        host.take()
        bits = zone.hint_bitmap.copy()
        pages.split_pages(pfn, 9)
        assert (zone.hint_bitmap == bits).all()
        for page in range(pfn, pfn + 511):
            pages.free_pages(page)
        pages.run_pending()
        assert host.take() == []
        pages.free_pages(pfn + 511)
        pages.run_pending()
        assert [block for block in host.take() if block[0] <= pfn < block[0] + (1 << block[1])] != []


def test_splitting_beside_threads_that_use_page_sets():
    """Blocks of leaves that page sets own, or share: nothing is lost, and nothing is handed out twice."""
    pages = ph.PageAllocator("64MiB")
    free = pages.stats().free_pages
    stop, failed = threading.Event(), []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                blocks = [(pages.alloc_pages(order), order) for order in rng.integers(0, 8, 6).tolist()]
                for pfn, order in blocks:
                    if rng.random() < 0.5:
                        pages.split_pages(pfn, order)
                        pages.free_pages_bulk(rng.permutation(np.arange(pfn, pfn + (1 << order))))
                    else:
                        pages.free_pages(pfn, order)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    stop.wait(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    pages.drain_pcp()
    pages.verify()
    assert pages.stats().free_pages == free
