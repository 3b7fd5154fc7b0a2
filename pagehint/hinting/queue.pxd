"""The work queue of the hinting engine: what is asked for, since when, and who waits. Knows nothing of zones.

The engine's mutex is a leaf: nothing else is ever taken while it is held. A zone tells the engine of work just
after it has released its own lock.
"""
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t
from pagehint.sync.atomic cimport RELAXED, atomic_i32, atomic_i64, atomic_u64, store_i32
from pagehint.sync.clock cimport monotonic_ns
from pagehint.sync.condition cimport (NEVER, cond_init, pthread_cond_broadcast, pthread_cond_signal, pthread_cond_t,
                                      pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
                                      sleep_until)
from pagehint.sync.lock cimport pthread_self, pthread_t
from pagehint.sync.testpoint cimport AT_MEMORY_WAITED_FOR, test_point

cdef enum:
    SECOND = 1000000000         # nanoseconds
    SIGNAL_CHECK = 50000000     # how often a wait looks for Ctrl-C
    BACKOFF_FIRST_MS = 100
    BACKOFF_LAST_MS = 30000

cdef struct Engine:             # what is atomic is read without the mutex, too
    pthread_mutex_t mutex
    pthread_cond_t wake         # the worker waits here for work, a deadline, or the end
    pthread_cond_t settled      # everybody else: for a batch to be back, a flush to be done, a run to end
    # Read by the hook without the mutex: the delay runs already, or there is none, so no need to tell anybody.
    int32_t delay_armed
    atomic_u64 session          # changes whenever hinting goes on or off, and in a forked child: what is of another is over
    bint enabling               # somebody is about to switch it on; nobody else can
    atomic_i32 enabled
    atomic_i32 stopping         # ends a run at the next batch
    atomic_i32 manual           # work runs on callers, in run_pending and flush
    bint worker                 # the session's worker is in its loop, or about to be
    atomic_i32 injected_clock   # time is what Python code, which can call the clock, has read last
    atomic_i64 clock_read
    int64_t work_at             # when to look at the zones that are queued; 0: now, INT64_MAX: there is none
    atomic_i64 delay            # nanoseconds, or NEVER
    atomic_i64 min_age          # nanoseconds, or NEVER
    int64_t deadline            # when what is left is reported, or NEVER
    int64_t not_before          # back-off: no run before, unless it is a flush; 0 when the host answers
    int failures                # runs in a row that had one
    uint64_t flush_wanted       # tickets: a flush is done when flush_done reaches its own
    uint64_t flush_done
    bint running                # a run is on
    atomic_u64 runner           # who does it, else 0; read without the mutex to ask "is it me?"
    bint out                    # a batch is, or may be about to be, isolated
    int waiters                 # allocations waiting for the batch; while there are any, no other is isolated
    # Settings, changed under the mutex.
    atomic_u64 max_pages
    atomic_u64 threshold        # 0: as max_pages
    int max_report_order
    # Counts, written under the mutex.
    atomic_u64 work_runs
    atomic_u64 reports
    atomic_u64 report_errors
    atomic_u64 prepare_errors


cdef inline void engine_init(Engine *e) noexcept nogil:
    pthread_mutex_init(&e.mutex, NULL)
    cond_init(&e.wake)
    cond_init(&e.settled)


cdef inline void engine_lock(Engine *e) noexcept nogil:
    pthread_mutex_lock(&e.mutex)


cdef inline void engine_unlock(Engine *e) noexcept nogil:
    pthread_mutex_unlock(&e.mutex)


cdef inline int64_t engine_now(const Engine *e) noexcept nogil:
    """By the clock of the session."""
    return e.clock_read if e.injected_clock else monotonic_ns()


cdef inline void engine_disarm(Engine *e) noexcept nogil:
    """The delay does not run. Engine mutex held."""
    e.deadline = NEVER
    store_i32(&e.delay_armed, e.delay == NEVER, RELAXED)


cdef inline void engine_arm(Engine *e) noexcept nogil:
    """Let the delay run, if there is one and it does not yet. Engine mutex held."""
    if e.delay == NEVER or e.delay_armed:
        return
    store_i32(&e.delay_armed, True, RELAXED)
    e.deadline = engine_now(e) + e.delay


cdef inline void engine_notify(Engine *e, bint queued, int64_t look_at) noexcept nogil:
    """A zone has hints: it is `queued`, to be looked at then, or they are too few for that. No zone lock held."""
    engine_lock(e)
    if queued:
        e.work_at = min(e.work_at, look_at)
    else:
        engine_arm(e)
    pthread_cond_signal(&e.wake)
    engine_unlock(e)


cdef inline void engine_claim(Engine *e) noexcept nogil:
    """A run begins, on this thread. Engine mutex held."""
    e.running = True
    e.runner = pthread_self()


cdef inline void engine_release(Engine *e) noexcept nogil:
    """The run is over. Engine mutex held.

    `runner` goes first: a thread that found its own number there from an earlier run would take another's for its own.
    """
    e.runner = 0
    e.running = False


cdef inline bint engine_due(const Engine *e, int64_t now) noexcept nogil:
    """Whether a run should begin now. Engine mutex held."""
    return now >= e.not_before and (now >= e.work_at or (e.deadline != NEVER and now >= e.deadline))


cdef inline int64_t engine_next(const Engine *e) noexcept nogil:
    """When to look again if nobody signals. Engine mutex held."""
    cdef int64_t next = e.work_at if e.deadline == NEVER else min(e.work_at, e.deadline)
    return NEVER if next == INT64_MAX else max(next, e.not_before)


cdef inline void engine_stop(Engine *e) noexcept nogil:
    """Let the run that is on, and the worker, come to an end. Engine mutex held."""
    e.stopping = True
    pthread_cond_broadcast(&e.wake)
    pthread_cond_broadcast(&e.settled)


cdef inline void engine_over(Engine *e) noexcept nogil:
    """Hinting is off, and no run is on. Engine mutex held."""
    e.session += 1
    e.enabled = e.enabling = e.worker = e.injected_clock = False
    e.work_at = INT64_MAX
    e.flush_done = e.flush_wanted
    engine_release(e)
    engine_disarm(e)
    store_i32(&e.delay_armed, True, RELAXED)
    pthread_cond_broadcast(&e.wake)
    pthread_cond_broadcast(&e.settled)


cdef inline void engine_forked(Engine *e) noexcept nogil:
    """In a forked child: nobody else is there, neither the worker nor whoever waited."""
    engine_init(e)
    e.out = False
    e.waiters = 0
    engine_over(e)


cdef inline bint engine_hurried(Engine *e) noexcept nogil:
    """Whether somebody waits for the run to end."""
    cdef bint hurried
    engine_lock(e)
    hurried = e.manual or e.stopping or e.flush_wanted > e.flush_done
    engine_unlock(e)
    return hurried


cdef inline uint64_t engine_batch_begin(Engine *e, bint *hurry) noexcept nogil:
    """Announce a batch, and return how many blocks it may have: 0 if the run is to end.

    Allocations that wait for memory go first, also when the run is to end: they have been promised that nothing goes out.
    There is no hurry while nobody waits for the run to end.
    """
    cdef uint64_t most = 0
    engine_lock(e)
    while e.waiters and not e.stopping:
        sleep_until(&e.settled, &e.mutex, NEVER)
    if not e.stopping:
        e.out = True
        most = e.max_pages
    hurry[0] = e.manual or e.flush_wanted > e.flush_done
    engine_unlock(e)
    return most


cdef inline void engine_batch_end(Engine *e) noexcept nogil:
    """The batch is back; whoever waits for memory may try again."""
    engine_lock(e)
    e.out = False
    pthread_cond_broadcast(&e.settled)
    engine_unlock(e)


cdef inline bint engine_wait_batch(Engine *e, pthread_t self, int64_t until) noexcept nogil:
    """Wait until no batch is out, and keep it so until `engine_resume`. False, and nothing kept, if time ran out first.

    The reporting thread itself does not wait on itself.
    """
    cdef bint done
    engine_lock(e)
    e.waiters += 1
    test_point(AT_MEMORY_WAITED_FOR)
    while e.out and e.runner != self and (until == NEVER or monotonic_ns() < until):
        sleep_until(&e.settled, &e.mutex, until)
    done = not e.out or e.runner == self
    if not done:
        e.waiters -= 1
        pthread_cond_broadcast(&e.settled)
    engine_unlock(e)
    return done


cdef inline void engine_resume(Engine *e) noexcept nogil:
    engine_lock(e)
    e.waiters -= e.waiters > 0          # a signal handler may have forked meanwhile, and the child waits for nothing
    pthread_cond_broadcast(&e.settled)
    engine_unlock(e)


cdef inline void engine_backoff(Engine *e, bint failed, int64_t now) noexcept nogil:
    """After a run: try again later and later while it fails. Engine mutex held."""
    if not failed:
        e.failures = 0
        e.not_before = 0
        return
    e.not_before = now + min(<int64_t>BACKOFF_FIRST_MS << min(e.failures, 20), <int64_t>BACKOFF_LAST_MS) * 1000000
    e.failures += 1
    # What failed is hinted again, and no free need follow: the run asks for its own successor.
    e.work_at = 0
