"""The consistency check: every invariant of the metadata, worked out from scratch. Zone lock and page sets' locks held.

It shares as little as it can with the code that it checks. It checks each number that it reads before it uses it as an
index, since the number may be wrong.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from pagehint.sync.atomic cimport ACQUIRE, RELAXED, load64, load8, popcount64
from pagehint.zone.buddy cimport NOT_FREE
from pagehint.zone.check cimport check_run
from pagehint.zone.extents cimport bin_of, next_free_block, slot_pages
from pagehint.zone.leaf cimport Leaf, leaf_avail, low_ones
from pagehint.zone.page_sets.owned_leaf cimport OWNER, owned_by
from pagehint.zone.page_sets.page_set cimport PCP_ORDERS, PCP_TYPES, Pcp, leaf_is_owned
from pagehint.zone.page_sets.run_set cimport run_pages
from pagehint.zone.status cimport OK
from pagehint.zone.zone cimport (ABSENT, Extent, Extents, FREE, FULL, FreeArea, KIND_ORDER, KIND_STATE, LEAF_PAGES,
                                 LEAF_SHIFT, MIDDLE, MT_ISOLATE, NO_SLOT, NR_BINS, NR_ORDERS, NR_TYPES, OWNED,
                                 PAGEBLOCK_LEAVES, PAGEBLOCK_ORDER, PageZone, RUN, RUNS, SPLIT, TAIL, WITHHELD, is_split,
                                 list_first, list_head, type_of)


cdef struct Finding:
    const char *what            # which invariant is broken; NULL: none
    uint64_t page               # where

cdef struct Count:                  # what the leaves say
    uint64_t blocks[NR_TYPES][NR_ORDERS]    # maximal free blocks
    uint64_t listed[NR_TYPES][NR_ORDERS]    # leaves that must be on each list
    uint64_t free_pages
    uint64_t withheld               # pages in split leaves with both bits set, less those that are accounted for
    uint64_t withheld_pages         # pages in withheld blocks of whole leaves, less those that are accounted for


cdef inline bint found(Finding *f, const char *what, uint64_t page) noexcept nogil:
    """Note a broken invariant; True, for the caller to return."""
    f.what = what
    f.page = page
    return True


cdef inline bint found_in_all(const PageZone *z, Finding *f, const char *what) noexcept nogil:
    """As `found`, of the zone as a whole: at its first page, which need not be the first of its first leaf."""
    return found(f, what, z.start_pfn - z.base_pfn)


cdef inline bint ends_in_use(const PageZone *z, uint64_t i) noexcept nogil:
    """Whether the last page of leaf `i` is allocated, in a block or run that does not end there by its kind."""
    cdef int kind = z.kinds[i]
    if is_split(kind):
        return not load64(&z.leaves[i].free, RELAXED) >> (LEAF_PAGES - 1)
    return kind == RUN or kind == MIDDLE or kind == TAIL


cdef inline bint verify_leaf(const PageZone *z, uint64_t i, Count *c, Finding *f) noexcept nogil:
    """Check and count a split leaf."""
    cdef uint64_t avail = leaf_avail(&z.leaves[i])
    cdef int mt = type_of(z, i), at = 0, order, largest = -1
    while at < LEAF_PAGES:
        if not (avail >> at) & 1:
            at += 1
            continue
        order = 0
        while (order < z.max_order and order < LEAF_SHIFT and at & (1 << order) == 0
               and (avail >> at) & low_ones(2 << order) == low_ones(2 << order)):
            order += 1
        if order == LEAF_SHIFT:
            return found(f, "a wholly free leaf is not merged", i << LEAF_SHIFT)
        c.blocks[mt][order] += 1
        largest = max(largest, order)
        at += 1 << order
    c.free_pages += popcount64(avail)
    c.withheld += popcount64(load64(&z.leaves[i].free, RELAXED) & z.leaves[i].head)
    if not (load64(&z.leaves[i].free, RELAXED) | z.leaves[i].head) & 1 and (i == 0 or not ends_in_use(z, i - 1)):
        return found(f, "the end of a run that does not begin", i << LEAF_SHIFT)
    if z.kinds[i] == OWNED:
        if largest >= 0 or not z.links[i].next & <uint32_t>OWNER:
            return found(f, "a page set's own leaf has free pages, or no owner", i << LEAF_SHIFT)
    elif z.kinds[i] != (FULL if largest < 0 else SPLIT + largest):
        return found(f, "a leaf's kind is not its largest free order", i << LEAF_SHIFT)
    if largest >= 0:
        c.listed[mt][largest] += 1
    return False


cdef inline bint verify_leaves(const PageZone *z, const uint64_t *bulk_blocks, Count *c, Finding *f) noexcept nogil:
    """Check and count all leaves.

    A bulk allocation splits a withheld block without the zone lock, so leaves in it may be no tails meanwhile.
    """
    cdef uint64_t i = 0, j, n, buddy, before = load64(bulk_blocks, ACQUIRE)
    cdef int kind, order
    for j in range((z.nr_leaves + PAGEBLOCK_LEAVES - 1) // PAGEBLOCK_LEAVES):
        if z.types[j] >= NR_TYPES:
            return found(f, "an unknown migratetype", j << PAGEBLOCK_ORDER)
    while i < z.nr_leaves:
        kind = load8(&z.kinds[i], ACQUIRE)
        n = 1
        if is_split(kind):
            if verify_leaf(z, i, c, f):
                return True
        elif kind == TAIL:
            return found(f, "inside a block that does not begin", i << LEAF_SHIFT)
        elif kind == RUN or kind == MIDDLE:
            while i + n < z.nr_leaves and load8(&z.kinds[i + n], RELAXED) == TAIL:
                n += 1
            if kind == MIDDLE and (i == 0 or not is_split(z.kinds[i - 1]) or not ends_in_use(z, i - 1)):
                return found(f, "the middle of a run that does not begin", i << LEAF_SHIFT)
            if z.extents != NULL and z.links[i].prev != n:
                return found(f, "a run has not as many whole leaves as it says", i << LEAF_SHIFT)
        elif kind & KIND_STATE:
            order = kind & KIND_ORDER
            if order < LEAF_SHIFT or order > z.max_order:
                return found(f, "a block's order is out of range", i << LEAF_SHIFT)
            n = <uint64_t>1 << (order - LEAF_SHIFT)
            if i & (n - 1) or i + n > z.nr_leaves:
                return found(f, "a block is not aligned or crosses the zone's end", i << LEAF_SHIFT)
            for j in range(i + 1, i + n):
                if (load8(&z.kinds[j], RELAXED) != TAIL
                        and not (kind & KIND_STATE == WITHHELD and (before or load64(bulk_blocks, ACQUIRE)))):
                    return found(f, "a block begins inside another", j << LEAF_SHIFT)
            if kind & KIND_STATE == FREE:
                buddy = i ^ n
                if (order < z.max_order and buddy < z.nr_leaves and load8(&z.kinds[buddy], RELAXED) == kind
                        and (type_of(z, buddy) == MT_ISOLATE) == (type_of(z, i) == MT_ISOLATE)):
                    return found(f, "two free buddies are not merged", i << LEAF_SHIFT)
                for j in range(i // PAGEBLOCK_LEAVES, (i + n - 1) // PAGEBLOCK_LEAVES + 1):
                    if (z.types[j] == MT_ISOLATE) != (type_of(z, i) == MT_ISOLATE):
                        return found(f, "a free block is isolated in part", j << PAGEBLOCK_ORDER)
                c.blocks[type_of(z, i)][order] += 1
                c.listed[type_of(z, i)][order] += 1
                c.free_pages += <uint64_t>1 << order
            elif kind & KIND_STATE == WITHHELD:
                c.withheld_pages += <uint64_t>1 << order
        elif kind != ABSENT:
            return found(f, "an unknown kind of leaf", i << LEAF_SHIFT)
        i += n
    return False


cdef inline bint verify_lists(const PageZone *z, const Count *c, Finding *f) noexcept nogil:
    """Compare `nr_free` and the free lists with what was counted."""
    cdef const FreeArea *area
    cdef uint64_t n
    cdef uint64_t i, prev
    cdef int mt, order, kind
    for mt in range(NR_TYPES):
        area = &z.areas[mt]
        for order in range(NR_ORDERS):
            if area.nr_free[order] != c.blocks[mt][order]:
                return found_in_all(z, f, "nr_free is not the number of free blocks")
            n = 0
            if (z.nonempty[mt] >> order) & 1:
                prev = list_head(z, mt, order)
                i = list_first(z, mt, order)
                while i != list_head(z, mt, order):
                    n += 1
                    if i >= z.nr_leaves:
                        if n == 1:
                            return found_in_all(z, f, "a free list begins outside the zone")
                        return found(f, "a free list leads out of the zone", prev << LEAF_SHIFT)
                    kind = z.kinds[i]
                    if kind != (SPLIT + order if order < LEAF_SHIFT else FREE | order) or type_of(z, i) != mt:
                        return found(f, "a leaf is on the wrong free list", i << LEAF_SHIFT)
                    if z.links[i].prev != prev:
                        return found(f, "a free list is not linked both ways", i << LEAF_SHIFT)
                    if n > c.listed[mt][order]:
                        return found(f, "a free list is longer than there are blocks for it", i << LEAF_SHIFT)
                    prev = i
                    i = z.links[i].next
            if n < c.listed[mt][order]:
                return found_in_all(z, f, "a free block is on no list")
    return False


cdef inline bint verify_extents(const PageZone *z, Finding *f) noexcept nogil:
    """Compare the extents with the free blocks."""
    cdef const Extents *x = z.extents
    cdef const Extent *e
    cdef uint64_t page = 0, first = 0, end = 0, n = 0
    cdef uint32_t slot, prev
    cdef int order = 0, b
    if x == NULL:
        return False
    while order != NOT_FREE:
        order = next_free_block(z, &page)
        if order == NOT_FREE or page != end or type_of(z, page >> LEAF_SHIFT) == MT_ISOLATE:
            if end - first >= slot_pages(x):
                e = &x.slots[first >> x.slot_shift]
                n += 1
                if e.pages != end - first or e.first != first:
                    return found(f, "free pages are no extent", first)
            first = page
        if order != NOT_FREE:
            page += <uint64_t>1 << order
            end = page
            if type_of(z, (page - 1) >> LEAF_SHIFT) == MT_ISOLATE:
                first = end
    for b in range(NR_BINS):
        prev = NO_SLOT
        slot = x.bins[b]
        if (slot != NO_SLOT) != (x.filled[b >> 6] >> (b & 63)) & 1:
            return found_in_all(z, f, "the bit of a bin of extents is not in step")
        while slot != NO_SLOT:
            e = &x.slots[slot]
            if slot > z.nr_leaves << LEAF_SHIFT >> x.slot_shift or n == 0:
                return found_in_all(z, f, "a list of extents leads out of them")
            if e.pages == 0 or bin_of(e.pages) != b or e.first >> x.slot_shift != slot or e.prev != prev:
                return found(f, "an extent is on the wrong list", <uint64_t>slot << x.slot_shift)
            prev = slot
            slot = e.next
            n -= 1
    if n:
        return found_in_all(z, f, "an extent is on no list")
    return False


cdef inline bint verify_absent_run(const PageZone *z, uint64_t page, uint64_t end, Count *c, Finding *f) noexcept nogil:
    """As `verify_absent`, of one run."""
    while page < end:
        if is_split(z.kinds[page >> LEAF_SHIFT]):
            if not (load64(&z.leaves[page >> LEAF_SHIFT].free, RELAXED)
                    & z.leaves[page >> LEAF_SHIFT].head) >> (page & 63) & 1:
                return found(f, "an absent page is in use", page)
            c.withheld -= 1
            page += 1
        elif z.kinds[page >> LEAF_SHIFT] != ABSENT:
            return found(f, "an absent leaf is in use", page)
        else:
            page = ((page >> LEAF_SHIFT) + 1) << LEAF_SHIFT
    return False


cdef inline bint verify_absent(const PageZone *z, const uint64_t *runs, uint64_t n, Count *c,
                               Finding *f) noexcept nogil:
    """Check that the pages of `n` pairs (start, end) are absent, and take them off what was counted as withheld.

    So are those of the first and the last leaf that are not within the zone.
    """
    cdef uint64_t end = z.end_pfn - z.base_pfn, absent = (z.start_pfn - z.base_pfn) + (z.nr_leaves << LEAF_SHIFT) - end, k
    if (verify_absent_run(z, 0, z.start_pfn - z.base_pfn, c, f)
            or verify_absent_run(z, end, z.nr_leaves << LEAF_SHIFT, c, f)):
        return True
    for k in range(n):
        absent += runs[2 * k + 1] - runs[2 * k]
        if verify_absent_run(z, runs[2 * k], runs[2 * k + 1], c, f):
            return True
    if z.managed_pages != (z.nr_leaves << LEAF_SHIFT) - absent:
        return found_in_all(z, f, "managed pages are not what is left of the leaves when the absent are taken off")
    return False


cdef inline bint verify_sets(const PageZone *z, int nr_cpus, Count *c, Finding *f) noexcept nogil:
    """Check the blocks in page sets, and take them off what was counted as withheld."""
    cdef Pcp *pcp
    cdef const Leaf *leaf
    cdef uint64_t page, bit
    cdef int cpu, mt, order, k
    if z.pcp == NULL:
        return False
    for cpu in range(nr_cpus):
        pcp = <Pcp *> z.pcp + cpu
        for mt in range(PCP_TYPES):
            c.withheld_pages -= pcp.stock[mt].end - pcp.stock[mt].page
            for order in range(PCP_ORDERS):
                for k in range(pcp.stacks[mt][order].count):
                    page = pcp.stacks[mt][order].blocks[k]
                    bit = <uint64_t>1 << (page & 63)
                    leaf = &z.leaves[page >> LEAF_SHIFT]
                    if (page >> LEAF_SHIFT >= z.nr_leaves or not is_split(z.kinds[page >> LEAF_SHIFT])
                            or not load64(&leaf.free, RELAXED) & leaf.head & bit):
                        return found(f, "a block in a per-CPU page set is not withheld", page)
                    if leaf_is_owned(z, page >> LEAF_SHIFT) and not owned_by(z, page >> LEAF_SHIFT, pcp.mark):
                        return found(f, "a block in a per-CPU page set is in a leaf that another owns", page)
                    c.withheld -= 1
    return False


cdef inline bint verify_run_set(const PageZone *z, Finding *f) noexcept nogil:
    """Check that the runs in the page set for runs are runs, each of them once."""
    cdef uint64_t page, other, n
    cdef int i, k
    if z.run_set == NULL:
        return False
    for i in range(RUNS):
        n = run_pages(z.run_set.runs[i])
        page = z.run_set.runs[i] >> 32
        if n and (page + n > z.nr_leaves << LEAF_SHIFT or check_run(z, page, n) != OK):
            return found(f, "a run in the page set for runs is not allocated", page)
        for k in range(i):
            other = z.run_set.runs[k] >> 32
            if n and run_pages(z.run_set.runs[k]) and page == other:
                return found(f, "a run is in the page set for runs twice", page)
    return False


cdef inline bint verify_zone(const PageZone *z, int nr_cpus, const uint64_t *absent, uint64_t nr_absent, uint64_t lent,
                             const uint64_t *bulk_blocks, Finding *f) noexcept nogil:
    """Check everything; True at the first broken invariant, which `f` then says. O(pages / 64 + blocks).

    `absent` is `nr_absent` pairs (start, end) of pages. `lent` is the number of pages that the watcher has out of
    circulation. `bulk_blocks` is `Machine.bulk_blocks`: it is read before and after, since bulk calls begin and end
    without this zone's lock.
    """
    cdef Count c
    cdef uint64_t before = load64(bulk_blocks, ACQUIRE)
    memset(&c, 0, sizeof(c))
    f.what = NULL
    if (verify_leaves(z, bulk_blocks, &c, f) or verify_lists(z, &c, f)
            or verify_absent(z, absent, nr_absent, &c, f) or verify_sets(z, nr_cpus, &c, f) or verify_run_set(z, f)
            or verify_extents(z, f)):
        return True
    if c.free_pages != z.free_pages:
        return found_in_all(z, f, "free_pages is not the number of free pages")
    before = max(before, load64(bulk_blocks, ACQUIRE))
    if lent == 0 and (c.withheld > before or (c.withheld_pages > z.bulk_pages and not before)):
        return found_in_all(z, f, "pages are withheld, but neither absent nor in a page set nor taken out of circulation")
    if c.withheld_pages > lent + z.bulk_pages and not before:
        return found_in_all(z, f, "more pages are withheld than are taken out of circulation")
    return False
