"""A limit on the memory that a zone keeps: what is in use, and what is *warm*, that is free and not reported.

Over the limit, warm memory is reported whatever its age (`min_age`), and at once. Memory in use cannot be reported, so
what may remain over the limit is in use.
"""
from libc.stdint cimport INT64_MAX, uint64_t
from pagehint.hinting.hinted_zone cimport Hints, NO_LIMIT, hints_of, queue_zone
from pagehint.sync.lock cimport assert_held
from pagehint.zone.zone cimport NR_TYPES, PageZone


cdef inline uint64_t zone_excess(const PageZone *z) noexcept nogil:
    """Pages that the zone keeps over its limit. Zone lock held. O(max_page_order).

    It keeps each granule that is not entirely free, and each one that is hinted.
    """
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
    """Ask for a pass now if the zone is over its limit and has hints. Zone lock held.

    Returns whether the request is new, so that the queue has to be told.
    """
    cdef Hints *h = hints_of(z)
    assert_held(&z.lock)
    if h.limit == <uint64_t>NO_LIMIT or h.count == 0 or (h.queued and h.look_at == 0) or zone_excess(z) == 0:
        return False
    queue_zone(h)
    h.look_at = 0
    return True


cdef inline void enforce_limit(PageZone *z) noexcept nogil:
    """As `queue_over_limit`, and have the queue told when the lock is released. Zone lock held.

    Does nothing while the zone waits for its gate to open: then `notify.pxd` looks at the limit.
    """
    if not (0 < z.notify_at < INT64_MAX) and queue_over_limit(z):
        z.notify_at = 0
