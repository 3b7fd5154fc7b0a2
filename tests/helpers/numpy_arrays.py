"""For the tests of NumPy's arrays in an arena: an arena that must be empty at the end, and where an array is."""

from __future__ import annotations

import gc
import mmap

import pagehint as ph

MIB = 1 << 20
PAGE = mmap.PAGESIZE


def empty_at_the_end():
    """A fixture: an arena in which nothing may be left."""
    made = ph.Arena("64MiB")
    yield made
    nothing_left(made)


def installed_arena():
    """A fixture: the same, installed for the whole process."""
    made = ph.Arena("64MiB")
    ph.numpy.install(made)
    yield made
    ph.numpy.uninstall()
    nothing_left(made)


def nothing_left(arena):
    gc.collect()
    assert arena.live_arrays == 0
    assert arena.pages.stats().allocated_pages == 0
    arena.pages.verify()


def inside(array, arena):
    """Whether an array's data lie in an arena."""
    return 0 <= array.__array_interface__["data"][0] - arena.address(0) < arena.size


def address(array):
    return array.__array_interface__["data"][0]


def mapped(address):
    """Whether there is any mapping at an address."""
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        ranges = [line.split()[0].split("-") for line in maps]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)
