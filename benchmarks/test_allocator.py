"""The rows of the table in README.md: what a page costs, against a linked-list buddy in the same run.

Every row works on at most four million pages, through the bulk calls, so that the loop is compiled code on both sides.
"""

from __future__ import annotations

import numpy as np
import pytest

import pagehint as ph

MOST = 1 << 22


def run(benchmark, pages, work, setup, count):
    benchmark.pedantic(work, setup=setup, rounds=3)
    benchmark.extra_info["ns_per_item"] = benchmark.stats.stats.median * 1e9 / count
    benchmark.extra_info["metadata_bytes_per_page"] = pages.bytes_per_page


def page_count(gib):
    return min(gib << 18, MOST)


def test_order_0_alloc(benchmark, pages, gib):
    taken = []

    def give_back():
        for pfns in taken:
            pages.free_pages_bulk(pfns)
        taken.clear()

    run(benchmark, pages, lambda: taken.append(pages.alloc_pages_bulk(page_count(gib))), give_back, page_count(gib))
    give_back()
    assert pages.all_free()


@pytest.mark.parametrize("shuffled", [False, True], ids=["in-order", "random"])
def test_order_0_free(benchmark, pages, gib, shuffled):
    rng = np.random.default_rng(1)

    def take():
        pfns = np.sort(pages.alloc_pages_bulk(page_count(gib)))
        if shuffled:
            rng.shuffle(pfns)
        return (pfns,), {}

    run(benchmark, pages, pages.free_pages_bulk, take, page_count(gib))
    assert pages.all_free()


def test_order_9_alloc_and_free(benchmark, pages, gib):
    count = page_count(gib) >> 9
    turn = np.random.default_rng(2).permutation(count)

    def work():
        pages.free_pages_bulk(pages.alloc_pages_bulk(count, 9)[turn], 9)

    run(benchmark, pages, work, None, count)
    assert pages.all_free()


def test_mixed_orders_half_full(benchmark, pages, gib):
    """Batches of 64 blocks of an order drawn anew each time, allocated and freed while half of the memory is in use."""
    half = pages.alloc_pages_bulk(gib << 17)
    rng = np.random.default_rng(3)
    orders = rng.integers(0, 10, 300).tolist()

    def work():
        held = []
        for order in orders:
            held.append((pages.alloc_pages_bulk(64, order), order))
            if len(held) > 3:
                pages.free_pages_bulk(*held.pop(0))
        for pfns, order in held:
            pages.free_pages_bulk(pfns, order)

    run(benchmark, pages, work, None, 300 * 64 * 2)
    pages.free_pages_bulk(half)
    assert pages.all_free()


def test_hinting(benchmark, gib):
    """Isolate, report to a Python function that does nothing, put back: a block."""
    pages = ph.PageAllocator(f"{gib}GiB", pcp=False)
    callbacks = ph.PageHintingCallbacks(lambda blocks: None, 64)

    def enable():
        pages.disable_hinting()
        pages.enable_hinting(callbacks, workqueue="manual")

    benchmark.pedantic(pages.flush_hinting, setup=enable, rounds=3)
    benchmark.extra_info["ns_per_item"] = benchmark.stats.stats.median * 1e9 / (gib << 8)
    assert pages.stats().hints_pending == 0


@pytest.mark.parametrize("pcp", [True, False], ids=["pcp", "no-pcp"])
def test_python_pair(benchmark, pcp):
    """One page allocated and freed by two calls from Python."""
    pages = ph.PageAllocator("16GiB", pcp=pcp)
    benchmark(lambda: pages.free_pages(pages.alloc_pages()))


def test_python_two_calls_of_nothing(benchmark):
    """What two calls of compiled methods that do nothing cost, for comparison."""
    nothing = (1).__index__
    benchmark(lambda: (nothing(), nothing()))
