"""Runs of contiguous pages, of any number: made present or absent, allocated, resized, freed, found.

Zone lock held throughout. A run is taken and freed as the blocks that it consists of; in between it is marked as one
allocation. A run inside one split leaf has a `head` bit at its first page only. Any other run begins at the first page
of a leaf, but for zones with extents, where it may begin at any page.

The kind of the run's first whole leaf is RUN, or MIDDLE if the run begins inside the leaf before it; that of its other
whole leaves TAIL. A leaf in which the run begins or ends inside is split: there its first page has a `head` bit, and
all others are later pages, (0, 0). So a run that reaches the end of a split leaf goes on in the next one if this is
MIDDLE, or split with (0, 0) for its first page; else it ends there (`goes_on`).
"""
from libc.stdint cimport uint32_t, uint64_t
from pagehint.sync.atomic cimport ACQUIRE, PH_ASSERT, RELAXED, ctz64, load64, load8, store64
from pagehint.zone.buddy cimport (NOT_FREE, buddy_free, buddy_take, change_free, free_block_around, leaf_free_many,
                                  leaf_split, leaf_take_pages, set_head, set_kind, split_off_leaf)
from pagehint.zone.extents cimport NOWHERE, extents_give, extents_rebuild, extents_take, leaves_in_use
from pagehint.zone.hook cimport tell_broken, tell_freed
from pagehint.zone.leaf cimport leaf_avail, low_ones
from pagehint.zone.zone cimport (ABSENT, FREE, FULL, KIND_ORDER, KIND_STATE, LEAF_PAGES, LEAF_SHIFT, MIDDLE,
                                 MT_ISOLATE, PAGEBLOCK_ORDER, PageZone, RUN, TAIL, USED, is_split, type_of)


cdef inline int block_order_at(uint64_t page, uint64_t end, int max_order) noexcept nogil:
    """Order of the largest aligned block that begins at `page` and ends by `end`."""
    cdef int order = ctz64(page) if page else 63
    order = min(order, max_order)
    while page + (<uint64_t>1 << order) > end:
        order -= 1
    return order


cdef inline int block_order_before(uint64_t start, uint64_t page, int max_order) noexcept nogil:
    """Order of the largest aligned block that ends at `page` and begins at or after `start`."""
    cdef int order = min(ctz64(page), max_order)
    while page - start < <uint64_t>1 << order:
        order -= 1
    return order


cdef inline uint64_t first_not_free(const PageZone *z, uint64_t page, uint64_t end) noexcept nogil:
    """First page from `page` to `end` that is not free, or `end`. O(blocks)."""
    cdef uint64_t head = 0
    cdef int order
    while page < end:
        order = free_block_around(z, page, 0, &head)
        if order == NOT_FREE:
            return page
        page = head + (<uint64_t>1 << order)
    return end


cdef inline bint goes_by_leaf(const PageZone *z, uint64_t n) noexcept nogil:
    """Whether so many pages of one leaf are taken and freed at once, in one step of bit arithmetic, and not by blocks.

    The watcher is told of one page of it, which names its granule, as no granule is smaller than a leaf.
    """
    return n < LEAF_PAGES and z.min_order >= LEAF_SHIFT and z.max_leaf_order == LEAF_SHIFT


cdef inline int part_take(PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """Take a part of a leaf, all of it free, as one allocation; return the order of the free block that the leaf was in.

    LEAF_SHIFT - 1 stands for all orders of less than a leaf.
    """
    cdef uint64_t i = page >> LEAF_SHIFT, first = <uint64_t>1 << (page & 63), pages = low_ones(<int>n) << (page & 63)
    cdef uint64_t head = 0
    cdef int source = LEAF_SHIFT - 1
    if not is_split(z.kinds[i]):
        source = free_block_around(z, page, 0, &head)
        split_off_leaf(z, head, source, i)
    leaf_take_pages(z, i, pages, first, pages, source >= LEAF_SHIFT)
    return source


cdef inline void run_take(PageZone *z, uint64_t page, uint64_t end) noexcept nogil:
    """Take a run, all of it free, as allocated blocks, and tell the watcher. O(blocks)."""
    cdef uint64_t n
    cdef int order, source
    while page < end:
        n = min(LEAF_PAGES - (page & 63), end - page)
        if goes_by_leaf(z, n):
            tell_broken(z, page, 0, part_take(z, page, n))
            page += n
            continue
        order = block_order_at(page, end, z.max_order)
        source = buddy_take(z, page, order, USED)
        if source == NOT_FREE:
            # The pages are free, but are several blocks: isolate pageblocks do not merge with others.
            order = free_block_around(z, page, 0, &page)
            PH_ASSERT(order != NOT_FREE)
            source = buddy_take(z, page, order, USED)
        tell_broken(z, page, order, source)
        page += <uint64_t>1 << order


cdef inline void run_free(PageZone *z, uint64_t start, uint64_t page) noexcept nogil:
    """Free a run, and tell the watcher. From its end, so that the lists hand out low addresses first."""
    cdef uint64_t n
    cdef int order
    while page > start:
        n = min(((page - 1) & 63) + 1, page - start)
        if goes_by_leaf(z, n):
            page -= n
            tell_freed(z, page, 0, leaf_free_many(z, page >> LEAF_SHIFT, low_ones(<int>n) << (page & 63)))
            continue
        order = block_order_before(start, page, z.max_order)
        page -= <uint64_t>1 << order
        tell_freed(z, page, order, buddy_free(z, page, order))


cdef inline void mark_tails(PageZone *z, uint64_t i, uint64_t end) noexcept nogil:
    """Make leaves `i` to `end` tails. Eight at a time, by atomic stores: statistics read them without the lock."""
    while i < end:
        if i & 7 == 0 and end - i >= 8:
            store64(<uint64_t *> &z.kinds[i], TAIL * <uint64_t>0x0101010101010101, RELAXED)
            i += 8
        else:
            set_kind(z, i, TAIL)
            i += 1


cdef inline void run_appear(PageZone *z, uint64_t start, uint64_t end) noexcept nogil:
    """Absent pages become present and free."""
    cdef uint64_t i = start >> LEAF_SHIFT, whole = (start + LEAF_PAGES - 1) >> LEAF_SHIFT, last = end >> LEAF_SHIFT
    # A leaf of which only a part is present is split. If the largest block is smaller than a leaf, every leaf is.
    if z.max_leaf_order < LEAF_SHIFT:
        whole = last = (end + LEAF_PAGES - 1) >> LEAF_SHIFT
    while i < min(whole, (end + LEAF_PAGES - 1) >> LEAF_SHIFT):
        leaf_expose(z, i)
        i += 1
    if whole < last:
        mark_tails(z, whole, last)
    if last >= whole and (end & (LEAF_PAGES - 1)) and z.max_leaf_order == LEAF_SHIFT:
        leaf_expose(z, last)
    z.managed_pages += end - start
    run_free(z, start, end)
    if z.extents != NULL:
        extents_give(z, start, end - start)


cdef inline void leaf_expose(PageZone *z, uint64_t i) noexcept nogil:
    """Make an absent leaf a split one whose pages are all absent."""
    if z.kinds[i] == ABSENT:
        leaf_split(z, i, <uint64_t>-1, <uint64_t>-1, FULL)


cdef inline void run_vanish(PageZone *z, uint64_t start, uint64_t end) noexcept nogil:
    """Pages, all of them free, become absent."""
    cdef uint64_t i, mask
    run_take(z, start, end)
    z.managed_pages -= end - start
    while start < end:
        i = start >> LEAF_SHIFT
        if start & 63 or end - start < LEAF_PAGES or is_split(z.kinds[i]):
            mask = low_ones(<int>min(end - start, <uint64_t>(LEAF_PAGES - (start & 63)))) << (start & 63)
            set_head(z, i, z.leaves[i].head | mask)
            change_free(z, i, 0, mask)
        else:
            set_kind(z, i, ABSENT)
        start = (i + 1) << LEAF_SHIFT
    if z.extents != NULL:
        extents_rebuild(z)


cdef inline void run_mark(PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """Mark a run that was taken as blocks as one allocation."""
    cdef uint64_t i = page >> LEAF_SHIFT, whole = (page + LEAF_PAGES - 1) >> LEAF_SHIFT, last = (page + n) >> LEAF_SHIFT
    cdef uint64_t mask
    if page & 63 or (n <= LEAF_PAGES and is_split(z.kinds[i])):
        mask = low_ones(<int>min(n, <uint64_t>(LEAF_PAGES - (page & 63)))) << (page & 63)
        set_head(z, i, (z.leaves[i].head & ~mask) | (<uint64_t>1 << (page & 63)))
        if (page & 63) + n <= LEAF_PAGES:
            return
    if whole < last:
        mark_tails(z, whole, last)
        z.links[whole].prev = <uint32_t>(last - whole)      # which walks pass in one step
        set_kind(z, whole, MIDDLE if page & 63 else RUN)
    if (page + n) & 63:
        set_head(z, last, z.leaves[last].head & ~low_ones((page + n) & 63))


cdef inline void run_trim(PageZone *z, uint64_t page, int order, uint64_t n, int source) noexcept nogil:
    """Make a run of the first `n` pages of a block that was just taken, and free the rest. O(max_page_order).

    The block came from a free block of order `source`, and the watcher has not been told of it. It is told of the run's
    pages only: the others are free again before another thread can see that they were not.
    """
    cdef uint64_t at = page + (<uint64_t>1 << order), end = page + n
    cdef int o
    if order >= LEAF_SHIFT and end & (LEAF_PAGES - 1):
        leaf_split(z, end >> LEAF_SHIFT, 0, 0, FULL)
    run_mark(z, page, n)
    while at > end:
        o = block_order_before(end, at, z.max_order)
        at -= <uint64_t>1 << o
        buddy_free(z, at, o)
    while page < end:
        o = block_order_at(page, end, z.max_order)
        tell_broken(z, page, o, source)
        page += <uint64_t>1 << o


cdef inline void run_unmark(PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """Undo `run_mark`, so that the run can be freed as blocks.

    If the largest block is smaller than a leaf, the run's whole leaves become split ones again. Else nothing is to do.
    """
    cdef uint64_t i
    if z.max_leaf_order < LEAF_SHIFT:
        for i in range((page + LEAF_PAGES - 1) >> LEAF_SHIFT, (page + n) >> LEAF_SHIFT):
            if not is_split(z.kinds[i]):
                change_free(z, i, <uint64_t>-1, 0)
                set_head(z, i, 0)
                set_kind(z, i, FULL)


cdef inline void run_free_allocated(PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """Free a run that `run_mark` has marked as one allocation."""
    run_unmark(z, page, n)
    run_free(z, page, page + n)
    if z.extents != NULL:
        extents_give(z, page, n)


cdef inline bint can_grow(const PageZone *z, uint64_t page, uint64_t n, uint64_t wanted) noexcept nogil:
    """Whether an allocation of `n` pages can get the pages after it, up to `wanted` in all. O(blocks)."""
    cdef uint64_t end = page + wanted, block
    if z.extents == NULL and page & 63 and (page & 63) + wanted > LEAF_PAGES:
        return False                # an allocation in more than one leaf begins with a leaf
    if z.isolate_pageblocks:
        for block in range((page + n) >> PAGEBLOCK_ORDER, ((end - 1) >> PAGEBLOCK_ORDER) + 1):
            if z.types[block] == MT_ISOLATE:
                return False
    return first_not_free(z, page + n, end) == end


cdef inline void run_resize(PageZone *z, uint64_t page, uint64_t n, uint64_t wanted) noexcept nogil:
    """Make an allocation of `n` pages, block or run, one of another length. The pages that it grows into are free.

    The old pages are freed for a moment, without a call of the hook, and taken again with what they have merged with.
    No other thread sees that: the lock is held, and the zone has no page sets.
    """
    cdef uint64_t at = page + n
    cdef int order
    run_unmark(z, page, n)
    while at > page:
        order = block_order_before(page, at, z.max_order)
        at -= <uint64_t>1 << order
        buddy_free(z, at, order)
    run_take(z, page, page + wanted)
    if wanted < n:
        run_take(z, page + wanted, page + n)
        run_free(z, page + wanted, page + n)
    run_mark(z, page, wanted)
    if z.extents != NULL and wanted < n:
        extents_give(z, page + wanted, n - wanted)
    elif z.extents != NULL:
        extents_take(z, page + n, wanted - n)


cdef inline bint goes_on(const PageZone *z, uint64_t i) noexcept nogil:
    """Whether what is allocated at the end of split leaf `i` goes on in the next leaf. Only with extents it can."""
    cdef int kind
    if z.extents == NULL or i + 1 >= z.nr_leaves:
        return False
    kind = load8(&z.kinds[i + 1], ACQUIRE)
    return kind == MIDDLE or (is_split(kind) and not (load64(&z.leaves[i + 1].free, ACQUIRE)
                                                      | load64(&z.leaves[i + 1].head, ACQUIRE)) & 1)


cdef inline uint64_t find_run(const PageZone *z, uint64_t n) noexcept nogil:
    """First page of the lowest free run of `n` pages that begins with a leaf; it may be in several free blocks.

    O(blocks, runs and split leaves before it). NOWHERE if there is none.
    """
    cdef uint64_t i = 0, start = 0, run = 0, avail, pages
    cdef int kind
    while i < z.nr_leaves:
        kind = load8(&z.kinds[i], ACQUIRE)
        pages = 0
        if run == 0:
            start = i
        if kind & KIND_STATE == FREE:
            if type_of(z, i) != MT_ISOLATE:
                pages = <uint64_t>1 << (kind & KIND_ORDER)
            i += <uint64_t>1 << ((kind & KIND_ORDER) - LEAF_SHIFT)
            run = run + pages if pages else 0
        elif is_split(kind):
            avail = leaf_avail(&z.leaves[i]) if type_of(z, i) != MT_ISOLATE else 0
            pages = LEAF_PAGES if avail == <uint64_t>-1 else ctz64(~avail)
            if run + pages >= n:
                return start << LEAF_SHIFT
            run = run + pages if pages == LEAF_PAGES else 0
            i += 1
        else:
            run = 0
            i += leaves_in_use(z, i, kind)
        if run >= n:
            return start << LEAF_SHIFT
    return <uint64_t>NOWHERE
