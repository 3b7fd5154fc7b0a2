# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""Fork: it finds the memories of the process consistent, and leaves parent and child a usable allocator.

A child has only the thread that forked, but all memory as it was, so a lock that another thread holds would stay
locked. Therefore every lock of every memory is taken before the fork, and given back in the parent and in the child.
The child's worker is gone, and blocks that were out with the host are put back. Its hinting is off, but for that of an
arena that is installed for NumPy (`WorkQueue.in_children`).

All of this runs inside fork(2) by pthread_atfork(3). Python's own hooks let other code run in between, which may use an
allocator or be interrupted. The locks are waited for with the GIL held, so no thread may wait for the GIL while it
holds one.
"""
from libc.stdint cimport uint64_t
from libc.string cimport memset
from pagehint.hinting.batch cimport put_back
from pagehint.hinting.queue cimport queue_forked, queue_goes_on, queue_lock, queue_unlock
from pagehint.hinting.watch cimport hint_again, hint_clear, hint_off
from pagehint.sync.lock cimport Lock, lock_acquire, lock_forget_sleepers, lock_init, lock_release
from pagehint.sync.testpoint cimport AT_FORK, test_point
from pagehint.zone.bulk cimport bulk_resume, bulk_stop
from pagehint.zone.page_sets.page_set cimport Pcp, sets_hold, sets_let_go
from pagehint.zone.zone cimport PageZone

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)

cdef Lock records_lock          # protects the list, and is held across a fork
cdef ForkRecord records         # head of the list
cdef uint64_t forks = 0         # that lie between the process that loaded this module and this one


cdef uint64_t forks_so_far() noexcept nogil:
    """A number that is another one in a forked child."""
    return forks


cdef void fork_record_add(ForkRecord *r) noexcept nogil:
    """Add a memory to the list."""
    lock_acquire(&records_lock, True)
    r.prev = &records
    r.next = records.next
    if r.next != NULL:
        r.next.prev = r
    records.next = r
    lock_release(&records_lock)


cdef void fork_record_remove(ForkRecord *r) noexcept nogil:
    """Take a memory off the list, before it is destroyed."""
    lock_acquire(&records_lock, True)
    r.prev.next = r.next
    if r.next != NULL:
        r.next.prev = r.prev
    lock_release(&records_lock)


cdef void each_memory(memory_fn visit) noexcept nogil:
    """Call a function for each memory. Meanwhile none comes or goes, and the process does not fork.

    The function may take locks of zones and the queue's mutex, as a fork does.
    """
    cdef ForkRecord *r
    lock_acquire(&records_lock, True)
    r = records.next
    while r != NULL:
        visit(r.m, r.queue)
        r = r.next
    lock_release(&records_lock)


cdef void zone_stop(PageZone *z, int nr_cpus) noexcept nogil:
    """Take all locks of a zone: those of its page sets, then its own, which is their order."""
    sets_hold(z, nr_cpus, False)
    lock_acquire(&z.lock, True)


cdef void zone_resume(PageZone *z, int nr_cpus) noexcept nogil:
    """Give back what `zone_stop` has taken."""
    lock_release(&z.lock)
    sets_let_go(z, nr_cpus)


cdef void fork_prepare() noexcept nogil:
    """Before the fork: take every lock, in the order that all threads keep, and wait for bulk calls to end."""
    cdef ForkRecord *r
    cdef int i
    test_point(AT_FORK)
    lock_acquire(&records_lock, True)
    r = records.next
    while r != NULL:
        lock_acquire(&r.m.last_resort, True)
        bulk_stop(r.m)
        lock_acquire(&r.m.growing, True)
        for i in range(r.m.nr_zones):
            zone_stop(r.m.zones[i], r.m.nr_cpus)
        queue_lock(r.queue)
        r = r.next


cdef void record_resume(ForkRecord *r) noexcept nogil:
    """Give back what `fork_prepare` has taken, but for the queue's mutex."""
    cdef int i
    for i in range(r.m.nr_zones):
        zone_resume(r.m.zones[i], r.m.nr_cpus)
    lock_release(&r.m.growing)
    bulk_resume(r.m)
    lock_release(&r.m.last_resort)


cdef void fork_parent() noexcept nogil:
    """After the fork, in the parent: give everything back."""
    cdef ForkRecord *r = records.next
    while r != NULL:
        queue_unlock(r.queue)
        record_resume(r)
        r = r.next
    lock_release(&records_lock)


cdef void fork_child() noexcept nogil:
    """After the fork, in the child: forget the threads that are gone, then give everything back.

    Those that waited for a lock are gone, and the worker, perhaps with a batch out. It is put back as failed, since the
    child does not learn what the host has done with it. If hinting goes on here, each zone asks for a pass anew.
    """
    global forks
    cdef ForkRecord *r = records.next
    cdef PageZone *z
    cdef uint64_t granule
    cdef bint goes_on
    cdef int i, cpu
    while r != NULL:
        goes_on = queue_goes_on(r.queue)
        lock_forget_sleepers(&r.m.last_resort)
        lock_forget_sleepers(&r.m.growing)
        for i in range(r.m.nr_zones):
            z = r.m.zones[i]
            lock_forget_sleepers(&z.lock)
            if z.pcp != NULL:
                for cpu in range(r.m.nr_cpus):
                    lock_forget_sleepers(&(<Pcp *> z.pcp + cpu).lock.lock)
            if not goes_on:
                granule = 0
                hint_clear(z, &granule, z.nr_granules)
                hint_off(z)
        if r.batch.n:
            memset(r.batch.failed, 1, r.batch.n)
            put_back(r.batch.zone, r.batch.blocks, r.batch.n, r.batch.failed)
            r.batch.n = 0
        queue_forked(r.queue, goes_on)
        for i in range(r.m.nr_zones):
            hint_again(r.m.zones[i])
        record_resume(r)
        r = r.next
    forks += 1
    lock_forget_sleepers(&records_lock)
    lock_release(&records_lock)


lock_init(&records_lock)
if pthread_atfork(fork_prepare, fork_parent, fork_child):
    raise MemoryError("no memory for what a fork needs")
