"""Populating ahead: a thread makes memory resident that was given back, just before the owner writes to it.

The owner is the thread that has just allocated the memory. The kernel zeroes a granule in about the time in which NumPy
fills it. So memory that goes back early would halve the speed of an owner that needs it again, unless another CPU zeroes it
meanwhile.

The populating thread follows the owner, as the readahead of a file does, by windows of cold granules:

    P ........  P ................  P ................................  P ...      P  a probe, left to the owner
    ^             ~~~~~~~~~~~~~~~~                                                 .  populated ahead
    the owner     populated now

A window is a probe and the cold granules after it: 8, then 16, then 32 each time. When a probe is resident, the owner has
come to its window, and the next window is populated. That is one window ahead of the owner, since two threads that fault in
the same granule take turns, and gain nothing.

The first window is populated at once, before its probe is resident, if the last array that was followed was written to, as
nearly all are. So an array that is never touched costs 16 MiB, and those after it nothing. One that is touched in part costs
what was populated ahead, up to 128 MiB.

A window is at most a thirty-second part of what is left: of the machine's memory, and of what the cgroup of this process
and those above it allow (`pagehint/available_memory.pxd`). The thread looks before each window, and where less than 1 GiB
is left before each granule. With less than 64 MiB left, or if that cannot be known, nothing is populated: the owner
may never need it, and near a limit the kernel ends the process. What the owner itself faults in is safe: where a huge page
would go over a limit, the kernel takes small ones.

There is one such thread in a process. It follows one allocation at a time, the one with most left to write; the owners of
others fault their pages in themselves. On machines with several NUMA nodes the memory may come from the node of the
populating thread.
"""
from libc.errno cimport EAGAIN, EINVAL, ENOSYS, EPERM, errno
from libc.stdint cimport int64_t, uint64_t
from posix.mman cimport madvise
from pagehint.arena.resident cimport mincore
from pagehint.available_memory cimport Cgroup, cgroup_init, memory_left
from pagehint.sync.atomic cimport RELAXED, atomic_i32, fetch_add64
from pagehint.sync.clock cimport NEVER, monotonic_ns
from pagehint.sync.condition cimport (cond_init, pthread_cond_broadcast, pthread_cond_signal, pthread_cond_t,
                                      pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
                                      sleep_until)
from pagehint.sync.lock cimport pthread_t
from pagehint.sync.thread cimport (name_this_thread, own_descriptors, pthread_attr_destroy, pthread_attr_init,
                                   pthread_attr_t, thread_start)
from pagehint.zone.zeroed cimport Zeroed, was_zeroed
from pagehint.zone.zone cimport PageZone

cdef extern from "<sched.h>" nogil:
    ctypedef struct cpu_set_t:
        pass
    int sched_getaffinity(int pid, size_t, cpu_set_t *)
    int CPU_COUNT(const cpu_set_t *)

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from "<pthread.h>" nogil:
    int PTHREAD_EXPLICIT_SCHED      # SCHED_OTHER
    int PTHREAD_CREATE_DETACHED
    int pthread_attr_setinheritsched(pthread_attr_t *, int)
    int pthread_attr_setdetachstate(pthread_attr_t *, int)
    int pthread_setaffinity_np(pthread_t, size_t, const cpu_set_t *)

cdef enum:
    # Not all headers have these.
    POPULATE_WRITE = 23         # MADV_POPULATE_WRITE, of Linux 5.14
    FIRST_WINDOW = 8            # granules; each is twice as large as the one before it
    LAST_WINDOW = 32
    LOOK_AGAIN = 100000         # nanoseconds between looks at a probe: less than the time in which a granule is filled
    PATIENCE_EACH = 1000000     # nanoseconds to wait for the owner at a probe: this for each granule since the last probe,
    PATIENCE_GRANULES = 20      # and for so many more,
    PATIENCE_MOST = 1000000000  # but in all no more than this
    GRANULE_PAGES = 512         # at most
    SHARE = 32                  # a window is at most this part of the memory that is left
    SCARCE = 1 << 30            # bytes: if less is left, look before each granule

cdef struct Populator:
    pthread_mutex_t mutex
    pthread_cond_t wake         # the populating thread waits here
    pthread_cond_t settled      # a thread that frees waits here until its granule is populated
    bint started                # there is a thread
    bint refused                # there will be none: there is one CPU, or the kernel cannot populate
    int denied                  # an errno, if a sandbox refuses it: to be said once
    atomic_i32 active           # there may be an allocation, or a granule being populated
    atomic_i32 trusting         # the last allocation that was followed was written to
    # The allocation that is followed; if `end` is 0, there is none. Granules are numbered from the mapping's beginning. The
    # first and the last may belong to the allocation in part only.
    uint64_t job                # a new number with each
    const char *start
    bint seen                   # its owner has touched a probe
    char *base
    int shift
    uint64_t pages              # of a granule
    const Zeroed *zeroed        # its notes say which granules are cold
    uint64_t probe              # the first of the window
    uint64_t at                 # the window is populated up to here
    uint64_t next               # the window ends here
    uint64_t checked            # up to here there is memory to populate it
    uint64_t end
    uint64_t window             # cold granules of the next one, besides its probe
    uint64_t last               # the probe before this one, or the first granule
    uint64_t *populated         # bytes
    int64_t give_up             # until when to wait for the probe; 0: not waiting yet
    char *busy                  # the granule that is being populated, or looked at, without the mutex
    char *busy_end
    Cgroup cgroup               # which the populating thread alone uses


cdef inline void populator_init(Populator *p) noexcept nogil:
    """Begin with no thread; also in a forked child, which has none."""
    pthread_mutex_init(&p.mutex, NULL)
    cond_init(&p.wake)
    cond_init(&p.settled)
    p.started = p.refused = p.active = p.trusting = False
    p.denied = 0
    p.probe = p.end = 0
    p.busy = p.busy_end = NULL
    cgroup_init(&p.cgroup, "")


cdef inline void drop_job(Populator *p) noexcept nogil:
    p.probe = p.end = 0
    p.job += 1


cdef inline uint64_t next_cold(const Zeroed *zeroed, uint64_t granule, uint64_t end) noexcept nogil:
    """The first cold granule from here on, or the end."""
    while granule < end and not was_zeroed(zeroed, granule):
        granule += 1
    return granule


cdef inline void open_window(Populator *p) noexcept nogil:
    """Make the next cold granules, as many as a window has, those to populate. Mutex held."""
    cdef uint64_t _i
    p.at = p.next
    p.checked = 0
    for _i in range(p.window):
        p.next = min(next_cold(p.zeroed, p.next, p.end) + 1, p.end)
    p.window = min(2 * p.window, <uint64_t>LAST_WINDOW)


cdef inline void next_window(Populator *p) noexcept nogil:
    """Go on to the next window, since the owner has come to this one. Mutex held."""
    p.seen = p.trusting = True
    p.last = p.probe
    p.give_up = 0
    p.probe = next_cold(p.zeroed, p.next, p.end)
    if p.probe >= p.end:
        drop_job(p)
        return
    p.next = p.probe + 1
    open_window(p)


cdef inline void wait_for_owner(Populator *p) noexcept nogil:
    """Wait a while for the owner, which has not touched the probe yet, or give up. Mutex held."""
    cdef int64_t now = monotonic_ns()
    if p.give_up == 0:
        p.give_up = now + min(<int64_t>(p.probe - p.last + PATIENCE_GRANULES) * PATIENCE_EACH, <int64_t>PATIENCE_MOST)
    if now >= p.give_up:
        p.trusting = p.seen
        drop_job(p)
        return
    sleep_until(&p.wake, &p.mutex, now + LOOK_AGAIN)


cdef inline void check_memory(Populator *p) noexcept nogil:
    """Shorten the rest of the window to a small share of the memory that is left. Mutex held, released meanwhile."""
    cdef uint64_t job = p.job, left, share, end = p.at
    pthread_mutex_unlock(&p.mutex)
    left = memory_left(&p.cgroup)
    pthread_mutex_lock(&p.mutex)
    if p.job != job:
        return
    share = (left // SHARE) >> p.shift
    if share == 0:
        drop_job(p)
        return
    while share and end < p.next:
        end = next_cold(p.zeroed, end, p.next) + 1
        share -= 1
    p.next = min(p.next, end)
    p.checked = p.at + 1 if left < SCARCE else p.next


cdef inline void populate_granule(Populator *p) noexcept nogil:
    """Populate one more granule of the window, or see whether the owner has come to it. Mutex held, released meanwhile."""
    cdef uint64_t granule, job = p.job, last = p.pages - 1
    cdef size_t size = <size_t>1 << p.shift
    cdef unsigned char present[GRANULE_PAGES]
    cdef uint64_t *populated = p.populated
    cdef int failed
    cdef bint probe
    p.at = next_cold(p.zeroed, p.at, p.next)
    probe = p.at >= p.next
    if not probe and p.at >= p.checked:
        check_memory(p)
        return
    granule = p.probe if probe else p.at
    p.busy = p.base + (granule << p.shift)
    p.busy_end = p.busy + size
    pthread_mutex_unlock(&p.mutex)
    failed = errno if mincore(p.busy, size, present) else 0
    if not probe and not present[0] & 1 and not failed:
        failed = errno if madvise(p.busy, size, POPULATE_WRITE) else 0
    pthread_mutex_lock(&p.mutex)
    p.busy = p.busy_end = NULL
    pthread_cond_broadcast(&p.settled)
    if failed == EPERM or failed == ENOSYS:
        p.denied = failed
    p.refused |= failed == EINVAL or p.denied != 0
    # The count is still there, even if the allocation is being freed: a thread that frees waits for the mutex.
    if not probe and not failed and not present[0] & 1:
        fetch_add64(populated, size, RELAXED)
    if p.job != job:
        return
    # A granule that is resident in part has small pages, because the kernel had no huge page for it. Then no more of this
    # allocation is populated, and the next one gets no first window at once.
    if failed or (present[0] & 1) != (present[last] & 1):
        p.trusting = False
        drop_job(p)
    elif not probe:
        p.at += 1
    elif present[0] & 1:
        next_window(p)
    else:
        wait_for_owner(p)


cdef inline void *populate_for_ever(void *arg) noexcept nogil:
    cdef Populator *p = <Populator *> arg
    cdef bint unshared
    name_this_thread("pagehint-ahead")
    unshared = own_descriptors() == 0
    pthread_mutex_lock(&p.mutex)
    p.refused |= not unshared
    while True:
        if p.refused:
            drop_job(p)
        if p.end:
            populate_granule(p)
        else:
            p.active = False
            sleep_until(&p.wake, &p.mutex, NEVER)


cdef inline bint populator_start(Populator *p) noexcept nogil:
    """Start the thread, if it can be; returns whether it runs. Mutex held.

    It serves the whole process, so it runs on the main thread's CPUs and with the default policy: the thread that needs it
    first may be bound to one CPU, or have another policy.
    """
    cdef pthread_t thread
    cdef pthread_attr_t attr
    cdef cpu_set_t cpus
    cdef int failed = 0
    cdef bint known
    if p.started or p.refused:
        return p.started and not p.refused
    pthread_attr_init(&attr)
    pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED)
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED)
    # Fails if the machine has more CPUs than a cpu_set_t has room for. Then there is more than one, and nothing to refuse.
    known = sched_getaffinity(getpid(), sizeof(cpus), &cpus) == 0
    p.refused = known and CPU_COUNT(&cpus) == 1     # the thread would take the owner's time
    if not p.refused:
        failed = thread_start(&thread, &attr, populate_for_ever, p)
        if failed == EPERM or failed == ENOSYS:     # the policy, perhaps: then as this thread has it
            pthread_attr_destroy(&attr)
            pthread_attr_init(&attr)
            pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED)
            failed = thread_start(&thread, &attr, populate_for_ever, p)
        p.started = failed == 0
        p.denied = failed if failed != EAGAIN else 0
        p.refused = p.denied != 0
    pthread_attr_destroy(&attr)
    if p.started and known:
        pthread_setaffinity_np(thread, sizeof(cpus), &cpus)
    return p.started


cdef inline void populate_ahead(Populator *p, char *base, int page_shift, const PageZone *z, uint64_t page, uint64_t n,
                                uint64_t *populated) noexcept nogil:
    """Follow the owner of these pages, which has just allocated them and is about to write, until `populate_end`.

    `p` may be NULL: nothing is populated. O(granules) looks at bits.
    """
    cdef uint64_t end = ((page + n - 1) >> z.min_order) + 1, cold, second
    cdef bint window
    if p == NULL:
        return
    cold = next_cold(z.zeroed, page >> z.min_order, end)
    second = next_cold(z.zeroed, cold + 1, end)
    # The first cold granule is a probe. If no window is populated at once, the second is the next probe. Without a granule
    # after these there is nothing to populate.
    if second >= end or not p.trusting and next_cold(z.zeroed, second + 1, end) >= end:
        return
    pthread_mutex_lock(&p.mutex)
    if p.end - p.probe <= end - cold and populator_start(p):
        # No window at once, if the last allocation that got one has not been touched yet.
        window = p.trusting and (p.end == 0 or p.seen)
        p.job += 1
        p.start = base + (page << page_shift)
        p.seen = False
        p.base = base
        p.shift = page_shift + z.min_order
        p.pages = <uint64_t>1 << z.min_order
        p.zeroed = z.zeroed
        p.last = page >> z.min_order
        p.probe = cold
        p.at = p.next = cold + 1
        p.end = end
        p.window = FIRST_WINDOW
        if window:
            open_window(p)
        p.populated = populated
        p.give_up = 0
        p.active = True
        pthread_cond_signal(&p.wake)
    pthread_mutex_unlock(&p.mutex)


cdef inline void populate_end(Populator *p, char *start, size_t nr_bytes) noexcept nogil:
    """Populate none of this memory from now on, since it is about to be freed; `start` is as in `populate_ahead`.

    May wait until one granule was populated.
    """
    cdef unsigned char present[GRANULE_PAGES]
    if p == NULL or not p.active:
        return
    pthread_mutex_lock(&p.mutex)
    if p.end and p.start == start:
        # The owner may have written and freed it before the thread has looked at the probe.
        if p.trusting and not p.seen:
            p.trusting = (mincore(p.base + (p.probe << p.shift), <size_t>1 << p.shift, present) == 0
                          and present[0] & present[p.pages - 1] & 1)
        drop_job(p)
    while p.busy < start + nr_bytes and start < p.busy_end:
        sleep_until(&p.settled, &p.mutex, NEVER)
    pthread_mutex_unlock(&p.mutex)
