"""Where the pages of a memory lie, at one moment. `places.pxd` has the same bytes for compiled code."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagehint.traces.snapshots.snapshot import (
    PAGE_ABSENT,
    PAGE_FREE,
    PAGE_OFFLINE,
    PAGE_PCP,
    PAGE_RESERVED,
    PAGE_USED,
    Snapshot,
)

PAGEBLOCK_ORDER = 9
MOST_ORDER = 13
NO_BLOCK_TYPE = 255
"""The type of a pageblock of which nothing is known."""

MOST_PAGES = 2**28
"""How many pages a recording without a snapshot may speak of: 1 TiB; and no more than `SURE_PAGES`, 64 GiB, and
`PAGES_OF_EVENT` for each of its events. PFNs beyond are taken for wrong ones: a damaged row could else ask for any
amount of memory. With a snapshot, its own span is the bound."""

SURE_PAGES = 2**24
PAGES_OF_EVENT = 2**12

PLACE_BITS = 3
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
        The migratetype of each 512 pages, by the kernel's numbers, or `NO_BLOCK_TYPE`.
    pageblock_order : int
        Of the kernel.
    """

    pages: NDArray[np.uint8]
    types: NDArray[np.uint8]
    pageblock_order: int = PAGEBLOCK_ORDER

    def copy(self) -> Places:
        """Return one that can be changed alone."""
        return self._replace(pages=self.pages.copy(), types=self.types.copy())

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


_OF_SNAPSHOT = {
    PAGE_ABSENT: Place.HOLE,
    PAGE_RESERVED: Place.RESERVED,
    PAGE_OFFLINE: Place.USED,  # a balloon has it, and gives it back as any user
    PAGE_USED: Place.USED,
    PAGE_FREE: Place.FREE,
    PAGE_PCP: Place.LISTED,
}


def places_of(snapshot: Snapshot) -> Places:
    """Return where the pages lie by a snapshot.

    Raises
    ------
    SnapshotError
        It does not say which pages are free.
    """
    known = snapshot.known_pages()
    result = _places(len(known), Place.HOLE)
    numbers = np.zeros(len(_OF_SNAPSHOT), np.uint8)
    numbers[list(_OF_SNAPSHOT)] = list(_OF_SNAPSHOT.values())
    result.pages[: len(known)] = numbers[known]
    if snapshot.pcp_lists is not None:
        pfns, orders = snapshot.pcp_lists["pfn"], snapshot.pcp_lists["order"]
        result.pages[pfns] |= (np.minimum(orders, MOST_ORDER) + 1) << PLACE_BITS
    types = snapshot.pageblocks
    if types is not None:
        ratio = snapshot.pageblock_order - PAGEBLOCK_ORDER
        types = np.repeat(types, 1 << ratio) if ratio >= 0 else types[:: 1 << -ratio]
        nr_blocks = min(len(types), len(result.types))
        result.types[:nr_blocks] = types[:nr_blocks]
    return result._replace(pageblock_order=min(max(snapshot.pageblock_order, PAGEBLOCK_ORDER), MOST_ORDER))


def unknown_places(pfns: NDArray[np.uint64], span: int | None) -> Places:
    """Return where pages lie of which nothing is known but that these PFNs have been seen, and how many there are."""
    if span is None:
        seen = pfns[pfns < min(MOST_PAGES, SURE_PAGES + PAGES_OF_EVENT * len(pfns))]
        span = int(seen.max()) + 1 if len(seen) else 0
    return _places(span, Place.UNKNOWN)


def _places(nr_pages: int, fill: Place) -> Places:
    """Places of at least this many pages, all the same. Largest blocks are whole, up to the last page."""
    nr_pages = -(-nr_pages >> MOST_ORDER) << MOST_ORDER
    types = np.full(nr_pages >> PAGEBLOCK_ORDER, NO_BLOCK_TYPE, np.uint8)
    return Places(np.full(nr_pages, fill, np.uint8), types)
