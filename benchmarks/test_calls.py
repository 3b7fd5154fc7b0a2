"""One page a call from Python, and two threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from timeit import Timer
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pagehint as ph
from benchmarks.buddies import BATCH, PAGES_PER_GIB, PageHint, check_covers
from benchmarks.conftest import Measure

UNROLLED = 20  # pairs of calls in the loop's body, so that the loop weighs nothing
TURNS = 1_000
LARGE = 64  # GiB, for two threads in bulk: their start is then a hundredth of the time

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


def waited_for_a_core() -> int:
    """Nanoseconds that this thread could have run and did not, as others did; sleeping on a lock is not among them."""
    return int(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1])


class Together:
    """Runs works in a thread each, and knows how much of the time they were kept from running by other processes.

    Two threads that share one core have the throughput of one, whatever the allocator does: it would look like a lock's
    fault, so the table says it beside the figure.
    """

    def __init__(self) -> None:
        self.waited: list[float] = []

    def run(self, works: list[Callable[[], object]]) -> int:
        """Begin them at once; return the nanoseconds from the first's start to the last's end."""
        gate = threading.Barrier(len(works))
        spans: list[tuple[int, int]] = []
        waits: list[int] = []

        def one(work: Callable[[], object]) -> None:
            gate.wait()
            waited, start = waited_for_a_core(), perf_counter_ns()
            work()
            spans.append((start, perf_counter_ns()))
            waits.append(waited_for_a_core() - waited)

        threads = [threading.Thread(target=one, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(waits) == len(works), "a thread failed"
        ns = max(end for _, end in spans) - min(start for start, _ in spans)
        if len(works) > 1:
            self.waited.append(100 * sum(waits) / (len(works) * ns))
        return ns


def two_against_one(
    measure: Measure,
    benchmark: BenchmarkFixture,
    row: str,
    work: Callable[[Together, int], float],
    ops: int,
    target: float,
) -> None:
    """`work` runs so many threads, of which each does `ops`."""
    together = Together()
    measure(
        f"two threads: {row}",
        "",
        {"pagehint": lambda: work(together, 2), "one thread": lambda: work(together, 1)},
        ops=ops,
        unit="x the throughput",
        figure=lambda ns: 2 * ns["one thread"] / ns["pagehint"],
        target=target,
        at_least=True,
    )
    benchmark.extra_info["without_core"] = median(together.waited)


@page_sets
def test_two_threads_few_pages(
    measure: Measure, benchmark: BenchmarkFixture, consumer: Any, quick: bool, pcp: bool
) -> None:
    """Each thread allocates eight pages and frees them, again and again."""
    pages, ops = PageHint(1, pcp=pcp).pages, 100_000 if quick else 4_000_000

    def work(together: Together, threads: int) -> int:
        return together.run([partial(consumer.few, pages, ops)] * threads)

    row = f"few pages{', page sets' if pcp else ''}"
    two_against_one(measure, benchmark, row, work, ops, 1.9 if pcp else 0.5)
    pages.verify()


@pytest.mark.parametrize("step", ["alloc", "free"])
def test_two_threads_bulk(measure: Measure, benchmark: BenchmarkFixture, consumer: Any, quick: bool, step: str) -> None:
    """Each thread takes half of the zone, a batch a call, and frees it in the order it got it; page sets are on."""
    gib = 1 if quick else LARGE
    pages = ph.PageAllocator(f"{gib}GiB")
    halves = [np.ones(gib * PAGES_PER_GIB // 2, np.uint64) for _ in range(2)]

    def work(together: Together, threads: int) -> int:
        used = halves[:threads]
        # Of what is not measured no waiting is to be noted.
        apart = {"alloc": Together(), "free": Together(), step: together}
        ns = {
            "alloc": apart["alloc"].run([partial(consumer.alloc_bulk, pages, half, BATCH) for half in used]),
            "free": apart["free"].run([partial(consumer.free_bulk, pages, half, BATCH) for half in used]),
        }
        return ns[step]

    target = 1.3 if step == "alloc" else 1.2
    two_against_one(measure, benchmark, f"bulk {step}, page sets", work, len(halves[0]), target)
    work(Together(), 2)
    check_covers(np.concatenate(halves), 0, gib * PAGES_PER_GIB)
    pages.verify()
    assert pages.stats().allocated_pages == 0
