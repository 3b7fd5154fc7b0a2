"""Where each page lies, as far as the events so far tell: a byte a page, and since which row.

The byte has the place in its low three bits. Above them is the order of the block, plus one, if the page is the first
of a block that came to this place as one; 0 if it is another page of it, or if nobody knows.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

cdef enum:                      # a place; `places.py` has the same for Python
    UNKNOWN = 0                 # no snapshot, and no event yet
    FREE = 1                    # on the buddy lists
    LISTED = 2                  # off them and nobody's: on a CPU's list, or on its way to or from a user
    USED = 3                    # a user has it
    REPORTING = 4               # taken off the lists by free page reporting: free all the same
    TARGET = 5                  # taken by compaction, which moves contents to it
    RESERVED = 6                # never given to the allocator
    HOLE = 7                    # there is no such page
    PLACE_BITS = 3
    PLACE_MASK = 7
    MOST_ORDER = 13             # the largest that Linux has with any configuration
    PAGEBLOCK_ORDER = 9

cdef struct Places:
    uint64_t nr_pages           # a multiple of the largest block
    uint8_t *place              # by PFN
    uint32_t *since             # by PFN: the row after that which brought the page there; 0 if it was there at the start
    uint8_t *types              # by pageblock: its migratetype


cdef inline uint8_t head_of(int place, int order) noexcept nogil:
    """The byte of a block's first page."""
    return <uint8_t>(place | (order + 1) << PLACE_BITS)


cdef inline int place_of(const Places *places, uint64_t pfn) noexcept nogil:
    return places.place[pfn] & PLACE_MASK


cdef inline bint is_even(const uint8_t *bytes, size_t nr_bytes) noexcept nogil:
    """Whether all bytes are equal: each is as the one before it. The C library compares many at once."""
    return nr_bytes < 2 or memcmp(bytes, bytes + 1, nr_bytes - 1) == 0


cdef inline uint32_t places_in(const Places *places, uint64_t pfn, int order) noexcept nogil:
    """The places of a block's pages, a bit each. Most blocks are even but for their head."""
    cdef uint64_t nr_pages = <uint64_t>1 << order, page
    cdef uint32_t seen = 1u << place_of(places, pfn)
    if order == 0:
        return seen
    if is_even(&places.place[pfn + 1], nr_pages - 1):
        return seen | 1u << place_of(places, pfn + 1)
    for page in range(pfn + 1, pfn + nr_pages):
        seen |= 1u << place_of(places, page)
    return seen


cdef inline uint64_t first_in(const Places *places, uint64_t pfn, uint32_t set) noexcept nogil:
    """The first page from this one on whose place is one of these; there must be one."""
    while not (set >> place_of(places, pfn)) & 1:
        pfn += 1
    return pfn


cdef inline uint64_t pages_in(const Places *places, uint64_t pfn, int order, uint32_t set) noexcept nogil:
    """How many of a block's pages have one of these places."""
    cdef uint64_t page, nr_pages = 0
    for page in range(pfn, pfn + (<uint64_t>1 << order)):
        nr_pages += (set >> place_of(places, page)) & 1
    return nr_pages


cdef inline bint is_one_block(const Places *places, uint64_t pfn, int order) noexcept nogil:
    """Whether no other block than one of this order begins in these pages. What nobody knows is none."""
    cdef uint64_t nr_pages = <uint64_t>1 << order, page
    cdef int head = places.place[pfn] >> PLACE_BITS
    if head and head != order + 1:
        return False
    if order and is_even(&places.place[pfn + 1], nr_pages - 1):
        return not places.place[pfn + 1] >> PLACE_BITS
    for page in range(pfn + 1, pfn + nr_pages):
        if places.place[page] >> PLACE_BITS:
            return False
    return True


cdef inline void set_block(Places *places, uint64_t pfn, int order, int place, uint32_t row) noexcept nogil:
    """Bring a block to a place. Free blocks have no head, since they merge."""
    cdef uint64_t page
    memset(&places.place[pfn], place, <size_t>1 << order)
    if place != FREE:
        places.place[pfn] = head_of(place, order)
    for page in range(pfn, pfn + (<uint64_t>1 << order)):
        places.since[page] = row + 1


cdef inline uint32_t latest_row(const Places *places, uint64_t pfn, int order) noexcept nogil:
    """The row after that which brought the last of a block's pages to its place; 0 if all were there at the start."""
    cdef uint32_t latest = 0
    cdef uint64_t page
    for page in range(pfn, pfn + (<uint64_t>1 << order)):
        latest = max(latest, places.since[page])
    return latest
