"""The work queue of the hinting engine: what is asked for, since when, and who waits. Knows nothing of zones.

The engine's mutex is a leaf: nothing else is ever taken while it is held. A zone tells the engine of work just
after it has released its own lock.
"""
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t
from pagehint.sync.atomic cimport RELAXED, atomic_i32, atomic_i64, atomic_u64, store_i32
from pagehint.sync.clock cimport NEVER, monotonic_ns
from pagehint.sync.condition cimport (cond_init, pthread_cond_broadcast, pthread_cond_signal, pthread_cond_t,
                                      pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
                                      sleep_until)
from pagehint.sync.lock cimport pthread_self, pthread_t
from pagehint.sync.testpoint cimport AT_MEMORY_WAITED_FOR, test_point

cdef enum:
    SIGNAL_CHECK = 50000000     # how often a wait looks for Ctrl-C
    BACKOFF_FIRST_MS = 100
    BACKOFF_LAST_MS = 30000

cdef struct Settings:           # of a session, as `enable_hinting` was called
    bint manual                 # passes run on callers, in run_pending and flush
    bint injected_clock
    uint64_t max_pages
    uint64_t threshold          # 0: as max_pages
    int64_t delay               # nanoseconds, or NEVER
    int64_t min_age             # nanoseconds, or NEVER
    int max_report_order

cdef struct WorkQueue:          # what is atomic is read without the mutex, too
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


cdef inline void queue_init(WorkQueue *q) noexcept nogil:
    pthread_mutex_init(&q.mutex, NULL)
    cond_init(&q.wake)
    cond_init(&q.settled)


cdef inline void queue_lock(WorkQueue *q) noexcept nogil:
    pthread_mutex_lock(&q.mutex)


cdef inline void queue_unlock(WorkQueue *q) noexcept nogil:
    pthread_mutex_unlock(&q.mutex)


cdef inline int64_t queue_now(const WorkQueue *q) noexcept nogil:
    """By the clock of the session."""
    return q.clock_read if q.injected_clock else monotonic_ns()


cdef inline void queue_disarm(WorkQueue *q) noexcept nogil:
    """The delay does not run. Engine mutex held."""
    q.deadline = NEVER
    store_i32(&q.delay_armed, q.delay == NEVER, RELAXED)


cdef inline void queue_set(WorkQueue *q, const Settings *settings) noexcept nogil:
    """Take over the settings of a session that is about to begin; there is no work yet. Queue's mutex held."""
    q.manual = settings.manual
    q.injected_clock = settings.injected_clock
    q.max_pages = settings.max_pages
    q.threshold = settings.threshold
    q.max_report_order = settings.max_report_order
    q.delay = settings.delay
    q.min_age = settings.min_age
    q.work_at = INT64_MAX
    q.failures = 0
    q.not_before = 0
    queue_disarm(q)


cdef inline void queue_arm(WorkQueue *q) noexcept nogil:
    """Let the delay run, if there is one and it does not yet. Engine mutex held."""
    if q.delay == NEVER or q.delay_armed:
        return
    store_i32(&q.delay_armed, True, RELAXED)
    q.deadline = queue_now(q) + q.delay


cdef inline void queue_notify(WorkQueue *q, bint queued, int64_t look_at) noexcept nogil:
    """A zone has hints: it is `queued`, to be looked at then, or they are too few for that. No zone lock held."""
    queue_lock(q)
    if queued:
        q.work_at = min(q.work_at, look_at)
    else:
        queue_arm(q)
    pthread_cond_signal(&q.wake)
    queue_unlock(q)


cdef inline void queue_claim(WorkQueue *q) noexcept nogil:
    """A run begins, on this thread. Engine mutex held."""
    q.running = True
    q.runner = pthread_self()


cdef inline void queue_release(WorkQueue *q) noexcept nogil:
    """The run is over. Engine mutex held.

    `runner` goes first: a thread that found its own number there from an earlier run would take another's for its own.
    """
    q.runner = 0
    q.running = False


cdef inline bint queue_due(const WorkQueue *q, int64_t now) noexcept nogil:
    """Whether a run should begin now. Engine mutex held."""
    return now >= q.not_before and (now >= q.work_at or (q.deadline != NEVER and now >= q.deadline))


cdef inline int64_t queue_next(const WorkQueue *q) noexcept nogil:
    """When to look again if nobody signals. Engine mutex held."""
    cdef int64_t next = q.work_at if q.deadline == NEVER else min(q.work_at, q.deadline)
    return NEVER if next == INT64_MAX else max(next, q.not_before)


cdef inline void queue_stop(WorkQueue *q) noexcept nogil:
    """Let the run that is on, and the worker, come to an end. Engine mutex held."""
    q.stopping = True
    pthread_cond_broadcast(&q.wake)
    pthread_cond_broadcast(&q.settled)


cdef inline void queue_over(WorkQueue *q) noexcept nogil:
    """Hinting is off, and no run is on. Engine mutex held."""
    q.session += 1
    q.enabled = q.enabling = q.worker = q.injected_clock = False
    q.work_at = INT64_MAX
    q.flush_done = q.flush_wanted
    queue_release(q)
    queue_disarm(q)
    store_i32(&q.delay_armed, True, RELAXED)
    pthread_cond_broadcast(&q.wake)
    pthread_cond_broadcast(&q.settled)


cdef inline void queue_forked(WorkQueue *q) noexcept nogil:
    """In a forked child: nobody else is there, neither the worker nor whoever waited."""
    queue_init(q)
    q.out = False
    q.waiters = 0
    queue_over(q)


cdef inline bint queue_hurried(WorkQueue *q) noexcept nogil:
    """Whether somebody waits for the run to end."""
    cdef bint hurried
    queue_lock(q)
    hurried = q.manual or q.stopping or q.flush_wanted > q.flush_done
    queue_unlock(q)
    return hurried


cdef inline uint64_t queue_batch_begin(WorkQueue *q, bint *hurry) noexcept nogil:
    """Announce a batch, and return how many blocks it may have: 0 if the run is to end.

    Allocations that wait for memory go first, also when the run is to end: they have been promised that nothing goes out.
    There is no hurry while nobody waits for the run to end.
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


cdef inline void queue_batch_end(WorkQueue *q) noexcept nogil:
    """The batch is back; whoever waits for memory may try again."""
    queue_lock(q)
    q.out = False
    pthread_cond_broadcast(&q.settled)
    queue_unlock(q)


cdef inline bint queue_wait_batch(WorkQueue *q, pthread_t self, int64_t until) noexcept nogil:
    """Wait until no batch is out, and keep it so until `queue_resume`. False, and nothing kept, if time ran out first.

    The reporting thread itself does not wait on itself.
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
    queue_lock(q)
    q.waiters -= q.waiters > 0          # a signal handler may have forked meanwhile, and the child waits for nothing
    pthread_cond_broadcast(&q.settled)
    queue_unlock(q)


cdef inline void queue_backoff(WorkQueue *q, bint failed, int64_t now) noexcept nogil:
    """After a run: try again later and later while it fails. Engine mutex held."""
    if not failed:
        q.failures = 0
        q.not_before = 0
        return
    q.not_before = now + min(<int64_t>BACKOFF_FIRST_MS << min(q.failures, 20), <int64_t>BACKOFF_LAST_MS) * 1000000
    q.failures += 1
    # What failed is hinted again, and no free need follow: the run asks for its own successor.
    q.work_at = 0
