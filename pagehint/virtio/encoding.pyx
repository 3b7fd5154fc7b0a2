# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=False
"""What a balloon's driver sends, as the device reads it. What does not fit is refused here, where it is encoded.

It is compiled for the loops over the ranges of a report: of huge pages the host drops one in less time than Python takes
to look at it.
"""
from cpython.number cimport PyNumber_Index
from libc.stdint cimport UINT64_MAX, uint64_t

import numpy as np

from pagehint.errors import BadPageError

MOST_PAGES = 1 << 32    # PFNs on the queues, and page counts, have 32 bits (sections 5.5.4 and 5.5.6)

cdef enum:
    FREE = 4        # tags of statistics (section 5.5.6.4)
    TOTAL = 5
    AVAILABLE = 6

cdef uint64_t CHAIN_BYTES = 1 << 32     # the buffers of a chain have fewer in all (section 2.7.5.1)
cdef uint64_t LONGEST = 1 << 31         # bytes of a buffer at most: under CHAIN_BYTES, and whole pages


def whole_ranges(addresses, lengths, uint64_t page_bytes, uint64_t own, uint64_t own_bytes):
    """whole_ranges(addresses, lengths, page_bytes, own, own_bytes)
--

    Return ranges of guest-physical addresses as Python's own integers, each of whole pages of so many bytes.

    Raises
    ------
    ValueError
        If one is empty, beyond the address space, has a part of a page, or some of the driver's `own_bytes` from `own`
        on; or if there are not as many of both.
    TypeError
        If a number is no integer: one with a fraction is refused, not cut.
    """
    cdef list starts = _numbers(addresses), sizes = _numbers(lengths), ranges = []
    cdef Py_ssize_t i
    cdef uint64_t address, nr_bytes
    if len(starts) != len(sizes):
        raise ValueError(f"{len(starts)} addresses and {len(sizes)} lengths")
    for i in range(len(starts)):
        start, size = PyNumber_Index(starts[i]), PyNumber_Index(sizes[i])
        try:
            address, nr_bytes = start, size
        except OverflowError:
            address, nr_bytes = 0, 0
        if not nr_bytes or nr_bytes - 1 > UINT64_MAX - address:
            raise ValueError(f"no range of guest-physical addresses: {size} bytes from {start:#x}")
        if (address | nr_bytes) % page_bytes:
            raise ValueError(f"{nr_bytes} bytes from {address:#x}: the host drops whole {page_bytes} bytes only")
        if address <= own + (own_bytes - 1) and own <= address + (nr_bytes - 1):
            raise ValueError(f"the driver's own memory is in the {nr_bytes} bytes from {address:#x}")
        ranges.append((start, size))
    return ranges


cdef list _numbers(values):
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def encode_pfns(pages, pfns):
    """encode_pfns(pages, pfns)
--

    Return PFNs of single pages as numbers of 32 bits, little-endian (section 5.5.6).

    A zone may have grown by hotplug since the balloon was made, so it is not enough to check its end then.

    Raises
    ------
    BadPageError
        If one has more bits: without them it would name another page, which the host would drop.
    """
    beyond = pfns[pfns >= MOST_PAGES]
    if len(beyond):
        pfn = int(beyond[0])
        [zone] = [zone for zone in pages.zones if zone.start_pfn <= pfn < zone.start_pfn + zone.spanned_pages]
        raise BadPageError(
            f"PFN {pfn:#x}, order 0, of zone {zone.name}: a balloon cannot name it, since its PFNs have 32 bits;"
            " nothing was sent"
        )
    return pfns.astype("<u4")


def whole_pages(numbers, most, nr_pages):
    """whole_pages(numbers, most, nr_pages)
--

    Return how many of these PFNs, in ascending order, go into the next request; `most` at most.

    A host whose own page is `nr_pages` of them drops it if it finds all of them in one request. So no such page is cut
    in two, unless it is larger than a request.
    """
    if len(numbers) <= most:
        return len(numbers)
    first = np.searchsorted(numbers[:most], numbers[most] // nr_pages * nr_pages)
    return int(first) or most


def encode_statistics(stats):
    """encode_statistics(stats)
--

    Return how much memory is free, and how much there is, as the device reads it (section 5.5.6.3).
    """
    free = stats.free_pages + stats.pcp_pages
    figures = [(FREE, free), (TOTAL, stats.managed_pages), (AVAILABLE, free)]
    return np.array([(tag, pages * stats.page_size) for tag, pages in figures], [("tag", "<u2"), ("value", "<u8")])


def chains(ranges, Py_ssize_t most):
    """chains(ranges, most)
--

    Cut ranges, as (address, bytes), into buffers, and collect these in chains.

    A chain has `most` buffers at most, and fewer than CHAIN_BYTES bytes in all.
    """
    cdef list chain = []
    cdef uint64_t left, length, total = 0
    for address, nr_bytes in ranges:
        left = nr_bytes
        while left:
            length = min(left, LONGEST)
            if len(chain) == most or total + length >= CHAIN_BYTES:
                yield chain
                chain, total = [], 0
            chain.append((address, length))
            total += length
            left -= length
            if left:
                address += length
    if chain:
        yield chain
