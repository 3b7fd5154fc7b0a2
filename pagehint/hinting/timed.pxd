"""Passes by a clock that somebody sets: each is run at the time at which it is due, whoever asks for it, and when.

So a program, or a replay, goes from one event to the next, and what happens does not depend on how fast it is. While a
thread drives the clock, no other thread may, and a callable clock is not called.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int64_t
from pagehint.hinting.engine cimport HintingEngine
from pagehint.hinting.queue cimport WorkQueue, queue_lock, queue_next, queue_now, queue_set_time, queue_unlock
from pagehint.sync.clock cimport NEVER, SECOND

cdef enum:
    MOST_AT_ONCE = 64           # passes at one time, since a callback may make another due each time


cdef inline int64_t due_at(WorkQueue *q) noexcept nogil:
    """When the next pass is due, in nanoseconds: now, or later; INT64_MAX: nothing is waited for."""
    cdef int64_t due = NEVER
    queue_lock(q)
    if q.enabled and not q.stopping:
        due = queue_next(q)
    queue_unlock(q)
    return INT64_MAX if due == NEVER else max(due, queue_now(q))


cdef inline int run_due(HintingEngine engine, int64_t until) except -1:
    """Run each pass that is due by then, on this thread, at the time at which it is due; return how many."""
    cdef WorkQueue *q = engine.queue
    cdef int64_t due = due_at(q)
    cdef int passes = 0, at_once = 0
    while due <= until and at_once < MOST_AT_ONCE:
        at_once = at_once + 1 if due == queue_now(q) else 1
        queue_set_time(q, due)
        if not engine.pass_manually(False):
            break
        passes += 1
        PyErr_CheckSignals()
        due = due_at(q)
    return passes


cdef inline int drive(HintingEngine engine, str what) except -1:
    """Have this thread set the time until it says `q.driven = False`."""
    cdef WorkQueue *q = engine.queue
    from pagehint import errors
    engine.require_hinting(what)
    engine.refuse_callback(what)
    if not q.manual:
        raise errors.PageHintError(f"{what} is for workqueue='manual'; here the worker's thread runs the work")
    if not q.injected_clock:
        raise errors.PageHintError(f"{what} sets the time; here it is the monotonic clock's, since there is no clock=")
    if q.driven:
        raise errors.PageHintError(f"{what}: another thread drives the clock, in run_until or a replay")
    q.driven = True
    return 0


cdef inline int run_until(HintingEngine engine, int64_t until) except -1:
    """As `PageAllocator.run_until`."""
    cdef WorkQueue *q = engine.queue
    cdef int passes
    engine.tick()
    drive(engine, "run_until")
    try:
        if until < queue_now(q):
            raise ValueError(f"run_until: it is {queue_now(q) / <double>SECOND} already, and time does not go back")
        passes = run_due(engine, until)
        queue_set_time(q, until)
    finally:
        q.driven = False
    return passes
