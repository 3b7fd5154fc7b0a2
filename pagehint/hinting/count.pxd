"""Hints counted by why they are not reported yet. O(hints), so without the zone lock: what changes meanwhile may count."""
from libc.stdint cimport uint64_t
from pagehint.hinting.age cimport Ripe, find_reserve, is_ripe, ripe_at
from pagehint.hinting.bitmap cimport hint_find
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.hinting.queue cimport WorkQueue, queue_now
from pagehint.sync.atomic cimport RELAXED, load64, load8
from pagehint.zone.zone cimport MT_ISOLATE, PAGEBLOCK_ORDER, PageZone


cdef inline uint64_t hints_in_isolation(PageZone *z) noexcept nogil:
    """Hints of granules in pageblocks of type isolate."""
    cdef uint64_t count = 0, end = load64(&z.nr_granules, RELAXED), granule = hint_find(hints_of(z), 0, end)
    while granule < end:
        count += load8(&z.types[(granule << z.min_order) >> PAGEBLOCK_ORDER], RELAXED) == MT_ISOLATE
        granule = hint_find(hints_of(z), granule + 1, end)
    return count


cdef inline uint64_t hints_too_young(PageZone *z, const Hints *copy) noexcept nogil:
    """Hints of granules, not of type isolate, that have been free for less than `min_age`, or `reserve_age`.

    By the ages in `copy`, which was made with the lock held: another thread may change the zone's.
    """
    cdef uint64_t count = 0, end = load64(&z.nr_granules, RELAXED), granule = hint_find(hints_of(z), 0, end)
    cdef Ripe ripe = ripe_at(copy, queue_now(<WorkQueue *> hints_of(z).queue), False)
    ripe.learnt = NULL          # a pass may be deciding anew; so what is kept for longer than the age counts as due
    find_reserve(z, &ripe)
    while granule < end:
        count += (load8(&z.types[(granule << z.min_order) >> PAGEBLOCK_ORDER], RELAXED) != MT_ISOLATE
                  and not is_ripe(hints_of(z), granule, &ripe))
        granule = hint_find(hints_of(z), granule + 1, end)
    return count
