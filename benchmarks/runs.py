"""How much memory arrays keep resident for each byte of theirs, and what making them takes, against other allocators.

`python -m benchmarks.runs [--megabytes M] [--steps N] [--rounds N] [--only WORDS] [--json FILE]`. Each population of
arrays (all of one size, or of mixed ones) is made and filled in a process of its own with each allocator, which take
turns. Then arrays picked at random are replaced by new ones, N steps for each that lives. Shown are resident bytes over
the sum of the sizes, rounded up to pages, fresh and after the replacement, and the time of either, over glibc's.

"pagehint" is `pagehint.numpy.install()`, "arena" the same arrays in `with arena.numpy():` with hinting on. jemalloc and
mimalloc come in by LD_PRELOAD (Debian: libjemalloc2, libmimalloc2.0); what is not installed is left out, and said.

`python -m benchmarks.runs --live` shows what a run costs the allocator alone, without the memory, by how many live.
"""

from __future__ import annotations

import argparse
import ctypes.util
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.numpy_workloads import warm_up

KIB, MIB = 1 << 10, 1 << 20
PAGE = os.sysconf("SC_PAGESIZE")
GRANULE = 2 * MIB // PAGE  # pages
MOST, LEAST = 20_000, 100  # arrays of a population


def log_uniform(low: int, high: int) -> Callable[[random.Random], int]:
    return lambda rng: int(low * (high / low) ** rng.random())


SIZES: dict[str, int | Callable[[random.Random], int]] = {
    "65,536": 65_536,
    "65,537": 65_537,
    "10,000 float64": 80_000,
    "131,073": 131_073,
    "224x224x3": 224 * 224 * 3,
    "200,000": 200_000,
    "262,145": 262_145,
    "640x480": 640 * 480,
    "512 KiB + 1": 512 * KIB + 1,
    "1 MiB + 1": MIB + 1,
    "2 MiB": 2 * MIB,
    "2 MiB + 1": 2 * MIB + 1,
    "3,000,000": 3_000_000,
    "4 MiB + 1": 4 * MIB + 1,
    "8 MiB": 8 * MIB,
    "mixed, 64 KiB to 192 KiB": log_uniform(64 * KIB, 192 * KIB),
    "mixed, 64 KiB to 2 MiB": log_uniform(64 * KIB, 2 * MIB),
    "mixed, 64 KiB to 8 MiB": log_uniform(64 * KIB, 8 * MIB),
    "mixed, nine small to one large": lambda rng: (
        rng.randrange(64 * KIB, 256 * KIB) if rng.random() < 0.9 else rng.randrange(2 * MIB, 8 * MIB)
    ),
    "mixed, the sizes above": lambda rng: rng.choice([n for n in SIZES.values() if isinstance(n, int)]),
}
PRELOADED = {"jemalloc": ("jemalloc", "libjemalloc.so.2"), "mimalloc": ("mimalloc", "libmimalloc.so.2")}


# ---- one population, in a process of its own


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def population(allocator: str, name: str, nr_bytes: int, steps: int) -> dict[str, float]:
    """Make, replace and measure."""
    import pagehint as ph

    rng, sizes = random.Random(20261130), SIZES[name]
    draw = sizes if callable(sizes) else lambda _: sizes
    lengths = [draw(rng)]
    while (sum(lengths) < nr_bytes or len(lengths) < LEAST) and len(lengths) < MOST:
        lengths.append(draw(rng))
    with ExitStack() as stack:
        if allocator == "pagehint":
            ph.numpy.install()
        elif allocator == "arena":
            arena = stack.enter_context(ph.Arena())
            stack.enter_context(arena.hinting(min_age=0.01, threshold=1, delay=None))
            stack.enter_context(arena.numpy())
        arrays: list[Any] = [None] * len(lengths)
        gc.disable()
        before, began, cpu = resident(), time.perf_counter(), time.process_time()
        for i, n in enumerate(lengths):
            arrays[i] = np.empty(n, np.uint8)
            arrays[i].fill(1)
        made, made_cpu = time.perf_counter() - began, time.process_time() - cpu
        total = sum(-(-n // PAGE) * PAGE for n in lengths)
        fresh = (resident() - before) / total
        began = time.perf_counter()
        for _ in range(steps * len(lengths)):
            i = rng.randrange(len(arrays))
            arrays[i] = None
            arrays[i] = np.empty(draw(rng), np.uint8)
            arrays[i][::PAGE] = 1  # a byte of each page makes all of it resident
        replaced = time.perf_counter() - began
        time.sleep(2.5)  # what is old enough goes back, also of the reserve
        total = sum(-(-a.nbytes // PAGE) * PAGE for a in arrays)
        after = (resident() - before) / total
        figures = {"arrays": len(arrays), "made": made, "made_cpu": made_cpu, "fresh": fresh, "replaced": replaced}
        figures["after"] = after
        arrays.clear()
    return figures


def libraries() -> dict[str, str]:
    """What is to be preloaded for each allocator, found where the loader finds it."""
    found = {"pagehint": "", "arena": "", "glibc": ""}
    for name, (short, soname) in PRELOADED.items():
        path = ctypes.util.find_library(short) or soname
        env = {**os.environ, "LD_PRELOAD": path}
        if b"cannot be preloaded" in subprocess.run([sys.executable, "-c", ""], capture_output=True, env=env).stderr:
            print(f"{name} is not installed ({soname}): left out", file=sys.stderr)
        else:
            found[name] = path
    return found


def measure(allocator: str, library: str, name: str, nr_bytes: int, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.runs", "--run", allocator, name, str(nr_bytes), str(steps)]
    env = {**os.environ, "LD_PRELOAD": library} if library else os.environ
    warm_up()
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)


# ---- the allocator alone


def replace(live: int, draw: Callable[[random.Random], int], times: int) -> tuple[float, list[float]]:
    """Nanoseconds for a replacement, and bytes of granules in use for each byte in use, during the second half."""
    import pagehint as ph

    rng = random.Random(1)
    sizes = [-(-draw(rng) // PAGE) for _ in range(live)]
    arena = ph.Arena(2 * sum(sizes) * PAGE + (1 << 30))
    pages = arena.pages
    runs = [pages.alloc_pages_exact(n) for n in sizes]
    took, ratios = [], []
    for step in range(times):
        chosen = [(rng.randrange(live), -(-draw(rng) // PAGE)) for _ in range(live)]
        began = time.perf_counter_ns()
        for i, n in chosen:
            pages.free_pages_exact(runs[i], sizes[i])
            runs[i], sizes[i] = pages.alloc_pages_exact(n), n
        took.append((time.perf_counter_ns() - began) / live)
        if step >= times // 2:
            first, last = np.array(runs) // GRANULE, (np.array(runs) + sizes - 1) // GRANULE
            granules = np.zeros(int(last.max()) + 2, int)
            np.add.at(granules, first, 1)
            np.add.at(granules, last + 1, -1)
            ratios.append(float((granules.cumsum() > 0).sum() * GRANULE / sum(sizes)))
    return min(took), ratios


def live_table() -> Table:
    """Show what a run that replaces a random one costs, by how many live, and what is left of the granules.

    The memory is not touched: the time is the allocator's, and that of the loop in Python.
    """
    table = Table(title="replacing random runs, each 40 times: by how many live")
    for column in ("", "live", "ns", "bytes of granules for each byte, mean", "at most"):
        table.add_column(column, justify="right" if column else "left")
    for name in [name for name in SIZES if callable(SIZES[name])]:
        for live in (1_000, 4_000, 16_000, 64_000):
            ns, ratios = replace(live, SIZES[name], 40)
            table.add_row(name, f"{live:,}", f"{ns:.0f}", f"{statistics.mean(ratios):.3f}", f"{max(ratios):.3f}")
    return table


# ---- the tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=600, help="of each population, about")
    parser.add_argument("--steps", type=int, default=10, help="replacements for each array that lives")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="populations whose name has these words")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--live", action="store_true", help="the allocator alone, by how many runs live")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        allocator, name, nr_bytes, steps = options.run
        print(json.dumps(population(allocator, name, int(nr_bytes), int(steps))))
        return
    console = Console(width=160)
    if options.live:
        console.print(live_table())
        return
    found = libraries()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name in [name for name in SIZES if options.only in name]:
        results: dict[str, list[dict[str, float]]] = {allocator: [] for allocator in found}
        for k in range(options.rounds):
            # Each is first in its turn: the first finds what memory the kernel has, the next what the last has left.
            for allocator in [*found, *found][k % len(found) :][: len(found)]:
                figures = measure(allocator, found[allocator], name, options.megabytes * MIB, options.steps)
                results[allocator].append(figures)
        rows[name] = {
            allocator: {
                # Of times the least: where the kernel gets the memory from makes the others.
                key: (statistics.median if key in ("fresh", "after") else min)(each[key] for each in seen)
                for key in seen[0]
            }
            for allocator, seen in results.items()
        }
    for key, title, over in (
        ("fresh", "resident bytes for each byte, fresh", False),
        ("after", f"resident bytes for each byte, each array replaced {options.steps} times", False),
        ("made", "time of making and filling, over glibc's", True),
        ("made_cpu", "CPU time of making and filling, all threads, over glibc's", True),
        ("replaced", "time of replacing, over glibc's", True),
    ):
        table = Table(title=title)
        table.add_column("")
        table.add_column("arrays", justify="right")
        for allocator in found:
            table.add_column(allocator, justify="right")
        for name, figures in rows.items():
            least = figures["glibc"][key] if over else 1.0
            cells = [f"{figures[allocator][key] / least:.2f}" for allocator in found]
            table.add_row(name, f"{figures['glibc']['arrays']:,.0f}", *cells)
        console.print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=4) + "\n")


if __name__ == "__main__":
    main()
