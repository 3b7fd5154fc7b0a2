"""The rows on the buddy system: each runs on pagehint, on pagehint with hinting on, and on the linked list.

The loops are compiled on all sides. What a row leaves behind is checked outside the timing: everybody handed out all of
the zone, or the same pages, and the free blocks afterwards are those of the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import tee
from pathlib import Path
from time import perf_counter_ns

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.buddies import (
    LARGEST_YARDSTICK,
    PAGES_PER_GIB,
    TOP,
    Buddy,
    LinkedList,
    PageHint,
    Pfns,
    alloc_any,
    alloc_into,
    check_covers,
    contenders,
    free_all,
)
from benchmarks.conftest import Measure, Round
from benchmarks.traces import orders_that_fit, traces

SAMPLE = 1 << 24  # pages that are freed of a model larger than the yardstick's largest: 128 MiB of PFNs
TRACE = 20_000  # operations a round
TRACE_ROUNDS = 40
PAIRS = 50_000


def each(buddies: dict[str, Buddy], round_of: Callable[[Buddy], float]) -> dict[str, Round]:
    return {who: lambda buddy=buddy: round_of(buddy) for who, buddy in buddies.items()}  # type: ignore[misc]


def all_free(buddies: dict[str, Buddy], gib: int) -> bool:
    """Whether everything is in blocks of the largest order, by address."""
    expected = np.arange(0, gib * PAGES_PER_GIB, 1 << TOP)
    return all(
        np.array_equal(blocks[:, 0], expected) and (blocks[:, 1] == TOP).all()
        for blocks in (buddy.free_blocks() for buddy in buddies.values())
    )


def timed(function: Callable[..., object], *arguments: object) -> int:
    start = perf_counter_ns()
    function(*arguments)
    return perf_counter_ns() - start


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def pages_of_leaves(leaves: NDArray[np.integer]) -> Pfns:
    """The 64 pages of each leaf."""
    pages: Pfns = np.add.outer(leaves.astype(np.uint64) << np.uint64(6), np.arange(64, dtype=np.uint64)).ravel()
    return pages


def pages_to_free(gib: int, shuffled: bool) -> Pfns:
    """Every page of a model, or of a large one a sample as evenly spread, by address or shuffled."""
    nr_pages = gib * PAGES_PER_GIB
    if gib <= LARGEST_YARDSTICK:
        pfns: Pfns = np.arange(nr_pages, dtype=np.uint64)
    elif shuffled:
        pfns = pages_of_leaves(np.random.default_rng(1).choice(nr_pages // 64, SAMPLE // 64, replace=False))
    else:
        pfns = np.arange(SAMPLE, dtype=np.uint64)
    if shuffled:
        np.random.default_rng(1).shuffle(pfns)
    return pfns


@pytest.mark.parametrize("giant", [1, 16, 256, 1024, 16384], ids="{}GiB".format)
def test_create(measure: Measure, note: Callable[..., None], quick: bool, giant: int) -> None:
    """A model made from nothing, and dropped; with it the metadata it takes, page sets and all."""
    if quick and giant > 1:
        pytest.skip("only the smallest model")
    works: dict[str, Round] = {"pagehint": lambda: timed(lambda: PageHint(giant, pcp=True))}
    if giant <= LARGEST_YARDSTICK:
        works["linked list"] = lambda: timed(lambda: LinkedList(giant))
    measure("create the model", f"{giant} GiB", works, ops=1e6, unit="ms", gib=giant)
    before = resident_bytes()
    model = PageHint(giant, pcp=True)
    grown = resident_bytes() - before
    nr_bytes = model.pages.zones[0].metadata_bytes
    note("metadata, a page", f"{giant} GiB", nr_bytes / (giant * PAGES_PER_GIB), "byte", 0.4, giant)
    if giant == 16384:
        note("metadata, all of it", f"{giant} GiB", nr_bytes / 2**30, "GiB", 2.0)
        note("metadata, resident when new", f"{giant} GiB", grown / 2**30, "GiB", 2.0)


def test_bulk_alloc_whole(measure: Measure, gib: int) -> None:
    """Every page of a free zone: whole words can be taken at once."""
    buddies = contenders(gib)
    pfns = np.ones(gib * PAGES_PER_GIB, np.uint64)  # not zeros: touched

    def work(buddy: Buddy) -> int:
        ns = alloc_into(buddy, pfns, 0)
        free_all(buddy, pfns, 0)
        return ns

    measure("bulk alloc, whole words", f"{gib} GiB", each(buddies, work), ops=len(pfns), target=2, gib=gib)
    check_covers(pfns, 0, len(pfns))
    assert all_free(buddies, gib)


def test_bulk_alloc_partial(measure: Measure, gib: int) -> None:
    """All that is free in a zone of which a random half of the pages is in use: no word is whole.

    Between the rounds these pages are freed again, leaf by leaf, the leaves in random order: so are the lists then.
    """
    buddies = contenders(gib)
    rng = np.random.default_rng(2)
    nr_pages = gib * PAGES_PER_GIB
    leaves = rng.permutation(nr_pages // 64)[: (SAMPLE if gib > LARGEST_YARDSTICK else nr_pages) // 64]
    pages = pages_of_leaves(leaves)
    chosen = pages[rng.integers(0, 2, len(pages), dtype=bool)]
    taken = np.ones_like(chosen)
    for buddy in buddies.values():
        alloc_any(buddy, nr_pages)
        free_all(buddy, chosen, 0)

    def work(buddy: Buddy) -> int:
        ns = alloc_into(buddy, taken, 0)
        free_all(buddy, chosen, 0)
        return ns

    measure("bulk alloc, partial words", f"{gib} GiB", each(buddies, work), ops=len(chosen), target=6, gib=gib)
    seen = np.zeros(nr_pages, bool)
    seen[taken] = True
    assert seen[chosen].all()
    seen[chosen] = False
    assert not seen.any()
    rest = np.ones(nr_pages, bool)
    rest[chosen] = False
    for buddy in buddies.values():
        free_all(buddy, np.flatnonzero(rest).astype(np.uint64), 0)
    assert all_free(buddies, gib)


@pytest.mark.parametrize("shuffled", [False, True], ids=["in-order", "random"])
def test_bulk_free(measure: Measure, gib: int, shuffled: bool) -> None:
    """Every page of a full zone, by address, or shuffled, where nearly every one is a cache miss.

    Both merge all the way up. Of a model too large for that, a sixteenth: whole leaves, evenly spread where shuffled.
    """
    buddies = contenders(gib)
    nr_pages = gib * PAGES_PER_GIB
    pfns = pages_to_free(gib, shuffled)
    for buddy in buddies.values():
        alloc_any(buddy, nr_pages)

    def work(buddy: Buddy) -> int:
        ns = free_all(buddy, pfns, 0)
        alloc_any(buddy, len(pfns))
        return ns

    row = "bulk free, random order" if shuffled else "bulk free, in order"
    target = (14 if gib < 256 else 40) if shuffled else 5
    measure(row, f"{gib} GiB", each(buddies, work), ops=len(pfns), target=target, gib=gib)
    for buddy in buddies.values():
        free_all(buddy, np.arange(nr_pages, dtype=np.uint64), 0)
    assert all_free(buddies, gib)


def test_order_9(measure: Measure, gib: int) -> None:
    """Every block of 2 MiB allocated, then freed in random order; an operation is one of each.

    From the second round on the lists have that order too, as they have in a machine that has run for a while.
    """
    buddies = contenders(gib)
    pfns = np.zeros(gib * PAGES_PER_GIB >> 9, np.uint64)
    turn = np.random.default_rng(3).permutation(len(pfns))

    def work(buddy: Buddy) -> int:
        return alloc_into(buddy, pfns, 9) + free_all(buddy, pfns[turn], 9)

    row = "order 9 alloc + free, random order"
    measure(row, f"{gib} GiB", each(buddies, work), ops=len(pfns), target=25, gib=gib)
    check_covers(pfns, 9, gib * PAGES_PER_GIB)
    assert all_free(buddies, gib)


def test_mixed_orders(measure: Measure, gib: int) -> None:
    """Blocks of orders 0 to 9, each order as often, allocated and freed by turns at random, at half occupancy.

    Everybody runs the same operations, in one call of `run_ops` a round.
    """
    buddies = contenders(gib)
    nr_pages = gib * PAGES_PER_GIB
    orders = orders_that_fit(nr_pages)
    same_for_all = iter(tee(traces(orders, TRACE), len(buddies)))
    todo = {id(buddy): (next(same_for_all), np.zeros(len(orders), np.uint64)) for buddy in buddies.values()}

    def work(buddy: Buddy) -> int:
        trace, table = todo[id(buddy)]
        return timed(buddy.run_ops, next(trace), table)

    for buddy in buddies.values():
        work(buddy)  # fill
        work(buddy)  # empty half
    row = "mixed orders 0-9, half full"
    measure(row, f"{gib} GiB", each(buddies, work), ops=TRACE, target=20, gib=gib, rounds=TRACE_ROUNDS)
    for buddy in buddies.values():
        check_apart(buddy.free_blocks(), nr_pages)


def check_apart(blocks: Pfns, nr_pages: int) -> None:
    """These free blocks do not overlap, and are about half of the zone."""
    sizes = np.uint64(1) << blocks[:, 1]
    assert (blocks[:-1, 0] + sizes[:-1] <= blocks[1:, 0]).all()
    assert abs(int(sizes.sum()) / nr_pages - 0.5) < 0.1


@pytest.mark.parametrize("pcp", [True, False], ids=["pcp", "no-pcp"])
def test_one_page(measure: Measure, gib: int, pcp: bool) -> None:
    """One page allocated and freed in an otherwise free zone, in C: without page sets every split and every merge."""
    buddies = contenders(gib, pcp=pcp)
    measure(
        f"one page in C{', page sets' if pcp else ''}",
        f"{gib} GiB",
        each(buddies, lambda buddy: timed(buddy.pairs, PAIRS)),
        ops=PAIRS,
        target=12 if pcp else None,
        gib=gib,
    )
    assert all_free(buddies, gib)
