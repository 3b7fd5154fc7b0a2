"""Instructions an operation, counted by cachegrind: ``python -m benchmarks.instructions [--update]``.

Times move by a third between two runs on a shared machine, counts hardly. Each of some small fixed workloads runs in a
process of its own, and what the process takes without any workload is subtracted. The counts are compared with those in
`instructions.json`, and it fails if one is more than 2 % above; `--update` writes them there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import pagehint as ph
from benchmarks.build import build_consumer, compiler_version, load_module
from benchmarks.traces import orders_that_fit, traces

COMMITTED = Path(__file__).with_suffix(".json")
TOLERANCE = 0.02
# What is not the workload varies by up to half a million from build to build, so a workload is a hundred million
# instructions or more, but for the worker's and the bitmap's: there it is nearly 1 %.
GIB = 1
REPORTED_GIB = 256
REPORTS = 4
PAGES = 1 << 16
BULKS = 64
PAIRS = 1_000_000
TRACE = 60_000
TRACES = 5
ARRAYS = 100_000
ARRAY = 100 << 10  # bytes, not a power of two of pages
WORDS = 1 << 15
VISITS = 8
NOTHING = "nothing"


def workloads(consumer: Any) -> dict[str, tuple[int, Callable[[], object]]]:
    """What is counted: how many operations it is, and what does them. All is prepared here, also what is not run."""
    sets, plain, mixed = (ph.PageAllocator(f"{GIB}GiB", pcp=pcp) for pcp in (True, False, False))
    reporting = [ph.PageAllocator(f"{REPORTED_GIB}GiB", pcp=False) for _ in range(REPORTS)]
    for pages in reporting:
        pages.enable_hinting(ph.PageHintingCallbacks(consumer.noop_callback()), workqueue="manual")
    pfns = np.ones(PAGES, np.uint64)
    pages_at_random = np.random.default_rng(1).permutation(PAGES).astype(np.uint64)
    table = np.zeros(GIB << 18, np.uint64)
    trace = traces(orders_that_fit(GIB << 18), TRACE)
    for _ in range(2):
        mixed.run_ops(next(trace), table)
    ops = next(trace)
    undone = ops[::-1].copy()
    undone["op"] = np.where(undone["op"] == ph.OP_ALLOC, ph.OP_FREE, ph.OP_ALLOC)
    there_and_back = np.concatenate([ops, undone])
    bits = np.random.default_rng(2).integers(0, 1 << 64, WORDS, dtype=np.uint64)
    hints = consumer.HintBits(bits)

    arena, keeping = ph.Arena("64MiB", hugepages=False), ph.Arena("64MiB", hugepages=False)
    keeping.enable_hinting(workqueue="manual", clock=lambda: 0.0, threshold=1, reserve="16MiB")

    def arrays(of: ph.Arena) -> None:
        with of.numpy():
            for _ in range(ARRAYS):
                np.empty(ARRAY, np.uint8)

    def repeated(times: int, work: Callable[[], object]) -> Callable[[], object]:
        return lambda: [work() for _ in range(times)]

    def bulk(order_of: np.ndarray) -> None:
        consumer.alloc_bulk(plain, pfns, PAGES)
        consumer.free_bulk(plain, order_of, PAGES)

    return {
        NOTHING: (1, lambda: None),
        "one page, page sets: alloc + free": (PAIRS, lambda: consumer.pairs(sets, PAIRS)),
        "few pages, page sets: alloc + free": (PAIRS, lambda: consumer.few(sets, PAIRS)),
        "one page: alloc + free": (PAIRS, lambda: consumer.pairs(plain, PAIRS)),
        "order 9: alloc + free": (PAIRS, lambda: consumer.pairs(plain, PAIRS, 9)),
        "bulk, in order: alloc + free": (BULKS * PAGES, repeated(BULKS, lambda: bulk(pfns))),
        "bulk, free at random: alloc + free": (BULKS * PAGES, repeated(BULKS, lambda: bulk(pages_at_random))),
        "mixed orders, run_ops": (TRACES * 2 * TRACE, repeated(TRACES, lambda: mixed.run_ops(there_and_back, table))),
        "an array, in Python: made + dropped": (ARRAYS, lambda: arrays(arena)),
        "an array whose pages are kept: made + dropped": (ARRAYS, lambda: arrays(keeping)),
        "worker: a block of order 10": (REPORTS * REPORTED_GIB << 8, lambda: [p.flush_hinting() for p in reporting]),
        "bitmap, dense: a bit": (VISITS * int(np.bitwise_count(bits).sum()), repeated(VISITS, hints.visit)),
    }


def count(name: str, module: Path) -> int:
    """All instructions of a process that prepares everything, and runs one workload."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command += [sys.executable, "-m", "benchmarks.instructions", "--run", name, "--module", str(module)]
    # Hashing alike, and no threads of numpy's that wait for work in a loop.
    env = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    found = re.search(r"I\s+refs:\s+([\d,]+)", result.stderr)
    if result.returncode or not found:
        raise RuntimeError(f"{name}: {result.stderr}")
    return int(found[1].replace(",", ""))


def measure() -> dict[str, float]:
    """Instructions an operation, of all workloads."""
    with tempfile.TemporaryDirectory() as directory:
        module = Path(build_consumer(Path(directory)).__file__)
        operations = {name: n for name, (n, _) in workloads(load_module(module)).items()}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            totals = dict(zip(operations, pool.map(lambda name: count(name, module), operations), strict=True))
    nothing = totals.pop(NOTHING)
    return {name: round((total - nothing) / operations[name], 2) for name, total in totals.items()}


def compare(counts: dict[str, float], committed: dict[str, float]) -> bool:
    """Print both, and tell whether nothing has become dearer."""
    good = counts.keys() == committed.keys()
    for name in dict.fromkeys([*committed, *counts]):
        old, new = committed.get(name), counts.get(name)
        change = new / old - 1 if old and new else 0.0
        good = good and change <= TOLERANCE
        print(f"{name:<40}{old or '-':>10}{new or '-':>10}{change:>+9.1%}{'  MORE' if change > TOLERANCE else ''}")
    return good


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--update", action="store_true", help=f"write the counts to {COMMITTED.name}")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--module", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        workloads(load_module(options.module))[options.run][1]()
        return 0
    if shutil.which("valgrind") is None:
        print("valgrind is not installed (apt-get install valgrind): nothing was counted", file=sys.stderr)
        return 2
    made_with = {"machine": platform.machine(), "compiler": compiler_version()}
    counts = measure()
    if options.update:
        COMMITTED.write_text(json.dumps({**made_with, "instructions": counts}, indent=4) + "\n")
    committed = json.loads(COMMITTED.read_text())
    good = compare(counts, committed["instructions"])
    if {key: committed[key] for key in made_with} != made_with:
        print(
            f"not comparable: the committed counts are of {committed['compiler']}, {committed['machine']}; here it is"
            f" {made_with['compiler']}, {made_with['machine']}. Make your own with --update",
            file=sys.stderr,
        )
        return 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
