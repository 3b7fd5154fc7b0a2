"""The rows that compare: each runs on pagehint and on the linked list, by the same code.

A round does its work in bulk calls of up to 65,536 blocks, so that the loops are compiled code on both sides and the
calls themselves weigh nothing. What it leaves behind is checked outside the timing: both handed out the same pages, and
the free blocks afterwards are those of the beginning.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.allocators import BATCH, PAGES_PER_GIB, TOP, Buddy, Orders, Pfns, alloc_into, check_covers, free_all
from benchmarks.conftest import Measure


def test_create(measure: Measure, kind: type[Buddy], gib: int) -> None:
    """A model made from nothing, and dropped; with it the metadata it takes, all told."""
    model = kind(gib)
    nr_pages = gib * PAGES_PER_GIB
    measure(
        lambda: kind(gib),
        row="create the model",
        who=kind.name,
        gib=gib,
        ops=1,
        pages=nr_pages,
        metadata_bytes_per_page=model.metadata_bytes() / nr_pages,
    )
    assert len(model.free_blocks()) == nr_pages >> TOP


def test_order_0_alloc(measure: Measure, buddy: Buddy, gib: int) -> None:
    """Every page of the zone allocated one by one: the search for a page, and the splits, at their cheapest."""
    before = buddy.free_blocks()
    pfns = np.zeros(gib * PAGES_PER_GIB, np.uint64)
    pfns[:] = 1  # touch it: zeros are not there yet
    taken = False

    def give_back() -> None:
        nonlocal taken
        if taken:
            free_all(buddy, pfns, 0)
        taken = False

    def work() -> None:
        nonlocal taken
        alloc_into(buddy, pfns, 0)
        taken = True

    measure(
        work,
        row="order-0 alloc all",
        who=buddy.name,
        gib=gib,
        ops=len(pfns),
        pages=len(pfns),
        setup=give_back,
    )
    give_back()
    check_covers(pfns, 0, len(pfns))
    assert np.array_equal(buddy.free_blocks(), before)


@pytest.mark.parametrize("shuffled", [False, True], ids=["in-order", "random"])
def test_order_0_free(measure: Measure, buddy: Buddy, gib: int, shuffled: bool) -> None:
    """Every page of the zone freed, by address, or in random order, where nearly every one is a cache miss.

    Both merge all the way up: at the end there are blocks of the largest order only.
    """
    before = buddy.free_blocks()
    pfns = np.arange(gib * PAGES_PER_GIB, dtype=np.uint64)
    if shuffled:
        np.random.default_rng(1).shuffle(pfns)
    taken = np.zeros_like(pfns)

    measure(
        lambda: free_all(buddy, pfns, 0),
        row="free in random order" if shuffled else "free in order, merging to the top",
        who=buddy.name,
        gib=gib,
        ops=len(pfns),
        pages=len(pfns),
        setup=lambda: alloc_into(buddy, taken, 0),
    )
    check_covers(taken, 0, len(pfns))
    assert np.array_equal(buddy.free_blocks(), before)


def test_order_9_alloc_and_free(measure: Measure, buddy: Buddy, gib: int) -> None:
    """Every block of 2 MiB allocated, then freed in random order; an operation is one of each.

    From the second round on the lists have that order too, as they have in a machine that has run for a while.
    """
    before = buddy.free_blocks()
    pfns = np.zeros(gib * PAGES_PER_GIB >> 9, np.uint64)
    turn = np.random.default_rng(2).permutation(len(pfns))

    def work() -> None:
        alloc_into(buddy, pfns, 9)
        free_all(buddy, pfns[turn], 9)

    measure(
        work,
        row="order-9 alloc + free, random order",
        who=buddy.name,
        gib=gib,
        ops=len(pfns),
        pages=gib * PAGES_PER_GIB,
        rounds=21,
    )
    check_covers(pfns, 9, gib * PAGES_PER_GIB)
    assert np.array_equal(buddy.free_blocks(), before)


def test_mixed_orders_half_full(measure: Measure, buddy: Buddy, gib: int) -> None:
    """Blocks of orders 0 to 9, each order as often, in a zone of which a random half is in use; an operation is either.

    The zone is filled with such blocks in random sequence, and every other one, at random, freed. A round frees up to
    8,192 of the rest, drawn at random, in one call with an order for each, and takes as many of each order again in ten
    calls, the largest first; so it is as full after as before. Not a mix in the strict sense, there being no bulk call
    for one: the frees come first. The eleven calls weigh most at 1 GiB, where a round is some 650 blocks only.
    """
    before = buddy.free_blocks()
    rng = np.random.default_rng(3)
    nr_pages = gib * PAGES_PER_GIB
    pfns, orders = fill_half(buddy, nr_pages, rng)
    assert abs(pages_in(orders) / nr_pages - 0.5) < 0.05

    count = min(len(pfns) // 2, 1 << 13)
    chosen = np.zeros(count, np.intp)
    victims, victim_orders = pfns[:count].copy(), orders[:count].copy()
    order_counts: list[int] = []
    taken: list[Pfns] = []

    def remember() -> None:
        if taken:
            pfns[chosen] = np.concatenate(taken)
            orders[chosen] = np.repeat(np.arange(9, -1, -1, dtype=np.uint32), order_counts[::-1])
        taken.clear()

    def choose() -> None:
        remember()
        chosen[:] = rng.choice(len(pfns), count, replace=False)
        victims[:], victim_orders[:] = pfns[chosen], orders[chosen]
        order_counts[:] = np.bincount(victim_orders, minlength=TOP).tolist()

    def work() -> None:
        buddy.free(victims, victim_orders)
        for order in range(9, -1, -1):
            taken.append(buddy.alloc(order_counts[order], order))

    measure(
        work,
        row="random mix of orders 0-9, half full",
        who=buddy.name,
        gib=gib,
        ops=2 * count,
        pages=2 * pages_in(orders) * count // len(orders),
        setup=choose,
        rounds=21,
    )
    remember()
    # The draws are seeded: the same orders came and went on both sides. Nothing handed out overlaps.
    check_apart(pfns, orders)
    buddy.free(pfns, orders)
    assert np.array_equal(buddy.free_blocks(), before)


def pages_in(orders: Orders) -> int:
    return int((1 << orders.astype(np.uint64)).sum())


def check_apart(pfns: Pfns, orders: Orders) -> None:
    turn = np.argsort(pfns)
    ends = pfns[turn] + (np.uint64(1) << orders[turn].astype(np.uint64))
    assert (ends[:-1] <= pfns[turn][1:]).all()


def fill_half(buddy: Buddy, nr_pages: int, rng: np.random.Generator) -> tuple[Pfns, Orders]:
    """Blocks of orders 0 to 9 in random sequence, nearly up to the end; every other one, at random, is freed."""
    orders = rng.integers(0, 10, nr_pages // 64, dtype=np.uint32)
    orders = orders[np.cumsum(1 << orders.astype(np.uint64)) <= nr_pages - (1 << TOP)]
    pfns = np.concatenate([buddy.alloc(1, order) for order in orders.tolist()])
    turn = rng.permutation(len(orders))
    given, kept = turn[: len(turn) // 2], turn[len(turn) // 2 :]
    for at in range(0, len(given), BATCH):
        part = given[at : at + BATCH]
        buddy.free(pfns[part], orders[part])
    return pfns[kept], orders[kept]
