# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""The hinting engine, in the order of its work: on, when a pass begins, a batch out and back, off.

A *pass* is one look at the zones that are queued, or at all of them. The queue it works from is in `queue.pxd`, the batch
in `batch.pxd`, the calls in `report.pyx`; the hook that fills the queue runs without this.
"""
import threading

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from pagehint.hinting.age cimport LOOKS, Ripe, ripe_at
from pagehint.hinting.batch cimport Batch, isolate_batch, next_ripe, pagehint_block, put_back
from pagehint.hinting.callbacks cimport PageHintingCallbacks
from pagehint.hinting.gate cimport report_gate
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.hinting.hold_times cimport end_round, note_hold
from pagehint.hinting.limit cimport zone_excess
from pagehint.hinting.queue cimport (SIGNAL_CHECK, Settings, WorkQueue, queue_backoff, queue_batch_begin,
                                     queue_batch_end, queue_claim, queue_disarm, queue_due, queue_hurried, queue_lock,
                                     queue_next, queue_now, queue_over, queue_release, queue_set, queue_stop,
                                     queue_unlock)
from pagehint.hinting.report cimport Reporter
from pagehint.hinting.watch cimport evaluate, hint_free_blocks, hint_off, hint_on
from pagehint.sync.atomic cimport RELAXED, load64
from pagehint.sync.clock cimport NEVER, SECOND, monotonic_ns
from pagehint.sync.condition cimport pthread_cond_broadcast, pthread_cond_signal, sleep_until
from pagehint.sync.lock cimport lock_acquire, lock_acquire_last, pthread_self, usleep
from pagehint.sync.testpoint cimport (AT_BEFORE_DISABLE_WAITS, AT_BEFORE_THE_HOOK, AT_BEFORE_THE_REPORT,
                                      AT_END_OF_A_RUN, AT_FLUSH_ASKED_FOR, AT_HOOK_ON_ENGINE_OFF, test_point)
from pagehint.zone.hook cimport zone_unlock
from pagehint.zone.page_alloc cimport Machine, machine_drain
from pagehint.zone.zone cimport PageZone, usable_free_pages

from pagehint import errors

cdef double MOST_SECONDS = 4e9              # of a clock: with a delay on top it is still a count of nanoseconds

cdef enum:
    WORKER_REST = 1000          # microseconds: a batch of 2 MiB blocks in each is 32 GiB a second
    MARK_BLOCKS = 4096          # free blocks that one lock round hints as hinting goes on

cdef enum Claim:                # what a caller finds who would run a pass
    CLAIM_BUSY                  # another caller's is on
    CLAIM_NOTHING               # nothing is due, or hinting is off
    CLAIM_MINE


cdef HintingEngine hinting_engine(object memory, Machine *m, WorkQueue *queue, Batch *batch):
    """The engine of a machine, whose zones, queue and batch live as long as `memory` does."""
    cdef HintingEngine engine = HintingEngine.__new__(HintingEngine)
    engine.memory = memory
    engine.m = m
    engine.queue = queue
    engine.batch = batch
    engine.reporter = Reporter()
    engine.reporter.queue = queue
    engine.reporter.batch = batch
    engine.reporter.specs = memory.specs
    return engine


@cython.no_gc_clear     # collected in a cycle, too, it needs its reporter until the allocator has abandoned it
cdef class HintingEngine:
    """Reports what is hinted in the zones of a machine, on a thread of its own or on callers.

    The worker's thread holds this, and this the memory; neither holds the allocator, whose end ends the worker.
    """

    @property
    def last_error(self):
        """What the host or a callback failed with last, since hinting was enabled; None if nothing did."""
        return self.reporter.last_error

    # -- on

    cdef int enable(self, PageHintingCallbacks callbacks, const Settings *settings, bint mark_free, object clock) except -1:
        """Begin a session. Python code runs only before it is on, so what fails, or is interrupted, leaves no trace."""
        cdef uint64_t session
        self.refuse_callback("enable_hinting")
        last_error = self.reporter.last_error
        session = self.begin_session(not settings.manual)
        try:
            if self.grow_batch(settings.max_pages) < settings.max_pages:
                raise MemoryError("no memory for a batch")
            if settings.min_age > 0:
                self.memory.keep_ages()
            self.thread = None                      # a parent's leavings, if this is a forked child
            self.reporter.set_callbacks(None)
            self.reporter.last_error = None
            self.reporter.burst_logged = False
            self.clock = clock
            self.now()
            thread = self.start_worker(session, settings)
        except BaseException:
            if self.queue.session == session:
                self.clock, self.reporter.last_error = None, last_error
                self.end_session()
            raise
        self.reporter.set_callbacks(callbacks)
        self.thread = thread
        with nogil:
            self.publish(settings, mark_free)
        return 0

    cdef uint64_t begin_session(self, bint threaded) except 0:
        """Claim the right to switch hinting on; nobody else can until the session is over."""
        cdef WorkQueue *q = self.queue
        cdef uint64_t session = 0
        with nogil:
            queue_lock(q)
            if not q.enabled and not q.enabling:
                q.session += 1
                session = q.session
                q.enabling = True
                q.stopping = False
                q.worker = threaded
            queue_unlock(q)
        if session == 0:
            raise errors.HintingActiveError("hinting is enabled already")
        return session

    cdef object start_worker(self, uint64_t session, const Settings *settings):
        """The session's thread, or None. It waits until hinting is enabled, or goes if the session is over."""
        thread = None
        if not settings.manual:
            thread = threading.Thread(target=_work, args=(self, session), name="pagehint", daemon=True)
            thread.start()
        if self.queue.session != session:
            raise errors.HintingInactiveError("enable_hinting was interrupted by a fork, and this is the child")
        return thread

    cdef void end_session(self) noexcept nogil:
        queue_lock(self.queue)
        queue_over(self.queue)
        queue_unlock(self.queue)

    cdef void publish(self, const Settings *settings, bint mark_free) noexcept nogil:
        """Everything is in place: the settings, and then, zone by zone under its lock, the hook."""
        cdef WorkQueue *q = self.queue
        cdef int i
        queue_lock(q)
        queue_set(q, settings)
        queue_unlock(q)
        test_point(AT_BEFORE_THE_HOOK)
        for i in range(self.m.nr_zones):
            self.hook_zone(self.m.zones[i], mark_free)
        test_point(AT_HOOK_ON_ENGINE_OFF)
        queue_lock(q)
        q.enabled = True
        q.enabling = False
        pthread_cond_signal(&q.wake)
        queue_unlock(q)

    cdef void hook_zone(self, PageZone *z, bint mark_free) noexcept nogil:
        """Switch the hook on, and hint what is free already, so many blocks a lock round."""
        cdef WorkQueue *q = self.queue
        cdef Hints *h = hints_of(z)
        cdef uint64_t page = 0
        cdef bint more = True
        lock_acquire(&z.lock, True)
        h.threshold = q.threshold or q.max_pages
        h.queued = False
        z.notify_at = INT64_MAX
        h.min_age = max(q.min_age, <int64_t>0)
        hint_on(z)
        while mark_free and more:
            more = hint_free_blocks(z, &page, MARK_BLOCKS)
            evaluate(z)
            zone_unlock(z)
            lock_acquire(&z.lock, True)
        zone_unlock(z)

    # -- its settings, while it is on

    cdef int set_max_pages(self, uint64_t max_pages) except -1:
        self.before_change()
        with nogil:
            queue_lock(self.queue)
            self.queue.max_pages = max_pages
            queue_unlock(self.queue)
            self.after_change()
        return 0

    cdef int set_threshold(self, uint64_t threshold) except -1:
        self.before_change()
        with nogil:
            queue_lock(self.queue)
            self.queue.threshold = threshold
            queue_unlock(self.queue)
            self.after_change()
        return 0

    cdef int set_delay(self, int64_t delay) except -1:
        self.before_change()
        with nogil:
            queue_lock(self.queue)
            self.queue.delay = delay
            queue_disarm(self.queue)
            queue_unlock(self.queue)
            self.after_change()
        return 0

    cdef int before_change(self) except -1:
        self.require_hinting("settings")
        return self.tick()

    cdef void after_change(self) noexcept nogil:
        """Have every zone go by what is set now: its threshold, and where its gate is."""
        cdef PageZone *z
        cdef int i
        for i in range(self.m.nr_zones):
            z = self.m.zones[i]
            lock_acquire(&z.lock, True)
            hints_of(z).threshold = self.queue.threshold or self.queue.max_pages
            z.notify_at = INT64_MAX
            evaluate(z)
            zone_unlock(z)

    # -- when a pass begins: on the worker, or on callers

    cdef int tick(self) except -1:
        """Before anything that may hint, whose time is what was read last: read the injected clock, if there is one."""
        if self.queue.injected_clock:
            self.now()
        return 0

    cdef int64_t now(self) except? -1:
        """By the injected clock, if there is one. One that fails stands still; what ends the program does so here."""
        clock = self.clock
        if clock is None:
            return monotonic_ns()
        try:
            seconds = float(clock())
            if not abs(seconds) < MOST_SECONDS:
                raise ValueError(f"the clock says {seconds}")
            self.queue.clock_read = <int64_t>(seconds * SECOND)
        except Exception as error:
            self.reporter.failure(error)
        return self.queue.clock_read

    cdef int64_t now_in_pass(self) noexcept nogil:
        """As `now`; what ends the program does so when the pass has come to its end."""
        if not self.queue.injected_clock:
            return monotonic_ns()
        with gil:
            try:
                return self.now()
            except BaseException as error:
                self.reporter.failure(error)
                return self.queue.clock_read

    cdef void work(self, uint64_t session) noexcept nogil:
        """The worker of a session: waits, without the GIL, for work, a deadline, a flush, or the end."""
        cdef WorkQueue *q = self.queue
        cdef bint flush, everything
        cdef int64_t now
        queue_lock(q)
        while q.session == session and not q.stopping:
            now = monotonic_ns()
            flush = q.flush_wanted > q.flush_done
            everything = flush or self.overdue(now)
            if q.enabled and (everything or queue_due(q, now)):
                queue_claim(q)
                queue_unlock(q)
                self.run_pass(everything, flush)
                queue_lock(q)
            else:
                sleep_until(&q.wake, &q.mutex, queue_next(q) if q.enabled else NEVER)
        if q.session == session:
            q.worker = False
            pthread_cond_broadcast(&q.settled)
        queue_unlock(q)

    cdef bint overdue(self, int64_t now) noexcept nogil:
        """Whether a pass should look into every zone: the delay is over, or the last pass failed. Queue's mutex held."""
        cdef WorkQueue *q = self.queue
        return now >= q.not_before and ((q.deadline != NEVER and now >= q.deadline) or (now >= q.work_at and q.failures > 0))

    cdef int refuse_callback(self, str what) except -1:
        if self.queue.runner == pthread_self():
            raise errors.HintingActiveError(f"{what} was called from inside a hinting callback, which would wait for itself")
        return 0

    def require_hinting(self, what):
        if not self.queue.enabled:
            raise errors.HintingInactiveError(f"{what}: hinting is off; enable_hinting comes first")

    cdef int claim_pass(self, bint flush, int64_t now, bint *everything) noexcept nogil:
        """Claim a pass for this thread, if one is due; if another caller's is on, wait for a moment."""
        cdef WorkQueue *q = self.queue
        cdef int found = CLAIM_NOTHING
        queue_lock(q)
        if q.enabled and q.manual and not q.stopping:
            if q.running:
                found = CLAIM_BUSY
                sleep_until(&q.settled, &q.mutex, monotonic_ns() + SIGNAL_CHECK)
            elif flush or queue_due(q, now):
                found = CLAIM_MINE
                everything[0] = flush or self.overdue(now)
                queue_claim(q)
        queue_unlock(q)
        return found

    cdef int pass_manually(self, bint flush) except -1:
        """Run a pass on this thread; 0 if nothing is due, or hinting has ended before or meanwhile."""
        cdef int64_t now = self.now()
        cdef int found = CLAIM_BUSY
        cdef bint whole = False, everything = flush
        self.reporter.interrupts.pop(pthread_self(), None)      # of a parent's thread with our number, in a forked child
        while found == CLAIM_BUSY:
            with nogil:
                found = self.claim_pass(flush, now, &everything)
                if found == CLAIM_MINE:
                    whole = self.run_pass(everything, flush)
            if found == CLAIM_BUSY:
                PyErr_CheckSignals()
        if found == CLAIM_MINE:
            error = self.reporter.interrupts.pop(pthread_self(), None)
            if error is not None:
                raise error
        return whole

    def run_pending(self):
        cdef WorkQueue *q = self.queue
        self.require_hinting("run_pending")
        self.refuse_callback("run_pending")
        if not q.manual:
            raise errors.PageHintError("run_pending is for workqueue='manual'; here the worker's thread runs the work")
        runs = 0
        while self.pass_manually(False):
            runs += 1
        return runs

    def flush(self):
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
            manual = q.manual
            q.flush_wanted += on and not manual
            ticket = q.flush_wanted
            pthread_cond_signal(&q.wake)
            queue_unlock(q)
            test_point(AT_FLUSH_ASKED_FOR)
        if on and manual:
            done = self.pass_manually(True)
            on = False
        while on and not done:
            with nogil:
                queue_lock(q)
                if q.session == session and not q.stopping and q.flush_done < ticket:
                    sleep_until(&q.settled, &q.mutex, monotonic_ns() + SIGNAL_CHECK)
                # A ticket of another session was given back, not done.
                done = q.session == session and q.flush_done >= ticket
                on = q.session == session and not q.stopping
                queue_unlock(q)
            PyErr_CheckSignals()
        if not done:
            raise errors.HintingInactiveError("hinting was disabled during flush_hinting")

    # -- a pass: isolate, report, put back

    cdef bint run_pass(self, bint everything, bint flush) noexcept nogil:
        """Report what is hinted: in all zones, or in those that are queued; for a flush, of any age. `running` is claimed.

        Returns whether it came to its end. A callback may fork: in the child the session is another, and the pass that
        the callback returns into touches nothing any more.
        """
        cdef WorkQueue *q = self.queue
        cdef bint prepared = False, failed = False, whole = True
        cdef uint64_t ticket, session
        cdef int64_t now = 0
        cdef int i
        queue_lock(q)
        session = q.session
        q.work_at = INT64_MAX
        q.work_runs += 1
        self.reporter.interrupted = False
        ticket = q.flush_wanted
        # A flush that came after this pass was decided on is served by it, too.
        flush = flush or q.flush_wanted > q.flush_done
        everything = everything or flush
        if everything:
            queue_disarm(q)
        queue_unlock(q)
        for i in range(self.m.nr_zones):
            if everything or hints_of(self.m.zones[i]).queued:
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
        if whole:
            q.flush_done = max(q.flush_done, ticket)
        queue_release(q)
        pthread_cond_broadcast(&q.settled)
        queue_unlock(q)
        return whole

    cdef bint goes_on(self, uint64_t session) noexcept nogil:
        return self.queue.session == session and not self.queue.stopping and not self.reporter.interrupted

    cdef bint look_at_zone(self, PageZone *z, uint64_t session, bint flush, bint *prepared) noexcept nogil:
        """One look at all of a zone's hints. Returns whether anything failed."""
        cdef Hints *h = hints_of(z)
        cdef uint64_t cursor = 0, end
        cdef int64_t now = queue_now(self.queue), min_age = max(self.queue.min_age, <int64_t>0)
        cdef Ripe ripe = ripe_at(now, min_age, flush)
        cdef bint failed = False, whole = False, open
        open = self.begin_look(z, &ripe, now, flush)
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
        if min_age and self.queue.session == session:
            self.end_look(z, now, ripe.oldest, whole and not failed)
        return failed

    cdef bint begin_look(self, PageZone *z, Ripe *ripe, int64_t now, bint flush) noexcept nogil:
        """Whether the zone has anything that may be reported now; its request for a pass is met, or put off."""
        cdef Hints *h = hints_of(z)
        cdef int64_t min_age = max(self.queue.min_age, <int64_t>0)
        cdef bint open
        self.rest(z)
        lock_acquire(&z.lock, True)
        h.queued = False
        open = h.count > 0
        if open and not flush and now < h.look_at:
            self.look_later(z)
            open = False
        open = open and self.gate(z, self.queue.max_pages)
        h.counters.scans += open
        if min_age and open:
            h.look_at = now + min_age       # until this look is over: what is freed meanwhile is not ripe before
            ripe.excess = zone_excess(z)
        end_round(z)
        return open

    cdef bint report_batch(self, PageZone *z, uint64_t session, uint64_t *cursor, Ripe *ripe, bint *open) noexcept nogil:
        """Isolate a batch, report it, put it back. Returns whether any of it failed; `open`: the look goes on after it."""
        cdef bint failed = False, hurry = True
        cdef uint64_t most, n = 0
        cdef int64_t began
        self.rest(z)
        most = self.grow_batch(queue_batch_begin(self.queue, &hurry))
        if most == 0:
            open[0] = False
            return False
        if hurry:
            lock_acquire(&z.lock, True)
        else:
            lock_acquire_last(&z.lock)
        began = monotonic_ns()
        open[0] = self.gate(z, most)
        if open[0]:
            n = self.isolate(z, cursor, most, ripe)
        note_hold(hints_of(z), began)
        end_round(z)
        if n:
            memset(self.batch.failed, 0, n)
            test_point(AT_BEFORE_THE_REPORT)
            failed = self.reporter.report(n, session)
            if self.queue.session != session:
                open[0] = False
                return failed
            lock_acquire(&z.lock, True)
            began = monotonic_ns()
            put_back(z, self.batch.blocks, n, self.batch.failed)
            self.batch.n = 0
            note_hold(hints_of(z), began)
            end_round(z)
        queue_batch_end(self.queue)
        return failed

    cdef uint64_t isolate(self, PageZone *z, uint64_t *cursor, uint64_t most, Ripe *ripe) noexcept nogil:
        """Take a batch out, and note it. Zone lock held. A method, so that it has the registers to itself."""
        if hints_of(z).min_age:
            ripe.excess = zone_excess(z)
        self.batch.n = isolate_batch(z, cursor, most, self.queue.max_report_order, ripe, self.batch.blocks)
        self.batch.zone = z
        return self.batch.n

    cdef void end_look(self, PageZone *z, int64_t now, int64_t oldest, bint whole) noexcept nogil:
        """A look from `now` on is over. What was too young for it is looked at when it is ripe, but not too often."""
        cdef Hints *h = hints_of(z)
        lock_acquire(&z.lock, True)
        if not whole:
            h.look_at = 0                   # what was ripe may be there still
        elif oldest != INT64_MAX and h.count:
            h.look_at = min(h.look_at, max(oldest + h.min_age, now + h.min_age // LOOKS))
            self.look_later(z)
        end_round(z)

    cdef void look_later(self, PageZone *z) noexcept nogil:
        """Have a zone looked at again that has hints, though they may be under the threshold by now. Zone lock held.

        It was queued for this pass and stays so; that counts as one request.
        """
        hints_of(z).queued = True
        z.notify_at = 0

    cdef void rest(self, PageZone *z) noexcept nogil:
        """Before a round that nobody waits for, leave a zone alone for a while that others are busy with.

        Each round takes the zone's cache lines away from them, and what they allocate meanwhile need not be reported.
        """
        if hints_of(z).rounds_seen != load64(&z.lock.acquired, RELAXED) and not queue_hurried(self.queue):
            usleep(WORKER_REST)

    cdef bint gate(self, PageZone *z, uint64_t most) noexcept nogil:
        """Whether the zone can spare a batch; if not, the wake-up is set for when it can. Zone lock held."""
        if usable_free_pages(z) >= report_gate(z, most):
            return True
        hints_of(z).counters.isolation_refused += 1
        # By the setting, not by `most`: a thread that lowers it meanwhile has looked at this zone already, or has yet to.
        z.notify_at = report_gate(z, self.queue.max_pages)
        return False

    cdef uint64_t grow_batch(self, uint64_t most) noexcept nogil:
        """Room for a batch, none being out; returns how many blocks fit, at least one unless there has never been memory.

        The old room goes last, so that a child forked meanwhile finds the one or the other.
        """
        cdef void *old = self.batch.blocks
        cdef void *blocks
        if most > self.batch.room:
            blocks = malloc(most * (sizeof(pagehint_block) + 1))
            if blocks != NULL:
                self.batch.blocks = <pagehint_block *> blocks
                self.batch.failed = <uint8_t *> (self.batch.blocks + most)
                self.batch.room = most
                free(old)
        return min(most, self.batch.room)

    # -- off

    def disable(self):
        """No lock is held while anybody waits, so a signal handler may do the same in the middle of it."""
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
                    # Others wait for this as for a run. No Python code runs before it is over, so what is let go of
                    # lives on until then.
                    queue_claim(q)
                queue_unlock(q)
            if mine:
                thread, _callbacks_gone, _clock_gone = self.thread, self.reporter.callbacks, self.clock
                self.thread = self.clock = None
                self.reporter.set_callbacks(None)
                with nogil:
                    self.switch_off()
                if thread is not None:
                    thread.join()
                return
            PyErr_CheckSignals()

    cdef void switch_off(self) noexcept nogil:
        cdef PageZone *z
        cdef int i
        for i in range(self.m.nr_zones):
            z = self.m.zones[i]
            lock_acquire(&z.lock, True)
            hint_off(z)
            zone_unlock(z)
        self.end_session()

    def abandon(self):
        """The allocator is gone: the worker, if there is one, ends by itself and lets go of the callbacks."""
        queue_lock(self.queue)
        queue_stop(self.queue)
        queue_unlock(self.queue)
        self.abandoned = True
        if self.thread is None:
            self.reporter.set_callbacks(None)


def _work(HintingEngine engine, uint64_t session):
    """What the worker's thread runs."""
    with nogil:
        engine.work(session)
    if engine.abandoned:
        engine.reporter.set_callbacks(None)
