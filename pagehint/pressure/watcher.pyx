# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=False
"""The watcher: a thread that waits for the kernel to say that memory is short, and has everything warm go back then.

It is one native thread in a process, with every signal blocked, and sleeps in poll(2) until one of its files says that
memory may be short (`sources.pxd`). If it is, the limit of each memory that heeds this is nothing until no alarm has come
for QUIET: what is free goes back whatever its age, and runs are not kept (`hinting/limit.pxd`). When it is quiet again
limit and ages are as they were. It looks at most once in BETWEEN_LOOKS, however many events there are. Since what the
kernel says of a cgroup may be two seconds late, it also looks for a while after the last event (`sources.pxd`).

Its descriptors are its own, as those of the thread that populates memory: the rest of the process neither sees nor
closes them, and forked children do not inherit them. A forked child has no watcher until its worker begins.

The watcher never needs the GIL. It holds no lock while it waits, but for its mutex while it looks.
"""
from libc.errno cimport EACCES, EINTR, ENODEV, ENOENT, EOPNOTSUPP, EPERM, EROFS, errno
from libc.stdint cimport int64_t
from pagehint.allocator.fork cimport each_memory
from pagehint.allocator.memory cimport Memory
from pagehint.available_memory cimport Cgroup, cgroup_init
from pagehint.hinting.engine cimport HintingEngine, start_worker
from pagehint.hinting.hinted_zone cimport hints_of
from pagehint.hinting.limit cimport Limit, settle_limit
from pagehint.hinting.look cimport go_by_limit
from pagehint.hinting.queue cimport WorkQueue, queue_lock, queue_unlock
from pagehint.pressure.shortage cimport cgroup_is_short, machine_is_short
from pagehint.pressure.sources cimport (CGROUP_STALLS, MACHINE_STALLS, Source, Sources, sources_alarm, sources_close,
                                        sources_late, sources_late_alarm, sources_left, sources_open, sources_wait)
from pagehint.pressure.watcher cimport Watcher
from pagehint.sync.clock cimport SECOND, monotonic_ns
from pagehint.sync.condition cimport (cond_init, pthread_cond_broadcast, pthread_mutex_init, pthread_mutex_lock,
                                      pthread_mutex_unlock, sleep_until)
from pagehint.sync.lock cimport pthread_t, usleep
from pagehint.sync.thread cimport name_this_thread, own_descriptors, pthread_detach, thread_start
from pagehint.zone.page_alloc cimport Machine
from pagehint.zone.page_sets.run_set cimport run_set_give_up

import os
from typing import NamedTuple

from pagehint import errors
from pagehint.refusals import say_once

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)

cdef enum:
    QUIET = 5                   # seconds: more than two windows of a trigger, which fires once in each
    BETWEEN_LOOKS = 100000      # microseconds
    AGAIN = 500                 # milliseconds between two looks without an event

cdef Watcher watcher            # the process's


# ---- what it does

cdef void go_by_watcher(Machine *m, WorkQueue *q) noexcept nogil:
    """Have a memory keep nothing warm while memory is short, if it heeds that."""
    cdef Limit *limit = <Limit *> hints_of(m.zones[0]).limit
    cdef bint short_now, changed
    cdef int i
    queue_lock(q)
    short_now = watcher.memory_short and q.heeds_pressure
    changed = limit.memory_short != short_now
    limit.memory_short = short_now
    settle_limit(limit)
    queue_unlock(q)
    if changed:
        if short_now:
            for i in range(m.nr_zones):
                run_set_give_up(m.zones[i])
        go_by_limit(limit)


cdef void note_alarm(Watcher *w, bint alarm) noexcept nogil:
    """Memory is short from an alarm on, until none has come for QUIET."""
    cdef int64_t now = monotonic_ns()
    if alarm:
        w.until = now + QUIET * <int64_t>SECOND
        if w.memory_short:
            return
        w.times += 1
    elif not w.memory_short or now < w.until:
        return
    w.memory_short = alarm
    each_memory(go_by_watcher)


cdef int milliseconds_left(const Watcher *w) noexcept nogil:
    """For how long the watcher may wait: for ever, if memory is not short, and what it has last seen is not late."""
    if not w.memory_short:
        return AGAIN if sources_late(&w.sources) else -1
    return max((w.until - monotonic_ns()) // 1000000 + 1, <int64_t>0)


cdef bint watch_sources(Watcher *w) noexcept nogil:
    """Watch what there is, until a source is gone, or poll is refused; whether to look again for what there is."""
    cdef int n = 0, left
    cdef bint alarm
    pthread_mutex_lock(&w.mutex)
    sources_open(&w.sources, "")
    left = sources_left(&w.sources)
    w.opened = True
    pthread_cond_broadcast(&w.settled)
    pthread_mutex_unlock(&w.mutex)
    while left and sources_left(&w.sources) == left:
        n = sources_wait(&w.sources, milliseconds_left(w))
        if n < 0 and errno != EINTR:
            watcher_ends(w, "poll", errno)
            break
        pthread_mutex_lock(&w.mutex)
        alarm = sources_alarm(&w.sources) if n > 0 else sources_late_alarm(&w.sources)
        pthread_mutex_unlock(&w.mutex)
        note_alarm(w, alarm)
        if n > 0:
            usleep(BETWEEN_LOOKS)
    pthread_mutex_lock(&w.mutex)
    sources_close(&w.sources)
    pthread_mutex_unlock(&w.mutex)
    return left > 0 and w.refused == 0


cdef void watcher_ends(Watcher *w, const char *call, int failed) noexcept nogil:
    """There will be no alarm any more, since a call is refused."""
    pthread_mutex_lock(&w.mutex)
    w.refused = failed
    w.call = call
    pthread_cond_broadcast(&w.settled)
    pthread_mutex_unlock(&w.mutex)


cdef void *watch_for_ever(void *arg) noexcept nogil:
    cdef Watcher *w = <Watcher *> arg
    cdef int refused
    name_this_thread("pagehint-watch")
    refused = own_descriptors()
    if refused:
        watcher_ends(w, "close_range", refused)
    else:
        while watch_sources(w):
            usleep(BETWEEN_LOOKS)
    w.until = 0
    note_alarm(w, False)
    return NULL


# ---- its beginning, and forks

cdef void watcher_init(Watcher *w) noexcept nogil:
    """Begin with no thread; also in a forked child, which has none."""
    pthread_mutex_init(&w.mutex, NULL)
    cond_init(&w.settled)
    w.started = w.opened = False
    w.refused = w.sources.n = 0
    w.memory_short = False
    w.times = 0


cdef void watcher_start(Watcher *w) noexcept nogil:
    """Start the thread, if there was none yet. If the kernel has none to give just now, the next call tries again."""
    cdef pthread_t thread
    cdef int failed
    pthread_mutex_lock(&w.mutex)
    if not w.started:
        failed = thread_start(&thread, NULL, watch_for_ever, w)
        w.started = failed == 0
        w.refused = failed
        w.call = "clone"
        if w.started:
            pthread_detach(thread)
    pthread_mutex_unlock(&w.mutex)


cdef int start_both(void *engine) noexcept nogil:
    """As `start_worker`: a forked child has the watcher from the time on when it has a worker. Queue's mutex held."""
    if (<HintingEngine> engine).queue.heeds_pressure:
        watcher_start(&watcher)
    return start_worker(engine)


cdef void forget_shortage(Machine *m, WorkQueue *q) noexcept nogil:
    """As `go_by_watcher`, when memory is not short, in a forked child: nobody is told, which would start a thread."""
    cdef Limit *limit = <Limit *> hints_of(m.zones[0]).limit
    limit.memory_short = False
    settle_limit(limit)


cdef void fork_child() noexcept nogil:
    """Begin anew in a forked child. The list of all memories is usable: its handler has run."""
    watcher_init(&watcher)
    each_memory(forget_shortage)


watcher_init(&watcher)
if pthread_atfork(NULL, NULL, fork_child):
    raise MemoryError("no memory for what a fork needs")


# ---- what Python code sees

class Pressure(NamedTuple):
    """What is known of memory pressure; see `Arena.pressure`.

    Attributes
    ----------
    heeded : bool
        Whether this arena keeps nothing warm while memory is short.
    short : bool
        Whether memory is short now.
    times : int
        How often it has become so in this process, since somebody watches.
    watched : tuple of str
        The files by which the kernel says that memory may be short, as far as they can be had.
    refused : tuple of str
        Those that are not to be had here, each with the reason in words; or why nothing is watched.
    """

    heeded: bool
    short: bool
    times: int
    watched: tuple[str, ...]
    refused: tuple[str, ...]


cdef dict WORDS = {
    ENOENT: "not here: this kernel counts no stalls (PSI), or hides them",
    EOPNOTSUPP: "not here: the kernel counts no stalls (PSI) unless it is started with psi=1",
    EPERM: "not here: this kernel takes triggers from CAP_SYS_RESOURCE only",
    EACCES: "not here: it may not be written to",
    EROFS: "not here: it is mounted read-only",
}


cdef str reason(const Source *one):
    """Why a source cannot be had, in words."""
    name = os.fsdecode(one.name)
    if one.failed == ENODEV:
        return f"{name}: not here: its cgroup is gone"
    if one.failed in (EACCES, EROFS) or one.kind in (CGROUP_STALLS, MACHINE_STALLS) and one.failed in WORDS:
        return f"{name}: {WORDS[one.failed]}"
    return f"{name}: not here: {os.strerror(one.failed)}"


cdef tuple findings(const Sources *s):
    """What is watched, and what is refused."""
    watched, refused = [], []
    for i in range(s.n):
        if s.all[i].fd >= 0:
            watched.append(os.fsdecode(s.all[i].name))
        else:
            refused.append(reason(&s.all[i]))
    return tuple(watched), tuple(refused)


cdef tuple watcher_findings(Watcher *w):
    """As `findings`, of the process's watcher."""
    cdef Sources sources
    cdef bint opened
    cdef int refused
    with nogil:
        pthread_mutex_lock(&w.mutex)
        opened, refused, sources = w.opened, w.refused, w.sources
        pthread_mutex_unlock(&w.mutex)
    if refused:
        return (), (f"nothing is watched: {os.fsdecode(w.call)} is refused ({os.strerror(refused)})",)
    return findings(&sources) if opened else ((), ())


def heed(Memory memory not None, bint on):
    """Have a memory keep nothing warm while memory is short, or not any more, until its session of hinting ends.

    Returns when it is known what can be watched. What cannot costs the feature, which is said once. HintingInactiveError
    if hinting is off.
    """
    cdef WorkQueue *q = &memory.queue
    cdef bint enabled
    cdef int64_t patience = monotonic_ns() + SECOND
    with nogil:
        queue_lock(q)
        enabled = q.enabled
        q.heeds_pressure = on and enabled
        q.start = start_both
        queue_unlock(q)
        if on and enabled:
            watcher_start(&watcher)
            pthread_mutex_lock(&watcher.mutex)
            while not (watcher.opened or watcher.refused) and monotonic_ns() < patience:
                sleep_until(&watcher.settled, &watcher.mutex, patience)
            pthread_mutex_unlock(&watcher.mutex)
        each_memory(go_by_watcher)
    if not enabled:
        raise errors.HintingInactiveError("pressure: hinting is off; enable_hinting comes first")
    if on:
        watched, refused = watcher_findings(&watcher)
        if refused and not watched:
            say_once("the watch for memory pressure", "; ".join(refused), "what is warm goes by its age only")


def pressure_of(Memory memory not None):
    """As `Arena.pressure`."""
    watched, refused = watcher_findings(&watcher)
    return Pressure(bool(memory.queue.heeds_pressure), bool(watcher.memory_short), watcher.times, watched, refused)


def sources_in(root=""):
    """What can be watched, and what is refused, for this process; `root` is the folder that stands for "/"."""
    cdef Sources sources
    cdef bytes folder = os.fsencode(root)
    sources_open(&sources, folder)
    found = findings(&sources)
    sources_close(&sources)
    return found


def shortage_in(root=""):
    """Whether the machine is short of memory, and whether a cgroup of this process is near a limit."""
    cdef Cgroup cgroup
    cdef bytes folder = os.fsencode(root)
    cgroup_init(&cgroup, folder)
    return bool(machine_is_short(folder)), bool(cgroup_is_short(&cgroup))
