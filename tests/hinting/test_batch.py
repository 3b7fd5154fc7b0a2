"""A batch: how many blocks are out at once, how large they are, and that nobody else has them."""

from __future__ import annotations

import numpy as np
import pytest
from allocators import real
from hosts import RecordingHost

import pagehint as ph


@pytest.mark.parametrize("most", [1, 3, 16, 60])
def test_never_more_than_max_pages_are_out(make, most):
    pages = make("1GiB")
    host = RecordingHost(most)
    out = []
    host.answer = lambda blocks: out.append((len(blocks), pages.stats().reporting_pages))
    with pages.hinting(host.callbacks, workqueue="manual"):
        pages.flush_hinting()
        if make is real:
            assert pages.stats().reporting_pages == 0
    assert max(n for n, _ in out) == most
    assert all(isolated == n << 10 for n, isolated in out)


@pytest.mark.parametrize(("order", "expected"), [(None, 10), (9, 9), (10, 10), (13, 13)])
def test_blocks_are_as_large_as_allowed(make, host, order, expected):
    pages = make("256MiB", max_page_order=14, min_order=9)
    with pages.hinting(host.callbacks, workqueue="manual", max_report_order=order):
        pages.flush_hinting()
    assert {order for _, order in host.blocks} == {expected}
    assert len(set(host.blocks)) == 65536 >> expected


def test_isolated_blocks_belong_to_nobody(make, few_host):
    pages = make("16MiB", watermarks=(0, 0, 0))
    seen = []

    def check(blocks):
        for block in blocks:
            pfn, order = int(block["pfn"]), int(block["order"])
            assert all(not pfn <= free < pfn + (1 << order) for free, _ in pages.zones[0].free_blocks().tolist())
            for call in (pages.free_pages, pages.alloc_pages_at):
                with pytest.raises(ph.BadPageError):
                    call(pfn, order)
            seen.append(pfn)

    few_host.answer = check
    with pages.hinting(few_host.callbacks, workqueue="manual"):
        pages.flush_hinting()
    assert seen
    assert pages.last_error is None


@pytest.mark.parametrize("order", [4, 6, 9, 10])
def test_cold_memory_was_taken_before_warm(host, order):
    """What the host had dropped was first in the free lists: each allocation faulted, beside memory that was warm."""
    pages = real(f"{4 << order + 7}KiB", min_order=min(order, 9), watermarks=(0, 0, 0))
    blocks = [pages.alloc_pages(order) for _ in range(128)]
    cold, warm, failed = blocks[::8], blocks[4::8], blocks[6::8]  # no two of them are buddies
    with pages.hinting(host.callbacks, workqueue="manual"):
        host.answer = RuntimeError("not now")
        for pfn in failed:
            pages.free_pages(pfn, order)
        pages.run_pending()
        host.answer = None
        pages.disable_hinting()
    with pages.hinting(host.callbacks, workqueue="manual", mark_free=False):
        for pfn in cold:
            pages.free_pages(pfn, order)
        pages.flush_hinting()
        assert sorted(host.take()[-len(cold) :]) == [(pfn, order) for pfn in cold]
        for pfn in warm:
            pages.free_pages(pfn, order)
        assert {pages.alloc_pages(order) for _ in range(32)} == {*warm, *failed}
        assert {pages.alloc_pages(order) for _ in range(16)} == {*cold}
    pages.verify()


def test_a_cold_block_that_merged_was_taken_before_warm(few_host):
    pages = real("64MiB", watermarks=(0, 0, 0))
    blocks = [pages.alloc_pages(9) for _ in range(32)]
    for pfn in blocks[8:10] + blocks[12:14]:  # two pairs of buddies: each becomes a block of order 10
        pages.free_pages(pfn, 9)
    with pages.hinting(few_host.callbacks, workqueue="manual", max_report_order=9, mark_free=False):
        for pfn in blocks[0:2] + blocks[4:6]:
            pages.free_pages(pfn, 9)
        pages.flush_hinting()
        assert len(few_host.take()) == 4
        assert {pages.alloc_pages(10) >> 9 for _ in range(2)} == {8, 12}
        assert {pages.alloc_pages(10) >> 9 for _ in range(2)} == {0, 4}
    pages.verify()


def test_blocks_are_a_read_only_array_of_the_callee(few_host):
    pages = real("16MiB")
    kept = []
    with pages.hinting(ph.PageHintingCallbacks(kept.append, 2), workqueue="manual"):
        pages.flush_hinting()
    assert all(blocks.dtype == ph.BLOCK_DTYPE for blocks in kept)
    assert np.concatenate(kept).tolist() == [(0, 10, 0), (1024, 10, 0), (2048, 10, 0), (3072, 10, 0)]
    with pytest.raises(ValueError, match="read-only"):
        kept[0]["pfn"] = 7


@pytest.mark.parametrize("order", [6, 9])
def test_what_a_batch_left_of_a_cold_block_was_taken_before_warm(order):
    """A granule of a cold block is used and freed, and reported again: meanwhile the other half was first."""
    size, taken, watching = 1 << order, [], False
    pages = real([ph.ZoneSpec("Normal", 0, 8 * size)], max_page_order=order + 1, min_order=order)

    def hint_pages(blocks):
        if watching and not taken:
            assert blocks["pfn"].tolist() == [0]
            taken.append(pages.alloc_pages(order))

    with pages.hinting(ph.PageHintingCallbacks(hint_pages, max_pages=1), workqueue="manual"):
        pages.flush_hinting()
        used = [pages.alloc_pages_at(pfn, order) for pfn in (0, 2 * size, 3 * size)]
        for pfn in used[:2]:
            pages.free_pages(pfn, order)
        watching = True
        pages.flush_hinting()
        assert pages.last_error is None
    assert taken == [2 * size]  # which is warm
    pages.verify()
