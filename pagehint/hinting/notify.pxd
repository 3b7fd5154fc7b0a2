"""Releasing a zone's lock, and telling the engine what happened under it. Lock order: set, zone; engine alone."""
from libc.stdint cimport INT64_MAX, int64_t
from pagehint.hinting.bitmap cimport hint_ready
from pagehint.hinting.limit cimport limit_queue
from pagehint.hinting.queue cimport Engine, engine_notify
from pagehint.sync.atomic cimport unlikely
from pagehint.sync.lock cimport lock_release
from pagehint.sync.testpoint cimport AT_BEFORE_THE_ENGINE_IS_TOLD, test_point
from pagehint.zone.zone cimport PageZone


cdef inline void notify_unlocked(PageZone *z) noexcept nogil:
    """What `PageZone.notify` is: release the zone lock, and tell the engine."""
    cdef bint queued
    cdef int64_t look_at
    z.wake_at = INT64_MAX
    limit_queue(z)
    if z.hint_count >= z.threshold and not z.queued:
        z.queued = True
        z.counters.work_queued += 1
    queued = z.queued
    look_at = z.look_at
    lock_release(&z.lock)
    test_point(AT_BEFORE_THE_ENGINE_IS_TOLD)
    engine_notify(<Engine *> z.engine, queued, look_at)


cdef inline void zone_unlock(PageZone *z) noexcept nogil:
    """Release the zone lock; if the hook asked for it, or free memory has reached the gate, wake the engine."""
    if unlikely(hint_ready(z)):
        z.notify(z)
    else:
        lock_release(&z.lock)
