"""How long granules have been free. With `min_age`, only a *ripe* granule is reported: one that has been free so long.

Each time that a granule is free is a ski rental: keep its memory, which costs by the second, or report it, which costs
once (the report, and the page faults when it is used again). If `min_age` is the time after which both have cost the
same, the total is at most twice that of a policy which knows the future (Karlin and others, 1988).

A granule's stamp is the time at which the hook set its bit, by the clock of the session, in nanoseconds. It is written
under the zone lock, before the bit. A search for ripe granules needs no lock: its finds are looked at again under it.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from pagehint.hinting.bitmap cimport hint_find
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.hinting.queue cimport WorkQueue, queue_now
from pagehint.sync.atomic cimport RELAXED, load64, store64
from pagehint.sync.lock cimport assert_held
from pagehint.zone.zone cimport PageZone

cdef struct Ripe:               # what one look at a zone takes for ripe, and has found; on the stack of its thread
    int64_t until               # nanoseconds: a granule freed at this time or before is ripe; INT64_MAX: each is
    int64_t oldest              # nanoseconds: the oldest stamp that was not ripe; INT64_MAX: there was none
    uint64_t excess             # pages over the zone's limit (`limit.pxd`): while there are any, each granule is ripe


cdef inline Ripe ripe_at(int64_t now, int64_t min_age, bint everything) noexcept nogil:
    """What is ripe at this time, in a zone within its limit: each granule for a flush, or without a `min_age`."""
    cdef Ripe ripe
    ripe.until = INT64_MAX if everything or min_age == 0 else now - min_age
    ripe.oldest = INT64_MAX
    ripe.excess = 0
    return ripe


cdef inline void age_begin(PageZone *z, uint64_t granule, uint64_t n) noexcept nogil:
    """Stamp `n` granules that have just become free; their bits are set next. Zone lock held. O(n)."""
    cdef Hints *h = hints_of(z)
    cdef int64_t now = queue_now(<WorkQueue *> h.queue)
    cdef uint64_t i
    assert_held(&z.lock)
    if h.count == 0 or now + h.min_age < h.look_at:
        h.look_at = now + h.min_age
    for i in range(granule, granule + n):
        store64(&h.freed_at[i], <uint64_t>now, RELAXED)


cdef inline void age_change(PageZone *z, int64_t min_age) noexcept nogil:
    """Have a zone go by another `min_age`. Zone lock held. O(hinted granules) if it had none, else O(1)."""
    cdef Hints *h = hints_of(z)
    cdef uint64_t granule
    if not h.on or min_age == h.min_age:
        return
    if h.min_age == 0:          # what was hinted meanwhile has no stamps
        granule = hint_find(h, 0, z.nr_granules)
        while granule < z.nr_granules:
            age_begin(z, granule, 1)
            granule = hint_find(h, granule + 1, z.nr_granules)
    h.min_age = min_age
    h.look_at = 0               # the next pass finds what the new age makes ripe, and says when to look again
    if h.queued:
        z.notify_at = 0


cdef inline bint is_ripe(const Hints *h, uint64_t granule, Ripe *ripe) noexcept nogil:
    """Whether a granule whose bit is set may be reported. Exact under the zone lock; without it, a guess."""
    cdef int64_t freed_at
    if ripe.until == INT64_MAX or ripe.excess:
        return True
    freed_at = <int64_t>load64(&h.freed_at[granule], RELAXED)
    if freed_at <= ripe.until:
        return True
    ripe.oldest = min(ripe.oldest, freed_at)
    return False


cdef inline int ripe_order(const Hints *h, int min_order, uint64_t granule, int order, Ripe *ripe) noexcept nogil:
    """Largest order, up to `order`, of a ripe block that begins with this ripe granule.

    A block is as old as its youngest granule. Zone lock held. O(granules of the block).
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
