"""The lock rounds of a pass: a round takes a zone's lock once. How long it holds it, and its end. Zone lock held."""
from libc.stdint cimport int64_t, uint64_t
from pagehint.hinting.hinted_zone cimport HOLD_BUCKETS, Hints, hints_of
from pagehint.sync.atomic cimport clz64
from pagehint.sync.clock cimport monotonic_ns
from pagehint.zone.hook cimport zone_unlock
from pagehint.zone.zone cimport PageZone


cdef inline void note_hold(Hints *h, int64_t began) noexcept nogil:
    """Count a round that began then and is about to end, by the power of two that its nanoseconds are under."""
    cdef uint64_t ns = <uint64_t>max(monotonic_ns() - began, <int64_t>1)
    h.holds[min(64 - clz64(ns), HOLD_BUCKETS - 1)] += 1
    h.longest_hold = max(h.longest_hold, ns)


cdef inline void end_round(PageZone *z) noexcept nogil:
    """Release the zone lock. The noted count is still the lock's later on if no thread has taken it since."""
    hints_of(z).rounds_seen = z.lock.acquired
    zone_unlock(z)
