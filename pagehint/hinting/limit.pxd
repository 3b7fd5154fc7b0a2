"""A limit on the memory that all zones of a machine keep: what is in use, and what is *warm*, free and not reported.

Over the limit, warm memory is reported whatever its age (`min_age`), and at once. Memory in use cannot be reported, so
what may remain over the limit is in use. While memory is short the limit is nothing, so all that is warm goes.

A zone's lock protects its own numbers only. So each zone says how much it keeps (`Hints.kept`), and the limit has the
sum of what they said, which is changed by one atomic operation. A zone says it anew in the hook, where an allocation
or a free may go over the limit, and with each batch. When one zone grows over the limit, the warm memory that is
reported may be another zone's.
"""
from libc.stdint cimport uint64_t
from pagehint.hinting.hinted_zone cimport Hints, hints_of, queue_zone
from pagehint.sync.atomic cimport RELAXED, atomic_i32, fetch_add64, load64, load_i32, peek64, store64
from pagehint.sync.lock cimport assert_held
from pagehint.zone.zone cimport NR_TYPES, PageZone

cdef enum:
    NO_LIMIT = -1               # as a number of pages

cdef struct Limit:              # read without a lock, and changed by atomic operations
    uint64_t pages              # at most, in use or warm; or NO_LIMIT. None while memory is short, else what was chosen
    uint64_t kept               # sum of the zones' `Hints.kept`
    uint64_t asked              # how often a zone found the limit exceeded while there was something to report
    PageZone **zones
    int nr_zones
    # Protected by the mutex of the machine's queue.
    uint64_t chosen             # pages, or NO_LIMIT
    atomic_i32 memory_short     # everything warm is to go (`pressure/`); also read without it


cdef inline void settle_limit(Limit *limit) noexcept nogil:
    """Have what is chosen, and whether memory is short, count from now on. Mutex of the machine's queue held."""
    store64(&limit.pages, 0 if limit.memory_short else limit.chosen, RELAXED)


cdef inline bint limit_is_on(const Limit *limit) noexcept nogil:
    return load64(&limit.pages, RELAXED) != <uint64_t>NO_LIMIT


cdef inline uint64_t kept_pages(const PageZone *z) noexcept nogil:
    """Pages of the granules that are in use, as a whole or in part, and of those that are hinted. Zone lock held.

    O(max_page_order).
    """
    cdef const Hints *h = hints_of(z)
    cdef uint64_t cold = h.reporting_pages
    cdef int mt, o
    for mt in range(NR_TYPES):
        for o in range(z.min_order, z.max_order + 1):
            cold += z.areas[mt].nr_free[o] << o
    return z.managed_pages - cold + (h.count << z.min_order)


cdef inline uint64_t excess_pages(const Limit *limit) noexcept nogil:
    """Pages that the zones together keep over the limit, by what they said last. No lock."""
    cdef uint64_t kept = load64(&limit.kept, RELAXED), pages = load64(&limit.pages, RELAXED)
    return kept - pages if kept > pages else 0


cdef inline uint64_t zone_excess(PageZone *z) noexcept nogil:
    """As `excess_pages`, after the zone has said what it keeps now. Zone lock held. O(max_page_order)."""
    cdef Hints *h = hints_of(z)
    cdef Limit *limit = <Limit *> h.limit
    cdef uint64_t kept
    if not limit_is_on(limit):
        return 0
    kept = kept_pages(z)
    fetch_add64(&limit.kept, kept - h.kept, RELAXED)
    h.kept = kept
    return excess_pages(limit)


cdef inline bint is_warm(const PageZone *z) noexcept nogil:
    """Whether the zone has hints that may be reported now: it does not wait for its gate. No lock."""
    cdef const Hints *h = hints_of(z)
    return peek64(&h.count) and not load_i32(&h.at_gate, RELAXED)


cdef inline bint must_yield(const PageZone *z) noexcept nogil:
    """Whether a pass should report the zone's hints for the limit's sake. No lock."""
    return is_warm(z) and excess_pages(<const Limit *> hints_of(z).limit)


cdef inline bint something_warm(const Limit *limit) noexcept nogil:
    """Whether some zone is warm. No lock. O(zones)."""
    cdef int i
    for i in range(limit.nr_zones):
        if is_warm(limit.zones[i]):
            return True
    return False


cdef inline bint queue_over_limit(PageZone *z) noexcept nogil:
    """Queue the zone for now if the limit is exceeded, and there is something to report. Zone lock held.

    Returns whether that is news: not if it was asked for already. The pass then looks at each zone that `must_yield`.
    """
    cdef Hints *h = hints_of(z)
    cdef Limit *limit = <Limit *> h.limit
    assert_held(&z.lock)
    if not limit_is_on(limit) or not h.on or zone_excess(z) == 0 or not something_warm(limit):
        return False
    # Counted even if it is queued: the pass that is on may have looked at the warm zone already, and goes on once more.
    fetch_add64(&limit.asked, 1, RELAXED)
    if h.queued and h.look_at == 0:
        return False
    queue_zone(h)
    h.look_at = 0
    return True


cdef inline void enforce_limit(PageZone *z) noexcept nogil:
    """Have warm memory reported if the limit is exceeded. Zone lock held.

    If the zone waits for its gate to open, the pass has it wait again.
    """
    if queue_over_limit(z):
        z.notify_at = 0
