"""Free memory in order of address: the maximal free blocks, and the extents that a run may be taken from.

An *extent* is a maximal run of free pages that no block boundary ends, and none of which is isolate. It has at least as
many pages as a slot; what is shorter is in no list. A zone with extents (an arena's) places runs of a slot and more by
them, at any page. So a population of arrays takes hardly more granules than its pages fill. A buddy, which places a run
at the front of a block, leaves the gap up to the next power of two behind each.

The extents are in bins by size, 32 for each power of two, with a bit for each bin. A request takes the front of a short
extent that is long enough, the lowest of those that are equally short: best fit, to a thirty-second. First fit needs
more memory after long replacement: with sizes from 64 KiB to 2 MiB, 1.13 bytes for each byte in use, where this one
takes 1.08 (`benchmarks.runs`). Taking and giving is O(max_page_order), however much is in use.

An extent is known by the slot that its first page is in. A slot holds one, since the next begins more than a slot's
pages later. The bins, and their search by a bit for each, are those of the "two-level segregated fit" (Masmano, Ripoll,
Crespo, Real, ECRTS 2004).

Zone lock held throughout, but for `zone_free_bits`, which takes it.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from pagehint.sync.atomic cimport ACQUIRE, clz64, ctz64, likely, load8
from pagehint.sync.lock cimport lock_acquire, lock_give_way, lock_release
from pagehint.zone.buddy cimport NOT_FREE, free_block_around, max_split_order
from pagehint.zone.leaf cimport leaf_avail, low_ones, maximal_order
from pagehint.zone.zeroed cimport zeroed_use
from pagehint.zone.zone cimport (BIN_WORDS, Extent, Extents, FREE, KIND_ORDER, KIND_STATE, LEAF_PAGES, LEAF_SHIFT, MIDDLE,
                                 MT_ISOLATE, NO_SLOT, NR_BINS, PAGEBLOCK_ORDER, PageZone, RUN, TAIL, WORDS_CROSSED,
                                 is_split, type_of)

cdef enum:
    NOWHERE = -1                # as a page: there is none
    BIN_SHIFT = 5               # 2**BIN_SHIFT bins for each power of two
    LOOKS = 16                  # extents of a bin among which the best is chosen
    BITS_ROUND = 4096           # leaves whose free pages are looked at in one lock round: some microseconds

cdef packed struct FreeBlock:       # as the dtype `FREE_BLOCK_DTYPE`
    uint64_t pfn
    uint32_t order


cdef inline uint64_t leaves_in_use(const PageZone *z, uint64_t i, int kind) noexcept nogil:
    """Leaves to pass by a leaf of this kind, which has nothing free: all whole ones of the block or run it begins."""
    if kind & KIND_STATE:
        return <uint64_t>1 << ((kind & KIND_ORDER) - LEAF_SHIFT)
    return z.links[i].prev if kind == RUN or kind == MIDDLE else 1


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
        else:
            i += leaves_in_use(z, i, kind)
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


cdef inline void add_free_bits(const PageZone *z, uint64_t i, uint64_t end, uint64_t *words) noexcept nogil:
    """Set the bits of the free pages of leaves `i` to `end`, in words of which `words` has one for each leaf from 0 on.

    Bits that are not this zone's pages stay as they are.
    """
    cdef uint64_t head = 0, stop
    cdef int kind, order
    if z.kinds[i] == TAIL:              # of a block that begins before
        order = free_block_around(z, i << LEAF_SHIFT, 0, &head)
        stop = min((head + (<uint64_t>1 << order)) >> LEAF_SHIFT, end) if order != NOT_FREE else i
        while i < stop:
            words[i] = <uint64_t>-1
            i += 1
    while i < end:
        kind = z.kinds[i]
        stop = i + 1
        if is_split(kind):
            words[i] |= leaf_avail(&z.leaves[i])
        elif kind & KIND_STATE == FREE:
            stop = min(i + (<uint64_t>1 << ((kind & KIND_ORDER) - LEAF_SHIFT)), end)
            memset(words + i, 0xFF, (stop - i) * sizeof(uint64_t))
        else:
            stop = i + leaves_in_use(z, i, kind)
        i = stop


cdef inline void zone_free_bits(PageZone *z, uint64_t nr_leaves, uint64_t *words) noexcept nogil:
    """As `add_free_bits`, of the first `nr_leaves` leaves, in lock rounds of BITS_ROUND leaves. Takes the zone lock.

    Each leaf is as it was in its round, and so is each block that is not larger than a round.
    """
    cdef uint64_t i = 0
    while i < nr_leaves:
        lock_acquire(&z.lock, True)
        add_free_bits(z, i, min(i + BITS_ROUND, nr_leaves), words)
        lock_release(&z.lock)
        i += BITS_ROUND
        lock_give_way(&z.lock)


# ---- extents ------------------------------------------------------------------------------------------------

cdef inline uint64_t slot_pages(const Extents *x) noexcept nogil:
    """The fewest pages that are an extent."""
    return <uint64_t>1 << x.slot_shift


cdef inline int bin_of(uint64_t pages) noexcept nogil:
    """The bin of so many pages: up to 2**(BIN_SHIFT + 1) pages one for each number, then 2**BIN_SHIFT for each power."""
    cdef int k = 63 - clz64(pages)
    if k < BIN_SHIFT:
        return <int>pages
    return (k - BIN_SHIFT + 1) << BIN_SHIFT | <int>(pages >> (k - BIN_SHIFT) & ((1 << BIN_SHIFT) - 1))


cdef inline void extent_add(Extents *x, uint64_t first, uint64_t pages) noexcept nogil:
    """List an extent, unless it is too short to be one."""
    cdef uint32_t slot = <uint32_t>(first >> x.slot_shift)
    cdef Extent *e = &x.slots[slot]
    cdef int b
    if pages < slot_pages(x):
        return
    b = bin_of(pages)
    e.pages = pages
    e.first = <uint32_t>first
    e.prev = NO_SLOT
    e.next = x.bins[b]
    if e.next != NO_SLOT:
        x.slots[e.next].prev = slot
    x.bins[b] = slot
    x.filled[b >> 6] |= <uint64_t>1 << (b & 63)


cdef inline void extent_del(Extents *x, Extent *e) noexcept nogil:
    """Take an extent off its list."""
    cdef int b = bin_of(e.pages)
    if e.next != NO_SLOT:
        x.slots[e.next].prev = e.prev
    if e.prev != NO_SLOT:
        x.slots[e.prev].next = e.next
    else:
        x.bins[b] = e.next
        if e.next == NO_SLOT:
            x.filled[b >> 6] &= ~(<uint64_t>1 << (b & 63))
    e.pages = 0


cdef inline Extent *extent_at(Extents *x, uint64_t first) noexcept nogil:
    """The extent that begins at this page, or NULL."""
    cdef Extent *e = &x.slots[first >> x.slot_shift]
    return e if e.pages and e.first == first else NULL


cdef inline uint64_t start_before(const PageZone *z, uint64_t page) noexcept nogil:
    """Where the usable free pages that end right before `page` begin; `page` if there are none. O(free blocks)."""
    cdef uint64_t i, taken, head = 0
    cdef int at
    while page:
        i = (page - 1) >> LEAF_SHIFT
        if type_of(z, i) == MT_ISOLATE:
            return page
        if is_split(load8(&z.kinds[i], ACQUIRE)):
            taken = ~leaf_avail(&z.leaves[i]) & low_ones(((page - 1) & 63) + 1)
            at = 64 - clz64(taken) if taken else 0
            page = (i << LEAF_SHIFT) + at
            if at:
                return page
        elif free_block_around(z, page - 1, 0, &head) == NOT_FREE:
            return page
        else:
            page = head
    return page


cdef inline uint64_t end_after(const PageZone *z, uint64_t page, uint64_t most) noexcept nogil:
    """Where the usable free pages from `page` on end, or `most`. O(free blocks)."""
    cdef uint64_t i, head = 0
    cdef int order
    while page < most:
        i = page >> LEAF_SHIFT
        order = free_block_around(z, page, 0, &head) if type_of(z, i) != MT_ISOLATE else NOT_FREE
        if order == NOT_FREE:
            return page
        page = head + (<uint64_t>1 << order)
    return most


cdef inline void extents_take(PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """Pages of an extent are free no more. Called before or after their own state is changed."""
    cdef uint64_t first = start_before(z, page), end
    cdef Extent *e = extent_at(z.extents, first)
    if z.zeroed != NULL:
        zeroed_use(z.zeroed, page, n, z.min_order)
    if e == NULL:
        return
    end = first + e.pages
    if end > page:
        extent_del(z.extents, e)
        extent_add(z.extents, first, page - first)
        if end > page + n:
            extent_add(z.extents, page + n, end - page - n)


cdef inline void extents_give_usable(PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """As `extents_give`, of pages none of which is isolate."""
    cdef Extents *x = z.extents
    cdef uint64_t first = start_before(z, page), end = page + n, last = z.nr_leaves << LEAF_SHIFT
    cdef Extent *e
    if first < page:
        e = extent_at(x, first)
        if e != NULL:
            extent_del(x, e)
    if end < last:
        e = extent_at(x, end)
        if e != NULL:
            end += e.pages
            extent_del(x, e)
        else:
            end = end_after(z, end, min(end + slot_pages(x), last))
    extent_add(x, first, end - first)


cdef inline void extents_give(PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """Pages have become free. They are in an extent with the free pages beside them."""
    cdef uint64_t end = page + n, next
    if likely(z.isolate_pageblocks == 0):
        extents_give_usable(z, page, n)
        return
    while page < end:
        next = min(((page >> PAGEBLOCK_ORDER) + 1) << PAGEBLOCK_ORDER, end)
        if type_of(z, page >> LEAF_SHIFT) != MT_ISOLATE:
            extents_give_usable(z, page, next - page)
        page = next


cdef inline void extents_on_freed(PageZone *z, uint64_t page, int order, int merged) noexcept nogil:
    """`PageZone.freed` of a zone with extents."""
    extents_give(z, page, <uint64_t>1 << order)
    if merged >= z.extents.freed_from:
        z.extents.freed(z, page, order, merged)


cdef inline void extents_on_broken(PageZone *z, uint64_t page, int order, int source) noexcept nogil:
    """`PageZone.broken` of a zone with extents."""
    extents_take(z, page, <uint64_t>1 << order)
    if source >= z.extents.broken_from:
        z.extents.broken(z, page, order, source)


cdef inline bint next_extent(const PageZone *z, uint64_t *page, uint64_t *end) noexcept nogil:
    """Find the next usable free pages from `page` on: from `page` to `end`. False at the zone's end."""
    cdef int order = next_free_block(z, page)
    while order != NOT_FREE and type_of(z, page[0] >> LEAF_SHIFT) == MT_ISOLATE:
        page[0] += <uint64_t>1 << order
        order = next_free_block(z, page)
    if order != NOT_FREE:
        end[0] = end_after(z, page[0], z.nr_leaves << LEAF_SHIFT)
    return order != NOT_FREE


cdef inline void extents_rebuild(PageZone *z) noexcept nogil:
    """Find all extents anew: what is isolate has changed, or the zone has had none. O(free blocks and what is between)."""
    cdef uint64_t page = 0, end = 0
    cdef int b
    for b in range(NR_BINS):
        while z.extents.bins[b] != NO_SLOT:
            extent_del(z.extents, &z.extents.slots[z.extents.bins[b]])
    while next_extent(z, &page, &end):
        extent_add(z.extents, page, end - page)
        page = end


cdef inline void extents_begin(PageZone *z, Extents *x) noexcept nogil:
    """Have a zone place runs by extents. No run is in it, no watcher at its hook, and no other thread knows it."""
    z.extents = x
    z.words = WORDS_CROSSED
    z.freed = extents_on_freed
    z.broken = extents_on_broken
    z.freed_from = z.broken_from = 0
    extents_rebuild(z)


cdef inline uint64_t best_in_bin(const Extents *x, int b, uint64_t n, uint64_t looks) noexcept nogil:
    """First page of the shortest, then lowest, extent of `n` pages or more among the first `looks` of a bin."""
    cdef const Extent *e
    cdef const Extent *best = NULL
    cdef uint32_t slot = x.bins[b]
    while slot != NO_SLOT and looks:
        looks -= 1
        e = &x.slots[slot]
        if e.pages >= n and (best == NULL or e.pages < best.pages or (e.pages == best.pages and e.first < best.first)):
            best = e
        slot = e.next
    return best.first if best != NULL else <uint64_t>NOWHERE


cdef inline uint64_t extents_find(const Extents *x, uint64_t n) noexcept nogil:
    """Where to place a run of `n` pages, a slot or more: the front of an extent; NOWHERE if none is long enough.

    O(1), but where all that is long enough is in the one bin of `n`: then O(extents in it).
    """
    cdef int b = bin_of(n), w
    cdef uint64_t page = best_in_bin(x, b, n, LOOKS), bits
    if page != <uint64_t>NOWHERE:
        return page
    w = (b + 1) >> 6
    bits = x.filled[w] & (<uint64_t>-1 << ((b + 1) & 63)) if w < BIN_WORDS else 0
    while bits == 0 and w + 1 < BIN_WORDS:
        w += 1
        bits = x.filled[w]
    if bits:
        return best_in_bin(x, w << 6 | ctz64(bits), n, LOOKS)
    return best_in_bin(x, b, n, <uint64_t>-1)
