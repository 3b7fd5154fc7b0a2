"""Loops that want the same memory again, more slowly than it is given back: ``python -m benchmarks.ticks``.

`python -m benchmarks.ticks [--rounds N] [--seconds S] [--sizes MIB ...] [--hertz N ...] [--json FILE]`. Each tick makes
an array, writes to all of it, drops it, and sleeps until the next. What counts is the time from making to dropping. The
allocators take turns, each in a process of its own, which is looked at once more two seconds after its last tick. The
figures are medians of the rounds. Both the median and the mean of the ticks are shown, since a tick that has to fault
its memory in may be a rare one. "no reserve" is `pagehint.numpy.install` with ``reserve_age=0``, "0.01 s" with
a constant age. jemalloc and mimalloc come in by LD_PRELOAD; what is not installed is left out, and said.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
LIBRARIES = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu"
SETTINGS: dict[str, dict[str, Any]] = {  # of `pagehint.numpy.install`
    "pagehint": {},
    "pagehint, no reserve": {"reserve_age": 0.0},
    "pagehint, 0.01 s": {"min_age": 0.01},
}
ALLOCATORS = {
    "glibc": (),
    **dict.fromkeys(SETTINGS, ()),
    "jemalloc": ("libjemalloc.so.2",),
    "mimalloc": ("libmimalloc.so.2", "libmimalloc.so.2.0"),
}
FIRST = 5  # ticks that do not count: allocators learn from them
AFTER = 2.0  # seconds


def resident() -> int:
    """Bytes of resident anonymous memory, so without code."""
    _, all_pages, of_files = map(int, Path("/proc/self/statm").read_text().split()[:3])
    return (all_pages - of_files) * os.sysconf("SC_PAGESIZE")


def work(allocator: str, nr_bytes: int, hertz: float, seconds: float) -> None:
    """Tick, and tell the parent how long it took; then, after a while, how much memory is left."""
    if allocator.startswith("pagehint"):
        import pagehint as ph

        ph.numpy.install(**SETTINGS[allocator])
    start, took = resident(), []
    due = time.perf_counter()
    for i in range(FIRST + max(int(hertz * seconds), 20)):
        began = time.perf_counter()
        array = np.empty(nr_bytes, np.uint8)
        array[:] = i & 255
        del array
        ended = time.perf_counter()
        took.append(ended - began)
        due = max(due + 1 / hertz, ended)
        time.sleep(due - ended)
    took = took[FIRST:]
    print(json.dumps({"median": statistics.median(took), "mean": statistics.mean(took)}), flush=True)
    time.sleep(max(AFTER - 1 / hertz, 0))
    print(json.dumps({"left": resident() - start}), flush=True)


def environment(allocator: str) -> dict[str, str] | None:
    """The environment of a process with this allocator; None where it is not installed."""
    names = ALLOCATORS[allocator]
    found = [path for path in (LIBRARIES / name for name in names) if path.exists()]
    if names and not found:
        return None
    return {**os.environ, "LD_PRELOAD": str(found[0])} if found else dict(os.environ)


def look_on(allocators: dict[str, dict[str, str]], nr_bytes: int, hertz: float, seconds: float) -> dict[str, Any]:
    """One round: the allocators tick in turn, and sleep side by side."""
    figures, sleeping = {}, {}
    for name, env in allocators.items():
        command = [sys.executable, "-m", "benchmarks.ticks", "--work", name, str(nr_bytes), str(hertz), str(seconds)]
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        figures[name], sleeping[name] = json.loads(child.stdout.readline()), child
    for name, child in sleeping.items():
        figures[name].update(json.loads(child.communicate()[0]))
    return figures


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of ticks, and at least twenty of them")
    parser.add_argument("--sizes", type=float, nargs="+", default=[100 / 1024, 1, 8, 64], help="MiB")
    parser.add_argument("--hertz", type=float, nargs="+", default=[10, 50, 200])
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        name, *numbers = arguments.work
        work(name, int(numbers[0]), float(numbers[1]), float(numbers[2]))
        return
    allocators = {}
    for name in ALLOCATORS:
        env = environment(name)
        if env is None:
            print(f"{name} is not installed, and left out")
        else:
            allocators[name] = env
    print(
        f"{'array':>9}{'ticks':>8}  {'allocator':<22}{'median us':>11}{'of glibc':>10}{'mean us':>11}{'of glibc':>10}"
        f"{'MiB left':>10}"
    )
    seen = []
    for size, hertz in itertools.product(arguments.sizes, arguments.hertz):
        rounds = []
        for turn in range(arguments.rounds):
            names = list(allocators)[:: -1 if turn % 2 else 1]
            in_turn = {name: allocators[name] for name in names}
            rounds.append(look_on(in_turn, int(size * MIB), hertz, arguments.seconds))
        row = {
            name: {figure: statistics.median(each[name][figure] for each in rounds) for figure in rounds[0][name]}
            for name in allocators
        }
        for name, figures in row.items():
            seen.append({"MiB": size, "hertz": hertz, "allocator": name, **figures})
            median, mean = (
                f"{figures[of] * 1e6:>11,.0f}{figures[of] / row['glibc'][of]:>10.2f}" for of in ("median", "mean")
            )
            left = f"{figures['left'] / MIB:>10.1f}"
            print(f"{size:>5.3g} MiB{hertz:>5g} Hz  {name:<22}{median}{mean}{left}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
