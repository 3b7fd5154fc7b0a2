"""How much a zone may keep in memory, where somebody wants a limit: what of its free memory is warm yields to it.

The mechanism is that of `min_age`: over the limit, hints are ripe whatever their age, and looked at now. What is in use
cannot be sent away, so the limit is on the sum, and what remains over it is in use.
"""
from libc.stdint cimport INT64_MAX, uint64_t
from pagehint.hinting.hinted_zone cimport Hints, NO_LIMIT, hints_of, queue_zone
from pagehint.sync.lock cimport assert_held
from pagehint.zone.zone cimport NR_TYPES, PageZone


cdef inline uint64_t zone_excess(const PageZone *z) noexcept nogil:
    """Pages over the limit: of granules that are not all free, or hinted. Zone lock held. O(max_page_order)."""
    cdef const Hints *h = hints_of(z)
    cdef uint64_t cold = h.reporting_pages, kept
    cdef int mt, o
    if h.limit == <uint64_t>NO_LIMIT:
        return 0
    for mt in range(NR_TYPES):
        for o in range(z.min_order, z.max_order + 1):
            cold += z.areas[mt].nr_free[o] << o
    kept = z.managed_pages - cold + (h.count << z.min_order)
    return kept - h.limit if kept > h.limit else 0


cdef inline bint queue_over_limit(PageZone *z) noexcept nogil:
    """Queue the zone for now if it is over its limit, and something can be done about it. Zone lock held.

    Returns whether that is news: not if it was asked for already.
    """
    cdef Hints *h = hints_of(z)
    assert_held(&z.lock)
    if h.limit == <uint64_t>NO_LIMIT or h.count == 0 or (h.queued and h.look_at == 0) or zone_excess(z) == 0:
        return False
    queue_zone(h)
    h.look_at = 0
    return True


cdef inline void enforce_limit(PageZone *z) noexcept nogil:
    """Have the zone looked at now if it is over its limit. Zone lock held.

    Not if it waits for the gate to open: `notify.pxd` looks at the limit again.
    """
    if not (0 < z.notify_at < INT64_MAX) and queue_over_limit(z):
        z.notify_at = 0
