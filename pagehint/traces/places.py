"""Where the pages of a memory lie, at one moment. `places.pxd` has the same bytes for compiled code."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagehint.traces.events import NO_PFN

PAGEBLOCK_ORDER = 9
MOST_ORDER = 13
NO_BLOCK_TYPE = 255
"""The type of a pageblock of which nothing is known."""

MOST_PAGES = 2**28
"""How many pages a recording without a snapshot may speak of: 1 TiB. PFNs beyond are taken for wrong ones, since a
damaged row could else ask for any amount of memory. With a snapshot, its own span is the bound."""

PLACE_MASK = 7


class Place(IntEnum):
    """Where a page lies, as far as a recording tells."""

    UNKNOWN = 0
    """No snapshot, and no event yet."""
    FREE = 1
    """On the buddy lists."""
    LISTED = 2
    """Off them and nobody's: on a CPU's list, or on its way to or from a user."""
    USED = 3
    """A user has it."""
    REPORTING = 4
    """Taken off the lists by free page reporting: free all the same."""
    TARGET = 5
    """Taken by compaction, which moves contents to it."""
    RESERVED = 6
    """Never given to the allocator."""
    HOLE = 7
    """There is no such page."""


class Places(NamedTuple):
    """Where each page lies.

    Attributes
    ----------
    pages : ndarray of uint8, shape (pages,)
        By PFN from 0: a `Place` in the low three bits; above them, if a block begins there, its order plus one.
    types : ndarray of uint8, shape (pages / 512,)
        The migratetype of each pageblock, by the kernel's numbers, or `NO_BLOCK_TYPE`.
    """

    pages: NDArray[np.uint8]
    types: NDArray[np.uint8]

    def copy(self) -> Places:
        """Return one that can be changed alone."""
        return Places(self.pages.copy(), self.types.copy())

    @property
    def free(self) -> NDArray[np.bool_]:
        """By PFN: whether the page is free for a replay, on the buddy lists or out for a report."""
        place = self.pages & PLACE_MASK
        result: NDArray[np.bool_] = (place == Place.FREE) | (place == Place.REPORTING)
        return result

    @property
    def managed(self) -> NDArray[np.bool_]:
        """By PFN: whether the allocator has the page, or has given it to somebody."""
        result: NDArray[np.bool_] = (self.pages & PLACE_MASK) < Place.RESERVED
        return result


def places(nr_pages: int, fill: Place) -> Places:
    """Return places for at least this many pages, all the same. Largest blocks are whole, up to the last page."""
    nr_pages = -(-nr_pages >> MOST_ORDER) << MOST_ORDER
    types = np.full(nr_pages >> PAGEBLOCK_ORDER, NO_BLOCK_TYPE, np.uint8)
    return Places(np.full(nr_pages, fill, np.uint8), types)


def unknown_places(pfns: NDArray[np.uint64]) -> Places:
    """Return where pages lie of which nothing is known but that these PFNs have been seen."""
    seen = pfns[pfns < min(MOST_PAGES, NO_PFN)]
    return places(int(seen.max()) + 1 if len(seen) else 0, Place.UNKNOWN)
