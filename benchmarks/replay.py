"""Replays of recordings, and of a machine of 16 GiB: ``python -m benchmarks.replay [--traces FOLDER]``.

`python -m benchmarks.replay [--traces FOLDER] [--operations N] [--rounds N] [--json FILE]`. What counts is an operation
of `PageAllocator.replay`, with hinting off and on, by the thread's own processor time, which other work on the machine
changes less than the clock on the wall: the best of the rounds, in which the ways take turns. "calls" is the same by
public calls in a Python loop: `alloc_pages_at` and `free_pages`, and with hinting on `run_until` before each. FOLDER
has recordings in folders of their own, each with a trace.txt.gz, and snapshots of its beginning and end. The machine of
16 GiB has blocks of all orders up to 9, most of them small, as pagehint itself has placed them.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from benchmarks.build import build_consumer
from pagehint.traces import OPERATION_DTYPE, Operation, operations_of, read, read_snapshot

GIB = 16
WEIGHTS = (60, 12, 6, 4, 3, 2, 1, 1, 1, 4)  # of the orders
STEP = 1000  # nanoseconds between two operations
WAYS = ("replay", "calls")

Start = Callable[[], ph.PageAllocator]


def synthetic(operations: int) -> NDArray[np.void]:
    """Fill three fifths of a machine, then free and allocate blocks at random."""
    rng = random.Random(4)
    pages = ph.PageAllocator(f"{GIB}GiB", pcp=False)
    blocks: list[tuple[int, int]] = []
    rows: list[tuple[Operation, int, int]] = []

    def toggle(take: bool) -> None:
        if take:
            (order,) = rng.choices(range(len(WEIGHTS)), WEIGHTS)
            blocks.append((pages.alloc_pages(order), order))
        else:
            at = rng.randrange(len(blocks))
            blocks[at], blocks[-1] = blocks[-1], blocks[at]
        pfn, order = blocks[-1] if take else blocks.pop()
        if not take:
            pages.free_pages(pfn, order)
        rows.append((Operation.TAKE if take else Operation.GIVE, pfn, order))

    while pages.zones[0].free_pages > (GIB << 18) * 2 // 5:
        toggle(True)
    for _ in range(operations):
        toggle(rng.random() < 0.5)
    table = np.zeros(len(rows), OPERATION_DTYPE)
    for name, column in zip(("op", "pfn", "order"), zip(*rows, strict=True), strict=True):
        table[name] = column
    table["time"] = np.arange(len(rows)) * STEP
    return table


def subjects(folder: Path | None, operations: int) -> Iterator[tuple[str, NDArray[np.void], Start]]:
    """What is replayed: a name, the operations, and what makes an allocator in the state before them."""
    for trace in sorted(folder.glob("*/trace.txt.gz")) if folder else ():
        before, after = (read_snapshot(trace.parent / moment) for moment in ("before", "after"))
        table = operations_of(read(trace), "all", before, after).table
        yield trace.parent.name, table, lambda before=before: ph.PageAllocator.from_snapshot(before)  # type: ignore[misc]
    yield f"{GIB} GiB", synthetic(operations), lambda: ph.PageAllocator(f"{GIB}GiB", pcp=False)


def by_calls(pages: ph.PageAllocator, rows: list[tuple[int, int, int, int]]) -> None:
    """The same by public calls. What they refuse, parts of blocks, is left out."""
    hinting = pages.hinting_enabled
    for at, op, pfn, order in rows:
        if hinting:
            pages.run_until(at / 1e9)
        try:
            if op == Operation.TAKE:
                pages.alloc_pages_at(pfn, order)
            elif op == Operation.GIVE:
                pages.free_pages(pfn, order)
        except ph.BadPageError:
            pass


def measure(table: NDArray[np.void], start: Start, callback: Any, way: str, hinting: bool) -> float:
    """Nanoseconds an operation."""
    rows = table[["time", "op", "pfn", "order"]].tolist() if way == "calls" else []
    pages = start()
    if hinting:
        pages.enable_hinting(ph.PageHintingCallbacks(callback), workqueue="manual", clock=table["time"][0] / 1e9)
    began = time.thread_time_ns()
    if way == "replay":
        pages.replay(table)
    else:
        by_calls(pages, rows)
    return (time.thread_time_ns() - began) / len(table)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, help="a folder of recordings")
    parser.add_argument("--operations", type=int, default=2_000_000, help="of the machine of 16 GiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        callback = build_consumer(Path(directory)).noop_callback()
    ways = {f"{way}, {'on' if hinting else 'off'}": (way, hinting) for way in WAYS for hinting in (False, True)}
    print(f"{'ns an operation':<28}{'operations':>12}" + "".join(f"{name:>13}" for name in ways))
    seen = {}
    for name, table, start in subjects(arguments.traces, arguments.operations):
        best = dict.fromkeys(ways, float("inf"))
        for turn in range(arguments.rounds):
            for title, (way, hinting) in ways.items():
                if way == "replay" or turn == 0:  # a Python loop takes long, and varies little
                    best[title] = min(best[title], measure(table, start, callback, way, hinting))
        print(f"{name:<28}{len(table):>12,}" + "".join(f"{figure:>13.1f}" for figure in best.values()), flush=True)
        seen[name] = best
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
