"""Walking over a zone's maximal free blocks in order of address. Zone lock held throughout."""
from libc.stdint cimport uint32_t, uint64_t
from pagehint.sync.atomic cimport ACQUIRE, ctz64, load8
from pagehint.zone.buddy cimport NOT_FREE, max_split_order
from pagehint.zone.leaf cimport leaf_avail, low_ones, maximal_order
from pagehint.zone.zone cimport FREE, KIND_ORDER, KIND_STATE, LEAF_SHIFT, PageZone, is_split

cdef packed struct FreeBlock:       # as the dtype `FREE_BLOCK_DTYPE`
    uint64_t pfn
    uint32_t order


cdef inline int next_free_block(const PageZone *z, uint64_t *page) noexcept nogil:
    """Order of the first maximal free block from `page` on, and in `page` where it begins; NOT_FREE if there is none.

    `page` must not be inside a free block, though it may be the first page of one.
    """
    cdef uint64_t i = page[0] >> LEAF_SHIFT, avail
    cdef int kind, at
    while i < z.nr_leaves:
        kind = load8(&z.kinds[i], ACQUIRE)
        if is_split(kind):
            avail = leaf_avail(&z.leaves[i])
            if page[0] >> LEAF_SHIFT == i:
                avail &= ~low_ones(page[0] & 63)
            if avail:
                at = ctz64(avail)
                page[0] = i << LEAF_SHIFT | at
                return maximal_order(leaf_avail(&z.leaves[i]), at, max_split_order(z))
            i += 1
        elif kind & KIND_STATE == FREE:
            page[0] = i << LEAF_SHIFT
            return kind & KIND_ORDER
        elif kind & KIND_STATE:
            i += <uint64_t>1 << ((kind & KIND_ORDER) - LEAF_SHIFT)
        else:
            i += 1
    return NOT_FREE


cdef inline uint64_t list_free_blocks(const PageZone *z, FreeBlock *blocks, uint64_t room) noexcept nogil:
    """Write the maximal free blocks to `blocks`, as many as there is room for; return how many there are."""
    cdef uint64_t page = 0, n = 0
    cdef int order = next_free_block(z, &page)
    while order != NOT_FREE:
        if n < room:
            blocks[n].pfn = z.base_pfn + page
            blocks[n].order = order
        n += 1
        page += <uint64_t>1 << order
        order = next_free_block(z, &page)
    return n
