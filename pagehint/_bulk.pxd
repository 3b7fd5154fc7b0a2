"""Bulk operations: all or nothing, one lock round a chunk, so that no hold is long.

A bulk free first marks every block as withheld, which refuses what is not allocated or named twice; only when all
are marked does it free them. A refusal takes the marks off again, and nothing has happened.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagehint._atomic cimport prefetch
from pagehint._buddy cimport NOT_FREE, buddy_free, change_free, set_kind
from pagehint._check cimport E_ALIGN, E_NOMEM, OK, check_used
from pagehint._hint cimport hint_broken, hint_freed
from pagehint._lock cimport lock_acquire
from pagehint._machine cimport Machine, ZoneTry, locate, machine_free
from pagehint._migratetype cimport zone_take
from pagehint._wake cimport zone_unlock
from pagehint._watermark cimport WMARK_MIN, may_take
from pagehint._zone cimport HELD, LEAF_SHIFT, MT_ISOLATE, PageZone, USED, usable_free_pages

cdef enum:
    BULK_CHUNK = 256            # blocks a lock round: some microseconds
    BULK_AHEAD = 8              # how many blocks ahead to prefetch


cdef inline uint64_t zone_can_serve(PageZone *z, int order, uint64_t reserve) noexcept nogil:
    """How many blocks of `order` the zone could give just now."""
    cdef uint64_t blocks = 0, keep = z.watermark[WMARK_MIN] + reserve, pages
    cdef int mt, o
    lock_acquire(&z.lock, True)
    for mt in range(MT_ISOLATE):
        for o in range(order, z.max_order + 1):
            blocks += z.areas[mt].nr_free[o] << (o - order)
    pages = usable_free_pages(z)
    zone_unlock(z)
    return min(blocks, (pages - keep) >> order) if pages > keep else 0


cdef inline uint64_t machine_can_serve(Machine *m, int preferred, int order) noexcept nogil:
    cdef ZoneTry *step = m.zonelists + preferred * m.nr_zones
    cdef uint64_t blocks = 0
    cdef int i
    for i in range(m.zonelist_length[preferred]):
        blocks += zone_can_serve(m.zones[step[i].zone], order, step[i].reserve)
    return blocks


cdef inline uint64_t zone_alloc_bulk(PageZone *z, int order, int mt, uint64_t reserve, uint64_t *pfns,
                                     uint64_t n) noexcept nogil:
    """Up to `n` blocks from one zone; return how many."""
    cdef uint64_t done = 0, page = 0, end
    cdef int source = 0
    while done < n and source != NOT_FREE:
        end = min(done + BULK_CHUNK, n)
        lock_acquire(&z.lock, True)
        while done < end:
            source = NOT_FREE
            if may_take(z, <uint64_t>1 << order, reserve):
                source = zone_take(z, mt, order, USED, &page)
            if source == NOT_FREE:
                break
            hint_broken(z, page, order, source)
            pfns[done] = z.base_pfn + page
            done += 1
        zone_unlock(z)
    return done


cdef inline int machine_alloc_bulk(Machine *m, int preferred, int order, int mt, uint64_t *pfns, uint64_t n) noexcept nogil:
    cdef ZoneTry *step = m.zonelists + preferred * m.nr_zones
    cdef uint64_t done = 0, i
    cdef int s
    # Asked before anything is taken: a request that cannot be met then leaves no trace, not even in the hints.
    if machine_can_serve(m, preferred, order) < n:
        return E_NOMEM
    for s in range(m.zonelist_length[preferred]):
        done += zone_alloc_bulk(m.zones[step[s].zone], order, mt, step[s].reserve, pfns + done, n - done)
        if done == n:
            return OK
    for i in range(done):       # others were faster
        machine_free(m, pfns[i], order, True)
    return E_NOMEM


cdef inline void count_held(PageZone *z, int order, int sign) noexcept nogil:
    """Keep count of what is withheld between the lock rounds of a bulk free, so that the consistency check stays exact."""
    if order >= LEAF_SHIFT:
        z.bulk_pages += <uint64_t>sign << order
    else:
        z.bulk_blocks += <uint64_t>sign


cdef inline int withhold(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Allocated becomes withheld. Zone lock held."""
    cdef int rc
    if page & ((<uint64_t>1 << order) - 1):
        return E_ALIGN
    rc = check_used(z, page, order)
    if rc == OK:
        if order >= LEAF_SHIFT:
            set_kind(z, page >> LEAF_SHIFT, HELD | order)
        else:
            change_free(z, page >> LEAF_SHIFT, 0, <uint64_t>1 << (page & 63))
        count_held(z, order, 1)
    return rc


cdef inline void release_hold(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Withheld becomes allocated again. Zone lock held."""
    count_held(z, order, -1)
    if order >= LEAF_SHIFT:
        set_kind(z, page >> LEAF_SHIFT, USED | order)
    else:
        change_free(z, page >> LEAF_SHIFT, <uint64_t>1 << (page & 63), 0)


cdef enum BulkStep:
    WITHHOLD
    RELEASE_HOLD
    FREE_HELD


cdef inline int bulk_walk(Machine *m, const uint64_t *pfns, const uint32_t *orders, int order, uint64_t n, BulkStep step,
                          uint64_t *done) noexcept nogil:
    """One step on every block, a chunk of one zone under each lock round; stops at the first refusal, `done` blocks in.

    `orders` has an order for each block, or is NULL and all have `order`.
    """
    cdef PageZone *z = NULL
    cdef uint64_t i = 0, end, page
    cdef int rc = OK
    while i < n:
        rc = locate(m, pfns[i], 1, &z)
        if rc != OK:
            break
        end = min(i + BULK_CHUNK, n)
        lock_acquire(&z.lock, True)
        while i < end and z.start_pfn <= pfns[i] < z.end_pfn:
            if orders != NULL:
                order = orders[i]
            # Blocks of whole leaves do not use the words, whose pages may never have been touched.
            if order < LEAF_SHIFT and i + BULK_AHEAD < n and z.start_pfn <= pfns[i + BULK_AHEAD] < z.end_pfn:
                prefetch(&z.leaves[(pfns[i + BULK_AHEAD] - z.base_pfn) >> LEAF_SHIFT])
            page = pfns[i] - z.base_pfn
            if step == WITHHOLD:
                rc = withhold(z, page, order)
                if rc != OK:
                    break
            elif step == RELEASE_HOLD:
                release_hold(z, page, order)
            else:
                count_held(z, order, -1)
                hint_freed(z, page, order, buddy_free(z, page, order))
            i += 1
        zone_unlock(z)
        if rc != OK:
            break
    done[0] = i
    return rc


cdef inline int machine_free_bulk(Machine *m, const uint64_t *pfns, const uint32_t *orders, int order, uint64_t n,
                                  uint64_t *refused) noexcept nogil:
    """Free all blocks or none; `refused` is the index of the first that could not be."""
    cdef uint64_t ignored = 0
    cdef int rc = bulk_walk(m, pfns, orders, order, n, WITHHOLD, refused)
    if rc != OK:
        bulk_walk(m, pfns, orders, order, refused[0], RELEASE_HOLD, &ignored)
    else:
        bulk_walk(m, pfns, orders, order, n, FREE_HELD, &ignored)
    return rc
