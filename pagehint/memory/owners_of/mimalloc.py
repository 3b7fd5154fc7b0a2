"""mimalloc, where it has taken malloc's place or came with a library that exports its functions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Final

import numpy as np

from pagehint.memory.address_space import AddressSpace, Range
from pagehint.memory.contents import resident_pages
from pagehint.memory.exported import exported
from pagehint.memory.part import Part

NAME = "mimalloc"
_SLICE: Final = 64 << 10  # mimalloc has memory in multiples of this, aligned to it


def find(space: AddressSpace) -> Iterator[Part]:
    """Ask of every 64 KiB that nobody has claimed whether they are its own. What it keeps of them it does not say."""
    functions = exported(space.libraries(), ["mi_is_in_heap_region"])
    if not functions and is_there(space):
        yield Part(NAME, note="this version does not say where it has memory: it is in unknown")
    for address in functions:
        is_own = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(address)
        ranges: list[Range] = []
        for start, end in space.unclaimed():
            pages = resident_pages(start, end).astype(np.int64)
            for slice_ in np.unique(pages // _SLICE * _SLICE).tolist():
                if is_own(slice_):
                    ranges.append((slice_, slice_ + _SLICE))
        yield Part(NAME, space.claim(ranges), note="it does not say what it keeps: release() shows it")


def is_there(space: AddressSpace) -> bool:
    """Whether a library of this process exports its functions."""
    return bool(exported(space.libraries(), ["mi_collect"]))


def release(space: AddressSpace) -> None:
    """Have each give back what it keeps, at once; of other threads, what these have abandoned."""
    for address in exported(space.libraries(), ["mi_collect"]):
        ctypes.CFUNCTYPE(None, ctypes.c_bool)(address)(True)
