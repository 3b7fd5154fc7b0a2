"""Python's small objects, up to 512 bytes: pools of 16 KiB in arenas that Python maps.

A pool is known by its head: what it says of the size of its blocks, how many are in use and where the next ones are
must fit together. (CPython, Objects/obmalloc.c, 3.10 to 3.14; free-threaded builds have none.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pagehint.memory.address_space import AddressSpace, Range
from pagehint.memory.contents import read_at, resident_pages
from pagehint.memory.part import Part

NAME = "Python objects"
_POOL: Final = 16 << 10
_HEAD: Final = 48
_LARGEST: Final = 512
_STEP: Final = 16


def find(space: AddressSpace) -> Iterator[Part]:
    """Find the pools, and count the blocks that are in use."""
    ranges: list[Range] = []
    used = 0
    for start, end in space.unclaimed():
        pages = resident_pages(start, end)
        places, words = read_at(pages[pages % np.uint64(_POOL) == 0], _HEAD)
        pools, blocks = _pools(places, words)
        pools_here, blocks_here = pools[pools <= end - _POOL], blocks[pools <= end - _POOL]
        used += int(blocks_here.sum()) + _HEAD * len(pools_here)
        ranges += _joined(pools_here)
    note = "" if ranges else "it has no pools: PYTHONMALLOC, or a build without the GIL"
    yield Part(NAME, space.claim(ranges), used=used, note=note)


def _pools(places: NDArray[np.uint64], words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the addresses of those that are pools, and the bytes of their blocks in use."""
    halves = words.view(np.uint32).astype(np.int64)
    count, kind, following, last = (halves[:, column] for column in (0, 9, 10, 11))
    size = (kind + 1) * _STEP
    free = words[:, 1]
    inside = (free == 0) | ((free >= places + np.uint64(_HEAD)) & (free < places + np.uint64(_POOL)))
    is_pool = (
        (size <= _LARGEST)
        & (last == _POOL - size)
        & (following >= _HEAD)
        & (following <= last + size)
        & ((following - _HEAD) % size == 0)
        & (count <= (_POOL - _HEAD) // size)
        & inside
    )
    return places[is_pool].astype(np.int64), (count * size)[is_pool]


def _joined(pools: NDArray[np.int64]) -> list[Range]:
    """Return ranges of neighbours."""
    if not len(pools):
        return []
    breaks = np.flatnonzero(np.diff(pools) != _POOL)
    first = np.append(pools[0], pools[breaks + 1])
    last = np.append(pools[breaks], pools[-1]) + _POOL
    return list(zip(first.tolist(), last.tolist(), strict=True))
