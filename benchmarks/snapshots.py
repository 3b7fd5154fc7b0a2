"""Allocators from snapshots, as machines grow: ``python -m benchmarks.snapshots [--most GIB] [--json FILE]``.

A machine's pages in use are runs whose lengths, and those of the free ones between, are drawn from a geometric
distribution, half of all pages each; or every second page, which is the worst. The claim alone is
`alloc_pages_at_bulk` on a machine that is all free; `from_snapshot` is all of it, from the state of each page on. Times
are those of a processor, so that other work on the machine matters less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pagehint as ph
from pagehint.layout import Watermarks
from pagehint.traces import Snapshot
from pagehint.traces.proc_files import SnapshotZone
from pagehint.traces.snapshot import PAGE_FREE, PAGE_USED, runs_of

GIB = 1 << 18  # pages
MEAN_RUNS = (1024, 64, 4)  # pages, on average


def seconds(work: Callable[[], object]) -> tuple[float, Any]:
    """Seconds of a processor, and the result."""
    began = time.thread_time()
    result = work()
    return time.thread_time() - began, result


def states(nr_pages: int, mean: int | None) -> NDArray[np.uint8]:
    """The state of each page: runs of this mean length, or single pages for None."""
    if mean is None:
        return np.where(np.arange(nr_pages) % 2, PAGE_FREE, PAGE_USED).astype(np.uint8)
    rng = np.random.default_rng(mean)
    lengths = rng.geometric(1 / mean, 2 * nr_pages // mean)
    kinds = np.resize(np.array([PAGE_USED, PAGE_FREE], np.uint8), len(lengths))
    return np.repeat(kinds, lengths)[:nr_pages].copy()


def measure(nr_gib: int, mean: int | None) -> dict[str, float]:
    nr_pages = nr_gib * GIB
    pages = np.resize(states(nr_pages, mean), nr_pages)
    free = int((pages == PAGE_FREE).sum())
    zone = SnapshotZone(0, "Normal", 0, 0, nr_pages, nr_pages, nr_pages, free, Watermarks(0, 0, 0), (0,), 0)
    snapshot = Snapshot((zone,), 10, pages=pages)
    starts, counts = runs_of(pages == PAGE_USED)
    runs = starts.astype(np.uint64), counts.astype(np.uint64)
    machine = ph.PageAllocator(snapshot.machine_state().zones, pcp=False)
    claimed, _ = seconds(lambda: machine.alloc_pages_at_bulk(*runs))
    built, allocator = seconds(lambda: ph.PageAllocator.from_snapshot(snapshot))
    looked, bitmap = seconds(allocator.free_bitmap)
    assert np.array_equal(bitmap, snapshot.free_bitmap())
    return {
        "runs": len(starts),
        "claim, ms": claimed * 1e3,
        "claim, ns a run": claimed / len(starts) * 1e9,
        "from_snapshot, ms": built * 1e3,
        "free_bitmap, ms": looked * 1e3,
    }


def main() -> None:
    """Print a curve for each length of runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=256, help="GiB of the largest machine")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    arguments = parser.parse_args()
    sizes = [size for size in (1, 4, 16, 64, 256) if size <= arguments.most]
    console, seen = Console(), {}
    for mean in (*MEAN_RUNS, None):
        what = f"runs of {mean} pages" if mean else "every second page"
        seen[what] = {n: measure(n, mean) for n in track(sizes, what, console=console, transient=True)}
        table = Table(f"{what}: GiB", *next(iter(seen[what].values())))
        for size, figures in seen[what].items():
            table.add_row(
                f"{size:,}", *(f"{figure:,.3g}" if figure < 1000 else f"{figure:,.0f}" for figure in figures.values())
            )
        console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
