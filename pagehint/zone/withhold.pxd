"""Withholding: the first step of a free, wherever another thread may free the same block without the zone lock.

The `free` bit of the block's first page is set beside its `head` bit, atomically. So of two threads that free the
same block, one sets the bit and the other finds it set. From then on the block is neither allocated nor free, and
belongs to the thread that has set the bit. Blocks of order >= 6 have a kind for this instead, WITHHELD, which is set
with the zone lock held.

This file is about frees. A free block that is taken out of circulation is withheld as well, under the zone lock: by
`buddy_take` with the state WITHHELD (`buddy.pxd`).
"""
from libc.stdint cimport uint64_t
from pagehint.sync.atomic cimport ACQUIRE, ACQ_REL, fetch_and64, load64, load8, swap64_if, unlikely
from pagehint.sync.testpoint cimport AT_BEFORE_THE_WITHHOLDING, AT_WITHHELD_NOT_LOOKED_AGAIN, test_point
from pagehint.zone.leaf cimport Leaf, order_ones
from pagehint.zone.run cimport goes_on
from pagehint.zone.zone cimport LEAF_PAGES, LEAF_SHIFT, PageZone, WORDS_ATOMIC, is_shared


cdef inline bint words_used(uint64_t free, uint64_t head, uint64_t starts, uint64_t pages, int order) noexcept nogil:
    """Whether, by the words of a split leaf, allocated blocks begin at `starts`. `pages` are all their pages.

    Their first pages must be (0, 1), the others (0, 0), and no page right after a block may be (0, 0).
    """
    cdef uint64_t after = starts << (1 << order)
    return ((free & pages) | ((head & pages) ^ starts) | (after & ~(free | head))) == 0


cdef inline bint page_used(const PageZone *z, uint64_t page, int order) noexcept nogil:
    """Whether the block of order < 6 at this page is allocated, where the words are plain.

    Exact if no other thread changes the leaf meanwhile.
    """
    cdef const Leaf *leaf = &z.leaves[page >> LEAF_SHIFT]
    return (words_used(load64(&leaf.free, ACQUIRE), load64(&leaf.head, ACQUIRE), <uint64_t>1 << (page & 63),
                       order_ones[order] << (page & 63), order)
            and is_shared(load8(&z.kinds[page >> LEAF_SHIFT], ACQUIRE)))


cdef inline bint withhold(PageZone *z, uint64_t i, uint64_t starts, uint64_t pages, int order) noexcept nogil:
    """Withhold the allocated blocks that begin at `starts` in leaf `i`, all or none; False if one is not such a block.

    `pages` are all their pages. Without the zone lock, True is certain and False is not, since another thread may have
    been changing a neighbour: the caller then takes the lock and asks again.
    """
    cdef Leaf *leaf = &z.leaves[i]
    cdef uint64_t free = load64(&leaf.free, ACQUIRE), head = load64(&leaf.head, ACQUIRE)
    if (unlikely(not words_used(free, head, starts, pages, order))
            or unlikely(not is_shared(load8(&z.kinds[i], ACQUIRE)))):
        return False
    if z.words != WORDS_ATOMIC:
        if pages >> (LEAF_PAGES - 1) and goes_on(z, i):
            return False
        leaf.free = free | starts
        return True
    test_point(AT_BEFORE_THE_WITHHOLDING)
    while unlikely(not swap64_if(&leaf.free, free, free | starts)):
        free = load64(&leaf.free, ACQUIRE)
        if free & starts:
            return False
    test_point(AT_WITHHELD_NOT_LOOKED_AGAIN)
    # Looked at again: if two threads free the same block, the other may have freed it since the first look, and its
    # pages may be another block's by now. With the bit set, what is there does not change any more.
    head = load64(&leaf.head, ACQUIRE)
    if unlikely(not words_used(free, head, starts, pages, order)) or unlikely(not is_shared(load8(&z.kinds[i], ACQUIRE))):
        unwithhold(z, i, starts)
        return False
    return True


cdef inline bint withhold_page(PageZone *z, uint64_t page, int order) noexcept nogil:
    """As `withhold`, for the one block of order < 6 at this page."""
    return withhold(z, page >> LEAF_SHIFT, <uint64_t>1 << (page & 63), order_ones[order] << (page & 63), order)


cdef inline void unwithhold(PageZone *z, uint64_t i, uint64_t starts) noexcept nogil:
    """Make the withheld blocks that begin at `starts` in leaf `i` allocated again."""
    if z.words == WORDS_ATOMIC:
        fetch_and64(&z.leaves[i].free, ~starts, ACQ_REL)
    else:
        z.leaves[i].free &= ~starts
