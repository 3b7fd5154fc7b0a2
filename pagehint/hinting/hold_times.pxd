"""How long the engine holds a zone's lock: a histogram of its rounds. Zone lock held throughout."""
from libc.stdint cimport int64_t, uint64_t
from pagehint.sync.atomic cimport clz64
from pagehint.sync.clock cimport monotonic_ns
from pagehint.zone.zone cimport HOLD_BUCKETS, PageZone


cdef inline void hold_note(PageZone *z, int64_t began) noexcept nogil:
    """Count a round that began then and is about to end, by the power of two that its nanoseconds are under."""
    cdef uint64_t ns = <uint64_t>max(monotonic_ns() - began, <int64_t>1)
    z.holds[min(64 - clz64(ns), HOLD_BUCKETS - 1)] += 1
    z.longest_hold = max(z.longest_hold, ns)
