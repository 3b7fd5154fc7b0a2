"""A thread that has arrays in the arena, each full of a canary: a random number that must still be there later."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from pagehint.soak.finding import require
from pagehint.soak.shared import Shared

MAX_ARRAYS = 20
SIZES = (100, 4096, 100_000, 1_000_000, 5 << 20)  # bytes


def write_arrays(shared: Shared, rng: random.Random, me: int) -> Iterator[int]:
    """Make arrays and drop them at random until the round ends. Each is looked at before it is dropped."""
    arrays: list[tuple[NDArray[np.uint64], int]] = []
    while not shared.stop.is_set():
        if len(arrays) > MAX_ARRAYS or (arrays and rng.random() < 0.4):
            _check(*arrays.pop(rng.randrange(len(arrays))))
        try:
            array = shared.arena.empty(rng.choice(SIZES) // 8, np.uint64)
        except ph.OutOfMemoryError:
            arrays.clear()
        else:
            canary = rng.getrandbits(63)
            array[:] = canary
            arrays.append((array, canary))
        yield 1
    for array, canary in arrays:
        _check(array, canary)


def _check(array: NDArray[np.uint64], canary: int) -> None:
    wrong = np.flatnonzero(array != canary)
    require(not len(wrong), f"array at {array.ctypes.data:#x}: {len(wrong)} canaries of {len(array)} are dead")
