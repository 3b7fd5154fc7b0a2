"""Memory back within a second, and no slower for what comes again: ``python -m benchmarks.churn``.

`python -m benchmarks.churn [--arenas N] [--size SIZE] [--seconds S] [--pause S] [--only WORDS] [--json FILE]`. The
pattern is that of an operator of sandboxes (vm0-ai/vm0#34723), who measured free page reporting with a delay of 2 s and
of 250 ms: the one had memory back after 10 s, the other lost 15 of 38 cycles.

Release: so many arenas, each full, are freed at once; shown is when an eighth of it is left (1.5 GiB of six times
2 GiB), and what is left in the end. Churn: in two arenas side by side, 512 MiB are made, written and dropped again and
again with a pause in between, for so long; shown are the cycles, also of those that never give anything back. Each
setting is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import pagehint as ph
from pagehint.sizes import format_size, parse_size

MIB = 1 << 20
CHURN = 512 * MIB
WAIT = 20.0  # seconds in which memory has to come back, at most
SETTINGS: dict[str, dict[str, Any] | None] = {
    "never": None,
    "auto": {"min_age": "auto"},
    "auto, 0.1 s": {"min_age": "auto", "cost": 0.1},
    "installed": {"min_age": ph.numpy.MIN_AGE, "reserve": ph.numpy.RESERVE, "reserve_age": ph.numpy.RESERVE_AGE},
    "0.01 s, reserve": {"min_age": 0.01, "reserve": ph.numpy.RESERVE, "reserve_age": ph.numpy.RESERVE_AGE},
    "0.25 s": {"min_age": 0.25},
    "2 s": {"min_age": 2.0},
}


def hinted(stack: ExitStack, setting: str, size: int) -> ph.Arena:
    """Return an arena that gives back by a setting, until the end of the stack."""
    arena = stack.enter_context(ph.Arena(size))
    options = SETTINGS[setting]
    if options is not None:
        stack.enter_context(arena.hinting(threshold=1, delay=None, mark_free=False, **options))
    return arena


def release(setting: str, nr_arenas: int, size: int) -> dict[str, float]:
    """Fill arenas, free them at once, and see how fast that is back."""
    with ExitStack() as stack:
        arenas = [hinted(stack, setting, size) for _ in range(nr_arenas)]
        full = [arena.empty(size, "u1") for arena in arenas]
        for array in full:
            array[:: os.sysconf("SC_PAGESIZE")] = 1
        del array, full[:]
        began = time.monotonic()
        back = float("nan")
        while time.monotonic() - began < (WAIT if SETTINGS[setting] else 1):
            if sum(arena.resident_bytes for arena in arenas) <= nr_arenas * size // 8:
                back = time.monotonic() - began
                break
            time.sleep(0.005)
        time.sleep(1)
        return {"back": back, "left": sum(arena.resident_bytes for arena in arenas)}


def churn(setting: str, seconds: float, pause: float) -> dict[str, float]:
    """Make, write and drop in two threads; returns how often, and how long each took."""
    took: list[float] = []

    def cycle(arena: ph.Arena, end: float) -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            array = arena.empty(CHURN, "u1")
            array.fill(1)
            took.append(time.perf_counter() - began)
            del array
            time.sleep(pause)

    with ExitStack() as stack:
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=cycle, args=(hinted(stack, setting, 2 * CHURN), end)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {"cycles": len(took), "each": float(np.mean(took))}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arenas", type=int, default=6)
    parser.add_argument("--size", default="2GiB", help="of each that is released")
    parser.add_argument("--seconds", type=float, default=35.0, help="of churn")
    parser.add_argument("--pause", type=float, default=0.4, help="seconds between two cycles")
    parser.add_argument("--only", help="settings with this in their name")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        figures = churn(arguments.work, arguments.seconds, arguments.pause)
        print(json.dumps({**figures, **release(arguments.work, arguments.arenas, parse_size(arguments.size))}))
        return
    names = [name for name in SETTINGS if name == "never" or not arguments.only or arguments.only in name]
    seen: dict[str, dict[str, float]] = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.churn", *sys.argv[1:], "--work", name]
        seen[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    table = Table(title=f"{arguments.arenas} times {arguments.size} released; {arguments.seconds:g} s of churn")
    for head in ("setting", "an eighth left after", "left", "cycles", "of never", "a cycle's writing"):
        table.add_column(head, justify="left" if head == "setting" else "right")
    for name, row in seen.items():
        table.add_row(
            name,
            "-" if row["back"] != row["back"] else f"{row['back']:.2f} s",
            format_size(int(row["left"])),
            f"{row['cycles']:,.0f}",
            f"{row['cycles'] / seen['never']['cycles']:.2f}",
            f"{row['each'] * 1e3:.0f} ms",
        )
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
