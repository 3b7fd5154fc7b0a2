"""The stacks of threads: the main thread's, and those that glibc maps, each above a page that nobody can touch."""

from __future__ import annotations

import ctypes
import mmap
import platform
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np

from pagehint.memory.address_space import AddressSpace, Range
from pagehint.memory.contents import read_at
from pagehint.memory.part import Part
from pagehint.memory.vmas import Vma

NAME = "thread stacks"
_MOST_GUARD: Final = 1 << 20


def find(space: AddressSpace) -> Iterator[Part]:
    """Find them by their guards. Those of threads that have ended, which glibc keeps for the next, are among them."""
    ranges = [(vma.start, vma.end) for vma in space.vmas if vma.path == "[stack]"]
    sizes = {_default_size(), threading.stack_size()}
    for guard, above in pairwise(space.vmas):
        is_guard = guard.permissions == "---p" and guard.end - guard.start <= _MOST_GUARD
        if is_guard and above.plain and above.start == guard.end:
            ranges += _stack(guard, above, sizes)
    yield Part(NAME, space.claim(ranges))


def _stack(guard: Vma, above: Vma, sizes: set[int]) -> list[Range]:
    """Return the stack over a guard, if it is one: of one of these sizes with its guard, or the whole mapping."""
    for end in (*(guard.start + size for size in sizes), above.end):
        if above.start < end <= above.end and _is_top(end, end - guard.start in sizes):
            return [(above.start, end)]
    return []


def _is_top(end: int, likely: bool) -> bool:
    """Whether a stack ends here: on x86-64 its thread's descriptor is there, which begins with its own address twice.

    Elsewhere it is one if it is likely.
    """
    if platform.machine() != "x86_64":
        return likely
    start = end - mmap.PAGESIZE
    _, rows = read_at(np.array([start], np.uint64), mmap.PAGESIZE)
    if not len(rows):
        return False
    words = rows[0]
    own = start + 8 * np.arange(len(words), dtype=np.uint64)
    return bool(((words == own)[:-2] & (words[2:] == own[:-2])).any())


def _default_size() -> int:
    """Return the size of a thread's stack if its maker does not say another one."""
    libc = ctypes.CDLL(None)
    attributes = ctypes.create_string_buffer(256)  # a pthread_attr_t has 56 to 64 bytes
    size = ctypes.c_size_t()
    if libc.pthread_attr_init(attributes):
        return 0
    libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))
    libc.pthread_attr_destroy(attributes)
    return size.value
