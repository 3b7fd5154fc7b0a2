# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""The hinting engine, in the order of its work: switched on, a pass begins, batches go out and come back, switched off.

A *pass* is one look at the zones that are queued, or at all of them. It takes a batch of hinted blocks out of
circulation under the zone lock (`batch.pxd`), has it reported with no lock held (`report.pyx`), puts it back, and goes
on with the next. `queue.pxd` says when one is due. The cycle is that of Linux's page hinting series (v10, June 2019).
"""
import os

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memset
from pagehint.hinting.age cimport Ripe, begin_ages, has_ages
from pagehint.hinting.batch cimport Batch, batch_grow, isolate_batch, next_ripe, put_back
from pagehint.hinting.callbacks cimport PageHintingCallbacks
from pagehint.hinting.gate cimport gate_is_open, zone_batch
from pagehint.hinting.hinted_zone cimport Hints, forget_ages, hints_of
from pagehint.hinting.hold_times cimport end_round, note_hold
from pagehint.hinting.limit cimport Limit, must_yield, zone_excess
from pagehint.hinting.look cimport begin_look, end_look, rest, say_kept
from pagehint.hinting.queue cimport (SIGNAL_CHECK, Setting, Settings, WorkQueue, queue_backoff, queue_batch_begin,
                                     queue_batch_end, queue_change, queue_claim, queue_disarm, queue_due, queue_end,
                                     queue_lock, queue_next, queue_now, queue_overdue, queue_release, queue_set,
                                     queue_stop, queue_take_thread, queue_unlock, queue_wake)
from pagehint.hinting.report cimport Reporter
from pagehint.hinting.watch cimport evaluate, go_by_settings, hint_free_blocks, hint_on, unhook
from pagehint.sync.atomic cimport RELAXED, load64
from pagehint.sync.clock cimport NEVER, SECOND, monotonic_ns
from pagehint.sync.condition cimport pthread_cond_broadcast, pthread_cond_signal, sleep_until
from pagehint.sync.lock cimport lock_acquire, lock_acquire_last, pthread_t, thread_id
from pagehint.sync.thread cimport name_this_thread, pthread_detach, pthread_join, thread_start
from pagehint.sync.testpoint cimport (AT_BEFORE_DISABLE_WAITS, AT_BEFORE_THE_HOOK, AT_BEFORE_THE_REPORT,
                                      AT_END_OF_A_RUN, AT_FLUSH_ASKED_FOR, AT_HOOK_ON_ENGINE_OFF, test_point)
from pagehint.zone.hook cimport zone_unlock
from pagehint.zone.page_alloc cimport Machine, machine_drain
from pagehint.zone.zone cimport PageZone

from pagehint import errors

cdef double MOST_SECONDS = 4e9              # on an injected clock: in nanoseconds, with a delay on top, 63 bits
cdef bint making = False        # so that Python cannot make an engine without a machine, whose methods would crash

cdef enum:
    MOST_PASSES = 64            # of one `run_pending`
    MARK_BLOCKS = 4096          # free blocks that one lock round hints while hinting is switched on

cdef enum Claim:                # whether a calling thread may run a pass
    CLAIM_BUSY                  # a pass is on, on another thread
    CLAIM_NOTHING               # none is due, or hinting is off
    CLAIM_MINE                  # it may, and has claimed the pass


cdef HintingEngine hinting_engine(object memory, Machine *m, WorkQueue *queue, Batch *batch):
    """Make the engine of a machine. Its zones, queue and batch live as long as `memory` does."""
    global making
    cdef HintingEngine engine
    making = True
    try:
        engine = HintingEngine.__new__(HintingEngine)
    finally:
        making = False      # also where there was no memory for it
    engine.memory, engine.m = memory, m
    engine.queue = queue
    queue.engine = <void *> engine
    queue.start = start_worker
    engine.batch = batch
    engine.reporter = Reporter()
    engine.reporter.queue, engine.reporter.batch = queue, batch
    engine.reporter.specs = memory.specs
    return engine


@cython.no_gc_clear     # in a cycle that is collected, too, `abandon` needs the reporter
cdef class HintingEngine:
    """Reports what is hinted in the zones of a machine, on a worker thread of its own or on the threads that call it.

    The engine refers to the memory, and not to the allocator, which refers to the engine. So the allocator can be
    collected. That ends the worker: it is given a reference to the engine then, and none before. A forked child, which
    has no worker, has nothing to let go of.
    """

    def __cinit__(self):
        if not making:
            raise TypeError("engines come with a PageAllocator")

    @property
    def last_error(self):
        """What a callback or the injected clock failed with last, since hinting was enabled; None if none did."""
        return self.reporter.last_error

    # -- on

    cdef int enable(self, PageHintingCallbacks callbacks, const Settings *settings, bint mark_free, object clock) except -1:
        """Switch hinting on, or leave no trace: all that may fail or be interrupted comes before `publish`."""
        cdef uint64_t session
        self.refuse_callback("enable_hinting")
        last_error = self.reporter.last_error
        session = self.begin_session()
        try:
            if batch_grow(self.batch, settings.max_pages) < settings.max_pages:
                raise MemoryError("no memory for a batch")
            if settings.min_age > 0 or settings.reserve or settings.break_even:
                self.memory.keep_ages(settings.break_even > 0)
            self.reporter.set_callbacks(None)
            self.reporter.last_error = None
            self.reporter.burst_logged = False
            self.reporter.clock = clock if settings.set_clock == NEVER else None
            self.now()
            if self.queue.session != session:
                raise errors.HintingInactiveError("enable_hinting was interrupted by a fork, and this is the child")
            if not settings.manual:
                self.start_worker()
        except BaseException:
            if self.queue.session == session:
                self.reporter.clock, self.reporter.last_error = None, last_error
                queue_end(self.queue)
            raise
        self.reporter.set_callbacks(callbacks)
        self.queue.compiled = callbacks.compiled != NULL
        with nogil:
            self.publish(settings, mark_free)
        return 0

    cdef uint64_t begin_session(self) except 0:
        """Claim the right to switch hinting on, until the session is over, and return the session's number."""
        cdef WorkQueue *q = self.queue
        cdef uint64_t session = 0
        with nogil:
            queue_lock(q)
            if not q.enabled and not q.enabling:
                q.session += 1
                session = q.session
                q.enabling = True
                q.stopping = False
            queue_unlock(q)
        if session == 0:
            raise errors.HintingActiveError("hinting is enabled already")
        return session

    cdef int start_worker(self) except -1:
        """Start the session's worker, which waits until hinting is enabled."""
        cdef int failed
        queue_lock(self.queue)
        failed = start_worker(<void *> self)
        queue_unlock(self.queue)
        if failed:
            raise errors.PageHintError(f"no thread for the hinting worker: {os.strerror(failed)}")
        return 0

    cdef void publish(self, const Settings *settings, bint mark_free) noexcept nogil:
        """Take over the settings, then switch on the hook of each zone under its lock, then the engine. Cannot fail."""
        cdef WorkQueue *q = self.queue
        cdef int i
        queue_lock(q)
        queue_set(q, settings)
        queue_unlock(q)
        test_point(AT_BEFORE_THE_HOOK)
        for i in range(self.m.nr_zones):
            say_kept(self.m.zones[i])           # nothing was said while hinting was off
        for i in range(self.m.nr_zones):
            self.hook_zone(self.m.zones[i], mark_free)
        test_point(AT_HOOK_ON_ENGINE_OFF)
        queue_lock(q)
        q.enabled = True
        q.enabling = False
        pthread_cond_signal(&q.wake)
        queue_unlock(q)

    cdef void hook_zone(self, PageZone *z, bint mark_free) noexcept nogil:
        """Switch a zone's hook on. With `mark_free` hint what is free already, MARK_BLOCKS blocks a lock round."""
        cdef WorkQueue *q = self.queue
        cdef Hints *h = hints_of(z)
        cdef uint64_t page = 0
        cdef bint more = True
        if q.break_even:
            forget_ages(z)                      # which nobody reads yet
        lock_acquire(&z.lock, True)
        h.threshold = q.threshold or q.max_pages
        h.queued = False
        z.notify_at = INT64_MAX
        begin_ages(h, q)
        hint_on(z)
        while mark_free and more:
            more = hint_free_blocks(z, &page, MARK_BLOCKS)
            evaluate(z)
            zone_unlock(z)
            lock_acquire(&z.lock, True)
        evaluate(z)
        zone_unlock(z)

    # -- its settings, while it is on

    cdef int change(self, Setting setting, int64_t value) except -1:
        """Change a setting."""
        self.require_hinting("settings")
        self.tick()
        with nogil:
            queue_lock(self.queue)
            queue_change(self.queue, setting, value)
            queue_unlock(self.queue)
            self.after_change()
        return 0

    cdef void after_change(self) noexcept nogil:
        """Have every zone go by the new settings: its threshold changes, and its gate is looked at again."""
        cdef int i
        for i in range(self.m.nr_zones):
            go_by_settings(self.m.zones[i], self.queue)

    # -- when a pass begins: on the worker, or on callers

    cdef int tick(self) except -1:
        """Read the injected clock, if there is one, for the stamps of the hints that the caller may be about to set."""
        if self.queue.injected_clock:
            self.now()
        return 0

    cdef int64_t now(self) except? -1:
        """The time in nanoseconds, by the injected clock if there is one. One that is set by hand is not called.

        A clock that raises an Exception is logged, and stands still. What is no Exception is raised.
        """
        clock = self.reporter.clock
        if clock is None or self.queue.driven:
            return queue_now(self.queue)
        try:
            seconds = float(clock())
            if not abs(seconds) < MOST_SECONDS:
                raise ValueError(f"the clock says {seconds}")
            self.queue.clock_read = <int64_t>(seconds * SECOND)
        except Exception as error:
            self.reporter.failure(error)
        return self.queue.clock_read

    cdef int64_t now_in_pass(self) noexcept nogil:
        """As `now`, but never raises: what is no Exception is raised at the end of the pass."""
        if not self.queue.injected_clock:
            return monotonic_ns()
        with gil:
            try:
                return self.now()
            except BaseException as error:
                self.reporter.failure(error)
                return self.queue.clock_read

    cdef void work(self) noexcept nogil:
        """The worker's loop: waits, without the GIL, until a pass is due or a flush wants one, and runs it.

        While `q.worker` is set, the session cannot end, but in a forked child; and the engine lives, since `abandon`
        leaves its reference to the worker then. When it is cleared, nothing of the engine is touched any more.
        """
        cdef WorkQueue *q = self.queue
        cdef bint flush, everything, abandoned = False
        cdef uint64_t session
        cdef int64_t now
        queue_lock(q)
        session = q.session
        while q.session == session and not q.stopping:
            now = monotonic_ns()
            flush = q.flush_wanted > q.flush_done
            everything = flush or queue_overdue(q, now)
            if q.running:       # in a forked child a thread flushes, since before it could have this worker
                sleep_until(&q.settled, &q.mutex, NEVER)
            elif q.enabled and (everything or queue_due(q, now)):
                queue_claim(q)
                queue_unlock(q)
                if self.reporter.callbacks.compiled != NULL:
                    self.run_pass(everything, flush)
                else:
                    with gil, nogil:    # one thread state of Python, and one mapping of its stack, for all batches
                        self.run_pass(everything, flush)
                queue_lock(q)
            else:
                sleep_until(&q.wake, &q.mutex, queue_next(q) if q.enabled else NEVER)
        if q.session == session:
            q.worker = False
            abandoned = self.abandoned
            pthread_cond_broadcast(&q.settled)
        queue_unlock(q)
        if abandoned:
            with gil:
                Py_DECREF(self)

    cdef int refuse_callback(self, str what) except -1:
        """Raise if this thread is inside a callback, where it would wait for its own pass."""
        if self.queue.runner == thread_id():
            raise errors.HintingActiveError(f"{what} was called from inside a hinting callback, which would wait for itself")
        return 0

    def require_hinting(self, what):
        if not self.queue.enabled:
            raise errors.HintingInactiveError(f"{what}: hinting is off; enable_hinting comes first")

    cdef int claim_pass(self, bint flush, int64_t now, bint *everything) noexcept nogil:
        """Claim a pass for this thread if one is due, or `flush`; wait for a moment while another thread's is on."""
        cdef WorkQueue *q = self.queue
        cdef int found = CLAIM_NOTHING
        queue_lock(q)
        if q.enabled and (q.manual or q.orphaned) and not q.stopping:
            if q.running:
                found = CLAIM_BUSY
                sleep_until(&q.settled, &q.mutex, monotonic_ns() + SIGNAL_CHECK)
            elif flush or queue_due(q, now):
                found = CLAIM_MINE
                everything[0] = flush or queue_overdue(q, now)
                queue_claim(q)
        queue_unlock(q)
        return found

    cdef int pass_manually(self, bint flush) except -1:
        """Run a pass on this thread if one is due, or `flush`; 0 if none was, or hinting has ended before its end."""
        cdef int64_t now = self.now()
        cdef int found = CLAIM_BUSY
        cdef bint whole = False, everything = flush
        self.reporter.interrupts.pop(thread_id(), None)      # in a forked child, of a parent's thread
        while found == CLAIM_BUSY:
            with nogil:
                found = self.claim_pass(flush, now, &everything)
                if found == CLAIM_MINE:
                    whole = self.run_pass(everything, flush)
            if found == CLAIM_BUSY:
                PyErr_CheckSignals()
        if found == CLAIM_MINE:
            error = self.reporter.interrupts.pop(thread_id(), None)
            if error is not None:
                raise error
        return whole

    def run_pending(self):
        """Run passes on this thread until none is due, or MOST_PASSES; returns how many."""
        cdef WorkQueue *q = self.queue
        self.require_hinting("run_pending")
        self.refuse_callback("run_pending")
        if not q.manual:
            raise errors.PageHintError("run_pending is for workqueue='manual'; here the worker's thread runs the work")
        passes = 0
        while passes < MOST_PASSES and self.pass_manually(False):
            passes += 1
        return passes

    def flush(self):
        """Drain the page sets, and return when a pass that began after that, for a flush, has come to its end.

        A flush takes a ticket. A pass that comes to its end has served each ticket given before it began.
        """
        cdef WorkQueue *q = self.queue
        cdef uint64_t ticket, session
        cdef bint done = False, on, manual
        self.refuse_callback("flush_hinting")
        self.require_hinting("flush_hinting")
        self.tick()
        with nogil:
            machine_drain(self.m)
            queue_lock(q)
            session = q.session
            on = q.enabled and not q.stopping
            q.flush_wanted += on and not q.manual
            ticket = q.flush_wanted
            queue_wake(q)
            manual = q.manual or q.orphaned         # a forked child that can have no thread: this one does the work
            queue_unlock(q)
            test_point(AT_FLUSH_ASKED_FOR)
        if on and manual:
            done, on = self.pass_manually(True), False
        while on and not done:
            with nogil:
                queue_lock(q)
                if q.session == session and not q.stopping and q.flush_done < ticket:
                    sleep_until(&q.settled, &q.mutex, monotonic_ns() + SIGNAL_CHECK)
                # The end of a session takes all tickets for done, though nothing was reported for them.
                done = q.session == session and q.flush_done >= ticket
                on = q.session == session and not q.stopping
                queue_unlock(q)
            PyErr_CheckSignals()
        if not done:
            raise errors.HintingInactiveError("hinting was disabled during flush_hinting")

    # -- a pass: isolate, report, put back

    cdef bint run_pass(self, bint everything, bint flush) noexcept nogil:
        """Run a pass, which this thread has claimed; returns whether it came to its end.

        It looks at every zone, or at those that are queued; for a flush, at hints of any age. A callback may fork: in
        the child the session is another one, and the pass that the callback returns to touches nothing any more.
        """
        cdef WorkQueue *q = self.queue
        cdef bint prepared = False, failed = False, whole = True
        cdef const Limit *limit = <const Limit *> hints_of(self.m.zones[0]).limit
        cdef uint64_t ticket, session, asked = load64(&limit.asked, RELAXED)
        cdef int64_t now = 0
        cdef int i
        queue_lock(q)
        session = q.session
        q.work_at = INT64_MAX
        q.work_runs += 1
        self.reporter.interrupted = False
        ticket = q.flush_wanted
        # A flush that was asked for after this pass was decided on takes its end for its own, so the pass must be one.
        flush = flush or q.flush_wanted > q.flush_done
        everything = everything or flush
        if everything:
            queue_disarm(q)
        queue_unlock(q)
        for i in range(self.m.nr_zones):
            if everything or hints_of(self.m.zones[i]).queued or must_yield(self.m.zones[i]):
                if self.look_at_zone(self.m.zones[i], session, flush, &prepared):
                    failed = True
                    if not prepared:
                        break
            if not self.goes_on(session):
                whole = False
                break
        if prepared and q.session == session:
            self.reporter.cleanup()
        if failed:
            now = self.now_in_pass()
        if q.session != session:
            return False
        test_point(AT_END_OF_A_RUN)
        if not failed:
            self.reporter.burst_logged = False
        queue_lock(q)
        queue_backoff(q, failed, now)
        if load64(&limit.asked, RELAXED) != asked:
            q.work_at = 0           # for a zone that was warm, and looked at before another went over the limit
        if whole:
            q.flush_done = max(q.flush_done, ticket)
        queue_release(q)
        pthread_cond_broadcast(&q.settled)
        queue_unlock(q)
        return whole

    cdef bint goes_on(self, uint64_t session) noexcept nogil:
        """Whether the pass may begin another batch or zone."""
        return self.queue.session == session and not self.queue.stopping and not self.reporter.interrupted

    cdef bint look_at_zone(self, PageZone *z, uint64_t session, bint flush, bint *prepared) noexcept nogil:
        """Report the hints of a zone, batch by batch; a flush asks first what came back. Returns whether anything failed."""
        cdef Hints *h = hints_of(z)
        cdef uint64_t cursor = 0, end
        cdef int64_t now = queue_now(self.queue)
        cdef Ripe ripe
        cdef bint failed = False, whole = False, open = not flush or self.reporter.ask(z, session)
        open = open and begin_look(z, self.queue, &ripe, now, flush)
        if not open:
            return False
        while open and self.goes_on(session):
            end = load64(&z.nr_granules, RELAXED)
            cursor = next_ripe(h, cursor, end, &ripe)
            whole = cursor == end
            if whole:
                break
            if not prepared[0]:
                prepared[0] = self.reporter.prepare()
                if not prepared[0]:
                    failed = True
                    break
            failed |= self.report_batch(z, session, &cursor, &ripe, &open)
        if has_ages(h) and self.queue.session == session:
            end_look(z, now, &ripe, whole and not failed)
        return failed

    cdef bint report_batch(self, PageZone *z, uint64_t session, uint64_t *cursor, Ripe *ripe, bint *open) noexcept nogil:
        """Isolate a batch, report it, put it back; returns whether any of it failed.

        `open` turns false if the zone is not to be looked at any further: the gate is closed, or the pass is to end.
        """
        cdef bint failed = False, hurry = True
        cdef uint64_t most, n = 0
        cdef int64_t began
        rest(z, self.queue)
        most = batch_grow(self.batch, queue_batch_begin(self.queue, &hurry))
        if most == 0:
            open[0] = False
            return False
        if hurry:
            lock_acquire(&z.lock, True)
        else:
            lock_acquire_last(&z.lock)
        began = monotonic_ns()
        open[0] = gate_is_open(z, self.queue, most)
        if open[0]:
            n = self.isolate(z, cursor, zone_batch(z, most), ripe)
        note_hold(hints_of(z), began)
        end_round(z)
        if n:
            memset(self.batch.failed, 0, n)
            test_point(AT_BEFORE_THE_REPORT)
            failed = self.reporter.report(n, session)
            if self.host != NULL and self.queue.session == session:
                self.host(self.host_owner)
            if self.queue.session != session:
                open[0] = False
                return failed
            lock_acquire(&z.lock, True)
            began = monotonic_ns()
            put_back(z, self.batch.blocks, self.batch.n, self.batch.failed)
            self.batch.n = 0
            note_hold(hints_of(z), began)
            end_round(z)
        queue_batch_end(self.queue, n > 0, failed)
        return failed

    cdef uint64_t isolate(self, PageZone *z, uint64_t *cursor, uint64_t most, Ripe *ripe) noexcept nogil:
        """Isolate a batch, and note it. Zone lock held. A function of its own, to have the registers to itself."""
        if has_ages(hints_of(z)):
            ripe.excess = zone_excess(z)
        self.batch.n = isolate_batch(z, cursor, most, self.queue.max_report_order, ripe, self.batch.blocks)
        self.batch.zone = z
        zone_excess(z)                      # says what the zone keeps now
        return self.batch.n

    # -- off

    def disable(self):
        """Switch hinting off: end the pass that is on and the worker, then switch off the hooks.

        No lock is held during the wait, so a signal handler that runs in it may disable hinting, too.
        """
        cdef WorkQueue *q = self.queue
        cdef uint64_t session
        cdef bint on, mine = False
        self.refuse_callback("disable_hinting")
        with nogil:
            queue_lock(q)
            session = q.session
            on = q.enabled
            if on:
                queue_stop(q)
            queue_unlock(q)
            test_point(AT_BEFORE_DISABLE_WAITS)
        while on:
            with nogil:
                queue_lock(q)
                if q.session == session and (q.worker or q.running):
                    sleep_until(&q.settled, &q.mutex, monotonic_ns() + SIGNAL_CHECK)
                on = q.session == session
                mine = on and not q.worker and not q.running
                if mine:
                    # Other threads wait for the end of this as for that of a pass, so no Python code may run before.
                    # Callbacks and clock, whose destructors may be Python, live until this function returns.
                    queue_claim(q)
                queue_unlock(q)
            if mine:
                _callbacks_gone, _clock_gone = self.reporter.callbacks, self.reporter.clock
                self.reporter.clock = None
                self.reporter.set_callbacks(None)
                with nogil:
                    self.switch_off()
                return
            PyErr_CheckSignals()

    cdef void switch_off(self) noexcept nogil:
        """Join the worker, switch off each zone's hook under its lock, then end the session."""
        cdef int i
        cdef pthread_t thread
        if queue_take_thread(self.queue, &thread):      # it has left its loop, and takes no lock any more
            pthread_join(thread, NULL)
        for i in range(self.m.nr_zones):
            unhook(self.m.zones[i])
        queue_end(self.queue)

    def abandon(self):
        """The allocator is gone: have the worker end by itself. Does not wait: the caller may be the worker."""
        cdef WorkQueue *q = self.queue
        queue_lock(q)
        queue_stop(q)
        if q.worker:
            self.abandoned = True
            Py_INCREF(self)
        if q.joinable:
            pthread_detach(q.thread)
            q.joinable = False
        queue_unlock(q)


cdef int start_worker(void *engine) noexcept nogil:
    """Start the worker of the session that is on; an errno where the kernel gives no thread. Queue's mutex held."""
    cdef WorkQueue *q = (<HintingEngine> engine).queue
    if beside_workers != NULL:
        beside_workers()
    cdef int failed = thread_start(&q.thread, NULL, worker, engine)
    q.worker = q.joinable = failed == 0
    return failed


cdef void *worker(void *engine) noexcept nogil:
    """The worker's thread."""
    name_this_thread("pagehint")
    (<HintingEngine> engine).work()
    return NULL
