"""What hinting does at a zone's hook (`zone/hook.pxd`): bits follow what is freed and used, and the engine is asked to run.

Zone lock held throughout. Only the granules of a freed block get bits, not those of the block that it has merged into:
the rest was free before, so one freed page does not have four mebibytes reported again.
"""
from libc.stdint cimport INT64_MAX, uint64_t
from pagehint.hinting.age cimport age_begin
from pagehint.hinting.bitmap cimport granules_of, hint_assign, hint_assign_one
from pagehint.hinting.hinted_zone cimport Hints, hints_of, queue_zone
from pagehint.hinting.limit cimport enforce_limit
from pagehint.sync.atomic cimport RELAXED, likely, load_i32, unlikely
from pagehint.zone.buddy cimport NOT_FREE, free_block_around
from pagehint.zone.free_blocks cimport next_free_block
from pagehint.zone.zeroed cimport zeroed_clear
from pagehint.zone.zone cimport LEAF_SHIFT, NO_ORDER, PageZone


cdef inline void evaluate(PageZone *z) noexcept nogil:
    """Ask for a pass if the count or the limit calls for one. The engine hears of it when the lock is released.

    If it has been asked for, or waits for the gate to open, that is enough: `notify.pxd` looks at both again.
    """
    cdef Hints *h = hints_of(z)
    enforce_limit(z)
    if not h.on or h.count == 0 or h.queued or z.notify_at != INT64_MAX:
        return
    if h.count >= h.threshold:
        queue_zone(h)
        z.notify_at = 0
    elif not load_i32(h.delay_armed, RELAXED):
        z.notify_at = 0


cdef inline void hint_block(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Set the bits of the granules in a free block."""
    cdef Hints *h = hints_of(z)
    if likely(order <= z.min_order):
        h.counters.hints_set += hint_assign_one(z, page >> z.min_order, True)
    else:
        h.counters.hints_set += hint_assign(z, page >> z.min_order, granules_of(z, order), True)


cdef inline void hint_freed_block(PageZone *z, uint64_t page, int order) noexcept nogil:
    """As `hint_block`, of what has become free at this moment."""
    if hints_of(z).min_age:
        age_begin(z, page >> z.min_order, granules_of(z, order))
    hint_block(z, page, order)


cdef inline void on_freed(PageZone *z, uint64_t page, int order) noexcept nogil:
    """What `PageZone.freed` is."""
    hint_freed_block(z, page, order)
    evaluate(z)


cdef inline void on_broken(PageZone *z, uint64_t page, int order) noexcept nogil:
    """What `PageZone.broken` is."""
    cdef Hints *h = hints_of(z)
    if likely(order <= z.min_order):
        h.counters.hints_cleared_by_alloc += hint_assign_one(z, page >> z.min_order, False)
    else:
        h.counters.hints_cleared_by_alloc += hint_assign(z, page >> z.min_order, granules_of(z, order), False)
    if unlikely(z.zeroed != NULL):
        zeroed_clear(z.zeroed, page >> z.min_order, granules_of(z, order))
    enforce_limit(z)


cdef inline void watch_broken(PageZone *z) noexcept nogil:
    """Have `on_broken` called. Zone lock held, or nobody else knows of the zone."""
    z.broken = on_broken
    z.broken_from = z.min_order


cdef inline void hint_on(PageZone *z) noexcept nogil:
    """Switch the hook on."""
    hints_of(z).on = True
    z.freed = on_freed
    z.freed_from = z.min_order
    watch_broken(z)


cdef inline void hint_off(PageZone *z) noexcept nogil:
    """Switch the hook off, and forget every hint. What is known of zeroed granules is still kept up."""
    cdef Hints *h = hints_of(z)
    h.on = h.queued = False
    z.freed_from = NO_ORDER
    if z.zeroed == NULL:
        z.broken_from = NO_ORDER
    z.notify_at = INT64_MAX
    h.min_age = h.look_at = 0
    hint_assign(z, 0, z.nr_granules, False)


cdef inline bint hint_free_blocks(PageZone *z, uint64_t *page, uint64_t most) noexcept nogil:
    """Set the bits of whatever is free from `page` on, up to `most` blocks; False when the zone's end is reached.

    Begins with the block around `page`, which may have grown since the last round.
    """
    cdef uint64_t n = 0, head = page[0]
    cdef int order
    if page[0] < z.nr_leaves << LEAF_SHIFT and free_block_around(z, page[0], 0, &head) != NOT_FREE:
        page[0] = head
    while n < most:
        order = next_free_block(z, page)
        if order == NOT_FREE:
            return False
        if order >= z.min_order:
            hint_freed_block(z, page[0], order)
        page[0] += <uint64_t>1 << order
        n += 1
    return True
