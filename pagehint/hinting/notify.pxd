"""Telling the queue that a zone has work. The zone's lock is released first, and the queue's mutex taken alone.

So no thread holds both, and a thread that waits for the queue's mutex keeps no other from the zone.
"""
from libc.stdint cimport INT64_MAX, int64_t
from pagehint.hinting.age cimport keep_runs
from pagehint.hinting.hinted_zone cimport Hints, hints_of, queue_zone
from pagehint.hinting.limit cimport Limit, queue_over_limit
from pagehint.hinting.queue cimport WorkQueue, queue_notify, queue_now
from pagehint.sync.atomic cimport RELAXED, store_i32
from pagehint.sync.lock cimport lock_release
from pagehint.sync.testpoint cimport AT_BEFORE_THE_ENGINE_IS_TOLD, test_point
from pagehint.zone.zone cimport PageZone


cdef inline void unlock_and_notify(PageZone *z) noexcept nogil:
    """`PageZone.notify`: release the zone lock, then tell the queue whether the zone asks for a pass. Zone lock held.

    A zone with a reserve keeps runs for as long as passes look at it, but none while memory is short.

    Count and limit are looked at again here, since a zone that waited for its gate has not been queued for either. If
    it has no hint any more, there is nothing to ask for.
    """
    cdef Hints *h = hints_of(z)
    cdef bint queued
    cdef int64_t look_at
    z.notify_at = INT64_MAX
    store_i32(&h.at_gate, False, RELAXED)       # if the gate is not open, the next pass finds that out
    queue_over_limit(z)
    if h.count >= h.threshold:
        queue_zone(h)
    queued = h.queued
    if not queued and h.count == 0:
        lock_release(&z.lock)
        return
    if queued and h.reserve and not (<const Limit *> h.limit).memory_short:
        keep_runs(z, queue_now(<WorkQueue *> h.queue))
    h.told_at = look_at = h.look_at
    lock_release(&z.lock)
    test_point(AT_BEFORE_THE_ENGINE_IS_TOLD)
    queue_notify(<WorkQueue *> h.queue, queued, look_at)
