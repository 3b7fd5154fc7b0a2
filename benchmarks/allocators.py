"""The two allocators under one interface, so that a row is written once and both do the same work."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import pagehint as ph

TOP = 10
PAGES_PER_GIB = 1 << 18
BATCH = 1 << 16  # blocks a call: the call costs nothing then, and its array stays in the cache

Pfns = NDArray[np.uint64]
Orders = NDArray[np.uint32]


class Buddy(Protocol):
    """One zone of so many GiB, largest order 10, all of it free at first."""

    name: str

    def __init__(self, gib: int) -> None: ...

    def alloc(self, count: int, order: int) -> Pfns: ...

    def free(self, pfns: Pfns, order: int | Orders) -> None: ...

    def free_blocks(self) -> Pfns:
        """The maximal free blocks by address: rows of first page and order."""

    def metadata_bytes(self) -> int: ...


class PageHint:
    """pagehint through its bulk calls, which go past the per-CPU page sets, so these are off."""

    name = "pagehint"

    def __init__(self, gib: int) -> None:
        self.pages = ph.PageAllocator(f"{gib}GiB", max_page_order=TOP, pcp=False)

    def alloc(self, count: int, order: int) -> Pfns:
        return self.pages.alloc_pages_bulk(count, order)

    def free(self, pfns: Pfns, order: int | Orders) -> None:
        self.pages.free_pages_bulk(pfns, order)

    def free_blocks(self) -> Pfns:
        self.pages.verify()
        blocks = self.pages.zones[0].free_blocks()
        return np.stack([blocks["pfn"], blocks["order"].astype(np.uint64)], axis=1)

    def metadata_bytes(self) -> int:
        return self.pages.zones[0].metadata_bytes


class LinkedList:
    """`linked_list_buddy.c`, the yardstick."""

    name = "linked-list"
    library: ctypes.CDLL

    def __init__(self, gib: int) -> None:
        self.handle = self.library.buddy_create(gib * PAGES_PER_GIB)
        if self.handle is None:
            raise MemoryError(f"no memory for a linked-list buddy of {gib} GiB")

    def __del__(self) -> None:
        self.library.buddy_destroy(self.handle)

    def alloc(self, count: int, order: int) -> Pfns:
        pfns = np.empty(count, np.uint64)
        if self.library.buddy_alloc(self.handle, order, pfns.ctypes.data, count) != count:
            raise MemoryError(f"{count} blocks of order {order}")
        return pfns

    def free(self, pfns: Pfns, order: int | Orders) -> None:
        assert pfns.flags.c_contiguous
        if isinstance(order, int):
            self.library.buddy_free(self.handle, pfns.ctypes.data, None, order, len(pfns))
        else:
            assert order.flags.c_contiguous
            assert len(order) == len(pfns)
            self.library.buddy_free(self.handle, pfns.ctypes.data, order.ctypes.data, 0, len(pfns))

    def pairs(self, count: int) -> None:
        if self.library.buddy_pairs(self.handle, count) != count:
            raise MemoryError("no page")

    def free_blocks(self) -> Pfns:
        room = self.library.buddy_list_free(self.handle, None, None, 0)
        pfns, orders = np.empty(room, np.uint64), np.empty(room, np.uint32)
        self.library.buddy_list_free(self.handle, pfns.ctypes.data, orders.ctypes.data, room)
        return np.stack([pfns, orders.astype(np.uint64)], axis=1)

    def metadata_bytes(self) -> int:
        return int(self.library.buddy_metadata_bytes(self.handle))

    @classmethod
    def build(cls, directory: Path) -> None:
        """Compile the yardstick with the system's C compiler (`CC`, else `cc`), and load it."""
        target = directory / "linked_list_buddy.so"
        source = Path(__file__).with_name("linked_list_buddy.c")
        compiler = shlex.split(os.environ.get("CC", "cc"))
        subprocess.run([*compiler, "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o", target, source], check=True)
        cls.library = library = ctypes.CDLL(str(target))
        handle, array, count, order = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int
        for name, result, arguments in (
            ("create", handle, [count]),
            ("destroy", None, [handle]),
            ("alloc", count, [handle, order, array, count]),
            ("free", None, [handle, array, array, order, count]),
            ("pairs", count, [handle, count]),
            ("list_free", count, [handle, array, array, count]),
            ("metadata_bytes", count, [handle]),
        ):
            function = getattr(library, f"buddy_{name}")
            function.restype = result
            function.argtypes = arguments


def alloc_into(buddy: Buddy, pfns: Pfns, order: int) -> None:
    """Fill the array with blocks, a batch a call. Its memory is touched already: a fault costs more than a page."""
    for at in range(0, len(pfns), BATCH):
        part = pfns[at : at + BATCH]
        part[:] = buddy.alloc(len(part), order)


def free_all(buddy: Buddy, pfns: Pfns, order: int) -> None:
    for at in range(0, len(pfns), BATCH):
        buddy.free(pfns[at : at + BATCH], order)


def check_covers(pfns: Pfns, order: int, nr_pages: int) -> None:
    """These blocks are all of the zone, each once."""
    seen = np.zeros(nr_pages >> order, bool)
    seen[pfns >> np.uint64(order)] = True
    assert len(pfns) == len(seen)
    assert seen.all()
