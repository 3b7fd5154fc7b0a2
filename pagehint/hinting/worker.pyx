# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""The hinting engine's Python side, in the order of its work: on, when it runs, a batch out and back, reporting, off.

The queue it works from is in `hinting/queue.pxd`, the batch in `hinting/batch.pxd`; the hook that fills both runs without this.
"""
import logging
import operator
import os
import threading

import numpy as np

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from pagehint.allocator.arguments cimport as_duration, as_order, as_positive
from pagehint.allocator.memory cimport Memory
from pagehint.hinting.age cimport LOOKS, Ripe, ripe_at
from pagehint.hinting.batch cimport isolate_batch, next_ripe, pagehint_block, put_back
from pagehint.hinting.bitmap cimport hint_evaluate, hint_off, hint_on
from pagehint.hinting.callbacks cimport PageHintingCallbacks
from pagehint.hinting.hold_times cimport hold_note
from pagehint.hinting.limit cimport zone_excess
from pagehint.hinting.notify cimport zone_unlock
from pagehint.hinting.queue cimport (Engine, SECOND, SIGNAL_CHECK, engine_backoff, engine_batch_begin, engine_batch_end,
                                     engine_claim, engine_disarm, engine_due, engine_hurried, engine_lock, engine_next,
                                     engine_now, engine_over, engine_release, engine_stop, engine_unlock)
from pagehint.sync.atomic cimport RELAXED, load64
from pagehint.sync.clock cimport monotonic_ns
from pagehint.sync.condition cimport NEVER, pthread_cond_broadcast, pthread_cond_signal, sleep_until
from pagehint.sync.lock cimport lock_acquire, lock_acquire_last, pthread_self, usleep
from pagehint.sync.testpoint cimport (AT_BEFORE_DISABLE_WAITS, AT_BEFORE_THE_HOOK, AT_BEFORE_THE_REPORT,
                                      AT_END_OF_A_RUN, AT_FLUSH_ASKED_FOR, AT_HOOK_ON_ENGINE_OFF, test_point)
from pagehint.zone.free_blocks cimport mark_free_blocks
from pagehint.zone.page_alloc cimport machine_drain
from pagehint.zone.watermark cimport report_gate
from pagehint.zone.zone cimport PageZone, usable_free_pages

from pagehint import errors
from pagehint.hinting import callbacks as _callbacks

cnp.import_array()

cdef double MOST_SECONDS = 4e9              # of a clock: with a delay on top it is still a count of nanoseconds

_log = logging.getLogger("pagehint")

cdef enum:
    WORKER_REST = 1000          # microseconds: a batch of 2 MiB blocks in each is 32 GiB a second


cdef class HintingEngine:
    """Reports what is hinted in the zones of a memory, on a thread of its own or on callers.

    The worker's thread holds this, and this the memory; neither holds the allocator, whose end ends the worker.
    """

    def __cinit__(self, Memory memory not None):
        self.memory = memory
        self.m = &memory.m
        self.batch = &memory.batch
        self.interrupts = {}

    # -- on, and its settings

    def enable(self, PageHintingCallbacks callbacks not None, workqueue, threshold, delay, max_report_order, bint mark_free,
               min_age, clock):
        cdef Engine *e = &self.m.engine
        cdef int64_t nanoseconds = as_duration(delay, "delay"), age = as_duration(min_age, "min_age")
        cdef uint64_t limit = 0 if threshold is None else as_positive(threshold, "threshold")
        cdef int report_order = max(self.memory.min_order, min(10, self.memory.max_page_order))
        cdef uint64_t session = 0
        cdef bint mine, threaded = workqueue == "thread", injected = clock is not None
        cdef int i
        if max_report_order is not None:
            report_order = as_order(self.memory, max_report_order)
            if report_order < self.memory.min_order:
                raise ValueError(f"max_report_order {report_order} is under min_order {self.memory.min_order}, the granule")
        if workqueue not in ("thread", "manual"):
            raise ValueError(f"workqueue must be 'thread' or 'manual', not {workqueue!r}")
        if injected and not callable(clock):
            raise TypeError(f"clock must be callable or None, not {type(clock).__name__}")
        if injected and workqueue != "manual":
            raise ValueError("a clock can be injected with workqueue='manual' only; the worker sleeps by the real one")
        self.refuse_callback("enable_hinting")
        thread, last_error = None, self.last_error
        with nogil:
            engine_lock(e)
            mine = not e.enabled and not e.enabling
            if mine:
                e.session += 1
                session = e.session
                e.enabling = True
                e.stopping = False
                e.worker = threaded
            engine_unlock(e)
        if not mine:
            raise errors.HintingActiveError("hinting is enabled already")
        # Whatever may run Python code does so before it is on: what fails, or is interrupted, has changed nothing.
        try:
            if self.grow_batch(callbacks.most) < callbacks.most:
                raise MemoryError("no memory for a batch")
            if age > 0:
                self.memory.keep_ages()
            self.thread = self.callbacks = None     # a parent's leavings, if this is a forked child
            self.last_error = None
            self.burst_logged = False
            self.clock = clock
            self.now()
            if threaded:
                # It waits until the engine is enabled, or goes if the session is over.
                thread = threading.Thread(target=_work, args=(self, session), name="pagehint", daemon=True)
                thread.start()
            if e.session != session:
                raise errors.HintingInactiveError("enable_hinting was interrupted by a fork, and this is the child")
        except BaseException:
            if e.session == session:
                self.clock, self.last_error = None, last_error
                with nogil:
                    engine_lock(e)
                    engine_over(e)
                    engine_unlock(e)
            raise
        self.callbacks = callbacks
        self.no_prepare = callbacks.prepare is None
        self.no_cleanup = callbacks.cleanup is None
        self.thread = thread
        with nogil:
            engine_lock(e)
            e.manual = not threaded
            e.injected_clock = injected
            e.max_pages = callbacks.most
            e.threshold = limit
            e.max_report_order = report_order
            e.delay = nanoseconds
            e.min_age = age
            e.work_at = INT64_MAX
            e.failures = 0
            e.not_before = 0
            engine_disarm(e)
            engine_unlock(e)
            test_point(AT_BEFORE_THE_HOOK)
            # Everything is in place: now, and zone by zone under its lock, the hook.
            for i in range(self.m.nr_zones):
                self.hook_zone(self.m.zones[i], mark_free)
            test_point(AT_HOOK_ON_ENGINE_OFF)
            engine_lock(e)
            e.enabled = True
            e.enabling = False
            pthread_cond_signal(&e.wake)
            engine_unlock(e)

    cdef void hook_zone(self, PageZone *z, bint mark_free) noexcept nogil:
        """Switch the hook on, and hint what is free already, so many blocks a lock round."""
        cdef Engine *e = &self.m.engine
        cdef uint64_t page = 0
        cdef bint more = True
        lock_acquire(&z.lock, True)
        z.threshold = e.threshold or e.max_pages
        z.queued = False
        z.wake_at = INT64_MAX
        z.min_age = max(e.min_age, <int64_t>0)
        hint_on(z)
        while mark_free and more:
            more = mark_free_blocks(z, &page, 4096)
            hint_evaluate(z)
            zone_unlock(z)
            lock_acquire(&z.lock, True)
        zone_unlock(z)

    def change(self, max_pages=None, threshold=None, delay=None, bint any_threshold=False, bint any_delay=False):
        """Change settings while the worker runs; `any_` says that None is meant as a value."""
        cdef Engine *e = &self.m.engine
        cdef uint64_t most = 0 if max_pages is None else as_positive(max_pages, "max_pages")
        cdef uint64_t limit = 0 if threshold is None else as_positive(threshold, "threshold")
        cdef int64_t nanoseconds = as_duration(delay, "delay")
        cdef PageZone *z
        cdef int i
        self.require_hinting("settings")
        self.tick()
        with nogil:
            engine_lock(e)
            if most:
                e.max_pages = most
            if any_threshold:
                e.threshold = limit
            if any_delay:
                e.delay = nanoseconds
                engine_disarm(e)
            limit = e.threshold or e.max_pages
            engine_unlock(e)
            for i in range(self.m.nr_zones):
                z = self.m.zones[i]
                lock_acquire(&z.lock, True)
                z.threshold = limit
                z.wake_at = INT64_MAX       # the gate may be elsewhere now
                hint_evaluate(z)
                zone_unlock(z)

    # -- when it runs: on the worker, or on callers

    cdef int tick(self) except -1:
        """Before anything that may hint, whose time is what was read last: read the injected clock, if there is one."""
        if self.m.engine.injected_clock:
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
            self.m.engine.clock_read = <int64_t>(seconds * SECOND)
        except Exception as error:
            self.failure(error)
        return self.m.engine.clock_read

    cdef int64_t now_in_run(self) noexcept nogil:
        """As `now`; what ends the program does so when the run has come to its end."""
        if not self.m.engine.injected_clock:
            return monotonic_ns()
        with gil:
            try:
                return self.now()
            except BaseException as error:
                self.failure(error)
                return self.m.engine.clock_read

    cdef void work(self, uint64_t session) noexcept nogil:
        """The worker of a session: waits, without the GIL, for work, a deadline, a flush, or the end."""
        cdef Engine *e = &self.m.engine
        cdef bint flush, everything
        cdef int64_t now
        engine_lock(e)
        while e.session == session and not e.stopping:
            now = monotonic_ns()
            flush = e.flush_wanted > e.flush_done
            everything = flush or self.overdue(now)
            if e.enabled and (everything or engine_due(e, now)):
                engine_claim(e)
                engine_unlock(e)
                self.run(everything, flush)
                engine_lock(e)
            else:
                sleep_until(&e.wake, &e.mutex, engine_next(e) if e.enabled else NEVER)
        if e.session == session:
            e.worker = False
            pthread_cond_broadcast(&e.settled)
        engine_unlock(e)

    cdef bint overdue(self, int64_t now) noexcept nogil:
        """Whether a run should look into every zone: the delay is over, or the last run failed. Engine mutex held."""
        cdef Engine *e = &self.m.engine
        return now >= e.not_before and ((e.deadline != NEVER and now >= e.deadline) or (now >= e.work_at and e.failures > 0))

    cdef bint reporting(self) noexcept nogil:
        """Whether the calling thread is inside one of the callbacks."""
        return self.m.engine.runner == pthread_self()

    cdef int refuse_callback(self, str what) except -1:
        if self.reporting():
            raise errors.HintingActiveError(f"{what} was called from inside a hinting callback, which would wait for itself")
        return 0

    def require_hinting(self, what):
        if not self.m.engine.enabled:
            raise errors.HintingInactiveError(f"{what}: hinting is off; enable_hinting comes first")

    cdef int run_manually(self, bint flush) except -1:
        """Run on this thread; 0 if nothing is due, or hinting has ended before or meanwhile."""
        cdef Engine *e = &self.m.engine
        cdef int64_t now = self.now()
        cdef bint busy = True, due = False, whole = False, everything = flush
        self.interrupts.pop(pthread_self(), None)       # of a parent's thread with our number, if this is a forked child
        while busy:
            with nogil:
                engine_lock(e)
                busy = e.running and e.enabled and e.manual and not e.stopping
                if busy:
                    sleep_until(&e.settled, &e.mutex, monotonic_ns() + SIGNAL_CHECK)
                else:
                    due = e.enabled and e.manual and not e.stopping and (flush or engine_due(e, now))
                if due:
                    everything = flush or self.overdue(now)
                    engine_claim(e)
                engine_unlock(e)
                if due:
                    whole = self.run(everything, flush)
            if busy:
                PyErr_CheckSignals()
        if due:
            error = self.interrupts.pop(pthread_self(), None)
            if error is not None:
                raise error
        return whole

    def run_pending(self):
        cdef Engine *e = &self.m.engine
        self.require_hinting("run_pending")
        self.refuse_callback("run_pending")
        if not e.manual:
            raise errors.PageHintError("run_pending is for workqueue='manual'; here the worker's thread runs the work")
        runs = 0
        while self.run_manually(False):
            runs += 1
        return runs

    def flush(self):
        cdef Engine *e = &self.m.engine
        cdef uint64_t ticket, session
        cdef bint done = False, on, manual
        self.refuse_callback("flush_hinting")
        self.require_hinting("flush_hinting")
        self.tick()
        with nogil:
            machine_drain(self.m)
            engine_lock(e)
            session = e.session
            on = e.enabled and not e.stopping
            manual = e.manual
            e.flush_wanted += on and not manual
            ticket = e.flush_wanted
            pthread_cond_signal(&e.wake)
            engine_unlock(e)
            test_point(AT_FLUSH_ASKED_FOR)
        if on and manual:
            done = self.run_manually(True)
            on = False
        while on and not done:
            with nogil:
                engine_lock(e)
                if e.session == session and not e.stopping and e.flush_done < ticket:
                    sleep_until(&e.settled, &e.mutex, monotonic_ns() + SIGNAL_CHECK)
                # A ticket of another session was given back, not done.
                done = e.session == session and e.flush_done >= ticket
                on = e.session == session and not e.stopping
                engine_unlock(e)
            PyErr_CheckSignals()
        if not done:
            raise errors.HintingInactiveError("hinting was disabled during flush_hinting")

    # -- a run: isolate, report, put back

    cdef bint run(self, bint everything, bint flush) noexcept nogil:
        """Report what is hinted: in all zones, or in those that are queued; for a flush, of any age. `running` is claimed.

        Returns whether it came to its end. A callback may fork: the child's session is another, it comes out of the
        callback into a run that is none of its own, and touches nothing.
        """
        cdef Engine *e = &self.m.engine
        cdef bint prepared = False, failed = False, whole = True
        cdef uint64_t ticket, session
        cdef int64_t now = 0
        cdef int i
        engine_lock(e)
        session = e.session
        e.work_at = INT64_MAX
        e.work_runs += 1
        self.interrupted = False
        ticket = e.flush_wanted
        # A flush that came after this run was decided on is served by it, too.
        flush = flush or e.flush_wanted > e.flush_done
        everything = everything or flush
        if everything:
            engine_disarm(e)
        engine_unlock(e)
        for i in range(self.m.nr_zones):
            if everything or self.m.zones[i].queued:
                if self.run_zone(self.m.zones[i], session, flush, &prepared):
                    failed = True
                    if not prepared:
                        break
            if not self.goes_on(session):
                whole = False
                break
        if prepared and e.session == session:
            self.call_cleanup()
        if failed:
            now = self.now_in_run()
        if e.session != session:
            return False
        test_point(AT_END_OF_A_RUN)
        if not failed:
            self.burst_logged = False
        engine_lock(e)
        engine_backoff(e, failed, now)
        if whole:
            e.flush_done = max(e.flush_done, ticket)
        engine_release(e)
        pthread_cond_broadcast(&e.settled)
        engine_unlock(e)
        return whole

    cdef bint goes_on(self, uint64_t session) noexcept nogil:
        return self.m.engine.session == session and not self.m.engine.stopping and not self.interrupted

    cdef bint run_zone(self, PageZone *z, uint64_t session, bint flush, bint *prepared) noexcept nogil:
        """One look at all of a zone's hints. Returns whether anything failed."""
        cdef Engine *e = &self.m.engine
        cdef uint64_t cursor = 0, end, most, n
        cdef int64_t began, now = engine_now(e), min_age = max(e.min_age, <int64_t>0)
        cdef Ripe ripe = ripe_at(now, min_age, flush)
        cdef bint failed = False, whole = False, open, hurry = True
        self.rest(z)
        lock_acquire(&z.lock, True)
        z.queued = False
        open = z.hint_count > 0
        if open and not flush and now < z.look_at:
            self.look_later(z)
            open = False
        open = open and self.gate(z, e.max_pages)
        z.counters.scans += open
        if min_age and open:
            z.look_at = now + min_age       # until this look is over: what is freed meanwhile is not ripe before
            ripe.excess = zone_excess(z)
        z.rounds_seen = z.lock.acquired
        zone_unlock(z)
        if not open:
            return False
        while open and self.goes_on(session):
            end = load64(&z.nr_granules, RELAXED)
            cursor = next_ripe(z, cursor, end, &ripe)
            whole = cursor == end
            if whole:
                break
            if not prepared[0]:
                prepared[0] = self.call_prepare()
                if not prepared[0]:
                    failed = True
                    break
            self.rest(z)
            most = self.grow_batch(engine_batch_begin(e, &hurry))
            if most == 0:
                break
            if hurry:
                lock_acquire(&z.lock, True)
            else:
                lock_acquire_last(&z.lock)
            began = monotonic_ns()
            open = self.gate(z, most)
            n = self.isolate(z, &cursor, most, &ripe) if open else 0
            hold_note(z, began)
            z.rounds_seen = z.lock.acquired
            zone_unlock(z)
            if n:
                memset(self.batch.failed, 0, n)
                test_point(AT_BEFORE_THE_REPORT)
                failed |= self.report(n, session)
                if e.session != session:
                    break
                lock_acquire(&z.lock, True)
                began = monotonic_ns()
                put_back(z, self.batch.blocks, n, self.batch.failed)
                self.batch.n = 0
                hold_note(z, began)
                z.rounds_seen = z.lock.acquired
                zone_unlock(z)
            engine_batch_end(e)
        if min_age and e.session == session:
            self.looked(z, now, ripe.oldest, whole and not failed)
        return failed

    cdef uint64_t isolate(self, PageZone *z, uint64_t *cursor, uint64_t most, Ripe *ripe) noexcept nogil:
        """Take a batch out, and note it. Zone lock held. A method, so that it has the registers to itself."""
        if z.min_age:
            ripe.excess = zone_excess(z)
        self.batch.n = isolate_batch(z, cursor, most, self.m.engine.max_report_order, ripe, self.batch.blocks)
        self.batch.zone = z
        return self.batch.n

    cdef void looked(self, PageZone *z, int64_t now, int64_t oldest, bint whole) noexcept nogil:
        """A look from `now` on is over. What was too young for it is looked at when it is ripe, but not too often."""
        lock_acquire(&z.lock, True)
        if not whole:
            z.look_at = 0                   # what was ripe may be there still
        elif oldest != INT64_MAX and z.hint_count:
            z.look_at = min(z.look_at, max(oldest + z.min_age, now + z.min_age // LOOKS))
            self.look_later(z)
        z.rounds_seen = z.lock.acquired
        zone_unlock(z)

    cdef void look_later(self, PageZone *z) noexcept nogil:
        """Have a zone queued that has hints, though they may be under the threshold by now. Zone lock held."""
        z.queued = True
        z.wake_at = 0

    cdef void rest(self, PageZone *z) noexcept nogil:
        """Before a round that nobody waits for, leave a zone alone for a while that others are busy with.

        Each round takes the zone's cache lines away from them, and what they allocate meanwhile need not be reported.
        """
        if z.rounds_seen != load64(&z.lock.acquired, RELAXED) and not engine_hurried(&self.m.engine):
            usleep(WORKER_REST)

    cdef bint gate(self, PageZone *z, uint64_t most) noexcept nogil:
        """Whether the zone can spare a batch; if not, the wake-up is set for when it can. Zone lock held."""
        if usable_free_pages(z) >= report_gate(z, most):
            return True
        z.counters.isolation_refused += 1
        # By the setting, not by `most`: whoever lowers it meanwhile has looked at this zone already, or has yet to.
        z.wake_at = report_gate(z, self.m.engine.max_pages)
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

    # -- reporting: no lock held

    cdef bint call_prepare(self) noexcept nogil:
        if self.no_prepare:
            return True
        with gil:
            try:
                result = self.callbacks.prepare()
                if result is not None and operator.index(result) < 0:
                    raise errors.PageHintError(f"prepare returned {result}")
                return True
            except BaseException as error:
                self.m.engine.prepare_errors += 1
                self.failure(error)
                return False

    cdef bint report(self, uint64_t n, uint64_t session) noexcept nogil:
        """Hand a batch over, no lock held; what failed is marked in `failed`. Returns whether any did."""
        cdef Engine *e = &self.m.engine
        cdef uint64_t i, lost = 0
        cdef int rc
        if self.callbacks.compiled != NULL:
            rc = self.callbacks.compiled(self.batch.blocks, n, self.batch.failed, self.callbacks.user_data)
            if e.session != session:
                return False
            if rc < 0:
                memset(self.batch.failed, 1, n)
            for i in range(n):
                lost += self.batch.failed[i] != 0
            if lost:
                with gil:
                    self.refused_blocks(n, lost, rc)
        else:
            with gil:
                self.call_hint_pages(n, session)
            if e.session != session:
                return False
            for i in range(n):
                lost += self.batch.failed[i] != 0
        engine_lock(e)
        e.reports += 1
        e.report_errors += lost > 0
        engine_unlock(e)
        return lost > 0

    cdef void call_hint_pages(self, uint64_t n, uint64_t session) noexcept:
        cdef cnp.ndarray blocks
        cdef cnp.ndarray taken
        cdef uint64_t i, lost = 0
        try:
            blocks = np.empty(n, _callbacks.BLOCK_DTYPE)
            memcpy(blocks.data, self.batch.blocks, n * sizeof(pagehint_block))
            blocks.flags.writeable = False
            result = self.callbacks.hint_pages(blocks)
            if result is None or result is True or self.m.engine.session != session:
                return
            taken = np.asarray(result)
            if taken.dtype != bool or np.shape(taken) not in ((), (n,)):
                raise TypeError(
                    f"hint_pages must return None or a boolean for each of {n} blocks,"
                    f" not {taken.dtype} of shape {np.shape(taken)}"
                )
            taken = np.ascontiguousarray(np.broadcast_to(taken, (n,)))
            for i in range(n):
                self.batch.failed[i] = not (<uint8_t *> taken.data)[i]
                lost += self.batch.failed[i]
            if lost:
                self.refused_blocks(n, lost, 0)
        except BaseException as error:
            if self.m.engine.session == session:
                memset(self.batch.failed, 1, n)
            self.failure(error)

    cdef void refused_blocks(self, uint64_t n, uint64_t lost, int rc) noexcept:
        cdef uint64_t i = 0
        while not self.batch.failed[i]:
            i += 1
        why = f": {os.strerror(-rc)}" if rc < 0 else ""
        self.failure(errors.PageHintError(
            f"{lost} of {n} blocks were not taken, the first at PFN {self.batch.blocks[i].pfn:#x}"
            f" (order {self.batch.blocks[i].order}, zone {self.memory.specs[self.batch.blocks[i].zone].name}){why}"
        ))

    cdef void call_cleanup(self) noexcept nogil:
        if self.no_cleanup:
            return
        with gil:
            try:
                self.callbacks.cleanup()
            except BaseException as error:
                self.failure(error)

    cdef void failure(self, object error) noexcept:
        """Keep what went wrong, and log it once until a run is clean again."""
        try:
            self.last_error = error
            if not isinstance(error, Exception) and self.m.engine.manual:
                self.interrupts[pthread_self()] = error
                self.interrupted = True
            if not self.burst_logged:
                self.burst_logged = True
                _log.warning("reporting failed, will be tried again: %s", error, exc_info=error)
        except BaseException:
            pass        # a logging handler that raises must not take the worker with it

    # -- off

    def disable(self):
        """No lock is held while anybody waits, so a signal handler may do the same in the middle of it."""
        cdef Engine *e = &self.m.engine
        cdef uint64_t session
        cdef bint on, mine = False
        self.refuse_callback("disable_hinting")
        with nogil:
            engine_lock(e)
            session = e.session
            on = e.enabled
            if on:
                engine_stop(e)
            engine_unlock(e)
            test_point(AT_BEFORE_DISABLE_WAITS)
        while on:
            with nogil:
                engine_lock(e)
                if e.session == session and (e.worker or e.running):
                    sleep_until(&e.settled, &e.mutex, monotonic_ns() + SIGNAL_CHECK)
                on = e.session == session
                mine = on and not e.worker and not e.running
                if mine:
                    # Others wait for this as for a run. No Python code runs before it is over, so what is let go of
                    # lives on until then.
                    engine_claim(e)
                engine_unlock(e)
            if mine:
                thread, _callbacks_gone, _clock_gone = self.thread, self.callbacks, self.clock
                self.thread = self.callbacks = self.clock = None
                with nogil:
                    self.switch_off()
                if thread is not None:
                    thread.join()
                return
            PyErr_CheckSignals()

    cdef void switch_off(self) noexcept nogil:
        cdef Engine *e = &self.m.engine
        cdef PageZone *z
        cdef int i
        for i in range(self.m.nr_zones):
            z = self.m.zones[i]
            lock_acquire(&z.lock, True)
            hint_off(z)
            zone_unlock(z)
        engine_lock(e)
        engine_over(e)
        engine_unlock(e)

    def abandon(self):
        """The allocator is gone: the worker, if there is one, ends by itself and lets go of the callbacks."""
        engine_lock(&self.m.engine)
        engine_stop(&self.m.engine)
        engine_unlock(&self.m.engine)
        self.abandoned = True
        if self.thread is None:
            self.callbacks = None


def _work(HintingEngine engine, uint64_t session):
    """What the worker's thread runs."""
    with nogil:
        engine.work(session)
    if engine.abandoned:
        engine.callbacks = None
