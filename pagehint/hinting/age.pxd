"""How long granules have been free, where that matters (`min_age`): only what is ripe is reported.

Each has a stamp, the time at which the hook set its bit, written under the zone lock before the bit is. Looking for ripe
ones needs no lock: who finds one looks again under it.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.hinting.queue cimport WorkQueue, queue_now
from pagehint.sync.atomic cimport RELAXED, load64, store64
from pagehint.sync.lock cimport assert_held
from pagehint.zone.zone cimport PageZone

cdef enum:
    LOOKS = 8                   # in each `min_age`, at most: stamps may be any time apart, and each look is at all of them

cdef struct Ripe:               # a look at a zone's hints
    int64_t until               # what was freed then or before is ripe; INT64_MAX: everything is
    int64_t oldest              # stamp among those that were not; INT64_MAX: there was none
    uint64_t excess             # pages that go back even so (see `hinting/limit.pxd`)


cdef inline Ripe ripe_at(int64_t now, int64_t min_age, bint everything) noexcept nogil:
    cdef Ripe ripe
    ripe.until = INT64_MAX if everything or min_age == 0 else now - min_age
    ripe.oldest = INT64_MAX
    ripe.excess = 0
    return ripe


cdef inline void age_begin(PageZone *z, uint64_t granule, uint64_t n) noexcept nogil:
    """Granules have become free; their bits are about to be set. Zone lock held. O(n)."""
    cdef Hints *h = hints_of(z)
    cdef int64_t now = queue_now(<WorkQueue *> h.queue)
    cdef uint64_t i
    assert_held(&z.lock)
    if h.count == 0 or now + h.min_age < h.look_at:
        h.look_at = now + h.min_age
    for i in range(granule, granule + n):
        store64(&h.freed_at[i], <uint64_t>now, RELAXED)


cdef inline bint is_ripe(const Hints *h, uint64_t granule, Ripe *ripe) noexcept nogil:
    """Whether a granule whose bit is set may be reported. Exact under the zone lock."""
    cdef int64_t freed_at
    if ripe.until == INT64_MAX or ripe.excess:
        return True
    freed_at = <int64_t>load64(&h.freed_at[granule], RELAXED)
    if freed_at <= ripe.until:
        return True
    ripe.oldest = min(ripe.oldest, freed_at)
    return False


cdef inline int ripe_order(const Hints *h, int min_order, uint64_t granule, int order, Ripe *ripe) noexcept nogil:
    """Largest order up to `order` of a block from this ripe granule on that is ripe: it is as old as its youngest granule.

    Zone lock held. O(granules).
    """
    cdef int o = min_order
    cdef uint64_t n = 1, i
    while o < order:
        for i in range(n, 2 * n):
            if not is_ripe(h, granule + i, ripe):
                return o
        n *= 2
        o += 1
    return o
