"""One page a call, and hinting: what a call from Python costs, and what it costs to report a block."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from statistics import median
from time import perf_counter_ns
from typing import Any

import pytest

import pagehint as ph
from benchmarks.allocators import PAGES_PER_GIB, TOP, LinkedList
from benchmarks.conftest import ROUNDS, Measure

PAIRS = 50_000
PAIR_ROUNDS = 9
# Two methods in C that do nothing, of the same shapes: without an argument, returning an int (METH_NOARGS), and with an
# int, returning None (METH_O: hashed, and looked for in a set without members).
NOTHING_INT: Callable[[], int] = (1).conjugate
INT_NOTHING: Callable[[int], None] = set[int]().discard

page_sets = pytest.mark.parametrize("pcp", [True, False], ids=["pcp", "no-pcp"])


def python_pairs(alloc: Callable[[], int], free: Callable[[int], Any]) -> None:
    for _ in repeat(None, PAIRS):
        free(alloc())


def calls_of_nothing_ns() -> float:
    """Median cost of a pair of calls that do nothing, its share of the loop included."""
    times = []
    for _ in range(ROUNDS):
        start = perf_counter_ns()
        python_pairs(NOTHING_INT, INT_NOTHING)
        times.append((perf_counter_ns() - start) / PAIRS)
    return median(times)


def all_free(pages: ph.PageAllocator) -> bool:
    """Whether all is in blocks of the largest order, the page sets emptied."""
    pages.drain_pcp()
    pages.verify()
    return pages.zones[0].nr_free[TOP] << TOP == pages.zones[0].managed_pages


@page_sets
def test_one_page(measure: Measure, gib: int, pcp: bool) -> None:
    """One page allocated and freed again in an otherwise free zone: without page sets every split and every merge.

    pagehint has no bulk call for this, and no compiled caller is built here: it is the pair of Python calls of
    `test_python_pair`, less what two calls of nothing cost in the same test. What is left includes the parsing of the
    arguments and the making of an int, and thus is more than what the allocator itself takes.
    """
    pages = ph.PageAllocator(f"{gib}GiB", max_page_order=TOP, pcp=pcp)
    measure(
        lambda: python_pairs(pages.alloc_pages, pages.free_pages),
        row=f"alloc + free of one page{', page sets' if pcp else ''}",
        who="pagehint",
        gib=gib,
        ops=PAIRS,
        pages=PAIRS,
        rounds=PAIR_ROUNDS,
        calls_ns=calls_of_nothing_ns(),
    )
    assert all_free(pages)


def test_one_page_linked_list(measure: Measure, yardstick: type[LinkedList], gib: int) -> None:
    """The same pair in the linked list, in a loop in C."""
    buddy = yardstick(gib)
    measure(
        lambda: buddy.pairs(PAIRS),
        row="alloc + free of one page",
        who="linked-list",
        gib=gib,
        ops=PAIRS,
        pages=PAIRS,
        rounds=PAIR_ROUNDS,
    )
    assert len(buddy.free_blocks()) == gib * PAGES_PER_GIB >> TOP


@page_sets
def test_python_pair(measure: Measure, gib: int, pcp: bool) -> None:
    """`free_pages(alloc_pages())` from Python, as it is."""
    pages = ph.PageAllocator(f"{gib}GiB", max_page_order=TOP, pcp=pcp)
    measure(
        lambda: python_pairs(pages.alloc_pages, pages.free_pages),
        row=f"free_pages(alloc_pages()){', page sets' if pcp else ''}",
        who="pagehint",
        gib=gib,
        ops=PAIRS,
        pages=PAIRS,
        rounds=PAIR_ROUNDS,
    )
    assert all_free(pages)


@page_sets
def test_python_two_calls_of_nothing(measure: Measure, gib: int, pcp: bool) -> None:
    """What `test_python_pair` is to be compared with: `set().discard((1).conjugate())`, both bound before."""
    measure(
        lambda: python_pairs(NOTHING_INT, INT_NOTHING),
        row=f"free_pages(alloc_pages()){', page sets' if pcp else ''}",
        who="no-op calls",
        gib=gib,
        ops=PAIRS,
        pages=PAIRS,
        rounds=PAIR_ROUNDS,
    )


@pytest.mark.parametrize("step", ["enable", "flush"])
def test_hinting(measure: Measure, gib: int, step: str) -> None:
    """All of a free zone reported, in blocks of order 10, to a Python function that does nothing.

    `enable` is `enable_hinting`, which marks what is free; `flush` is `flush_hinting`: isolate, call, put back. A batch
    is up to 1,024 blocks, but 256 at 1 GiB: a zone reports only while it has a full batch of free pages to spare.
    """
    pages = ph.PageAllocator(f"{gib}GiB", max_page_order=TOP, pcp=False)
    blocks = gib * PAGES_PER_GIB >> TOP
    callbacks = ph.PageHintingCallbacks(lambda blocks: None, max_pages=min(1024, blocks))

    def enable() -> None:
        pages.enable_hinting(callbacks, workqueue="manual")

    def prepare() -> None:
        pages.disable_hinting()
        if step == "flush":
            enable()

    prepare()
    measure(
        enable if step == "enable" else pages.flush_hinting,
        row=f"hinting: {step}, per order-10 block",
        who="pagehint",
        gib=gib,
        ops=blocks,
        pages=blocks << TOP,
        setup=prepare,
        rounds=21,
    )
    # What a round does is report every block, once.
    for _ in range(2):
        pages.disable_hinting()
        enable()
        already = pages.stats().blocks_reported
        pages.flush_hinting()
        assert pages.stats().blocks_reported - already == blocks
        assert pages.stats().hints_pending == 0
    assert pages.last_error is None
    pages.disable_hinting()
    assert all_free(pages)
