"""What a balloon's driver sends, as the device reads it. What does not fit is refused here, where it is encoded."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pagehint._core import PageAllocator
from pagehint.errors import BadPageError

MOST_PAGES: Final = 1 << 32  # PFNs on the queues, and page counts, have 32 bits (sections 5.5.4 and 5.5.6)

_CHAIN_BYTES: Final = 1 << 32  # the buffers of a chain have fewer in all (section 2.7.5.1)
_LONGEST: Final = 1 << 31  # bytes of a buffer at most: under _CHAIN_BYTES, and whole pages


def whole_ranges(
    addresses: Sequence[int] | NDArray[Any], lengths: Sequence[int] | NDArray[Any], page_bytes: int
) -> list[tuple[int, int]]:
    """Return ranges of guest-physical addresses as Python's own integers, each of whole pages of so many bytes.

    Raises
    ------
    ValueError
        If one is empty, beyond the address space, or has a part of a page; or if there are not as many of both.
    TypeError
        If a number is no integer: one with a fraction is refused, not cut.
    """
    ranges = list(zip(_integers(addresses), _integers(lengths), strict=True))
    for address, nr_bytes in ranges:
        if not 0 <= address < address + nr_bytes <= 1 << 64:
            raise ValueError(f"no range of guest-physical addresses: {nr_bytes} bytes from {address:#x}")
        if (address | nr_bytes) % page_bytes:
            raise ValueError(f"{nr_bytes} bytes from {address:#x}: the host drops whole {page_bytes} bytes only")
    return ranges


def _integers(values: Sequence[int] | NDArray[Any]) -> Iterator[int]:
    return map(operator.index, values.tolist() if isinstance(values, np.ndarray) else values)


def encode_pfns(pages: PageAllocator, pfns: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return PFNs of single pages as numbers of 32 bits, little-endian (section 5.5.6).

    A zone may have grown by hotplug since the balloon was made, so it is not enough to check its end then.

    Raises
    ------
    BadPageError
        If one has more bits: without them it would name another page, which the host would drop.
    """
    beyond = pfns[pfns >= MOST_PAGES]
    if len(beyond):
        pfn = int(beyond[0])
        zone = next(zone for zone in pages.zones if zone.start_pfn <= pfn < zone.start_pfn + zone.spanned_pages)
        raise BadPageError(
            f"PFN {pfn:#x}, order 0, of zone {zone.name}: a balloon cannot name it, since its PFNs have 32 bits;"
            " nothing was sent"
        )
    return pfns.astype("<u4")


def whole_pages(numbers: NDArray[np.uint32], most: int, nr_pages: int) -> int:
    """Return how many of these PFNs, in ascending order, go into the next request; `most` at most.

    A host whose own page is `nr_pages` of them drops it if it finds all of them in one request. So no such page is cut
    in two, unless it is larger than a request.
    """
    if len(numbers) <= most:
        return len(numbers)
    first = np.searchsorted(numbers[:most], numbers[most] // nr_pages * nr_pages)
    return int(first) or most


def encode_statistics(figures: Iterable[tuple[int, int]]) -> NDArray[Any]:
    """Return statistics, as (tag, value), as the device reads them (section 5.5.6.3)."""
    return np.array(list(figures), np.dtype([("tag", "<u2"), ("value", "<u8")]))


def chains(ranges: Iterable[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Cut ranges, as (address, bytes), into buffers, and collect these in chains.

    A chain has `most` buffers at most, and fewer than _CHAIN_BYTES bytes in all.
    """
    chain: list[tuple[int, int]] = []
    total = 0
    for address, nr_bytes in ranges:
        for at in range(address, address + nr_bytes, _LONGEST):
            length = min(address + nr_bytes - at, _LONGEST)
            if len(chain) == most or total + length >= _CHAIN_BYTES:
                yield chain
                chain, total = [], 0
            chain.append((at, length))
            total += length
    if chain:
        yield chain
