"""What a run of the demo does: bursts of work on arrays in an arena, and idle time between them.

A burst fills the arena to three quarters, uses the arrays, and frees them all. The idle time is when hinting gives back
what the burst has freed; without hinting it stays resident.
"""

from __future__ import annotations

import random
import time

import numpy as np
from numpy.typing import NDArray

from pagehint.arena.base import BaseArena

MIB = 1 << 20
ROUNDS = 4
PASSES = 6  # how often a burst goes over its arrays
MIN_IDLE_SECONDS = 0.6


def array_sizes(size: int, rng: random.Random) -> list[int]:
    """Return sizes of arrays in bytes, 1 to 16 MiB each (less in a small arena), three quarters of `size` in all.

    Free memory is not always in one piece. The largest come first, and a quarter stays free, so that all of them fit.
    """
    left = size * 3 // 4
    most = min(16 * MIB, size // 64)
    least = most // 16
    sizes = []
    while left >= least:
        sizes.append(min(rng.randrange(least, most + 1), left))
        left -= sizes[-1]
    return sorted(sizes, reverse=True)


def burst(arena: BaseArena, size: int, seed: int) -> float:
    """Make arrays, use them, free them. Returns a sum of all they held, which proves that the work was done."""
    arrays: list[NDArray[np.float64]] = []
    for nr_bytes in array_sizes(size, random.Random(seed)):
        array = arena.empty(nr_bytes // 8)
        array[:] = len(arrays)
        arrays.append(array)
    total = 0.0
    for _ in range(PASSES):
        for array in arrays:
            np.sqrt(array, out=array)
            total += float(array.sum())
    return total


def bursts(arena: BaseArena, size: int, seconds: float) -> list[float]:
    """Do all rounds, each a burst and then idle time, spread over so many seconds.

    It takes longer if the work does: some idle time follows each burst in any case.

    Returns
    -------
    list of float
        The seconds of work of each round.
    """
    round_seconds = []
    begin = time.monotonic()
    for number in range(ROUNDS):
        started = time.monotonic()
        burst(arena, size, seed=number)
        round_seconds.append(time.monotonic() - started)
        time.sleep(max(begin + seconds * (number + 1) / ROUNDS - time.monotonic(), MIN_IDLE_SECONDS))
    return round_seconds
