"""The watcher at a zone's hook (`zone/hook.pxd`): it sets and clears the hint bits, and asks for a pass.

A free that leaves a granule entirely free sets the granule's bit; an allocation from it clears the bit. Only the
granules of the freed block get bits, not those of the block that it has merged into. These were free before. Else one
freed page could have all of a block of order 10 reported again, 4 MiB with pages of 4 KiB. All of this runs with the
zone lock held.
"""
from libc.stdint cimport INT64_MAX, uint64_t
from pagehint.hinting.age cimport age_begin, age_change, has_ages, set_longest_age
from pagehint.hinting.bitmap cimport granules_of, hint_assign, hint_assign_block
from pagehint.hinting.hinted_zone cimport Hints, hints_of, queue_zone
from pagehint.hinting.learning.pauses cimport pauses_end
from pagehint.hinting.limit cimport enforce_limit
from pagehint.hinting.queue cimport WorkQueue, queue_now
from pagehint.sync.atomic cimport RELAXED, load_i32, store_i32, unlikely
from pagehint.sync.lock cimport lock_acquire
from pagehint.zone.buddy cimport NOT_FREE, free_block_around
from pagehint.zone.extents cimport next_free_block
from pagehint.zone.hook cimport watch_broken_by, watch_freed_by, zone_unlock
from pagehint.zone.page_sets.run_set cimport run_set_close, run_set_drain, run_set_is_open
from pagehint.zone.zeroed cimport zeroed_clear
from pagehint.zone.zone cimport LEAF_SHIFT, NO_ORDER, PageZone

cdef enum:
    CLEARED = 1 << 20           # granules whose hints one lock round clears: 128 KiB of bitmap


cdef inline void evaluate(PageZone *z) noexcept nogil:
    """Ask for a pass if the threshold or the limit calls for one, else for the delay to run. Zone lock held.

    The queue is told when the lock is released. Nothing is asked for twice, nor while the zone waits for its gate to
    open: then `notify.pxd` looks at threshold and limit.
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
    """Set the bits of the granules of a free block, or of the free granule that it is a part of. Zone lock held."""
    hints_of(z).counters.hints_set += hint_assign_block(z, page, order, True)


cdef inline void hint_freed_block(PageZone *z, uint64_t page, int order) noexcept nogil:
    """As `hint_block`, for a block that has become free just now: its granules get stamps, too."""
    if has_ages(hints_of(z)):
        age_begin(z, page >> z.min_order, granules_of(z, order))
    hint_block(z, page, order)


cdef inline void on_freed(PageZone *z, uint64_t page, int order, int merged) noexcept nogil:
    """`PageZone.freed`: a block was freed, and is part of a free block of a granule or more."""
    hint_freed_block(z, page, order)
    evaluate(z)


cdef inline void on_broken(PageZone *z, uint64_t page, int order, int source) noexcept nogil:
    """`PageZone.broken`: a block is being taken for use out of a free block of a granule or more."""
    hints_of(z).counters.hints_cleared_by_alloc += hint_assign_block(z, page, order, False)
    if unlikely(z.zeroed != NULL):
        zeroed_clear(z.zeroed, page >> z.min_order, granules_of(z, order))
    enforce_limit(z)


cdef inline void on_broken_learning(PageZone *z, uint64_t page, int order, int source) noexcept nogil:
    """As `on_broken`, where the age is learnt."""
    cdef Hints *h = hints_of(z)
    pauses_end(h, page >> z.min_order, granules_of(z, order), queue_now(<WorkQueue *> h.queue))
    on_broken(z, page, order, source)


cdef inline void watch_broken(PageZone *z) noexcept nogil:
    """Have `on_broken` called. Zone lock held, or no other thread knows of the zone."""
    watch_broken_by(z, on_broken_learning if hints_of(z).learns else on_broken, z.min_order)


cdef inline void hint_on(PageZone *z) noexcept nogil:
    """Switch the hook on. Zone lock held."""
    hints_of(z).on = True
    watch_freed_by(z, on_freed, z.min_order)
    watch_broken(z)


cdef inline bint hint_clear(PageZone *z, uint64_t *granule, uint64_t most) noexcept nogil:
    """Set no bit any more, and clear those of up to `most` granules from `granule` on. False at the end. Zone lock held.

    What is allocated meanwhile still loses its bits, so that none stands for a granule in use.
    """
    cdef uint64_t n = min(most, z.nr_granules - granule[0])
    watch_freed_by(z, on_freed, NO_ORDER)
    hint_assign(z, granule[0], n, False)
    granule[0] += n
    return granule[0] < z.nr_granules


cdef inline void hint_off(PageZone *z) noexcept nogil:
    """Switch the hook off, after `hint_clear` has come to the end. Zone lock held.

    `on_broken` stays where the zone has zeroed granules, which are kept track of with hinting off, too.
    """
    cdef Hints *h = hints_of(z)
    h.on = h.queued = h.learns = False
    store_i32(&h.at_gate, False, RELAXED)
    watch_broken_by(z, on_broken, NO_ORDER if z.zeroed == NULL else z.min_order)
    z.notify_at = INT64_MAX
    h.min_age = h.look_at = 0
    set_longest_age(h, 0)
    run_set_close(z)


cdef inline void unhook(PageZone *z) noexcept nogil:
    """Switch the hook off in bounded holds of the zone lock, of CLEARED granules each."""
    cdef uint64_t granule = 0
    cdef bint more = True
    while more:
        lock_acquire(&z.lock, True)
        more = hint_clear(z, &granule, CLEARED)
        if not more:
            hint_off(z)
        zone_unlock(z)
    run_set_drain(z)


cdef inline void hint_again(PageZone *z) noexcept nogil:
    """Ask for a pass as if none had been asked for, since nobody knows of it any more. Zone lock held."""
    cdef Hints *h = hints_of(z)
    cdef bint queued = h.queued
    if not h.on:
        return
    h.queued = False
    store_i32(&h.at_gate, False, RELAXED)
    z.notify_at = INT64_MAX
    run_set_close(z)
    evaluate(z)
    if queued:                  # perhaps under the threshold by now, and waiting for its hints to be ripe
        queue_zone(h)
        z.notify_at = 0


cdef inline void go_by_settings(PageZone *z, const WorkQueue *q) noexcept nogil:
    """Go by the settings of now: another threshold and other ages; the gate is looked at again."""
    cdef Hints *h = hints_of(z)
    lock_acquire(&z.lock, True)
    h.threshold = q.threshold or q.max_pages
    z.notify_at = INT64_MAX
    store_i32(&h.at_gate, False, RELAXED)
    age_change(z, q)
    if h.on:
        watch_broken(z)         # a learner is told of allocations
    evaluate(z)
    zone_unlock(z)
    if not run_set_is_open(z):
        run_set_drain(z)        # what is not kept any more is free


cdef inline bint hint_free_blocks(PageZone *z, uint64_t *page, uint64_t most) noexcept nogil:
    """Hint up to `most` free blocks from `page` on, and move it past them; False at the zone's end. Zone lock held.

    Begins with the whole of the free block around `page`, which may have grown since the last round.
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
