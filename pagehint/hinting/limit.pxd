"""How much a zone may keep in memory, where somebody wants a limit: what of its free memory is warm yields to it.

The mechanism is that of `min_age`: over the limit, hints are ripe whatever their age, and looked at now. What is in use
cannot be sent away, so the limit is on the sum, and what remains over it is in use.
"""
from libc.stdint cimport INT64_MAX, uint64_t
from pagehint.sync.lock cimport assert_held
from pagehint.zone.zone cimport NR_TYPES, PageZone

cdef enum:
    NO_LIMIT = -1


cdef inline uint64_t zone_excess(const PageZone *z) noexcept nogil:
    """Pages over the limit: of granules that are not all free, or hinted. Zone lock held. O(max_page_order)."""
    cdef uint64_t cold = z.isolated_pages, kept
    cdef int mt, o
    if z.limit == <uint64_t>NO_LIMIT:
        return 0
    for mt in range(NR_TYPES):
        for o in range(z.min_order, z.max_order + 1):
            cold += z.areas[mt].nr_free[o] << o
    kept = z.managed_pages - cold + (z.hint_count << z.min_order)
    return kept - z.limit if kept > z.limit else 0


cdef inline bint limit_queue(PageZone *z) noexcept nogil:
    """Queue the zone for now if it is over its limit, and something can be done about it. Zone lock held.

    Returns whether that is news: not if it was asked for already.
    """
    assert_held(&z.lock)
    if z.limit == <uint64_t>NO_LIMIT or z.hint_count == 0 or (z.queued and z.look_at == 0) or zone_excess(z) == 0:
        return False
    z.counters.work_queued += not z.queued
    z.queued = True
    z.look_at = 0
    return True


cdef inline void limit_enforce(PageZone *z) noexcept nogil:
    """Have the zone looked at now if it is over its limit. Zone lock held.

    Not if it waits for the gate to open: `zone_unlock` looks at the limit again.
    """
    if not (0 < z.wake_at < INT64_MAX) and limit_queue(z):
        z.wake_at = 0
