"""Memory that is asked for and hardly touched, and zeros: ``python -m benchmarks.sparse [--rounds N] [--json FILE]``.

Each row is some work in a process of its own with each allocator, which take turns. Shown are the resident bytes that
it has added, and its time; medians of the rounds. jemalloc and mimalloc come in by LD_PRELOAD; what is not installed is
left out, and said.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ticks import ALLOCATORS, MIB, environment, resident


def sparse(make: Callable[..., Any], nr_bytes: int, count: int) -> list[Any]:
    """Arrays of which a hundred bytes are written."""
    arrays = [make(nr_bytes, "u1") for _ in range(count)]
    for array in arrays:
        array[:100] = 1
    return arrays


def temporary(nr_bytes: int) -> None:
    np.empty(nr_bytes, "u1")[:] = 1


# What is done before, and what is measured.
ROWS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "1,024 empty arrays of 1 MiB, 100 bytes written": (lambda: None, lambda: sparse(np.empty, MIB, 1024)),
    "1,024 arrays of zeros of 1 MiB, 100 bytes written": (lambda: None, lambda: sparse(np.zeros, MIB, 1024)),
    "8,192 empty arrays of 128 KiB, 100 bytes written": (lambda: None, lambda: sparse(np.empty, MIB // 8, 8192)),
    "zeros of 1 GiB, not touched": (lambda: None, lambda: np.zeros(1024 * MIB, "u1")),
    "zeros of 1 GiB after a temporary of that size": (
        lambda: temporary(1024 * MIB),
        lambda: np.zeros(1024 * MIB, "u1"),
    ),
    "zeros of 64 MiB after a temporary, then filled": (
        lambda: temporary(64 * MIB),
        lambda: np.add(zeros := np.zeros(64 * MIB, "u1"), 1, out=zeros),
    ),
    "1,024 arrays of 1 MiB, filled": (lambda: None, lambda: [np.ones(MIB, "u1") for _ in range(1024)]),
    "the same again, a moment after they were freed": (
        lambda: [np.ones(MIB, "u1") for _ in range(1024)].clear(),
        lambda: [np.ones(MIB, "u1") for _ in range(1024)],
    ),
}


def work(allocator: str, row: str) -> None:
    """Do it, and tell the parent what it took."""
    if allocator.startswith("pagehint"):
        import pagehint as ph

        ph.numpy.install()
    before, measured = ROWS[row]
    start = resident()
    before()
    began = time.perf_counter()
    kept = measured()
    took = time.perf_counter() - began
    print(json.dumps({"seconds": took, "resident": max(resident() - start, 0)}))
    del kept


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    allocators = {}
    for name in [name for name in ALLOCATORS if "reserve" not in name]:
        env = environment(name)
        if env is None:
            print(f"{name} is not installed, and left out")
        else:
            allocators[name] = env
    print(f"{'':<52}{'allocator':<12}{'MiB':>9}{'ms':>11}")
    seen = []
    for row in ROWS:
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in allocators}
        for turn in range(arguments.rounds):
            for name in list(allocators)[:: -1 if turn % 2 else 1]:
                command = [sys.executable, "-m", "benchmarks.sparse", "--work", name, row]
                said = subprocess.run(command, env=allocators[name], capture_output=True, text=True, check=True).stdout
                figures[name].append(json.loads(said))
        for name, rounds in figures.items():
            median = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
            seen.append({"row": row, "allocator": name, **median})
            print(f"{row:<52}{name:<12}{median['resident'] / MIB:>9.1f}{median['seconds'] * 1e3:>11.2f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
