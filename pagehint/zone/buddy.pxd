"""The buddy system: a freed block merges to the largest block at once, an allocation splits. Zone lock held throughout.

There are two mechanisms. Blocks under 64 pages are bits of a leaf's two words, and merge by arithmetic on one word
(`leaf_free`). Larger blocks are made of whole leaves, are known by the kind of their first leaf, and merge by the
textbook's loop, one buddy after the other (`merge_leaves`). A leaf that has become free as a whole goes on from the one
to the other.

After each function the free lists, `nr_free` and `free_pages` agree, unless it says otherwise.

A free block of whole leaves is listed by its first leaf. A split leaf is listed once, by its largest free block. Either
is on the lists of the migratetype of its first pageblock.
"""
from libc.stdint cimport uint8_t, uint64_t
from pagehint.sync.atomic cimport (ACQUIRE, ACQ_REL, RELAXED, RELEASE, add64, clz32, clz64, ctz64, fetch_and64,
                                   fetch_or64, likely, load64, load8, popcount64, store64, store8, sub64)
from pagehint.sync.lock cimport assert_held
from pagehint.zone.leaf cimport (LEAF_ORDERS, aligned_starts, block_count, block_starts, count_blocks, largest_order,
                                 leaf_avail, lowest_ones, maximal_blocks, maximal_order, merge_count, next_starts,
                                 order_ones, spread)
from pagehint.zone.zone cimport (FREE, FULL, FreeArea, KIND_ORDER, KIND_STATE, LEAF_PAGES, LEAF_SHIFT, MT_ISOLATE,
                                 PAGEBLOCK_ORDER, PageZone, SPLIT, TAIL, USED, WITHHELD, WORDS_ATOMIC, is_split,
                                 list_add, list_add_last, list_del, list_first, type_of)

cdef enum:
    NOT_FREE = -1
    MOST_WHOLE_LEAVES = 16      # leaves, at most, that one step of a bulk allocation takes: bounds its time

cdef struct Taken:              # one step of a bulk allocation: blocks that begin at the same bits of some leaves
    uint64_t leaf               # the first
    uint64_t nr_leaves
    bint whole                  # they are still one withheld block, which the caller is to split by `leaf_fill`
    uint64_t starts             # first pages of the blocks in each leaf
    int source                  # order of the free block they were in; in a split leaf, of the largest one there


# Other threads read kinds and words without the zone lock: hence atomic stores, in an order that a release keeps.

cdef inline void set_kind(PageZone *z, uint64_t i, int kind) noexcept nogil:
    store8(&z.kinds[i], <uint8_t>kind, RELEASE)


cdef inline void set_head(PageZone *z, uint64_t i, uint64_t word) noexcept nogil:
    store64(&z.leaves[i].head, word, RELEASE)


cdef inline void change_free(PageZone *z, uint64_t i, uint64_t clear, uint64_t set) noexcept nogil:
    """Change bits of a leaf's `free` word; atomically where per-CPU page sets flip others at the same time."""
    if z.words == WORDS_ATOMIC:
        if clear:
            fetch_and64(&z.leaves[i].free, ~clear, ACQ_REL)
        if set:
            fetch_or64(&z.leaves[i].free, set, ACQ_REL)
    else:
        z.leaves[i].free = (z.leaves[i].free & ~clear) | set


cdef inline void leaf_split(PageZone *z, uint64_t i, uint64_t free, uint64_t head, int kind) noexcept nogil:
    """Make a leaf that is on no list a split one with these words. The caller corrects counts and lists."""
    store64(&z.leaves[i].free, free, RELEASE)
    set_head(z, i, head)
    set_kind(z, i, kind)


cdef inline void relist(PageZone *z, uint64_t i, int mt, int old, int kind) noexcept nogil:
    """Change a split leaf of migratetype `mt` from kind `old` to `kind`, and move it to the list of its new kind."""
    if old < FULL:
        list_del(z, i, mt, old - SPLIT)
    set_kind(z, i, kind)
    if kind < FULL:
        list_add(z, i, mt, kind - SPLIT)


cdef inline int max_split_order(const PageZone *z) noexcept nogil:
    """Largest order of a free block within a split leaf."""
    return min(z.max_order, LEAF_SHIFT - 1)


# ---- free ---------------------------------------------------------------------------------------------------

cdef inline int merge_leaves(PageZone *z, uint64_t i, int order, bint last) noexcept nogil:
    """Put a block of whole leaves on the free lists, merged with free buddies; return the order of what it became.

    `last`: that block is taken last among those of its order.
    """
    cdef uint64_t half, buddy
    cdef int mt = type_of(z, i), buddy_mt
    while order < z.max_order:
        half = <uint64_t>1 << (order - LEAF_SHIFT)
        buddy = i ^ half
        if buddy >= z.nr_leaves or load8(&z.kinds[buddy], RELAXED) != (FREE | order):
            break
        buddy_mt = type_of(z, buddy)
        if (buddy_mt == MT_ISOLATE) != (mt == MT_ISOLATE):
            break
        list_del(z, buddy, buddy_mt, order)
        z.areas[buddy_mt].nr_free[order] -= 1
        set_kind(z, i | half, TAIL)
        i &= ~half
        mt = type_of(z, i)
        order += 1
    set_kind(z, i, FREE | order)
    if last:
        list_add_last(z, i, mt, order)
    else:
        list_add(z, i, mt, order)
    z.areas[mt].nr_free[order] += 1
    return order


cdef inline int free_leaves(PageZone *z, uint64_t i, int order, bint last) noexcept nogil:
    """Free a block of whole leaves; return the order of the free block that it, or its last part, has become.

    A free block is isolate as a whole or not at all. So where pageblocks are isolate, the block is freed in units that
    have one migratetype each.
    """
    cdef int unit = max(<int>PAGEBLOCK_ORDER, z.min_order), merged = order
    cdef uint64_t end = i + (<uint64_t>1 << (order - LEAF_SHIFT))
    if likely(z.isolate_pageblocks == 0) or order <= unit:
        return merge_leaves(z, i, order, last)
    while i < end:
        merged = merge_leaves(z, i, unit, last)
        i += <uint64_t>1 << (unit - LEAF_SHIFT)
    return merged


cdef inline int leaf_free(PageZone *z, uint64_t page, int order) noexcept nogil:
    """As `buddy_free`, for a block of order < 6."""
    cdef uint64_t i = page >> LEAF_SHIFT, mask = order_ones[order] << (page & 63), free, head
    cdef int merged, old, mt = type_of(z, i), o
    cdef FreeArea *area = &z.areas[mt]
    assert_held(&z.lock)
    add64(&z.free_pages, <uint64_t>1 << order)
    free = load64(&z.leaves[i].free, RELAXED)
    head = z.leaves[i].head
    old = z.kinds[i]
    merged = maximal_order((free & ~head) | mask, page & 63, z.max_leaf_order)
    for o in range(LEAF_ORDERS):
        area.nr_free[o] += merge_count[merged][o] + block_count[order][o]
    # `free` before `head`: without the lock, a reader never sees the block's first page as a later page (0, 0).
    if mask & ~free:
        change_free(z, i, 0, mask)
    set_head(z, i, head & ~mask)
    if merged == LEAF_SHIFT:
        if old < FULL:
            list_del(z, i, mt, old - SPLIT)
        return merge_leaves(z, i, LEAF_SHIFT, False)
    if old == FULL or old < SPLIT + merged:
        relist(z, i, mt, old, SPLIT + merged)
    return merged


cdef inline int buddy_free(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Put a block that the caller has made its own on the free lists; return the order of the free block it is now in.

    A block of 64 pages or more must have the kind TAIL in all leaves but the first.
    """
    if order < LEAF_SHIFT:
        return leaf_free(z, page, order)
    assert_held(&z.lock)
    add64(&z.free_pages, <uint64_t>1 << order)
    return free_leaves(z, page >> LEAF_SHIFT, order, False)


cdef inline int buddy_free_cold(PageZone *z, uint64_t page, int order) noexcept nogil:
    """As `buddy_free`, of a block that the host has dropped: what it becomes is taken last among those of its order."""
    cdef int merged, mt, listed
    cdef uint64_t i
    if order >= LEAF_SHIFT:
        add64(&z.free_pages, <uint64_t>1 << order)
        return free_leaves(z, page >> LEAF_SHIFT, order, True)
    merged = leaf_free(z, page, order)
    i = (page >> merged << merged) >> LEAF_SHIFT
    mt = type_of(z, i)
    listed = merged if merged >= LEAF_SHIFT else z.kinds[i] - SPLIT
    list_del(z, i, mt, listed)
    list_add_last(z, i, mt, listed)
    return merged


cdef inline void make_last(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Have a free block of whole leaves be taken last among those of its order."""
    cdef uint64_t i = page >> LEAF_SHIFT
    cdef int mt = type_of(z, i)
    list_del(z, i, mt, order)
    list_add_last(z, i, mt, order)


cdef inline int leaf_free_many(PageZone *z, uint64_t i, uint64_t pages) noexcept nogil:
    """As `buddy_free`, for all these pages of one split leaf at once.

    Returns the order of the block that they became if the leaf is whole now, else LEAF_SHIFT - 1: the caller needs to
    know no more than that it is less than a leaf.
    """
    cdef int mt = type_of(z, i), old = z.kinds[i], kind
    cdef FreeArea *area = &z.areas[mt]
    cdef uint64_t before = leaf_avail(&z.leaves[i]), after = before | pages
    assert_held(&z.lock)
    add64(&z.free_pages, popcount64(pages))
    # `free` before `head`, as in `buddy_free`.
    change_free(z, i, 0, pages & ~load64(&z.leaves[i].free, RELAXED))
    set_head(z, i, z.leaves[i].head & ~pages)
    count_blocks(area.nr_free, before, max_split_order(z), False)
    if after == <uint64_t>-1 and z.max_leaf_order == LEAF_SHIFT:
        if old < FULL:
            list_del(z, i, mt, old - SPLIT)
        return merge_leaves(z, i, LEAF_SHIFT, False)
    count_blocks(area.nr_free, after, max_split_order(z), True)
    kind = SPLIT + largest_order(after, max_split_order(z))
    if kind != old:
        relist(z, i, mt, old, kind)
    return LEAF_SHIFT - 1


# ---- allocate -----------------------------------------------------------------------------------------------

cdef inline void leaf_take(PageZone *z, uint64_t i, int at, int order, int source, int left, int state) noexcept nogil:
    """Take a block from the maximal free block of order `source` around it, in a split leaf.

    `source` is LEAF_SHIFT if the leaf was one whole free block until now, and is not in the counts yet. `left` has a
    bit for each order of which there are other maximal free blocks in the leaf.
    """
    cdef int mt = type_of(z, i), old = z.kinds[i], kind, o
    cdef FreeArea *area = &z.areas[mt]
    cdef uint64_t first = <uint64_t>1 << at, mask = order_ones[order] << at
    for o in range(LEAF_ORDERS):
        area.nr_free[o] -= merge_count[source][o] + block_count[order][o]
    set_head(z, i, z.leaves[i].head | first)
    change_free(z, i, mask if state == USED else mask & ~first, 0)
    sub64(&z.free_pages, <uint64_t>1 << order)
    left |= (1 << source) - (1 << order)        # the halves split off
    left &= (1 << LEAF_SHIFT) - 1
    kind = SPLIT + 31 - clz32(left) if left else FULL
    if kind != old:
        relist(z, i, mt, old, kind)


cdef inline void leaf_take_largest(PageZone *z, uint64_t i, int mt, int order, int state, uint64_t *page) noexcept nogil:
    """As `leaf_take`, of the leaf's largest order: there is nothing to split, and the leaf seldom changes its list."""
    cdef uint64_t avail = leaf_avail(&z.leaves[i]), starts = block_starts(avail, order), first = starts & -starts
    cdef uint64_t mask = order_ones[order] << ctz64(starts)
    cdef int largest
    page[0] = (i << LEAF_SHIFT) | <uint64_t>ctz64(starts)
    z.areas[mt].nr_free[order] -= 1
    sub64(&z.free_pages, <uint64_t>1 << order)
    set_head(z, i, z.leaves[i].head | first)
    change_free(z, i, mask if state == USED else mask & ~first, 0)
    if starts == first:
        largest = largest_order(avail & ~mask, order)
        relist(z, i, mt, SPLIT + order, FULL if largest < 0 else SPLIT + largest)


cdef inline int leaf_others(uint64_t avail, int top, uint64_t page, int order) noexcept nogil:
    """Orders of the maximal free blocks in a leaf besides the one of `order` that begins at `page`, one bit each."""
    cdef uint64_t[LEAF_ORDERS] starts
    cdef int orders = maximal_blocks(avail, top, starts)
    return orders ^ ((starts[order] == <uint64_t>1 << page) << order)


cdef inline void split_leaves(PageZone *z, uint64_t head, int source, uint64_t page, int order, int state) noexcept nogil:
    """Take a block out of the free block of order `source` >= 6 that begins at leaf `head`; list what is split off."""
    cdef uint64_t target = page >> LEAF_SHIFT, half, other
    cdef int o = source, mt = type_of(z, head)
    list_del(z, head, mt, source)
    z.areas[mt].nr_free[source] -= 1
    while o > order and o > LEAF_SHIFT:
        o -= 1
        half = <uint64_t>1 << (o - LEAF_SHIFT)
        if target & half:
            other = head
            head += half
        else:
            other = head + half
        mt = type_of(z, other)
        set_kind(z, other, FREE | o)
        list_add(z, other, mt, o)
        z.areas[mt].nr_free[o] += 1
    if order >= LEAF_SHIFT:
        set_kind(z, head, state | order)
        sub64(&z.free_pages, <uint64_t>1 << order)
    else:
        leaf_split(z, head, <uint64_t>-1, 0, FULL)
        leaf_take(z, head, page & 63, order, LEAF_SHIFT, 0, state)


cdef inline int buddy_alloc(PageZone *z, int mt, int order, int state, uint64_t *page) noexcept nogil:
    """Take a free block of a migratetype; return the order of the free block it came from, or NOT_FREE.

    The best fit: of the first leaf on the list of the smallest order that suffices. The block becomes allocated if
    `state` is USED, or withheld if it is WITHHELD, for a page set.
    """
    cdef uint64_t lists = z.nonempty[mt] >> order, i
    cdef uint64_t[LEAF_ORDERS] starts
    cdef int largest, source, orders, at
    assert_held(&z.lock)
    if lists == 0:
        return NOT_FREE
    largest = order + ctz64(lists)
    i = list_first(z, mt, largest)
    if largest >= LEAF_SHIFT:
        page[0] = i << LEAF_SHIFT
        split_leaves(z, i, largest, page[0], order, state)
        return largest
    if largest == order:
        leaf_take_largest(z, i, mt, order, state, page)
        return order
    # The leaf is listed by its largest free block; a smaller one in it may fit better.
    orders = maximal_blocks(leaf_avail(&z.leaves[i]), max_split_order(z), starts)
    source = order + ctz64(orders >> order)
    at = ctz64(starts[source])
    page[0] = (i << LEAF_SHIFT) | <uint64_t>at
    leaf_take(z, i, at, order, source, orders ^ ((starts[source] == <uint64_t>1 << at) << source), state)
    return source


cdef inline uint64_t best_fitting(uint64_t avail, int order, int top, uint64_t want) noexcept nogil:
    """First pages of up to `want` blocks of an order in a leaf, those in the smallest free blocks first."""
    cdef uint64_t starts = block_starts(avail, order), wider, exact, taken = 0
    cdef int o = order
    if <uint64_t>popcount64(starts) <= want:
        return starts
    while want:
        wider = next_starts(starts, o) if o < top else 0
        exact = spread(starts & ~(wider | wider << (1 << o)), o) & aligned_starts[order]
        if <uint64_t>popcount64(exact) > want:
            exact = lowest_ones(exact, <int>want)
        taken |= exact
        want -= popcount64(exact)
        starts = wider
        o += 1
    return taken


cdef inline void leaf_take_pages(PageZone *z, uint64_t i, uint64_t pages, uint64_t heads, uint64_t clear,
                                 bint was_whole) noexcept nogil:
    """Take free pages of a split leaf, with these heads. `clear` are those whose `free` bit goes: not a withheld head's.

    `was_whole`: the leaf was one free block until now, and is not in the counts yet.
    """
    cdef int mt = type_of(z, i), old = z.kinds[i], kind, largest
    cdef FreeArea *area = &z.areas[mt]
    cdef uint64_t avail = leaf_avail(&z.leaves[i]), left = avail & ~pages
    if not was_whole:
        count_blocks(area.nr_free, avail, max_split_order(z), False)
    count_blocks(area.nr_free, left, max_split_order(z), True)
    set_head(z, i, z.leaves[i].head | heads)
    change_free(z, i, clear, 0)
    sub64(&z.free_pages, popcount64(pages))
    largest = largest_order(left, max_split_order(z))
    kind = FULL if largest < 0 else SPLIT + largest
    if kind != old:
        relist(z, i, mt, old, kind)


cdef inline uint64_t leaf_take_many(PageZone *z, uint64_t i, int order, uint64_t want, int state,
                                    bint was_whole) noexcept nogil:
    """Take up to `want` blocks from a split leaf that has at least one; returns their first pages."""
    cdef uint64_t starts = best_fitting(leaf_avail(&z.leaves[i]), order, max_split_order(z), want)
    cdef uint64_t pages = spread(starts, order)
    leaf_take_pages(z, i, pages, starts, pages if state == USED else pages & ~starts, was_whole)
    return starts


cdef inline void split_off_leaf(PageZone *z, uint64_t head, int source, uint64_t i) noexcept nogil:
    """Make a leaf of the free block of order `source` at page `head` a split one, free as a whole, in no list or count."""
    split_leaves(z, head >> LEAF_SHIFT, source, i << LEAF_SHIFT, LEAF_SHIFT, WITHHELD)
    leaf_split(z, i, <uint64_t>-1, 0, FULL)
    add64(&z.free_pages, LEAF_PAGES)


cdef inline void leaf_fill(PageZone *z, uint64_t i, int order, int state, int kind) noexcept nogil:
    """Fill a leaf that is the caller's alone with blocks of an order. No lock: it is on no list and in no count."""
    leaf_split(z, i, 0 if state == USED else aligned_starts[order], aligned_starts[order], kind)


cdef inline uint64_t buddy_alloc_many(PageZone *z, int mt, int order, uint64_t want, int state, Taken *taken) noexcept nogil:
    """Take up to `want` blocks of order < 6 in one step; return how many, 0 if there is none of this type.

    The best fit first, as in `buddy_alloc`. O(1): blocks of one split leaf, or MOST_WHOLE_LEAVES at most.
    """
    cdef uint64_t lists = z.nonempty[mt] >> order, i
    cdef int largest, whole
    assert_held(&z.lock)
    if lists == 0:
        return 0
    largest = order + ctz64(lists)
    i = list_first(z, mt, largest)
    taken.leaf = i
    taken.nr_leaves = 1
    taken.whole = False
    taken.source = largest
    if largest < LEAF_SHIFT:
        taken.starts = leaf_take_many(z, i, order, want, state, False)
        return popcount64(taken.starts)
    if want << order < LEAF_PAGES:
        split_off_leaf(z, i << LEAF_SHIFT, largest, i)
        taken.starts = leaf_take_many(z, i, order, want, state, True)
        return popcount64(taken.starts)
    whole = 63 - clz64(min((want << order) >> LEAF_SHIFT, <uint64_t>MOST_WHOLE_LEAVES))
    whole = min(whole, largest - LEAF_SHIFT)
    split_leaves(z, i, largest, i << LEAF_SHIFT, LEAF_SHIFT + whole, WITHHELD)
    taken.nr_leaves = <uint64_t>1 << whole
    taken.whole = True
    taken.starts = aligned_starts[order]
    return taken.nr_leaves << (LEAF_SHIFT - order)


cdef inline int free_block_around(const PageZone *z, uint64_t page, int order, uint64_t *head) noexcept nogil:
    """Order of the maximal free block that contains a block, and in `head` its first page; NOT_FREE if none does."""
    cdef uint64_t i = page >> LEAF_SHIFT, h, avail
    cdef int kind = load8(&z.kinds[i], ACQUIRE), o
    if is_split(kind):
        if order >= LEAF_SHIFT:
            return NOT_FREE
        avail = leaf_avail(&z.leaves[i])
        if (avail >> (page & 63)) & order_ones[order] != order_ones[order]:
            return NOT_FREE
        o = maximal_order(avail, page & 63, max_split_order(z))
        head[0] = page >> o << o
        return o
    for o in range(LEAF_SHIFT, z.max_order + 1):
        h = i >> (o - LEAF_SHIFT) << (o - LEAF_SHIFT)
        kind = load8(&z.kinds[h], ACQUIRE)
        if kind != TAIL:
            break
    else:
        return NOT_FREE
    if kind & KIND_STATE != FREE:
        return NOT_FREE
    o = kind & KIND_ORDER
    if order > o or i - h >= <uint64_t>1 << (o - LEAF_SHIFT):
        return NOT_FREE
    head[0] = h << LEAF_SHIFT
    return o


cdef inline int buddy_take(PageZone *z, uint64_t page, int order, int state) noexcept nogil:
    """Take this very block if all of it is free; return the order of the free block it came from, or NOT_FREE."""
    cdef uint64_t head = 0
    cdef int source = free_block_around(z, page, order, &head)
    assert_held(&z.lock)
    if source == NOT_FREE:
        return NOT_FREE
    if is_split(z.kinds[page >> LEAF_SHIFT]):
        leaf_take(z, page >> LEAF_SHIFT, page & 63, order, source,
                  leaf_others(leaf_avail(&z.leaves[page >> LEAF_SHIFT]), max_split_order(z), head & 63, source), state)
    else:
        split_leaves(z, head >> LEAF_SHIFT, source, page, order, state)
    return source
