"""The machine: all zones of an allocator, and the operations on them that need no Python: allocate, free, drain.

Every operation returns OK or an `E_` code of `status.pxd`, and has changed nothing unless it returns OK. With TRY it
returns E_AGAIN rather than wait for a lock, because its caller holds the GIL. The caller then releases the GIL and
asks again with WAIT.

An allocation walks a zonelist: the preferred zone, then those it falls back to. In a zone with page sets
(`page_set.pxd`), orders below PCP_ORDERS go through the set of the CPU, all others past the sets to the zone.
"""
from libc.stdint cimport int32_t, uint64_t
from pagehint.sync.atomic cimport ACQ_REL, clz64, ctz64, fetch_or64, likely, peek64, unlikely
from pagehint.sync.lock cimport Lock, lock_acquire, lock_release
from pagehint.sync.seeded_fault cimport canary
from pagehint.sync.testpoint cimport AT_REFUSED_BY_A_LEAF, test_point
from pagehint.zone.buddy cimport NOT_FREE, buddy_free, buddy_take, leaf_fill
from pagehint.zone.check cimport check_used
from pagehint.zone.extents cimport NOWHERE, extents_find, extents_take, slot_pages
from pagehint.zone.hook cimport notice_broken, notice_freed, zone_unlock
from pagehint.zone.leaf cimport order_ones
from pagehint.zone.migratetype cimport zone_take
from pagehint.zone.page_sets.page_set cimport (PCP_ORDERS, leaf_disown, leaf_is_owned, pcp_alloc, pcp_alloc_quick,
                                               pcp_free, pcp_free_quick, pcp_here, sets_drain, sets_hold, sets_let_go)
from pagehint.zone.page_sets.run_set cimport run_set_drain, zone_give_run
from pagehint.zone.run cimport can_grow, find_run, first_not_free, run_mark, run_resize, run_take, run_trim
from pagehint.zone.status cimport (E_ABSENT, E_AGAIN, E_ALIGN, E_BUSY, E_ISOLATE, E_NOMEM, E_NO_ZONE, E_OWNED,
                                   E_WITHHELD, OK)
from pagehint.zone.watermark cimport WMARK_MIN, may_take
from pagehint.zone.withhold cimport page_used, withhold_page
from pagehint.zone.zeroed cimport zeroed_note_run
from pagehint.zone.zone cimport FULL, LEAF_SHIFT, MT_ISOLATE, PageZone, USED, WORDS_PLAIN, type_of

cdef enum:
    GROWTHS = 8                 # times that a zone grows for one request, at most


cdef enum How:
    TRY = 0                     # do not wait for a lock
    WAIT = 1
    ALONE = 2                   # past the page sets: the caller is between `machine_hold` and `machine_let_go`

cdef struct ZoneTry:            # one step of a zonelist
    int zone                    # index of the zone
    uint64_t reserve            # pages kept there from requests that prefer another zone; written without a lock

ctypedef bint (*grow_fn)(void *owner, uint64_t end_pfn) noexcept nogil

cdef struct ZoneRange:          # PFNs of one zone
    uint64_t start_pfn
    uint64_t end_pfn
    PageZone *zone              # NULL: of none

cdef struct ZoneMap
# Called by a pointer, so that it stays apart from the code that every operation runs.
ctypedef ZoneRange (*range_fn)(const ZoneMap *map, uint64_t pfn) noexcept nogil

cdef struct ZoneMap:
    PageZone **zones            # by index, but those that have no tail come last
    int nr_tails                # zones that have one
    int nr_zones
    range_fn range_around       # `range_around`
    ZoneRange *ranges           # memory of zones that interleave, by address; memory with holes in it that are nobody's
    uint64_t nr_ranges

cdef struct Machine:
    int nr_zones
    int nr_cpus
    PageZone **zones            # by `PageZone.index`
    ZoneMap map
    ZoneTry *zonelists          # [preferred][nr_zones]
    int *zonelist_length        # steps of each
    int default_zone
    Lock last_resort            # held by the thread that holds the locks of all page sets; taken before them
    # Of an arena, whose memory is opened in steps: has the zone reach to a PFN if it can. Else, and when the memory has
    # gone, NULL. Called, and reset, with `growing` held.
    grow_fn grow
    void *grower                # what it is called with
    Lock growing                # held while a zone grows, but by hotplug; taken before a zone's lock, after the two above
    # Written by atomic operations.
    uint64_t bulk_blocks        # blocks of the bulk calls in progress: withheld, or in a larger block that is
    uint64_t bulk_calls         # bulk calls in progress
    int32_t bulk_stopped        # a fork waits for the end of these, and lets no other begin


# ---- which zone a page belongs to ---------------------------------------------------------------------------
#
# Zones may interleave: one may have memory where another has a hole, as the nodes of a machine do. So that a page is
# between a zone's first and last says nothing where spans overlap, and what belongs to whom is a list of ranges there.
# A zone whose span no other overlaps never looks at it. Nor does a zone's *tail*, from the end of every zone that it
# interleaves with on: all that is there is its own.
#
# Nothing in the map changes once it is made. A zone grows at its end only, and only where no other zone is, so it is
# its tail that grows, and `end_pfn` says how far.

cdef inline ZoneRange range_around(const ZoneMap *map, uint64_t pfn) noexcept nogil:
    """As `find_range`, of a PFN in no zone's tail. O(log ranges + zones).

    A hole that is in several zones is of the one that reaches furthest.
    """
    cdef ZoneRange found
    cdef PageZone *z
    cdef uint64_t low = 0, high = map.nr_ranges, middle
    cdef int i
    while low < high:           # the first range that ends after it
        middle = (low + high) >> 1
        if map.ranges[middle].end_pfn <= pfn:
            low = middle + 1
        else:
            high = middle
    if low < map.nr_ranges and map.ranges[low].start_pfn <= pfn:
        return map.ranges[low]
    found.start_pfn = pfn
    found.end_pfn = pfn + 1
    found.zone = NULL
    for i in range(map.nr_zones):
        z = map.zones[i]
        if (z.start_pfn <= pfn < peek64(&z.end_pfn)
                and (found.zone == NULL or peek64(&z.end_pfn) > peek64(&found.zone.end_pfn))):
            found.zone = z
    return found


cdef inline PageZone *zone_by_tail(const Machine *m, uint64_t pfn) noexcept nogil:
    """The zone that has a PFN in its tail, or NULL. O(zones), of which a machine has few."""
    cdef PageZone *z
    cdef int i
    for i in range(m.map.nr_tails):
        z = m.map.zones[i]
        if z.tail_pfn <= pfn < peek64(&z.end_pfn):
            return z
    return NULL


cdef inline PageZone *find_zone(const Machine *m, uint64_t pfn) noexcept nogil:
    """The zone of a PFN, or NULL. O(zones + log ranges)."""
    cdef PageZone *z = zone_by_tail(m, pfn)
    return z if z != NULL else m.map.range_around(&m.map, pfn).zone


cdef inline ZoneRange find_range(const Machine *m, uint64_t pfn) noexcept nogil:
    """As `find_zone`, with the PFNs around it that are of this zone as well."""
    cdef ZoneRange found
    found.zone = zone_by_tail(m, pfn)
    if found.zone == NULL:
        return m.map.range_around(&m.map, pfn)
    found.start_pfn = found.zone.tail_pfn
    found.end_pfn = peek64(&found.zone.end_pfn)
    return found


# ---- allocate and free --------------------------------------------------------------------------------------

cdef inline int zone_alloc_held(PageZone *z, int order, int mt, uint64_t reserve, uint64_t *page) noexcept nogil:
    """Take a block past the page sets. Zone lock held."""
    cdef int source
    if not may_take(z, <uint64_t>1 << order, reserve):
        return E_NOMEM
    source = zone_take(z, mt, order, USED, page)
    if source == NOT_FREE:
        return E_NOMEM
    notice_broken(z, page[0], order, source)
    return OK


cdef inline int zone_alloc(Machine *m, PageZone *z, int order, int mt, uint64_t reserve, How how,
                           uint64_t *page) noexcept nogil:
    """Take a block from one zone."""
    cdef int rc
    if z.pcp != NULL and order < PCP_ORDERS and how != ALONE:
        return pcp_alloc(z, pcp_here(z, m.nr_cpus), mt, order, reserve, how, page)
    if not lock_acquire(&z.lock, how):
        return E_AGAIN
    rc = zone_alloc_held(z, order, mt, reserve, page)
    zone_unlock(z)
    return rc


cdef inline bint grow_to(Machine *m, uint64_t end_pfn) noexcept nogil:
    """Have the zone of an arena reach to a PFN; False if it cannot, or the arena's memory has gone."""
    cdef bint reaches
    lock_acquire(&m.growing, True)
    reaches = m.grow != NULL and m.grow(m.grower, end_pfn)
    lock_release(&m.growing)
    return reaches


cdef inline bint machine_grow(Machine *m, int preferred, uint64_t n, int order, int *tries) noexcept nogil:
    """Have the preferred zone grow by `n` blocks of an order, one after the other; whether to try once more.

    If it cannot grow by so many, it grows as far as it can, since what is free at its end adds to that. Other threads may
    take the new pages first, so it is tried a few times.
    """
    cdef const PageZone *z = m.zones[preferred]
    cdef uint64_t end = peek64(&z.end_pfn) - z.base_pfn, block = <uint64_t>1 << order, left = peek64(&z.growable_pages)
    if left == 0 or tries[0] == GROWTHS:
        return False
    tries[0] += 1
    return grow_to(m, z.base_pfn + min(((end + block - 1) & ~(block - 1)) + n * block, end + left))


cdef inline int zonelist_alloc(Machine *m, int preferred, int order, int mt, How how, uint64_t *pfn) noexcept nogil:
    """As `machine_alloc`, with the steps that are seldom needed."""
    cdef ZoneTry *step = m.zonelists + preferred * m.nr_zones
    cdef uint64_t page = 0
    cdef int i, rc
    for i in range(m.zonelist_length[preferred]):
        rc = zone_alloc(m, m.zones[step[i].zone], order, mt, peek64(&step[i].reserve), how, &page)
        if rc != E_NOMEM:
            pfn[0] = m.zones[step[i].zone].base_pfn + page
            return rc
    return E_NOMEM


cdef inline int machine_alloc(Machine *m, int preferred, int order, int mt, How how, uint64_t *pfn) noexcept nogil:
    """Take a block from the preferred zone or one it falls back to. Has no arena grow, unlike what takes runs."""
    cdef PageZone *z = m.zones[preferred]
    if (z.pcp != NULL and order < PCP_ORDERS and how != ALONE and peek64(&z.watermark[WMARK_MIN]) == 0
            and likely(pcp_alloc_quick(z, pcp_here(z, m.nr_cpus), mt, order, pfn))):
        pfn[0] += z.base_pfn
        return OK
    return zonelist_alloc(m, preferred, order, mt, how, pfn)


cdef inline int zone_take_run(PageZone *z, uint64_t n, int mt, uint64_t reserve, uint64_t *page) noexcept nogil:
    """Take a run of `n` pages, and note which of its granules read as zero (`zeroed.pxd`).

    Where there are extents, it is the front of one (`extents.pxd`), unless it is shorter than any. Else it is the front
    of a block, or a run across several blocks.
    """
    cdef int order = 64 - clz64(n - 1) if n > 1 else 0, source = NOT_FREE, rc = E_NOMEM
    lock_acquire(&z.lock, True)
    page[0] = <uint64_t>NOWHERE
    if may_take(z, n, reserve):
        if z.extents != NULL and n >= slot_pages(z.extents):
            page[0] = extents_find(z.extents, n)
        else:
            if order <= z.max_order:
                source = zone_take(z, mt, order, USED, page)
            if source == NOT_FREE:
                page[0] = find_run(z, n) if z.extents == NULL else extents_find(z.extents, slot_pages(z.extents))
    if page[0] != <uint64_t>NOWHERE:
        rc = OK
        if z.zeroed != NULL:
            zeroed_note_run(z.zeroed, page[0], n, z.min_order)
        if z.extents != NULL:
            extents_take(z, page[0], n)
        if source != NOT_FREE:
            run_trim(z, page[0], order, n, source)
        else:
            run_take(z, page[0], page[0] + n)
            run_mark(z, page[0], n)
    zone_unlock(z)
    return rc


cdef inline int machine_take_run(Machine *m, int preferred, uint64_t n, int mt, uint64_t *pfn) noexcept nogil:
    """Take a run from the preferred zone or one it falls back to."""
    cdef ZoneTry *step = m.zonelists + preferred * m.nr_zones
    cdef uint64_t page = 0
    cdef int i, tries = 0
    while True:
        for i in range(m.zonelist_length[preferred]):
            if zone_take_run(m.zones[step[i].zone], n, mt, peek64(&step[i].reserve), &page) == OK:
                pfn[0] = m.zones[step[i].zone].base_pfn + page
                return OK
        if not machine_grow(m, preferred, n, 0, &tries):
            return E_NOMEM


cdef inline int locate(Machine *m, uint64_t pfn, uint64_t n, PageZone **zone) noexcept nogil:
    """Find the zone that all of `n` pages are in."""
    zone[0] = find_zone(m, pfn)
    if zone[0] == NULL:
        return E_NO_ZONE
    return OK if n <= peek64(&zone[0].end_pfn) - pfn else E_ABSENT


cdef inline int zone_free_held(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Free a block past the page sets. Zone lock held.

    E_OWNED: the leaf has to be shared first (`leaf_disown`), for which the zone lock must not be held.
    """
    cdef bint ours
    if page & ((<uint64_t>1 << order) - 1):
        return E_ALIGN
    if order >= LEAF_SHIFT:
        ours = z.kinds[page >> LEAF_SHIFT] == (USED | order)
    elif z.words != WORDS_PLAIN:
        ours = withhold_page(z, page, order)
    else:
        ours = page_used(z, page, order)
    if unlikely(not ours):
        test_point(AT_REFUSED_BY_A_LEAF)
        # An allocated block is refused because a page set owns its leaf. Do not ask whether one does: the leaf may have
        # been shared since the refusal.
        return check_used(z, page, order) or E_OWNED
    notice_freed(z, page, order, buddy_free(z, page, order))
    return OK


cdef inline int zone_free(PageZone *z, int nr_cpus, uint64_t page, int order, How how) noexcept nogil:
    """As `machine_free`, with the steps that are seldom needed."""
    cdef int rc
    run_set_drain(z)
    if z.pcp != NULL and order < PCP_ORDERS and how != ALONE:
        rc = pcp_free(z, pcp_here(z, nr_cpus), page, order, how)
        if rc != E_WITHHELD:
            return rc
    while True:
        if not lock_acquire(&z.lock, how):
            return E_AGAIN
        rc = zone_free_held(z, page, order)
        zone_unlock(z)
        if rc != E_OWNED:
            return rc
        if not leaf_disown(z, page >> LEAF_SHIFT, how == ALONE, how):
            return E_AGAIN


cdef inline int machine_free(Machine *m, uint64_t pfn, int order, How how) noexcept nogil:
    """Free an allocated block."""
    cdef PageZone *z = zone_by_tail(m, pfn)
    if unlikely(z == NULL):
        z = m.map.range_around(&m.map, pfn).zone
        return E_NO_ZONE if z == NULL else zone_free(z, m.nr_cpus, pfn - z.base_pfn, order, how)
    if (z.pcp != NULL and order < PCP_ORDERS and how != ALONE
            and likely(pcp_free_quick(z, pcp_here(z, m.nr_cpus), pfn - z.base_pfn, order))):
        return OK
    return zone_free(z, m.nr_cpus, pfn - z.base_pfn, order, how)


cdef inline int machine_split(Machine *m, uint64_t pfn, int order) noexcept nogil:
    """Make an allocated block blocks of one page. Nothing becomes free, so no hook is called. O(pages / 64)."""
    cdef PageZone *z = NULL
    cdef uint64_t page, i
    cdef int rc = locate(m, pfn, <uint64_t>1 << order, &z)
    if rc != OK:
        return rc
    page = pfn - z.base_pfn
    if page & ((<uint64_t>1 << order) - 1):
        return E_ALIGN
    run_set_drain(z)
    lock_acquire(&z.lock, True)
    while leaf_is_owned(z, page >> LEAF_SHIFT):     # the owner changes its words without the zone lock
        zone_unlock(z)
        leaf_disown(z, page >> LEAF_SHIFT, False, True)
        lock_acquire(&z.lock, True)
    rc = check_used(z, page, order)
    if rc == OK and order < LEAF_SHIFT:
        fetch_or64(&z.leaves[page >> LEAF_SHIFT].head, order_ones[order] << (page & 63), ACQ_REL)
    elif rc == OK:
        for i in range(page >> LEAF_SHIFT, (page >> LEAF_SHIFT) + (<uint64_t>1 << (order - LEAF_SHIFT))):
            leaf_fill(z, i, 0, USED, FULL)
    zone_unlock(z)
    return rc


cdef inline int machine_give_run(Machine *m, uint64_t pfn, uint64_t n) noexcept nogil:
    """Free a run that `machine_take_run` took."""
    cdef PageZone *z = NULL
    cdef int rc = locate(m, pfn, 1, &z)
    if rc != OK:
        return rc
    run_set_drain(z)
    return zone_give_run(z, pfn - z.base_pfn, n)


cdef inline int machine_alloc_run(Machine *m, int preferred, uint64_t n, int mt, int max_order, How how,
                                  uint64_t *pfn) noexcept nogil:
    """Take `n` contiguous pages: a block if `n` is a power of two, unless they are placed by extents; else a run.

    A run as well if there is no such block.
    """
    cdef int rc = E_NOMEM
    if n & (n - 1) == 0 and ctz64(n) <= max_order and m.zones[preferred].extents == NULL:
        rc = machine_alloc(m, preferred, ctz64(n), mt, how, pfn)
    return rc if rc == OK else machine_take_run(m, preferred, n, mt, pfn)


cdef inline int machine_free_run(Machine *m, uint64_t pfn, uint64_t n, int max_order) noexcept nogil:
    """Free what `machine_alloc_run` took, or a block of so many pages. First as what it most likely is."""
    cdef const PageZone *z = find_zone(m, pfn)
    cdef bint block = n & (n - 1) == 0 and ctz64(n) <= max_order, placed = z != NULL and z.extents != NULL
    cdef int rc
    if block and not placed and machine_free(m, pfn, ctz64(n), WAIT) == OK:
        return OK
    rc = machine_give_run(m, pfn, n)
    if rc != OK and block and placed and machine_free(m, pfn, ctz64(n), WAIT) == OK:
        return OK
    return rc


cdef inline bint is_free_to_end(PageZone *z, uint64_t page) noexcept nogil:
    """Whether the zone is free from this page on."""
    cdef bint free
    lock_acquire(&z.lock, True)
    free = first_not_free(z, page, z.end_pfn - z.base_pfn) == z.end_pfn - z.base_pfn
    zone_unlock(z)
    return free


cdef inline int machine_resize_run(Machine *m, uint64_t pfn, uint64_t n, uint64_t wanted) noexcept nogil:
    """Make what `machine_alloc_run` took longer, or make it shorter and free its end. The zone has no page sets."""
    cdef PageZone *z = NULL
    cdef uint64_t page
    cdef int rc = locate(m, pfn, max(n, wanted), &z)
    if rc == E_ABSENT and m.grow != NULL and is_free_to_end(z, pfn - z.base_pfn + n) and grow_to(m, pfn + wanted):
        rc = OK
    if rc != OK:
        return rc
    page = pfn - z.base_pfn
    lock_acquire(&z.lock, True)
    if wanted > n and not (may_take(z, wanted - n, 0) and can_grow(z, page, n, wanted)):
        rc = E_BUSY
    else:
        run_resize(z, page, n, wanted)
    zone_unlock(z)
    return rc


cdef inline int zone_take_at(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Take this very block, past the page sets. Zone lock held."""
    cdef int source
    if page & ((<uint64_t>1 << order) - 1):
        return E_ALIGN
    if type_of(z, page >> LEAF_SHIFT) == MT_ISOLATE:
        return E_ISOLATE
    source = buddy_take(z, page, order, USED)
    if source == NOT_FREE:
        return E_BUSY
    notice_broken(z, page, order, source)
    return OK


cdef inline int machine_alloc_at(Machine *m, uint64_t pfn, int order, bint may_block) noexcept nogil:
    """Take this very block, whatever the watermarks and its migratetype are, unless it is isolate."""
    cdef PageZone *z = NULL
    cdef int rc = locate(m, pfn, <uint64_t>1 << order, &z)
    if rc != OK and m.grow != NULL:
        if not may_block:
            return E_AGAIN
        if grow_to(m, pfn + (<uint64_t>1 << order)):
            rc = locate(m, pfn, <uint64_t>1 << order, &z)
    if rc != OK:
        return rc
    if not lock_acquire(&z.lock, may_block):
        return E_AGAIN
    rc = zone_take_at(z, pfn - z.base_pfn, order)
    zone_unlock(z)
    return rc


cdef inline void machine_drain_runs(Machine *m) noexcept nogil:
    """Empty every page set for runs."""
    cdef int i
    for i in range(m.nr_zones):
        run_set_drain(m.zones[i])


cdef inline void machine_drain(Machine *m) noexcept nogil:
    """Empty every page set of every zone."""
    cdef int i
    canary()                    # a fault on purpose, in builds that test the sanitizers
    for i in range(m.nr_zones):
        sets_drain(m.zones[i], m.nr_cpus)
    machine_drain_runs(m)


cdef inline void machine_hold(Machine *m) noexcept nogil:
    """Empty every page set and keep them so until `machine_let_go`: what fails now, fails for want of memory.

    Otherwise another CPU's set could take what was drained for this request, or two large requests could both fail,
    each because of what the other one had taken for a moment.
    """
    cdef int i
    lock_acquire(&m.last_resort, True)
    for i in range(m.nr_zones):
        sets_hold(m.zones[i], m.nr_cpus, True)
    machine_drain_runs(m)


cdef inline void machine_let_go(Machine *m) noexcept nogil:
    """Let threads use the page sets again, after `machine_hold`."""
    cdef int i
    for i in range(m.nr_zones):
        sets_let_go(m.zones[i], m.nr_cpus)
    lock_release(&m.last_resort)
