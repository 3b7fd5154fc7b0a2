"""pagehint and the yardsticks under one interface, so that a row is written once and all do the same work."""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from benchmarks.build import build_leaf_buddy, build_linked_list
from benchmarks.traces import Ops

TOP = 10
PAGES_PER_GIB = 1 << 18
BATCH = 1 << 16  # blocks a call: the call costs nothing then, and its array stays in the cache
LARGEST_YARDSTICK = 256  # GiB; it has 12 bytes a page

Pfns = NDArray[np.uint64]


class Buddy(Protocol):
    """One zone of so many GiB, largest order 10, all of it free at first."""

    def alloc(self, count: int, order: int) -> Pfns: ...

    def free(self, pfns: Pfns, order: int) -> None: ...

    def run_ops(self, ops: Ops, table: Pfns) -> None: ...

    def pairs(self, count: int) -> None:
        """One page allocated and freed, so many times, in a compiled loop."""

    def free_blocks(self) -> Pfns:
        """The maximal free blocks by address: rows of first page and order. Nothing is measured after this."""


class PageHint:
    """pagehint; its hinting is on with all defaults, worker running, and a compiled function that does nothing."""

    consumer: Any  # the module that `build_consumer` made

    def __init__(self, gib: int, *, pcp: bool, hinting: bool = False) -> None:
        self.pages = ph.PageAllocator(f"{gib}GiB", max_page_order=TOP, pcp=pcp)
        self.alloc = self.pages.alloc_pages_bulk
        self.free = self.pages.free_pages_bulk
        self.run_ops = self.pages.run_ops
        if hinting:
            self.pages.enable_hinting(ph.PageHintingCallbacks(self.consumer.noop_callback()))

    def pairs(self, count: int) -> None:
        self.consumer.pairs(self.pages, count)

    def free_blocks(self) -> Pfns:
        self.pages.disable_hinting()
        assert self.pages.last_error is None
        self.pages.drain_pcp()
        self.pages.verify()
        blocks = self.pages.zones[0].free_blocks()
        return np.stack([blocks["pfn"], blocks["order"].astype(np.uint64)], axis=1)


class PageHintEach(PageHint):
    """pagehint, one block a call: what a compiled program costs that allocates now one, now another."""

    def __init__(self, gib: int, *, pcp: bool, hinting: bool = False) -> None:
        super().__init__(gib, pcp=pcp, hinting=hinting)
        self.alloc = self.alloc_each
        self.free = partial(self.consumer.free_each, self.pages)
        self.run_ops = partial(self.consumer.ops_each, self.pages)

    def alloc_each(self, count: int, order: int) -> Pfns:
        pfns = np.empty(count, np.uint64)
        self.consumer.alloc_each(self.pages, pfns, order)
        return pfns

    def is_whole(self) -> bool:
        blocks = self.free_blocks()
        return bool((blocks[:, 1] == TOP).all()) and len(blocks) << TOP == self.pages.stats().managed_pages


class LinkedList:
    """`linked_list_buddy.c`, the yardstick."""

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

    def free(self, pfns: Pfns, order: int) -> None:
        assert pfns.flags.c_contiguous
        self.library.buddy_free(self.handle, pfns.ctypes.data, order, len(pfns))

    def run_ops(self, ops: Ops, table: Pfns) -> None:
        assert ops.dtype == ph.OP_DTYPE
        if self.library.buddy_run_ops(self.handle, ops.ctypes.data, len(ops), table.ctypes.data) != len(ops):
            raise MemoryError("an operation found no block")

    def pairs(self, count: int) -> None:
        if self.library.buddy_pairs(self.handle, count) != count:
            raise MemoryError("no page")

    def free_blocks(self) -> Pfns:
        room = self.library.buddy_list_free(self.handle, None, None, 0)
        pfns, orders = np.empty(room, np.uint64), np.empty(room, np.uint32)
        self.library.buddy_list_free(self.handle, pfns.ctypes.data, orders.ctypes.data, room)
        return np.stack([pfns, orders.astype(np.uint64)], axis=1)

    @classmethod
    def build(cls, directory: Path) -> None:
        """Compile the yardstick and load it."""
        cls.library = library = ctypes.CDLL(str(build_linked_list(directory)))
        handle, array, count, order = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int
        for name, result, arguments in (
            ("create", handle, [count]),
            ("destroy", None, [handle]),
            ("alloc", count, [handle, order, array, count]),
            ("free", None, [handle, array, order, count]),
            ("run_ops", count, [handle, array, count, array]),
            ("pairs", count, [handle, count]),
            ("list_free", count, [handle, array, array, count]),
        ):
            function = getattr(library, f"buddy_{name}")
            function.restype = result
            function.argtypes = arguments


class LeafBuddy:
    """`leaf_buddy.c` with its lock, with or without its caches: the same layout as pagehint's, in plain C."""

    libraries: dict[bool, ctypes.CDLL]  # by whether it has caches

    def __init__(self, gib: int, *, pcp: bool) -> None:
        self.library = self.libraries[pcp]
        self.handle = self.library.buddy_create(gib * PAGES_PER_GIB)
        if self.handle is None:
            raise MemoryError(f"no memory for a leaf buddy of {gib} GiB")

    def __del__(self) -> None:
        self.library.buddy_destroy(self.handle)

    def alloc(self, count: int, order: int) -> Pfns:
        pfns = np.empty(count, np.uint64)
        if self.library.buddy_alloc(self.handle, 0, order, pfns.ctypes.data, count) != count:
            raise MemoryError(f"{count} blocks of order {order}")
        return pfns

    def free(self, pfns: Pfns, order: int) -> None:
        assert pfns.flags.c_contiguous
        self.library.buddy_free(self.handle, 0, order, pfns.ctypes.data, len(pfns))

    def run_ops(self, ops: Ops, table: Pfns) -> None:
        if self.library.buddy_run_ops(self.handle, 0, ops.ctypes.data, len(ops), table.ctypes.data) != len(ops):
            raise MemoryError("an operation found no block")

    def pairs(self, count: int) -> None:
        if self.library.buddy_pairs(self.handle, 0, count) != count:
            raise MemoryError("no page")

    def is_whole(self) -> bool:
        self.library.buddy_drain(self.handle)
        return bool(self.library.buddy_is_whole(self.handle))

    @classmethod
    def build(cls, directory: Path) -> None:
        """Compile both, and load them."""
        handle, array, count, number = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int
        cls.libraries = {cached: ctypes.CDLL(str(build_leaf_buddy(directory, cached))) for cached in (False, True)}
        for library in cls.libraries.values():
            for name, result, arguments in (
                ("create", handle, [count]),
                ("destroy", None, [handle]),
                ("alloc", count, [handle, number, number, array, count]),
                ("free", None, [handle, number, number, array, count]),
                ("run_ops", count, [handle, number, array, count, array]),
                ("pairs", count, [handle, number, count]),
                ("drain", None, [handle]),
                ("is_whole", number, [handle]),
            ):
                function = getattr(library, f"buddy_{name}")
                function.restype = result
                function.argtypes = arguments


def contenders(gib: int, *, pcp: bool = False) -> dict[str, Buddy]:
    """Everybody that a row on the buddy compares, by name."""
    buddies: dict[str, Buddy] = {
        "pagehint": PageHint(gib, pcp=pcp),
        "hinting": PageHint(gib, pcp=pcp, hinting=True),
    }
    if gib <= LARGEST_YARDSTICK:
        buddies["linked list"] = LinkedList(gib)
    return buddies


def alloc_into(buddy: Buddy, pfns: Pfns, order: int) -> int:
    """Fill the array with blocks, a batch a call; return the nanoseconds of the calls."""
    ns = 0
    for at in range(0, len(pfns), BATCH):
        part = pfns[at : at + BATCH]
        start = perf_counter_ns()
        got = buddy.alloc(len(part), order)
        ns += perf_counter_ns() - start
        part[:] = got
    return ns


def free_all(buddy: Buddy, pfns: Pfns, order: int) -> int:
    """Free these blocks in this order, a batch a call; return the nanoseconds of the calls."""
    ns = 0
    for at in range(0, len(pfns), BATCH):
        part = pfns[at : at + BATCH]
        start = perf_counter_ns()
        buddy.free(part, order)
        ns += perf_counter_ns() - start
    return ns


def alloc_any(buddy: Buddy, count: int) -> None:
    """Allocate so many pages; which, is of no interest."""
    for at in range(0, count, BATCH):
        buddy.alloc(min(BATCH, count - at), 0)


def check_covers(pfns: Pfns, order: int, nr_pages: int) -> None:
    """These blocks are all of the zone, each once."""
    seen = np.zeros(nr_pages >> order, bool)
    seen[pfns >> np.uint64(order)] = True
    assert len(pfns) == len(seen)
    assert seen.all()
