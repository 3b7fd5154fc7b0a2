"""A loop's temporaries in an arena: ``python -m benchmarks.temporaries``.

Each iteration makes an array, writes to all of it, drops it, and does something else for two milliseconds. With hinting
on, what was dropped may be sent away meanwhile and faulted in again by the next iteration; `min_age` is there so that
it is not. One process, the settings in turn, several rounds; medians, of the writing only.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

import pagehint as ph

MIB = 1 << 20
SETTINGS: dict[str, dict[str, Any] | None] = {
    "hinting off": None,
    "hinting on": {"threshold": 1},
    "hinting on, min_age=1.0": {"threshold": 1, "min_age": 1.0},
}
ROUNDS = 5
ITERATIONS = 200
PAUSE = 0.002


def loop(arena: ph.Arena, nr_bytes: int) -> tuple[float, float]:
    """Seconds an iteration, and the share of the temporaries' memory that was given back."""
    before, seconds = arena.pages.stats().pages_reported, 0.0
    for i in range(ITERATIONS):
        began = time.perf_counter()
        array = arena.empty(nr_bytes, np.uint8)
        array[:] = i & 255
        del array
        ended = time.perf_counter()
        seconds += ended - began
        while time.perf_counter() < ended + PAUSE:
            pass
    given_back = (arena.pages.stats().pages_reported - before) * arena.pages.page_size
    return seconds / ITERATIONS, given_back / (ITERATIONS * nr_bytes)


def main() -> None:
    """Print a table."""
    print(f"{'temporaries of':<16}{'setting':<26}{'ms each':>10}{'x':>7}{'given back':>12}{'resident after':>16}")
    for size in (1, 8, 64):
        rows: dict[str, list[tuple[float, float, int]]] = {name: [] for name in SETTINGS}
        for _ in range(ROUNDS):
            for name, options in SETTINGS.items():
                with ph.Arena("1GiB") as arena:
                    if options is not None:
                        arena.enable_hinting(**options)
                        arena.pages.flush_hinting()
                    seconds, share = loop(arena, size * MIB)
                    if options is not None:
                        time.sleep(2 * options.get("min_age", 0.1))
                    rows[name].append((seconds, share, arena.resident_bytes))
        base = statistics.median(seconds for seconds, _, _ in rows["hinting off"])
        for name, row in rows.items():
            seconds, share, resident = (statistics.median(column) for column in zip(*row, strict=True))
            print(
                f"{size:>7} MiB     {name:<26}{seconds * 1e3:>10.3f}{seconds / base:>7.2f}{share:>12.1%}"
                f"{resident / MIB:>12.0f} MiB"
            )


if __name__ == "__main__":
    main()
