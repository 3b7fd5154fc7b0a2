"""Many runs of pages at exact places, in one call: all of them or none."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from allocators import free_set, real, refuse
from hypothesis import given, settings
from hypothesis import strategies as st

import pagehint as ph
from pagehint.testing import LAYOUTS
from pagehint.testing.oracle import OracleAllocator


def test_a_whole_machine_s_pages_are_taken_and_freed_one_by_one(make):
    pages = make("16MiB")
    before = free_set(pages)
    pages.alloc_pages_at_bulk([0, 100, 3000], [70, 1, 1096])
    assert pages.stats().allocated_pages == 70 + 1 + 1096
    pages.verify()
    refuse(pages, pages.free_pages, 0, 1)  # blocks of order 0
    pages.free_pages_bulk([*range(70), 100, *range(3000, 4096)])
    assert free_set(pages) == before


@pytest.mark.parametrize("order", [0, 3, 6, 9, 10])
def test_the_blocks_are_of_the_order(make, order):
    pages = make("16MiB")
    unit = 1 << order
    pages.alloc_pages_at_bulk([2048, 0], [2048, 1024], order)
    refuse(pages, pages.free_pages, 0, order - 1 if order else 1)
    pages.free_pages_bulk(range(2048, 4096, unit), order)
    pages.free_pages_bulk(range(0, 1024, unit), order)
    assert pages.stats().free_pages == 4096


def test_no_run_at_all(make):
    pages = make("16MiB")
    pages.alloc_pages_at_bulk([], [])
    pages.alloc_pages_at_bulk([], 3, 2)
    assert pages.stats().allocated_pages == 0


@pytest.mark.parametrize(
    ("pfns", "counts", "order"),
    [
        ([10, 300], [4, 100], 0),  # 350 is in use
        ([10, 5], [4, 6], 0),  # they overlap
        ([10, 10], [4, 1], 0),
        ([10, 4090], [4, 7], 0),  # beyond the zone
        ([10, 4096], [4, 1], 0),  # outside
        ([10, 1 << 52], [4, (1 << 52) - 1], 0),
        ([10, (1 << 64) - 1], [4, 2], 0),  # wraps around
        ([8, 17], [4, 4], 2),  # not aligned
        ([8, 16], [4, 3], 2),
        ([8, 16], [4, 0], 0),  # nothing
        ([8, 16], [4, 4], 11),
    ],
)
def test_one_run_that_is_refused_leaves_all(make, few_host, pfns, counts, order):
    pages = make("16MiB")
    pages.alloc_pages_at(350)
    with pages.hinting(few_host.callbacks, workqueue="manual"):
        pages.flush_hinting()
        refuse(pages, pages.alloc_pages_at_bulk, pfns, counts, order)
        assert pages.stats().hints_pending == 0  # nothing was touched for a moment


def test_the_refused_run_is_named():
    pages = real("16MiB")
    pages.alloc_pages_at(350)
    for arguments, words in (
        (([300, 10], [100, 4]), r"PFN 0x12c \(order 0, 100 pages, index 0, zone Normal, node 0\): not all free"),
        (([12, 10], [1, 4]), r"PFN 0xc \(order 0, 1 pages, index 0, .*overlaps another run"),
        (([0, 33], 8, 3), r"PFN 0x21 \(order 3, 8 pages, index 1, .*not aligned"),
        (([0, 33], [8, -1]), r"PFN 0x21 \(index 1\): nr_pages must be from 1"),
        (([4000], [97]), r"PFN 0xfa0 .*reaches beyond the zone's end"),
    ):
        with pytest.raises(ph.BadPageError, match=words):
            pages.alloc_pages_at_bulk(*arguments)
    with pytest.raises(ValueError, match="3 numbers of pages for 2 runs"):
        pages.alloc_pages_at_bulk([1, 2], [1, 1, 1])
    with pytest.raises(TypeError):
        pages.alloc_pages_at_bulk([1, 2], [1.5, 1])


def test_isolate_pageblocks_holes_and_zones_within_one_leaf(make):
    pages = make([ph.ZoneSpec("DMA", 1, 99), ph.ZoneSpec("Normal", 100, 5000, holes=[(1024, 10)])])
    refuse(pages, pages.alloc_pages_at_bulk, [90], [20])  # in two zones
    refuse(pages, pages.alloc_pages_at_bulk, [0], [2])
    refuse(pages, pages.alloc_pages_at_bulk, [1000], [30])
    pages.set_migratetype(2048, 512, "isolate")
    refuse(pages, pages.alloc_pages_at_bulk, [2, 2000], [1, 49])
    pages.alloc_pages_at_bulk([100, 90, 64, 110], [5, 10, 3, 4])
    pages.verify()
    assert pages.stats().allocated_pages == 22
    pages.free_pages_bulk([*range(90, 105), *range(64, 67), *range(110, 114)])
    assert pages.stats().allocated_pages == 0


def test_what_page_sets_and_the_host_have_is_waited_for():
    pages, out = ph.PageAllocator("64MiB", pcp=True), threading.Event()
    pages.free_pages(pages.alloc_pages())
    assert pages.stats().pcp_pages

    def hint_pages(blocks):
        out.set()
        time.sleep(0.05)  # nobody can know when the other thread waits

    with pages.hinting(ph.PageHintingCallbacks(hint_pages)):
        assert out.wait(10)
        pages.alloc_pages_at_bulk([0], [1 << 14])
        assert pages.stats().allocated_pages == 1 << 14
    pages.verify()


def test_in_an_arena_which_grows_to_where_the_runs_are():
    with ph.Arena("64MiB") as arena:
        pages, array = arena.pages, arena.empty(100_000, "u1")
        last = (64 << 20) // pages.page_size
        pages.alloc_pages_at_bulk([last - 5, 5000, 4000], [5, 70, 200])
        pages.verify()
        for pfn in (last - 1, 5069, 4000):
            assert pages.free_block_at(pfn) is None
        refuse(pages, pages.alloc_pages_at_bulk, [6000, last], [1, 1])
        other = arena.empty(1 << 20, "u1")  # is placed elsewhere
        other[:] = array[:] = 1
        pages.verify()
        pages.free_pages_bulk([*range(last - 5, last), *range(5000, 5070), *range(4000, 4200)])
        pages.verify()
        del array, other


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_any_runs_as_the_oracle_takes_them(layout, seed):
    rng, chosen = np.random.default_rng(seed), LAYOUTS[layout]
    both = [kind(chosen.zones, **chosen.options) for kind in (real, OracleAllocator)]
    for zone in both[0].zones:
        start, span = zone.start_pfn, zone.spanned_pages
        edges = np.sort(rng.choice(span, min(2 * int(rng.integers(1, 60)), span // 2 * 2), replace=False))
        runs = [(start + int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]
        free = np.unpackbits(zone.free_bitmap().view(np.uint8), bitorder="little")  # of this zone alone
        base = zone.hint_base_pfn
        runs = [(pfn, count) for pfn, count in runs if free[pfn - base : pfn - base + count].all()]
        order = rng.permutation(len(runs))
        for pages in both:
            pages.alloc_pages_at_bulk([runs[i][0] for i in order], [runs[i][1] for i in order])
    assert np.array_equal(both[0].free_bitmap(), both[1].free_bitmap())
    assert free_set(both[0]) == free_set(both[1])
    both[0].verify()


def test_threads_that_want_the_same_runs_get_all_or_none():
    """A run that another thread takes between the look and the taking: what was taken goes back."""
    pages, threads = real("64MiB"), []
    got = [0] * 4

    def claim(me: int) -> None:
        pfns = np.arange(me, 1 << 14, 97, dtype=np.uint64)[::-1]
        pfns = np.append(pfns, np.uint64((1 << 14) - 1)) if int(pfns[0]) != (1 << 14) - 1 else pfns
        for _ in range(50):
            try:
                pages.alloc_pages_at_bulk(pfns, 1)
            except ph.BadPageError:
                continue
            got[me] += 1
            pages.free_pages_bulk(pfns)

    for me in range(4):
        threads.append(threading.Thread(target=claim, args=(me,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    pages.verify()
    assert sum(got) > 0
    assert pages.stats().free_pages == 1 << 14
