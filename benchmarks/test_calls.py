"""One page a call from Python, and two threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns
from timeit import Timer
from typing import Any

import numpy as np
import pytest

import pagehint as ph
from benchmarks.buddies import BATCH, PAGES_PER_GIB, PageHint, check_covers
from benchmarks.conftest import Measure

UNROLLED = 20  # pairs of calls in the loop's body, so that the loop weighs nothing
TURNS = 1_000
GIB = 16  # of the models that two threads use

page_sets = pytest.mark.parametrize("pcp", [True, False], ids=["pcp", "no-pcp"])


@page_sets
def test_python_pair(measure: Measure, consumer: Any, pcp: bool) -> None:
    """`pages.free_pages(pages.alloc_pages())`, against an extension type whose methods of these names do nothing."""

    def calls(pages: Any) -> Callable[[], float]:
        timer = Timer("pages.free_pages(pages.alloc_pages())\n" * UNROLLED, globals={"pages": pages})
        return lambda: timer.timeit(TURNS) * 1e9

    models = {"pagehint": PageHint(1, pcp=pcp), "hinting": PageHint(1, pcp=pcp, hinting=True)}
    measure(
        f"one page from Python{', page sets' if pcp else ''}",
        "",
        {**{who: calls(model.pages) for who, model in models.items()}, "no-op calls": calls(consumer.Nothing())},
        ops=UNROLLED * TURNS,
        unit="x the no-op calls",
        figure=lambda ns: ns["pagehint"] / ns["no-op calls"],
        target=1.5,
    )
    for model in models.values():
        assert len(model.free_blocks()) == PAGES_PER_GIB >> 10


def together(works: list[Callable[[], None]]) -> int:
    """Run each in a thread of its own, begun at once; nanoseconds from the first's start to the last's end."""
    gate = threading.Barrier(len(works))
    spans: list[tuple[int, int]] = []

    def run(work: Callable[[], None]) -> None:
        gate.wait()
        start = perf_counter_ns()
        work()
        spans.append((start, perf_counter_ns()))

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spans) == len(works), "a thread failed"
    return max(end for _, end in spans) - min(start for start, _ in spans)


def two_against_one(measure: Measure, row: str, work: Callable[[int], float], ops: int, target: float) -> None:
    """`work` runs so many threads, of which each does `ops`."""
    measure(
        f"two threads: {row}",
        "",
        {"pagehint": lambda: work(2), "one thread": lambda: work(1)},
        ops=ops,
        unit="x the throughput",
        figure=lambda ns: 2 * ns["one thread"] / ns["pagehint"],
        target=target,
        at_least=True,
    )


@page_sets
def test_two_threads_few_pages(measure: Measure, consumer: Any, pcp: bool) -> None:
    """Each thread allocates eight pages and frees them, again and again."""
    pages, ops = PageHint(GIB, pcp=pcp).pages, 200_000
    two_against_one(
        measure,
        f"few pages{', page sets' if pcp else ''}",
        lambda threads: together([partial(consumer.few, pages, ops)] * threads),
        ops,
        1.9 if pcp else 0.5,
    )
    pages.verify()


@pytest.mark.parametrize("step", ["alloc", "free"])
def test_two_threads_bulk(measure: Measure, consumer: Any, step: str) -> None:
    """Each thread takes half of the zone, a batch a call, and frees it in the order it got it; page sets are on."""
    pages = ph.PageAllocator(f"{GIB}GiB")
    halves = [np.ones(GIB * PAGES_PER_GIB // 2, np.uint64) for _ in range(2)]

    def work(threads: int) -> int:
        used = halves[:threads]
        ns = {
            "alloc": together([partial(consumer.alloc_bulk, pages, half, BATCH) for half in used]),
            "free": together([partial(consumer.free_bulk, pages, half, BATCH) for half in used]),
        }
        return ns[step]

    target = 1.3 if step == "alloc" else 1.2
    two_against_one(measure, f"bulk {step}, page sets", work, len(halves[0]), target)
    work(2)
    check_covers(np.concatenate(halves), 0, GIB * PAGES_PER_GIB)
    pages.verify()
    assert pages.stats().allocated_pages == 0
