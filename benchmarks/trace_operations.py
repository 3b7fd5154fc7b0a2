"""Events to operations: ``python -m benchmarks.trace_operations FOLDER... [--rounds N]``.

FOLDER is a recording: ``trace.txt.gz``, ``before/`` and ``after/``. Shown are, for each view, millions of events a
second by the clock (the quickest of the rounds) and by the processor (the median; other processes disturb it less),
what is wrong at the end, and how many of the kernel's own reports were of pages that are not free by this view.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pagehint.traces import Operations, Snapshot, Trace, operations_of, read, read_snapshot

VIEWS = {"all": ("all", 1), "kmem, 1 pass": ("kmem", 1), "kmem, 2 passes": ("kmem", 2), "user": ("user", 1)}


def measured(
    trace: Trace, view: str, before: Snapshot, after: Snapshot, rounds: int
) -> tuple[Operations, float, float]:
    """Return the operations, and millions of events a second by the clock and by the processor."""
    name, passes = VIEWS[view]
    took, used = [], []
    for _ in range(rounds):
        began, began_used = time.perf_counter(), time.process_time()
        operations = operations_of(trace, name, before, after, passes=passes)
        took.append(time.perf_counter() - began)
        used.append(time.process_time() - began_used)
    return operations, len(trace) / min(took) / 1e6, len(trace) / statistics.median(used) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    table = Table("recording", "view", "operations", "M/s, clock", "M/s, CPU", "wrong at the end", "at reports")
    for folder in arguments.folders:
        trace = read(folder / "trace.txt.gz")
        before, after = read_snapshot(folder / "before"), read_snapshot(folder / "after")
        for view in VIEWS:
            made, clock, processor = measured(trace, view, before, after, arguments.rounds)
            wrong = f"{made.wrong_pages_end} ({100 * made.wrong_pages_end / made.managed_pages:.3f} %)"
            reports = f"{made.reports.wrong_blocks} of {made.reports.blocks}"
            table.add_row(folder.name, view, f"{len(made):,}", f"{clock:.1f}", f"{processor:.1f}", wrong, reports)
    Console().print(table)


if __name__ == "__main__":
    main()
