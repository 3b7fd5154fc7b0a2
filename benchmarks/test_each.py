"""The rows of one block a call, from C, beside the same layout in plain C (`leaf_buddy.c`).

Each row is run with page sets, beside the yardstick with its lock and caches, and without, beside the one with a lock.
What is compared with the target is how many times as long pagehint takes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pagehint as ph
from benchmarks.buddies import PAGES_PER_GIB, LeafBuddy, PageHintEach, Pfns, alloc_any, alloc_into, free_all
from benchmarks.conftest import Measure
from benchmarks.test_buddy import each, pages_of_leaves, timed
from benchmarks.test_calls import Together, two_against_one
from benchmarks.traces import orders_that_fit, traces

SAMPLE = 1 << 22  # pages, at most, that a round takes and gives back: all of 16 GiB
IN_SETS = 1024  # pages, at most, that a thread cannot have as they are in the page set of another CPU
PAIRS = 200_000
OPERATIONS = 200_000
YARDSTICK = {True: "leaf, lock, cache", False: "leaf, lock"}  # by whether pagehint has page sets
TARGET = {True: 1.5, False: 1.8}
TWO_THREADS = {"alloc": 1.6, "free, in order": 1.6, "free, random order": 1.4}  # their targets with page sets

pytestmark = pytest.mark.parametrize("pcp", [True, False], ids=["pcp", "no-pcp"])


def rivals(gib: int, pcp: bool) -> dict[str, PageHintEach | LeafBuddy]:
    return {
        "pagehint": PageHintEach(gib, pcp=pcp),
        "hinting": PageHintEach(gib, pcp=pcp, hinting=True),
        YARDSTICK[pcp]: LeafBuddy(gib, pcp=pcp),
    }


def compare(measure: Measure, row: str, gib: int, pcp: bool, works: dict, ops: int, rounds: int | None = None) -> None:
    yardstick = YARDSTICK[pcp]
    measure(
        f"{row}, {'page sets' if pcp else 'no page sets'}",
        f"{gib} GiB",
        works,
        ops=ops,
        unit="x",
        figure=lambda ns: ns["pagehint"] / ns[yardstick],
        target=TARGET[pcp],
        gib=gib,
        rounds=rounds,
    )


def some_pages(gib: int, shuffled: bool) -> Pfns:
    """All pages, or whole leaves of them, evenly spread; by address, or shuffled."""
    rng = np.random.default_rng(1)
    nr_leaves = gib * PAGES_PER_GIB // 64
    leaves = np.sort(rng.choice(nr_leaves, min(SAMPLE // 64, nr_leaves), replace=False))
    pages = pages_of_leaves(leaves)
    if shuffled:
        rng.shuffle(pages)
    return pages


@pytest.mark.parametrize("what", ["alloc, after random frees", "free, in order", "free, random order"])
def test_pages(measure: Measure, gib: int, pcp: bool, what: str) -> None:
    buddies = rivals(gib, pcp)
    pages = some_pages(gib, shuffled=what != "free, in order")
    got = np.ones_like(pages)

    def work(buddy: PageHintEach | LeafBuddy) -> int:
        freed = free_all(buddy, pages, 0)
        taken = alloc_into(buddy, got, 0)
        return taken if what.startswith("alloc") else freed

    for buddy in buddies.values():
        alloc_any(buddy, gib * PAGES_PER_GIB)
    compare(measure, f"a page a call: {what}", gib, pcp, each(buddies, work), len(pages))
    assert np.array_equal(np.sort(got), np.sort(pages))
    for buddy in buddies.values():
        free_all(buddy, np.arange(gib * PAGES_PER_GIB, dtype=np.uint64), 0)
        assert buddy.is_whole()


def test_pairs(measure: Measure, gib: int, pcp: bool) -> None:
    buddies = rivals(gib, pcp)
    works = each(buddies, lambda buddy: timed(buddy.pairs, PAIRS))
    compare(measure, "a page a call: alloc and free", gib, pcp, works, PAIRS)
    assert all(buddy.is_whole() for buddy in buddies.values())


@pytest.mark.parametrize("what", ["alloc", "free, random order"])
def test_order_9(measure: Measure, gib: int, pcp: bool, what: str) -> None:
    """From the second round on the lists have that order, too."""
    buddies = rivals(gib, pcp)
    blocks = np.zeros(gib * PAGES_PER_GIB >> 9, np.uint64)
    turn = np.random.default_rng(3).permutation(len(blocks))

    def work(buddy: PageHintEach | LeafBuddy) -> int:
        taken = alloc_into(buddy, blocks, 9)
        freed = free_all(buddy, blocks[turn], 9)
        return taken if what == "alloc" else freed

    compare(measure, f"a block of order 9 a call: {what}", gib, pcp, each(buddies, work), len(blocks))
    assert all(buddy.is_whole() for buddy in buddies.values())


def test_mixed_orders(measure: Measure, gib: int, pcp: bool) -> None:
    """Blocks of orders 0 to 9, each order as often, allocated and freed by turns at random, at half occupancy."""
    buddies = rivals(gib, pcp)
    orders = orders_that_fit(gib * PAGES_PER_GIB)
    todo = {id(buddy): (traces(orders, OPERATIONS), np.zeros(len(orders), np.uint64)) for buddy in buddies.values()}

    def work(buddy: PageHintEach | LeafBuddy) -> int:
        trace, table = todo[id(buddy)]
        return timed(buddy.run_ops, next(trace), table)

    for buddy in buddies.values():
        work(buddy)  # fill
        work(buddy)  # empty half
    compare(measure, "an operation a call: mixed orders 0-9, half full", gib, pcp, each(buddies, work), OPERATIONS, 9)


@pytest.mark.parametrize("what", TWO_THREADS)
def test_two_threads(
    measure: Measure, benchmark: BenchmarkFixture, consumer: Any, quick: bool, pcp: bool, what: str
) -> None:
    """Each thread takes half of the zone, but for what may be in page sets, a page a call, and frees what it got."""
    gib = 1 if quick else 16
    pages = ph.PageAllocator(f"{gib}GiB", pcp=pcp)
    halves = [np.ones(gib * PAGES_PER_GIB // 2 - IN_SETS, np.uint64) for _ in range(2)]
    turn = np.random.default_rng(5).permutation(len(halves[0]))

    def work(together: Together, threads: int) -> int:
        # Of what is not measured no waiting is to be noted.
        alloc, free = (together, Together()) if what == "alloc" else (Together(), together)
        taken = alloc.run([partial(consumer.alloc_each, pages, half) for half in halves[:threads]])
        given = [half[turn] if what == "free, random order" else half for half in halves[:threads]]
        freed = free.run([partial(consumer.free_each, pages, half) for half in given])
        return taken if what == "alloc" else freed

    row = f"a page a call: {what}, {'page sets' if pcp else 'no page sets'}"
    two_against_one(measure, benchmark, row, work, len(halves[0]), TWO_THREADS[what] if pcp else 0.8)
    pages.verify()
    assert pages.stats().allocated_pages == 0
