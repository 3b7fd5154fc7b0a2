"""Bulk operations: all blocks or none. They take the zone lock for some blocks at a time, so that no hold is long.

A bulk free first withholds every block, which fails for one that is not allocated or named twice. Only when all are
withheld does it free them; if one cannot be, it makes the others allocated again. Consecutive blocks in one leaf are
one step: their bits are checked, set and merged together.

A bulk allocation first asks whether there are enough blocks. It gives back what it has taken if another thread has
taken the rest meanwhile.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagehint.sync.atomic cimport (ACQ_REL, RELAXED, RELEASE, SEQ_CST, ctz64, fetch_add64, load64, load_i32, peek64,
                                   prefetch, store_i32)
from pagehint.sync.lock cimport lock_acquire, lock_give_way, usleep
from pagehint.zone.buddy cimport NOT_FREE, Taken, buddy_free, leaf_fill, leaf_free, leaf_free_many, set_kind
from pagehint.zone.check cimport check_used
from pagehint.zone.hook cimport notice_broken, notice_broken_many, notice_freed, zone_unlock
from pagehint.zone.leaf cimport aligned_starts, low_ones, spread
from pagehint.zone.migratetype cimport zone_take, zone_take_many
from pagehint.zone.page_alloc cimport (How, Machine, ZoneRange, ZoneTry, find_range, machine_drain_runs, machine_free,
                                       machine_grow)
from pagehint.zone.page_sets.page_set cimport leaf_disown, leaf_is_owned
from pagehint.zone.status cimport E_AGAIN, E_ALIGN, E_NOMEM, E_NO_ZONE, E_OWNED, OK
from pagehint.zone.watermark cimport spare_pages
from pagehint.zone.withhold cimport unwithhold, withhold, withhold_page
from pagehint.zone.zone cimport (FULL, LEAF_PAGES, LEAF_SHIFT, MT_ISOLATE, PageZone, USED, WITHHELD, WORDS_ATOMIC,
                                 list_first)

cdef enum:
    BULK_STEPS = 48             # leaves or single blocks for which the lock is held at a time: some microseconds
    BULK_AHEAD = 12             # how many blocks ahead to prefetch


cdef inline void bulk_begin(Machine *m, uint64_t n) noexcept nogil:
    """Announce a call of `n` blocks. The consistency check allows for them, and a fork waits until the call ends."""
    fetch_add64(&m.bulk_calls, 1, SEQ_CST)
    while load_i32(&m.bulk_stopped, SEQ_CST):
        fetch_add64(&m.bulk_calls, -1, SEQ_CST)
        while load_i32(&m.bulk_stopped, RELAXED):
            usleep(50)
        fetch_add64(&m.bulk_calls, 1, SEQ_CST)
    fetch_add64(&m.bulk_blocks, n, ACQ_REL)


cdef inline void bulk_end(Machine *m, uint64_t n) noexcept nogil:
    """End a call that `bulk_begin` has announced."""
    fetch_add64(&m.bulk_blocks, -n, ACQ_REL)
    fetch_add64(&m.bulk_calls, -1, SEQ_CST)


cdef inline void bulk_stop(Machine *m) noexcept nogil:
    """Wait until no bulk call is in progress, and let none begin. The caller holds `last_resort`, and no lock after it.

    For a fork: a thread in such a call does not exist in the child, which would lose the blocks that it has withheld.
    """
    store_i32(&m.bulk_stopped, True, SEQ_CST)
    while load64(&m.bulk_calls, SEQ_CST):
        usleep(50)


cdef inline void bulk_resume(Machine *m) noexcept nogil:
    """Let bulk calls begin again."""
    store_i32(&m.bulk_stopped, False, RELEASE)


cdef inline uint64_t zone_can_serve(PageZone *z, int order, uint64_t reserve) noexcept nogil:
    """How many blocks of `order` the zone could give at this moment."""
    cdef uint64_t blocks = 0
    cdef int mt, o
    lock_acquire(&z.lock, True)
    for mt in range(MT_ISOLATE):
        for o in range(order, z.max_order + 1):
            blocks += z.areas[mt].nr_free[o] << (o - order)
    blocks = min(blocks, spare_pages(z, reserve) >> order)
    zone_unlock(z)
    return blocks


cdef inline uint64_t machine_can_serve(Machine *m, int preferred, int order) noexcept nogil:
    """As `zone_can_serve`, in all zones of a zonelist, one after the other."""
    cdef ZoneTry *step = m.zonelists + preferred * m.nr_zones
    cdef uint64_t blocks = 0
    cdef int i
    for i in range(m.zonelist_length[preferred]):
        blocks += zone_can_serve(m.zones[step[i].zone], order, peek64(&step[i].reserve))
    return blocks


cdef inline uint64_t emit(PageZone *z, const Taken *taken, int order, uint64_t *pfns) noexcept nogil:
    """Write the PFNs of what was taken in one step to `pfns`, ascending; returns how many. No lock."""
    cdef uint64_t n = 0, i, first, starts
    cdef int page
    if taken.whole:
        # The first leaf last: until then other threads see one withheld block.
        for i in range(taken.nr_leaves, 0, -1):
            leaf_fill(z, taken.leaf + i - 1, order, USED, FULL)
    for i in range(taken.nr_leaves):
        first = z.base_pfn + ((taken.leaf + i) << LEAF_SHIFT)
        if taken.starts == <uint64_t>-1:
            for page in range(LEAF_PAGES):
                pfns[n + page] = first + page
            n += LEAF_PAGES
            continue
        starts = taken.starts
        while starts:
            pfns[n] = first + <uint64_t>ctz64(starts)
            starts &= starts - 1
            n += 1
    return n


cdef inline uint64_t zone_alloc_small(PageZone *z, int order, int mt, uint64_t reserve, uint64_t *pfns,
                                      uint64_t n) noexcept nogil:
    """Take up to `n` blocks of order < 6 from one zone, a leaf or more at a time; return how many."""
    cdef Taken[BULK_STEPS] taken
    cdef uint64_t done = 0, left, got = 1, next
    cdef int steps, i
    while done < n and got:
        steps = 0
        lock_acquire(&z.lock, True)
        left = min(n - done, spare_pages(z, reserve) >> order)
        while left and steps < BULK_STEPS:
            got = zone_take_many(z, mt, order, left, USED, &taken[steps])
            if got == 0:
                break
            notice_broken_many(z, &taken[steps], order)
            next = list_first(z, mt, taken[steps].source)       # the list's head if it is empty
            prefetch(&z.leaves[next])
            prefetch(&z.links[next])
            left -= got
            steps += 1
        zone_unlock(z)
        lock_give_way(&z.lock)
        got = steps
        for i in range(steps):
            done += emit(z, &taken[i], order, pfns + done)
    return done


cdef inline uint64_t zone_alloc_large(PageZone *z, int order, int mt, uint64_t reserve, uint64_t *pfns,
                                      uint64_t n) noexcept nogil:
    """Take up to `n` blocks of order >= 6 from one zone, one at a time; return how many."""
    cdef uint64_t done = 0, page = 0, end, next
    cdef int source = 0
    while done < n and source != NOT_FREE:
        lock_acquire(&z.lock, True)
        end = done + min(min(n - done, <uint64_t>BULK_STEPS), spare_pages(z, reserve) >> order)
        source = NOT_FREE
        while done < end:
            source = zone_take(z, mt, order, USED, &page)
            if source == NOT_FREE:
                break
            notice_broken(z, page, order, source)
            next = list_first(z, mt, order)
            prefetch(&z.links[next])
            prefetch(&z.kinds[next])
            pfns[done] = z.base_pfn + page
            done += 1
        zone_unlock(z)
        lock_give_way(&z.lock)
    return done


cdef inline uint64_t zone_alloc_bulk(PageZone *z, int order, int mt, uint64_t reserve, uint64_t *pfns,
                                     uint64_t n) noexcept nogil:
    if order < min(LEAF_SHIFT, z.max_leaf_order + 1):
        return zone_alloc_small(z, order, mt, reserve, pfns, n)
    return zone_alloc_large(z, order, mt, reserve, pfns, n)


cdef inline int machine_alloc_bulk(Machine *m, int preferred, int order, int mt, How how, uint64_t *pfns,
                                   uint64_t n) noexcept nogil:
    cdef ZoneTry *step = m.zonelists + preferred * m.nr_zones
    cdef uint64_t done = 0, i
    cdef int s, rc = E_NOMEM, tries = 0
    # Asked before anything is taken: a request that cannot be met is then refused without a call of the hook.
    while machine_can_serve(m, preferred, order) < n:
        if not machine_grow(m, preferred, n, order, &tries):
            return E_NOMEM
    bulk_begin(m, n)
    for s in range(m.zonelist_length[preferred]):
        done += zone_alloc_bulk(m.zones[step[s].zone], order, mt, peek64(&step[s].reserve), pfns + done, n - done)
        if done == n:
            rc = OK
            break
    if rc != OK:                # other threads have taken the rest
        for i in range(done):
            machine_free(m, pfns[i], order, how)
    bulk_end(m, n)
    return rc


cdef enum BulkStep:             # what is done to every block of a bulk free: the first, and then one of the others
    WITHHOLD
    UNWITHHOLD
    FREE_WITHHELD


cdef inline uint64_t gather(const PageZone *z, const ZoneRange *r, const uint64_t *pfns, uint64_t n, int order,
                            uint64_t *starts) noexcept nogil:
    """Number of leading blocks that are in the first one's leaf and in this range of the zone, none twice.

    Their first pages in the leaf are set in `starts`.
    """
    cdef uint64_t k = 0, first = pfns[0] - z.base_pfn, offset = first & 63, seen = 0
    cdef uint64_t allowed = aligned_starts[order], end = r.end_pfn
    first = z.base_pfn + first - offset
    # Two zones may share a leaf's span of PFNs.
    if first < r.start_pfn:
        allowed &= ~low_ones(<int>(r.start_pfn - first))
    if end - first < LEAF_PAGES:
        allowed &= low_ones(<int>(end - first))
    while offset < LEAF_PAGES and (allowed >> offset) & 1:
        seen |= <uint64_t>1 << offset
        allowed &= ~seen
        k += 1
        if k == n:
            break
        offset = pfns[k] - first
    starts[0] = seen
    return k


cdef inline int withhold_block(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Withhold an allocated block. Zone lock held."""
    cdef int rc = E_ALIGN
    if page & ((<uint64_t>1 << order) - 1) == 0:
        rc = check_used(z, page, order)
    if rc == OK:
        if order >= LEAF_SHIFT:
            set_kind(z, page >> LEAF_SHIFT, WITHHELD | order)
        elif not withhold_page(z, page, order):
            rc = E_OWNED
    return rc


cdef inline bint alone(const PageZone *z, const uint64_t *pfns, uint64_t n) noexcept nogil:
    """Whether the next block is in another leaf than the first one, or there is none."""
    return n < 2 or (pfns[1] - z.base_pfn) >> LEAF_SHIFT != (pfns[0] - z.base_pfn) >> LEAF_SHIFT


cdef inline void free_many(PageZone *z, uint64_t i, uint64_t starts, int order) noexcept nogil:
    """Free withheld blocks of one leaf. Zone lock held.

    All at once, if the hook does not ask for free blocks that are smaller than a leaf.
    """
    cdef uint64_t page
    if starts & (starts - 1) and z.freed_from >= LEAF_SHIFT:
        notice_freed(z, i << LEAF_SHIFT, LEAF_SHIFT, leaf_free_many(z, i, spread(starts, order)))
        return
    while starts:
        page = i << LEAF_SHIFT | ctz64(starts)
        notice_freed(z, page, order, buddy_free(z, page, order))
        starts &= starts - 1


cdef inline int withhold_each(PageZone *z, const uint64_t *pfns, int order, uint64_t n, uint64_t *done) noexcept nogil:
    """Withhold `n` blocks one by one, so as to know which is refused, and why. Zone lock held."""
    cdef int rc = OK
    while done[0] < n and rc == OK:
        rc = withhold_block(z, pfns[done[0]] - z.base_pfn, order)
        done[0] += rc == OK
    return rc


cdef inline int step_small(PageZone *z, const ZoneRange *r, const uint64_t *pfns, uint64_t n, int order, BulkStep step,
                           bint locked, uint64_t *done) noexcept nogil:
    """One step on the first block, of order < 6, and on those right after it in the array that are in the same leaf."""
    cdef uint64_t starts = 0, leaf = (pfns[0] - z.base_pfn) >> LEAF_SHIFT
    cdef uint64_t got = gather(z, r, pfns, n, order, &starts)
    if got == 0:
        return E_ALIGN
    if step == FREE_WITHHELD:
        free_many(z, leaf, starts, order)
    elif step == UNWITHHOLD:
        unwithhold(z, leaf, starts)
    elif not withhold(z, leaf, starts, spread(starts, order), order):
        if locked:
            return withhold_each(z, pfns, order, got, done)
        return E_OWNED if leaf_is_owned(z, leaf) else E_AGAIN
    done[0] = got
    return OK


cdef inline int step_large(PageZone *z, uint64_t page, int order, BulkStep step) noexcept nogil:
    """One step on a block of order >= 6. Zone lock held."""
    cdef int rc = OK
    if step == WITHHOLD:
        rc = withhold_block(z, page, order)
        if rc == OK:
            z.bulk_pages += <uint64_t>1 << order
        return rc
    z.bulk_pages -= <uint64_t>1 << order
    if step == FREE_WITHHELD:
        notice_freed(z, page, order, buddy_free(z, page, order))
    else:
        set_kind(z, page >> LEAF_SHIFT, USED | order)
    return OK


cdef inline void look_ahead(const PageZone *z, uint64_t pfn, int order, BulkStep step) noexcept nogil:
    """Prefetch what a step on this block will read. The PFN need not be valid, since a prefetch never faults."""
    cdef uint64_t leaf = (pfn - z.base_pfn) >> LEAF_SHIFT
    prefetch(&z.kinds[leaf])
    if order < LEAF_SHIFT:              # blocks of whole leaves do not use the words
        prefetch(&z.leaves[leaf])
    if step == FREE_WITHHELD:
        prefetch(&z.links[leaf])


cdef inline uint64_t withhold_singles(PageZone *z, const uint64_t *pfns, uint64_t n, uint64_t ahead,
                                      int order) noexcept nogil:
    """Withhold the leading blocks that are each alone in their leaf, and return how many: `n` at most.

    Stops at the first that is not alone, or not in the zone's tail, or cannot be withheld. `ahead` is how many blocks there
    are from `pfns` on. Zone lock held if blocks are whole leaves.
    """
    cdef uint64_t base = z.base_pfn, first = z.tail_pfn - base, size = peek64(&z.end_pfn) - z.tail_pfn, page, i
    for i in range(n):
        page = pfns[i] - base
        if page - first >= size or page & ((<uint64_t>1 << order) - 1):
            return i
        if i + BULK_AHEAD < ahead:
            look_ahead(z, pfns[i + BULK_AHEAD], order, WITHHOLD)
        if order < LEAF_SHIFT:
            if not alone(z, pfns + i, ahead - i) or not withhold_page(z, page, order):
                return i
        else:
            if z.kinds[page >> LEAF_SHIFT] != (USED | order):
                return i
            set_kind(z, page >> LEAF_SHIFT, WITHHELD | order)
            z.bulk_pages += <uint64_t>1 << order
    return n


cdef inline uint64_t free_singles(PageZone *z, const uint64_t *pfns, uint64_t n, uint64_t ahead, int order) noexcept nogil:
    """Free blocks as `withhold_singles` withholds them. Zone lock held."""
    cdef uint64_t base = z.base_pfn, first = z.tail_pfn - base, size = peek64(&z.end_pfn) - z.tail_pfn, page, i
    for i in range(n):
        page = pfns[i] - base
        if page - first >= size:
            return i
        if i + BULK_AHEAD < ahead:
            look_ahead(z, pfns[i + BULK_AHEAD], order, FREE_WITHHELD)
        if order < LEAF_SHIFT:
            if not alone(z, pfns + i, ahead - i):
                return i
            notice_freed(z, page, order, leaf_free(z, page, order))
        else:
            z.bulk_pages -= <uint64_t>1 << order
            notice_freed(z, page, order, buddy_free(z, page, order))
    return n


cdef inline int bulk_round(PageZone *z, const ZoneRange *r, const uint64_t *pfns, const uint32_t *orders, int order,
                           uint64_t n, BulkStep step, bint locked, uint64_t *done) noexcept nogil:
    """One step on the leading blocks that are in one range of a zone; adds their number to `done`.

    If `locked`, the zone lock is held, and the blocks are no more than it may be held for at a time.
    """
    cdef uint64_t i = 0, left = BULK_STEPS if locked else n, got, start_pfn = r.start_pfn, size = r.end_pfn - start_pfn
    cdef int rc = OK
    while rc == OK and i < n and left and pfns[i] - start_pfn < size:
        got = 0
        if orders != NULL:
            order = orders[i]
        elif step == WITHHOLD:
            got = withhold_singles(z, pfns + i, min(left, n - i), n - i, order)
        elif step == FREE_WITHHELD:
            got = free_singles(z, pfns + i, min(left, n - i), n - i, order)
        if got:
            i += got
            left -= got
            continue
        if i + BULK_AHEAD < n:
            look_ahead(z, pfns[i + BULK_AHEAD], order, step)
        if order < LEAF_SHIFT:
            rc = step_small(z, r, pfns + i, n - i if orders == NULL else 1, order, step, locked, &got)
            i += got
        else:
            rc = step_large(z, pfns[i] - z.base_pfn, order, step)
            i += rc == OK
        left -= 1
    done[0] += i
    return rc


cdef inline int bulk_walk(Machine *m, const uint64_t *pfns, const uint32_t *orders, int order, uint64_t n, BulkStep step,
                          uint64_t *done) noexcept nogil:
    """One step on every block, up to the first that is refused; `done` becomes the number of blocks before it.

    `orders` has an order for each block, or is NULL: then all have `order`.
    """
    cdef PageZone *z
    cdef ZoneRange r
    cdef int rc = OK
    cdef bint locked = False
    done[0] = 0
    while done[0] < n and rc == OK:
        r = find_range(m, pfns[done[0]])
        z = r.zone
        if z == NULL:
            return E_NO_ZONE
        # Small blocks are withheld without the zone lock where page sets do so as well.
        locked = locked or step != WITHHOLD or z.words != WORDS_ATOMIC or orders != NULL or order >= LEAF_SHIFT
        if locked:
            lock_acquire(&z.lock, True)
        rc = bulk_round(z, &r, pfns + done[0], orders + done[0] if orders != NULL else NULL, order, n - done[0], step,
                        locked, done)
        if locked:
            zone_unlock(z)
            lock_give_way(&z.lock)
        if rc == E_OWNED:
            leaf_disown(z, (pfns[done[0]] - z.base_pfn) >> LEAF_SHIFT, False, True)
            rc = OK
        elif rc == E_AGAIN:
            locked = True           # to find out which block it is, and why
            rc = OK
    return rc


cdef inline int machine_free_bulk(Machine *m, const uint64_t *pfns, const uint32_t *orders, int order, uint64_t n,
                                  uint64_t *refused) noexcept nogil:
    """Free all blocks or none; if none, `refused` is the index of the first that cannot be freed."""
    cdef uint64_t ignored = 0
    cdef int rc
    machine_drain_runs(m)
    bulk_begin(m, n)
    rc = bulk_walk(m, pfns, orders, order, n, WITHHOLD, refused)
    if rc != OK:
        bulk_walk(m, pfns, orders, order, refused[0], UNWITHHOLD, &ignored)
    else:
        bulk_walk(m, pfns, orders, order, n, FREE_WITHHELD, &ignored)
    bulk_end(m, n)
    return rc
