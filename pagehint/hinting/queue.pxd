"""The work queue of the hinting engine: when a pass is due, which thread runs it, what waits for it. It knows no zones.

A *session* is the time from one `enable_hinting` to the next `disable_hinting`; in it, one pass runs at a time. A
request is queued once, however many frees follow, and no wake-up is lost: each change of the queue is made, and
signalled, with its mutex held. Nothing else is taken while that is held. A zone tells the queue after it has released
its own lock.
"""
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t
from pagehint.sync.atomic cimport RELAXED, atomic_i32, atomic_i64, atomic_u64, load64, store64, store_i32, unlikely
from pagehint.sync.clock cimport NEVER, monotonic_ns
from pagehint.sync.condition cimport (cond_init, pthread_cond_broadcast, pthread_cond_signal, pthread_cond_t,
                                      pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
                                      sleep_until)
from pagehint.sync.lock cimport pthread_t, thread_id
from pagehint.sync.testpoint cimport AT_MEMORY_WAITED_FOR, test_point

cdef enum:
    SIGNAL_CHECK = 50000000     # nanoseconds after which a wait looks for Ctrl-C
    BACKOFF_FIRST_MS = 100      # milliseconds after the first failed pass; twice as many after each further one,
    BACKOFF_LAST_MS = 30000     # up to these

cdef enum Setting:              # one that can be changed during a session
    SET_MAX_PAGES
    SET_THRESHOLD
    SET_DELAY
    SET_MIN_AGE
    SET_BREAK_EVEN
    SET_RESERVE
    SET_RESERVE_AGE

cdef struct Settings:           # of a session, as `enable_hinting` was called; local to that call
    bint manual                 # passes run on threads that call `run_pending` or `flush`; there is no worker
    bint injected_clock         # the caller has given a clock
    int64_t set_clock           # nanoseconds at which one stands that is set by hand; NEVER: it is read by a call
    uint64_t max_pages          # blocks in a batch, at most
    uint64_t threshold          # hints in a zone at which a pass is due at once; 0: as max_pages
    int64_t delay               # nanoseconds, or NEVER
    int64_t min_age             # nanoseconds; NEVER or 0: no age is asked for
    int64_t break_even          # nanoseconds, by which `min_age` is learnt; 0: it is not
    uint64_t reserve            # granules in each zone; 0: none
    int64_t reserve_age         # nanoseconds
    int max_report_order

cdef struct WorkQueue:          # protected by `mutex`; what is atomic is also read without it
    pthread_mutex_t mutex
    pthread_cond_t wake         # where the worker waits: for work, a deadline, the end of the session
    pthread_cond_t settled      # where other threads wait: for a batch to be back, a flush to be done, a pass to end
    # The delay runs already, or there is none, so a zone with few hints need not tell the queue. Read by the hook.
    int32_t delay_armed
    # Changes when hinting goes on or off, and in a forked child. A thread that began in another session touches
    # nothing.
    atomic_u64 session
    bint enabling               # a thread is switching hinting on; another one that tries is refused
    atomic_i32 enabled          # hinting is on
    atomic_i32 stopping         # the pass is to end before its next batch, and the worker with it
    atomic_i32 manual           # see `Settings`
    bint worker                 # the session's worker is in its loop, or about to be
    bint joinable               # `thread` has run, or runs, and nobody has joined or detached it
    pthread_t thread            # the worker's
    # A forked child has no worker. It is started there by whoever first needs it, with the mutex held.
    bint orphaned
    int (*start)(void *engine) noexcept nogil      # an errno, or 0
    void *engine                # what `start` is called with
    atomic_i32 in_children      # a session goes on in forked children, if its callbacks are compiled
    bint compiled               # the session's callbacks are
    atomic_i32 heeds_pressure   # while memory is short, the session keeps nothing warm (`pressure/`)
    atomic_i32 injected_clock   # the time is `clock_read`, since only Python code can call the clock
    atomic_i64 clock_read       # nanoseconds that the injected clock has shown last, or that it was set to
    atomic_i32 driven           # a thread sets the time, in `run_until` or a replay: no clock is called meanwhile
    int64_t work_at             # nanoseconds: when to look at the queued zones; 0: now; INT64_MAX: there are none
    atomic_i64 delay            # nanoseconds from the first hints to their report, if they stay few; or NEVER
    atomic_i64 min_age          # nanoseconds; NEVER or 0: no age is asked for
    int64_t break_even          # nanoseconds, by which `min_age` is learnt; 0: it is not
    atomic_u64 reserve          # granules in each zone that are kept for longer; 0: none
    atomic_i64 reserve_age      # nanoseconds that they are kept for
    int64_t deadline            # nanoseconds: when a running delay is over; or NEVER
    int64_t not_before          # nanoseconds: back-off, no pass but a flush begins before; 0: the last one did not fail
    int failures                # passes in a row that failed
    uint64_t flush_wanted       # tickets given to flushes
    uint64_t flush_done         # a flush is done when this has reached its ticket
    bint running                # a pass is on, or hinting is being switched off
    atomic_u64 runner           # the thread that does it, else 0; read without the mutex to compare it with one's own
    bint out                    # a batch is isolated, or may be about to be
    int waiters                 # threads between `queue_wait_batch` and `queue_resume`: meanwhile no batch begins
    # Settings.
    atomic_u64 max_pages        # blocks in a batch, at most
    atomic_u64 threshold        # hints in a zone; 0: as max_pages
    int max_report_order
    # Counts since the allocator was made.
    atomic_u64 work_runs        # passes
    atomic_u64 reports          # batches handed to the host
    atomic_u64 report_errors    # batches of which the host did not take all
    atomic_u64 prepare_errors   # passes that `prepare` has refused


cdef inline void queue_init(WorkQueue *q) noexcept nogil:
    pthread_mutex_init(&q.mutex, NULL)
    cond_init(&q.wake)
    cond_init(&q.settled)


cdef inline void queue_lock(WorkQueue *q) noexcept nogil:
    pthread_mutex_lock(&q.mutex)


cdef inline void queue_unlock(WorkQueue *q) noexcept nogil:
    pthread_mutex_unlock(&q.mutex)


cdef inline int64_t queue_now(const WorkQueue *q) noexcept nogil:
    """The time in nanoseconds, by the clock of the session."""
    return q.clock_read if q.injected_clock else monotonic_ns()


cdef inline void queue_set_time(WorkQueue *q, int64_t now) noexcept nogil:
    """Set the session's clock, which the caller drives, unless it would go back."""
    if now > <int64_t>load64(<const uint64_t *> &q.clock_read, RELAXED):
        store64(<uint64_t *> &q.clock_read, <uint64_t>now, RELAXED)


cdef inline void queue_disarm(WorkQueue *q) noexcept nogil:
    """Stop the delay. Queue's mutex held."""
    q.deadline = NEVER
    store_i32(&q.delay_armed, q.delay == NEVER, RELAXED)


cdef inline void queue_set(WorkQueue *q, const Settings *settings) noexcept nogil:
    """Take over the settings of a session that is about to begin, without any work. Queue's mutex held."""
    q.manual = settings.manual
    q.injected_clock = settings.injected_clock
    if settings.injected_clock and settings.set_clock != NEVER:
        q.clock_read = settings.set_clock
    q.max_pages = settings.max_pages
    q.threshold = settings.threshold
    q.max_report_order = settings.max_report_order
    q.delay = settings.delay
    q.min_age = settings.min_age
    q.break_even = settings.break_even
    q.reserve = settings.reserve
    q.reserve_age = settings.reserve_age
    q.work_at = INT64_MAX
    q.failures = 0
    q.not_before = 0
    queue_disarm(q)


cdef inline void queue_change(WorkQueue *q, Setting setting, int64_t value) noexcept nogil:
    """Change one setting of the session. Queue's mutex held."""
    if setting == SET_MAX_PAGES:
        q.max_pages = value
    elif setting == SET_THRESHOLD:
        q.threshold = value
    elif setting == SET_MIN_AGE:
        q.min_age = value
    elif setting == SET_BREAK_EVEN:
        q.break_even = value
    elif setting == SET_RESERVE:
        q.reserve = value
    elif setting == SET_RESERVE_AGE:
        q.reserve_age = value
    else:
        q.delay = value
        queue_disarm(q)


cdef inline void queue_arm(WorkQueue *q) noexcept nogil:
    """Start the delay, if there is one and it does not run yet. Queue's mutex held."""
    if q.delay == NEVER or q.delay_armed:
        return
    store_i32(&q.delay_armed, True, RELAXED)
    q.deadline = queue_now(q) + q.delay


cdef inline void queue_wake(WorkQueue *q) noexcept nogil:
    """Wake the worker. Queue's mutex held.

    In a forked child, start it first; if the kernel gives no thread now, the next call tries again.
    """
    if unlikely(q.orphaned):
        q.orphaned = q.start(q.engine) != 0
    pthread_cond_signal(&q.wake)


cdef inline void queue_notify(WorkQueue *q, bint queued, int64_t look_at) noexcept nogil:
    """A zone has hints. It is `queued`, to be looked at by then, or its hints are few and wait for the delay.

    No zone lock held.
    """
    queue_lock(q)
    if queued:
        q.work_at = min(q.work_at, look_at)
    else:
        queue_arm(q)
    queue_wake(q)
    queue_unlock(q)


cdef inline void queue_claim(WorkQueue *q) noexcept nogil:
    """A pass begins, on this thread. Queue's mutex held."""
    q.running = True
    q.runner = thread_id()


cdef inline void queue_release(WorkQueue *q) noexcept nogil:
    """The pass is over. Queue's mutex held.

    `runner` is reset, not left to the next pass: a thread that found itself there would take that pass for its own.
    """
    q.runner = 0
    q.running = False


cdef inline bint queue_due(const WorkQueue *q, int64_t now) noexcept nogil:
    """Whether a pass is due: there is work, or the delay is over, and no back-off. Queue's mutex held."""
    return now >= q.not_before and (now >= q.work_at or (q.deadline != NEVER and now >= q.deadline))


cdef inline bint queue_overdue(const WorkQueue *q, int64_t now) noexcept nogil:
    """Whether a pass over all zones is due: the delay is over, or the last pass failed. Queue's mutex held."""
    return now >= q.not_before and ((q.deadline != NEVER and now >= q.deadline) or (now >= q.work_at and q.failures > 0))


cdef inline int64_t queue_next(const WorkQueue *q) noexcept nogil:
    """The time at which the worker looks again if no signal comes. Queue's mutex held."""
    cdef int64_t next = q.work_at if q.deadline == NEVER else min(q.work_at, q.deadline)
    return NEVER if next == INT64_MAX else max(next, q.not_before)


cdef inline void queue_stop(WorkQueue *q) noexcept nogil:
    """Have the pass that is on, and the worker, come to an end; none is started any more. Queue's mutex held."""
    q.stopping = True
    q.orphaned = False
    pthread_cond_broadcast(&q.wake)
    pthread_cond_broadcast(&q.settled)


cdef inline void queue_over(WorkQueue *q) noexcept nogil:
    """The session is over, and no pass is on. Queue's mutex held.

    `delay_armed` stays set, so that no zone tells a queue that is off. Flushes that wait find another session.
    """
    q.session += 1
    q.enabled = q.enabling = q.worker = q.orphaned = q.injected_clock = q.heeds_pressure = False
    q.work_at = INT64_MAX
    q.flush_done = q.flush_wanted
    queue_release(q)
    queue_disarm(q)
    store_i32(&q.delay_armed, True, RELAXED)
    pthread_cond_broadcast(&q.wake)
    pthread_cond_broadcast(&q.settled)


cdef inline bint queue_take_thread(WorkQueue *q, pthread_t *thread) noexcept nogil:
    """Take over the worker's thread, to join it; False if there is none, or another thread has it."""
    cdef bint mine
    queue_lock(q)
    mine = q.joinable
    thread[0] = q.thread
    q.joinable = False
    queue_unlock(q)
    return mine


cdef inline void queue_end(WorkQueue *q) noexcept nogil:
    """End the session."""
    queue_lock(q)
    queue_over(q)
    queue_unlock(q)


cdef inline void queue_forked(WorkQueue *q, bint goes_on) noexcept nogil:
    """Forget the threads that a forked child does not have: the worker, and those that waited. The session ends.

    But if it `goes_on`, only its number changes, for a pass that was on, and a worker is started when one is needed.
    """
    queue_init(q)
    q.out = q.joinable = q.driven = False
    q.waiters = 0
    if not goes_on:
        queue_over(q)
        return
    q.session += 1
    q.worker = False
    q.orphaned = not q.manual
    q.work_at = INT64_MAX
    q.flush_done = q.flush_wanted
    queue_release(q)
    queue_disarm(q)


cdef inline bint queue_goes_on(const WorkQueue *q) noexcept nogil:
    """Whether the session is one that goes on in a forked child. In the child, or with the queue's mutex held."""
    return q.in_children and q.enabled and q.compiled and not q.stopping


cdef inline bint queue_hurried(WorkQueue *q) noexcept nogil:
    """Whether a thread waits for the pass to end: one that runs it itself, a flush, or `disable_hinting`."""
    cdef bint hurried
    queue_lock(q)
    hurried = q.manual or q.stopping or q.flush_wanted > q.flush_done
    queue_unlock(q)
    return hurried


cdef inline uint64_t queue_batch_begin(WorkQueue *q, bint *hurry) noexcept nogil:
    """Announce a batch, and return how many blocks it may have: 0 if the pass is to end instead.

    Waits until no allocation waits for memory, since those have been promised that nothing goes out. For the same
    reason no batch begins when the pass is to end. `hurry`: a caller or a flush waits for the pass to end.
    """
    cdef uint64_t most = 0
    queue_lock(q)
    while q.waiters and not q.stopping:
        sleep_until(&q.settled, &q.mutex, NEVER)
    if not q.stopping:
        q.out = True
        most = q.max_pages
    hurry[0] = q.manual or q.flush_wanted > q.flush_done
    queue_unlock(q)
    return most


cdef inline void queue_batch_end(WorkQueue *q, bint reported, bint failed) noexcept nogil:
    """End a batch, all of which is back, if it was not empty: waiting allocations may try again. Counts the report."""
    queue_lock(q)
    q.out = False
    q.reports += reported
    q.report_errors += failed
    pthread_cond_broadcast(&q.settled)
    queue_unlock(q)


cdef inline bint queue_wait_batch(WorkQueue *q, uint64_t self, int64_t until) noexcept nogil:
    """Wait until no batch is out, and keep it so until `queue_resume`. False if the time `until` came first.

    Then nothing is kept. The thread that runs the pass does not wait, since that would be for itself.
    """
    cdef bint done
    queue_lock(q)
    q.waiters += 1
    test_point(AT_MEMORY_WAITED_FOR)
    while q.out and q.runner != self and (until == NEVER or monotonic_ns() < until):
        sleep_until(&q.settled, &q.mutex, until)
    done = not q.out or q.runner == self
    if not done:
        q.waiters -= 1
        pthread_cond_broadcast(&q.settled)
    queue_unlock(q)
    return done


cdef inline void queue_resume(WorkQueue *q) noexcept nogil:
    """Let batches go out again, after `queue_wait_batch` that returned True."""
    queue_lock(q)
    q.waiters -= q.waiters > 0          # 0 in a forked child, if a signal handler has forked meanwhile
    pthread_cond_broadcast(&q.settled)
    queue_unlock(q)


cdef inline void queue_backoff(WorkQueue *q, bint failed, int64_t now) noexcept nogil:
    """After a pass: if it has failed, have the next one later, with exponential back-off. Queue's mutex held."""
    if not failed:
        q.failures = 0
        q.not_before = 0
        return
    q.not_before = now + min(<int64_t>BACKOFF_FIRST_MS << min(q.failures, 20), <int64_t>BACKOFF_LAST_MS) * 1000000
    q.failures += 1
    # What failed is hinted again, and perhaps no free follows to ask for a pass: so this one asks for the next.
    q.work_at = 0
