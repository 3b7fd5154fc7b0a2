"""A batch: how many blocks are out at once, how large they are, and that nobody else has them."""

from __future__ import annotations

import numpy as np
import pytest
from allocators import real
from hosts import RecordingHost

import pagehint as ph


@pytest.mark.parametrize("most", [1, 3, 16, 60])
def test_never_more_than_max_pages_are_out(make, most):
    pages = make("256MiB")
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


def test_blocks_are_a_read_only_array_of_the_callee(few_host):
    pages = real("16MiB")
    kept = []
    with pages.hinting(ph.PageHintingCallbacks(kept.append, 2), workqueue="manual"):
        pages.flush_hinting()
    assert all(blocks.dtype == ph.BLOCK_DTYPE for blocks in kept)
    assert np.concatenate(kept).tolist() == [(0, 10, 0), (1024, 10, 0), (2048, 10, 0), (3072, 10, 0)]
    with pytest.raises(ValueError, match="read-only"):
        kept[0]["pfn"] = 7
