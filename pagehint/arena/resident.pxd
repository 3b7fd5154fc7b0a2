"""How much of a mapping is resident, as the kernel says (mincore), and as the arena knows.

A granule that is known to be zero (`zone/zeroed.pxd`) has nothing resident, so nobody is asked about it. Those are passed
over 64 at a time, and a mapping that is hardly used costs next to nothing, whatever its size.
"""
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from pagehint.hinting.batch cimport pagehint_block
from pagehint.sync.atomic cimport ctz64, popcount64
from pagehint.zone.zeroed cimport Zeroed, granule_mask, not_zeroed

cdef extern from "<sys/mman.h>" nogil:
    int mincore(void *address, size_t length, unsigned char *present)

cdef enum:
    PAGES_AT_ONCE = 4096        # the kernel writes a byte for each; it asks page tables in pieces of this size

cdef struct Census:             # of a mapping
    char *base
    size_t nr_bytes
    int page_shift
    int granule_shift
    const Zeroed *zeroed        # or NULL, where nothing is known
    uint64_t nr_granules
    # The answer, by ascending number: granules with pages in memory, and how many.
    int64_t *granules
    uint32_t *pages
    uint64_t room               # there is memory for so many
    uint64_t n
    int refused                 # 0, or why the kernel does not say: then a granule counts in full that may hold anything


cdef inline int resident_pages(char *start, size_t nr_bytes, int page_shift, uint64_t *count) noexcept nogil:
    """Add to `count` the pages that are resident; 0, or an errno where the kernel does not say. O(pages / 8)."""
    cdef unsigned char present[PAGES_AT_ONCE]
    cdef uint64_t eight
    cdef size_t n, i
    while nr_bytes:
        n = min(nr_bytes >> page_shift, <size_t>PAGES_AT_ONCE)
        if n & 7:
            memset(present + (n & ~<size_t>7), 0, 8)
        if mincore(start, n << page_shift, present):
            return errno
        for i in range(0, n, 8):
            memcpy(&eight, present + i, 8)
            count[0] += popcount64(eight & 0x0101010101010101ULL)   # the other bits of a byte mean nothing yet
        start += n << page_shift
        nr_bytes -= n << page_shift
    return 0


cdef inline int which_are_dropped(char *base, int page_shift, const pagehint_block *blocks, size_t n,
                                  uint8_t *dropped) noexcept nogil:
    """Write for each block whether none of its pages is resident; 0, or an errno where the kernel does not say.

    Neighbours are asked about at once, as most have nothing resident, and one by one if they have. O(pages / 8).
    """
    cdef size_t first = 0, next, i
    cdef uint64_t end, pages, here
    cdef int refused = 0
    while first < n and not refused:
        end = blocks[first].pfn + (<uint64_t>1 << blocks[first].order)
        next = first + 1
        while next < n and blocks[next].pfn == end and end - blocks[first].pfn < PAGES_AT_ONCE:
            end += <uint64_t>1 << blocks[next].order
            next += 1
        pages = 0
        refused = resident_pages(base + (blocks[first].pfn << page_shift), (end - blocks[first].pfn) << page_shift,
                                 page_shift, &pages)
        for i in range(first, next):
            here = 0
            if pages and not refused:
                refused = resident_pages(base + (blocks[i].pfn << page_shift), <size_t>1 << (blocks[i].order + page_shift),
                                         page_shift, &here)
            dropped[i] = here == 0
        first = next
    return refused


cdef inline uint64_t may_hold(const Census *c, uint64_t i) noexcept nogil:
    """Of 64 granules, from ``64 * i`` on, those that may hold something: a bit for each."""
    return not_zeroed(c.zeroed, i) if c.zeroed != NULL else granule_mask(i << 6, c.nr_granules)


cdef inline uint64_t census_size(const Census *c) noexcept nogil:
    """How many granules may hold something. O(granules / 64)."""
    cdef uint64_t i, n = 0
    for i in range((c.nr_granules + 63) >> 6):
        n += popcount64(may_hold(c, i))
    return n


cdef inline void census_of_granule(Census *c, uint64_t granule) noexcept nogil:
    """Write a granule down, if it has pages in memory."""
    cdef size_t at = granule << c.granule_shift, nr_bytes = min(c.nr_bytes - at, <size_t>1 << c.granule_shift)
    cdef uint64_t pages = 0
    if not c.refused:
        c.refused = resident_pages(c.base + at, nr_bytes, c.page_shift, &pages)
    if c.refused:
        pages = nr_bytes >> c.page_shift if c.zeroed != NULL else 0
    if pages:
        c.granules[c.n] = granule
        c.pages[c.n] = <uint32_t>pages
        c.n += 1


cdef inline void take_census(Census *c) noexcept nogil:
    """Write down what is resident, as far as there is room. O(granules / 64), and O(pages) of what may hold something."""
    cdef uint64_t i, granules
    for i in range((c.nr_granules + 63) >> 6):
        granules = may_hold(c, i)
        while granules and c.n < c.room:
            census_of_granule(c, i << 6 | <uint64_t>ctz64(granules))
            granules &= granules - 1
