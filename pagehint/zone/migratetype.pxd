"""Migratetypes: changing a pageblock's type, and what to do when a type's lists are empty. Zone lock held throughout.

An allocation whose type has no block that is large enough takes from another type's pageblocks. As in Linux, it claims
a whole pageblock if at least half of it is free, so that the types do not mix in it. Else it takes the smallest block
that fits, and the pageblock's type stays.
"""
from libc.stdint cimport uint8_t, uint64_t
from pagehint.sync.atomic cimport RELAXED, add64, clz64, load8, popcount64, store8, sub64
from pagehint.sync.lock cimport assert_held
from pagehint.zone.buddy cimport (NOT_FREE, Taken, buddy_alloc, buddy_alloc_many, buddy_free, buddy_take,
                                  free_block_around, max_split_order)
from pagehint.zone.leaf cimport count_blocks, leaf_avail
from pagehint.zone.zone cimport (FREE, FULL, KIND_ORDER, KIND_STATE, LEAF_SHIFT, MT_ISOLATE, MT_MOVABLE, MT_RECLAIMABLE,
                                 MT_UNMOVABLE, PAGEBLOCK_LEAVES, PAGEBLOCK_ORDER, PageZone, SPLIT, WITHHELD, is_split,
                                 list_add, list_del, list_first)


cdef inline void move_leaf(PageZone *z, uint64_t i, int old, int new) noexcept nogil:
    """Move the free blocks that begin in a leaf from one type's lists and counts to another's."""
    cdef int kind = load8(&z.kinds[i], RELAXED), o
    if kind & KIND_STATE == FREE:
        o = kind & KIND_ORDER
        list_del(z, i, old, o)
        list_add(z, i, new, o)
        z.areas[old].nr_free[o] -= 1
        z.areas[new].nr_free[o] += 1
    elif is_split(kind) and kind < FULL:
        list_del(z, i, old, kind - SPLIT)
        list_add(z, i, new, kind - SPLIT)
        count_blocks(z.areas[old].nr_free, leaf_avail(&z.leaves[i]), max_split_order(z), False)
        count_blocks(z.areas[new].nr_free, leaf_avail(&z.leaves[i]), max_split_order(z), True)


cdef inline uint64_t granule_pageblocks(const PageZone *z) noexcept nogil:
    """Pageblocks in a granule, at least one."""
    return <uint64_t>1 << (max(z.min_order, <int>PAGEBLOCK_ORDER) - PAGEBLOCK_ORDER)


cdef inline void retype(PageZone *z, uint64_t block, int new) noexcept nogil:
    """Give pageblock `block` another migratetype. O(1). The hook is not called: nothing is freed or taken for use."""
    cdef int old = z.types[block], whole
    cdef uint64_t page = block << PAGEBLOCK_ORDER, head = 0, i
    assert_held(&z.lock)
    if old == new:
        return
    add64(&z.isolate_pageblocks, new == MT_ISOLATE)
    sub64(&z.isolate_pageblocks, old == MT_ISOLATE)
    whole = free_block_around(z, page, PAGEBLOCK_ORDER, &head) if z.max_order >= PAGEBLOCK_ORDER else NOT_FREE
    if whole != NOT_FREE:
        # Taken and freed again: it may have to leave the larger block that it is in, or may now merge with its buddy.
        buddy_take(z, page, PAGEBLOCK_ORDER, WITHHELD)
        store8(&z.types[block], <uint8_t>new, RELAXED)
        buddy_free(z, page, PAGEBLOCK_ORDER)
        return
    store8(&z.types[block], <uint8_t>new, RELAXED)
    for i in range(block * PAGEBLOCK_LEAVES, min((block + 1) * PAGEBLOCK_LEAVES, z.nr_leaves)):
        move_leaf(z, i, old, new)


cdef inline uint64_t free_in_pageblock(const PageZone *z, uint64_t block) noexcept nogil:
    """Free pages in a pageblock that is in no free block of its own size or more."""
    cdef uint64_t i, pages = 0
    cdef int kind
    for i in range(block * PAGEBLOCK_LEAVES, min((block + 1) * PAGEBLOCK_LEAVES, z.nr_leaves)):
        kind = load8(&z.kinds[i], RELAXED)
        if kind & KIND_STATE == FREE:
            pages += <uint64_t>1 << (kind & KIND_ORDER)
        elif is_split(kind):
            pages += popcount64(leaf_avail(&z.leaves[i]))
    return pages


cdef inline int fallback_type(int mt, int attempt) noexcept nogil:
    """The type whose pageblocks to try first (`attempt` 0) or second (1). In the order of Linux's `fallbacks`."""
    if attempt == 0:
        return MT_UNMOVABLE if mt == MT_RECLAIMABLE else MT_RECLAIMABLE
    return MT_UNMOVABLE if mt == MT_MOVABLE else MT_MOVABLE


cdef inline int fallback_alloc(PageZone *z, int mt, int order, int state, uint64_t *page) noexcept nogil:
    """As `buddy_alloc`, but from the other types' pageblocks."""
    cdef int attempt, other, best = MT_ISOLATE, largest = -1, source
    cdef uint64_t lists, block, n
    for attempt in range(2):
        other = fallback_type(mt, attempt)
        lists = z.nonempty[other] >> order
        if lists and order + 63 - clz64(lists) > largest:
            largest = order + 63 - clz64(lists)
            best = other
    if largest < 0:
        return NOT_FREE
    block = (list_first(z, best, largest) << LEAF_SHIFT) >> PAGEBLOCK_ORDER
    if largest >= PAGEBLOCK_ORDER:
        n = <uint64_t>1 << (max(order, <int>PAGEBLOCK_ORDER) - PAGEBLOCK_ORDER)
        for block in range(block, block + n):
            retype(z, block, mt)
        return buddy_alloc(z, mt, order, state, page)
    # A movable page among another type's pages does little harm, since it could be moved away. So a movable allocation
    # claims a pageblock only if the free block in it is large, the other types always.
    if (mt != MT_MOVABLE or largest >= PAGEBLOCK_ORDER // 2) and free_in_pageblock(z, block) >= 1 << (PAGEBLOCK_ORDER - 1):
        retype(z, block, mt)
        return buddy_alloc(z, mt, order, state, page)
    for attempt in range(2):
        source = buddy_alloc(z, fallback_type(mt, attempt), order, state, page)
        if source != NOT_FREE:
            return source
    return NOT_FREE


cdef inline int zone_take(PageZone *z, int mt, int order, int state, uint64_t *page) noexcept nogil:
    """Take a block of this type, or else of another. Returns as `buddy_alloc` does."""
    cdef int source = buddy_alloc(z, mt, order, state, page)
    return source if source != NOT_FREE else fallback_alloc(z, mt, order, state, page)


cdef inline uint64_t zone_take_many(PageZone *z, int mt, int order, uint64_t want, int state, Taken *taken) noexcept nogil:
    """As `buddy_alloc_many`, but if there is none of this type, take one block of another."""
    cdef uint64_t n = buddy_alloc_many(z, mt, order, want, state, taken), page = 0
    if n == 0:
        taken.source = fallback_alloc(z, mt, order, state, &page)
        if taken.source != NOT_FREE:
            taken.leaf = page >> LEAF_SHIFT
            taken.nr_leaves = 1
            taken.whole = False
            taken.starts = <uint64_t>1 << (page & 63)
            n = 1
    return n
