"""A limit on the memory that all zones of a machine keep: what is in use, and what is *warm*, free and not reported.

Over the limit, warm memory is reported whatever its age (`min_age`), and at once. Memory in use cannot be reported, so
what may remain over the limit is in use.

A zone's lock protects its own numbers only. So each zone says how much it keeps (`Hints.kept`), and the limit has the
sum of what they said, which is changed by one atomic operation. A zone says it anew in the hook, where an allocation
or a free may go over the limit, and with each batch. When one zone grows over the limit, the warm memory that is
reported may be another zone's.
"""
from libc.stdint cimport INT64_MAX, uint64_t
from pagehint.hinting.hinted_zone cimport Hints, hints_of, queue_zone
from pagehint.sync.atomic cimport RELAXED, atomic_i32, fetch_add64, load64, peek64
from pagehint.sync.lock cimport assert_held
from pagehint.zone.zone cimport NR_TYPES, PageZone


cdef struct Limit:              # read without a lock, and set without one
    atomic_i32 on
    uint64_t pages              # at most, in use or warm
    uint64_t kept               # sum of the zones' `Hints.kept`; changed by atomic operations
    PageZone **zones
    int nr_zones


cdef inline uint64_t kept_pages(const PageZone *z) noexcept nogil:
    """Pages of the granules that are in use, wholly or in part, or hinted. Zone lock held. O(max_page_order)."""
    cdef const Hints *h = hints_of(z)
    cdef uint64_t cold = h.reporting_pages
    cdef int mt, o
    for mt in range(NR_TYPES):
        for o in range(z.min_order, z.max_order + 1):
            cold += z.areas[mt].nr_free[o] << o
    return z.managed_pages - cold + (h.count << z.min_order)


cdef inline void say_kept(PageZone *z, uint64_t kept) noexcept nogil:
    """Let the limit know what the zone keeps. Zone lock held."""
    cdef Hints *h = hints_of(z)
    fetch_add64(&(<Limit *> h.limit).kept, kept - h.kept, RELAXED)
    h.kept = kept


cdef inline uint64_t excess_pages(const Limit *limit) noexcept nogil:
    """Pages that the zones together keep over the limit, by what they said last. No lock."""
    cdef uint64_t kept = load64(&limit.kept, RELAXED), pages = load64(&limit.pages, RELAXED)
    return kept - pages if limit.on and kept > pages else 0


cdef inline uint64_t zone_excess(PageZone *z) noexcept nogil:
    """As `excess_pages`, with what the zone keeps now. Zone lock held. O(max_page_order)."""
    cdef Limit *limit = <Limit *> hints_of(z).limit
    if not limit.on:
        return 0
    say_kept(z, kept_pages(z))
    return excess_pages(limit)


cdef inline bint something_warm(const Limit *limit) noexcept nogil:
    """Whether some zone has hints. No lock. O(zones)."""
    cdef int i
    for i in range(limit.nr_zones):
        if peek64(&hints_of(limit.zones[i]).count):
            return True
    return False


cdef inline bint queue_over_limit(PageZone *z) noexcept nogil:
    """Queue the zone for now if the limit is exceeded, and there are hints to report. Zone lock held.

    Returns whether it did so, and not if that was done already. While the limit is exceeded, a pass looks at every zone
    that has hints (`must_yield`).
    """
    cdef Hints *h = hints_of(z)
    cdef const Limit *limit = <const Limit *> h.limit
    assert_held(&z.lock)
    # The zone says what it keeps even if it is queued already: the pass may look at another zone first.
    if (not limit.on or not h.on or zone_excess(z) == 0 or (h.queued and h.look_at == 0)
            or not something_warm(limit)):
        return False
    queue_zone(h)
    h.look_at = 0
    return True


cdef inline bint must_yield(const PageZone *z) noexcept nogil:
    """Whether the zone has hints that a pass should report for the limit's sake. No lock."""
    cdef const Hints *h = hints_of(z)
    return peek64(&h.count) and excess_pages(<const Limit *> h.limit)


cdef inline void enforce_limit(PageZone *z) noexcept nogil:
    """Have warm memory reported if the limit is exceeded. Zone lock held.

    Not if the zone waits for its gate to open: `notify.pxd` looks at the limit again.
    """
    if not (0 < z.notify_at < INT64_MAX) and queue_over_limit(z):
        z.notify_at = 0
