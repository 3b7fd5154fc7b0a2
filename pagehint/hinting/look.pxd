"""One look of a pass at a zone's hints: whether anything may be reported now, and when to look again."""
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from pagehint.hinting.age cimport Ripe, age_begun, find_reserve, has_ages, ripe_at, runs_pause
from pagehint.hinting.gate cimport gate_is_open
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.hinting.hold_times cimport end_round
from pagehint.hinting.learning.pauses cimport learnt_next_look, pauses_ask
from pagehint.hinting.limit cimport Limit, enforce_limit, must_yield, zone_excess
from pagehint.hinting.queue cimport WorkQueue, queue_hurried
from pagehint.sync.atomic cimport RELAXED, load64
from pagehint.sync.lock cimport lock_acquire, usleep
from pagehint.zone.hook cimport zone_unlock
from pagehint.zone.page_sets.run_set cimport (run_give, run_set_close, run_set_give_up, run_set_is_open,
                                              run_set_take_any, run_set_was_used)
from pagehint.zone.status cimport OK
from pagehint.zone.zone cimport PageZone

cdef enum:
    LOOKS = 8                   # in each age at most: stamps may be any time apart, and a look is at all of them
    WORKER_REST = 1000          # microseconds: with one batch of 2 MiB blocks in each, 32 GiB a second go out


cdef inline void rest(PageZone *z, WorkQueue *q) noexcept nogil:
    """Before a lock round, sleep for a moment if other threads use the zone, and none waits for the pass to end.

    Each round takes the zone's cache lines away from those threads, and what they allocate meanwhile need not be reported.
    """
    if hints_of(z).rounds_seen != load64(&z.lock.acquired, RELAXED) and not queue_hurried(q):
        usleep(WORKER_REST)


cdef inline void look_later(PageZone *z) noexcept nogil:
    """Keep a zone queued whose hints are not ripe, though they may be under the threshold by now. Zone lock held.

    It was queued for this pass, so this does not count as another request.
    """
    hints_of(z).queued = True
    z.notify_at = 0


cdef inline bint runs_are_wanted(PageZone *z, int64_t now) noexcept nogil:
    """Whether the zone is to keep its runs: one was kept since the last look at them, or it is too early to look.

    If not, it keeps no more. Zone lock held.
    """
    cdef Hints *h = hints_of(z)
    if not run_set_is_open(z) or now < h.runs_at:
        return True
    if run_set_was_used(z.run_set):
        h.runs_at = now + runs_pause(h)
        return True
    run_set_close(z)
    return False


cdef inline void look_at_runs(PageZone *z, int64_t now, bint everything) noexcept nogil:
    """Have a zone give up the runs that it keeps, unless they are wanted; a look at its hints is next.

    They have been free since the last look at them.
    """
    cdef Hints *h = hints_of(z)
    cdef uint64_t page = 0, n = 0
    if everything or must_yield(z):
        run_set_give_up(z)
    elif run_set_is_open(z):
        lock_acquire(&z.lock, True)
        if not runs_are_wanted(z, now):
            while run_set_take_any(z.run_set, &page, &n):
                if run_give(z, page, n) == OK:
                    age_begun(z, page, n, h.runs_at - runs_pause(h))
            z.notify_at = INT64_MAX     # the look that follows is what the zone asks for
        end_round(z)


cdef inline void look_at_runs_later(PageZone *z) noexcept nogil:
    """Keep a zone queued that keeps runs. Zone lock held."""
    cdef Hints *h = hints_of(z)
    if run_set_is_open(z):
        h.look_at = min(h.look_at, h.runs_at) if h.count else h.runs_at
        look_later(z)


cdef inline bint begin_look(PageZone *z, WorkQueue *q, Ripe *ripe, int64_t now, bint flush) noexcept nogil:
    """Whether the zone has hints that may be reported now, and which. Its request for a pass is met, or put off."""
    cdef Hints *h = hints_of(z)
    cdef bint open
    look_at_runs(z, now, flush)
    rest(z, q)
    lock_acquire(&z.lock, True)
    if h.learns:
        pauses_ask(h, now)
    ripe[0] = ripe_at(h, now, flush)
    h.queued = False
    open = h.count > 0
    if has_ages(h) and open:
        ripe.excess = zone_excess(z)
    if open and not flush and now < h.look_at and not ripe.excess:
        look_later(z)
        open = False
    open = open and gate_is_open(z, q, q.max_pages)
    h.counters.scans += open
    if has_ages(h) and open:
        h.look_at = now + h.reserve_age     # what is freed during this look makes it earlier, if it is ripe earlier
    look_at_runs_later(z)
    end_round(z)
    if open:
        find_reserve(z, ripe)
    return open


cdef inline int64_t next_look(int64_t oldest, int64_t age, int64_t now) noexcept nogil:
    """When the oldest granule that was not ripe will be, by this age; but at most LOOKS an age."""
    return INT64_MAX if oldest == INT64_MAX else max(oldest + age, now + age // LOOKS)


cdef inline void end_look(PageZone *z, int64_t now, const Ripe *ripe, bint whole) noexcept nogil:
    """End a look that began at `now`. The next is when something is ripe by either age."""
    cdef Hints *h = hints_of(z)
    cdef int64_t next
    lock_acquire(&z.lock, True)
    next = min(next_look(ripe.oldest, h.min_age, now), next_look(ripe.reserve_oldest, h.reserve_age, now))
    if ripe.learnt != NULL and min(next, ripe.kept) != INT64_MAX:
        next = min(next, learnt_next_look(ripe.learnt, ripe.kept, now))
    if not whole:
        h.look_at = 0                   # there may still be ripe granules
    elif next != INT64_MAX and h.count:
        h.look_at = min(h.look_at, next)
        look_later(z)
    end_round(z)


cdef inline void say_kept(PageZone *z) noexcept nogil:
    """Let the limit know what a zone keeps, where no event has said it."""
    lock_acquire(&z.lock, True)
    zone_excess(z)
    zone_unlock(z)


cdef inline void go_by_limit(Limit *limit) noexcept nogil:
    """Have every zone of a machine go by its limit, which has just changed."""
    cdef PageZone *z
    cdef int i
    for i in range(limit.nr_zones):
        say_kept(limit.zones[i])
    for i in range(limit.nr_zones):
        z = limit.zones[i]
        lock_acquire(&z.lock, True)
        enforce_limit(z)
        zone_unlock(z)
