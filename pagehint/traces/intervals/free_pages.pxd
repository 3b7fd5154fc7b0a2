"""Which pages are free, a bit each, and how many in each granule: what a pass over operations keeps.

A page is in or out, whatever an operation says: a TAKE of what is not free, or a GIVE of what is, changes only the
pages that it is true of, so no count of a granule can go wrong. A pass says how many pages were not as they should be.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    int popcount "__builtin_popcountll" (uint64_t) nogil

cdef struct FreePages:
    uint64_t *words             # a bit for each page
    uint32_t *count             # of free pages, for each granule
    uint64_t nr_pages
    int granule_order


cdef inline uint64_t mask_of(uint64_t pfn, int order) noexcept nogil:
    """The bits of a block of up to 64 pages in its word."""
    return (~<uint64_t>0 if order >= 6 else (<uint64_t>1 << (1 << order)) - 1) << (pfn & 63 & ~((1 << order) - 1))


cdef inline uint64_t bits_set(const uint64_t *words, uint64_t pfn, int order) noexcept nogil:
    """How many bits of a block are set."""
    cdef uint64_t word, n = 0
    if order <= 6:
        return popcount(words[pfn >> 6] & mask_of(pfn, order))
    for word in range(pfn >> 6, (pfn >> 6) + (<uint64_t>1 << (order - 6))):
        n += popcount(words[word])
    return n


cdef inline uint64_t set_bits(uint64_t *words, uint64_t pfn, int order) noexcept nogil:
    """Set the bits of a block; how many were not set."""
    cdef uint64_t word, mask, n = 0
    if order <= 6:
        mask = mask_of(pfn, order) & ~words[pfn >> 6]
        words[pfn >> 6] |= mask
        return popcount(mask)
    for word in range(pfn >> 6, (pfn >> 6) + (<uint64_t>1 << (order - 6))):
        n += popcount(~words[word])
        words[word] = ~<uint64_t>0
    return n


cdef inline uint64_t clear_bits(uint64_t *words, uint64_t pfn, int order) noexcept nogil:
    """Clear the bits of a block; how many were set."""
    cdef uint64_t word, mask, n = 0
    if order <= 6:
        mask = mask_of(pfn, order) & words[pfn >> 6]
        words[pfn >> 6] ^= mask
        return popcount(mask)
    for word in range(pfn >> 6, (pfn >> 6) + (<uint64_t>1 << (order - 6))):
        n += popcount(words[word])
        words[word] = 0
    return n


cdef inline bint is_block(const FreePages *f, uint64_t pfn, int order) noexcept nogil:
    """Whether these pages exist, and are a block: aligned, of an order that there is."""
    if not 0 <= order < 40:
        return False
    cdef uint64_t n = <uint64_t>1 << order
    return pfn & (n - 1) == 0 and n <= f.nr_pages and pfn <= f.nr_pages - n


cdef inline void count_granules(FreePages *f) noexcept nogil:
    """Set the count of each granule from the bits. Pages behind the last have no bit set."""
    cdef uint64_t pfn = 0
    while pfn < f.nr_pages:
        f.count[pfn >> f.granule_order] = bits_set(f.words, pfn, f.granule_order)
        pfn += <uint64_t>1 << f.granule_order
