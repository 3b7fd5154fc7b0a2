"""The C library's heap: what `malloc` and `calloc` hand out, unless another allocator has taken their place.

glibc has its memory in three kinds of places: the program's break, "[heap]"; heaps of other threads, mappings aligned
to 64 MiB, each with a head that says so; and a mapping for each large request, which begins with its length and a bit.
(glibc, malloc/arena.c and malloc/malloc.c.)
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np

from pagehint.memory.address_space import AddressSpace, Range
from pagehint.memory.contents import read_at, resident_pages
from pagehint.memory.part import Part

NAME = "C heap"
_HEAP: Final = 64 << 20  # of another thread: at most, and aligned to it
_MAPPED: Final = 2  # IS_MMAPPED, of the three lowest bits of a length
_PAGES_AT_ONCE: Final = 128
_FIGURES: Final = (  # in malloc.h's order
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class MallocInfo(ctypes.Structure):
    """What mallinfo2(3) returns."""

    arena: int
    ordblks: int
    smblks: int
    hblks: int  # requests with a mapping of their own
    hblkhd: int  # bytes in these
    usmblks: int
    fsmblks: int
    uordblks: int  # bytes in use in the heaps
    fordblks: int  # bytes free in them
    keepcost: int
    _fields_ = [(name, ctypes.c_size_t) for name in _FIGURES]


class Glibc(NamedTuple):
    """The functions of glibc that say what its heap has, and give back."""

    mallinfo2: Callable[[], MallocInfo]
    malloc_trim: Callable[[int], int]


def glibc() -> Glibc | None:
    """Return glibc's functions, also if another allocator has taken `malloc`'s place; None without glibc 2.33."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallinfo2.restype = MallocInfo
        library.malloc_trim.argtypes = (ctypes.c_size_t,)
    except (OSError, AttributeError):
        return None
    return Glibc(library.mallinfo2, library.malloc_trim)


def find_heaps(space: AddressSpace) -> Iterator[Part]:
    """Find the heaps: the program's break, and those of other threads."""
    library = glibc()
    ranges = [(vma.start, vma.end) for vma in space.vmas if vma.path == "[heap]"]
    claim = space.claim([*ranges, *(_other_heaps(space) if library else ())])
    if library is None:
        yield Part(NAME, claim, note="this C library has no mallinfo2: it does not say what it keeps, nor where")
        return
    info = library.mallinfo2()
    yield Part(NAME, claim, used=info.uordblks, free=info.fordblks)


def _other_heaps(space: AddressSpace) -> list[Range]:
    """Return the heaps of other threads: each begins with the address of its arena, which is in such a heap, too.

    Heaps side by side are one mapping, so a heap may begin anywhere in one.
    """
    places = [place for start, end in space.unclaimed() for place in range(-(-start // _HEAP) * _HEAP, end, _HEAP)]
    found = []
    for start, (arena, _, size, writable) in zip(*read_at(np.array(places, np.uint64), 32), strict=True):
        small = 0 < size <= writable <= _HEAP and size % mmap.PAGESIZE == 0
        if small and 0 < arena % _HEAP < mmap.PAGESIZE:
            found.append((int(start), int(start) + int(writable)))
    return found


def find_mapped(space: AddressSpace) -> Iterator[Part]:
    """Find the mappings of single requests. All of them are in use."""
    library = glibc()
    if library is None:
        return
    info = library.mallinfo2()
    ranges = list(_mapped(space)) if info.hblks else []
    found = sum(end - start for start, end in ranges)
    missed = info.hblkhd - found
    note = ""
    if abs(missed) > max(info.hblkhd // 50, 1 << 20):
        note = f"of {info.hblkhd} bytes in mappings of their own {found} were found"
    yield Part(NAME, space.claim(ranges), note=note)


def _mapped(space: AddressSpace) -> Iterator[Range]:
    """Yield the mappings of single requests; a few pages are read at a time, as most are inside the one just found."""
    page = np.uint64(mmap.PAGESIZE)
    for start, end in space.unclaimed():
        pages = resident_pages(start, end)
        at = 0  # in `pages`
        while at < len(pages):
            places, words = read_at(pages[at : at + _PAGES_AT_ONCE], 16)
            sizes = words[:, 1] - np.uint64(_MAPPED)
            fits = (words[:, 0] == 0) & (sizes % page == 0) & (sizes > 0) & (sizes <= np.uint64(end) - places)
            stop = 0
            for place, size in zip(places[fits].tolist(), sizes[fits].tolist(), strict=True):
                if place >= stop:  # not inside the last one
                    stop = place + size
                    yield place, stop
            at = max(at + _PAGES_AT_ONCE, int(np.searchsorted(pages, np.uint64(stop))))


def release() -> None:
    """Give back what is free at the end of the heaps, and whole pages that are free inside them."""
    library = glibc()
    if library is None:
        raise NotImplementedError("this C library has no malloc_trim")
    library.malloc_trim(0)
