"""A lock biased to the thread that took it last, which takes it again without an atomic operation.

A per-CPU page set is nearly always used by one thread for a while: the one that runs there. Anybody else takes the
ordinary lock inside, ends the bias, and lets a heavy barrier make sure that the owner either sees that or is seen inside.
After the idea of biased locking (Kawachiya, Koseki, Onodera, OOPSLA 2002), made safe with membarrier(2).
"""
from libc.stdint cimport int32_t, uint64_t
from pagehint._atomic cimport (ACQUIRE, RELAXED, RELEASE, cpu_relax, likely, load64, load_i32, store64, store_i32,
                               thread_pointer)
from pagehint._barrier cimport heavy_barrier, light_barrier
from pagehint._lock cimport Lock, lock_acquire, lock_init, lock_release

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    BIAS_LOOKS = 256            # at an owner inside, before letting others run: it may have lost its CPU there

cdef struct BiasedLock:         # 64 bytes
    uint64_t owner              # the thread it is biased to, or 0; changed with `lock` held
    int32_t inside              # the owner is, by its bias
    int32_t spare
    Lock lock


cdef inline void bias_init(BiasedLock *b) noexcept nogil:
    b.owner = 0
    b.inside = False
    lock_init(&b.lock)


cdef inline bint bias_revoke(BiasedLock *b, bint may_block) noexcept nogil:
    """Take it the long way. Ends with the ordinary lock held, nobody's bias, and nobody inside."""
    cdef int looks = 0
    if not lock_acquire(&b.lock, may_block):
        return False
    if b.owner:
        store64(&b.owner, 0, RELAXED)
        heavy_barrier()
    while load_i32(&b.inside, ACQUIRE):
        looks += 1
        if looks < BIAS_LOOKS:
            cpu_relax()
        elif may_block:
            sched_yield()
        else:
            lock_release(&b.lock)
            return False
    return True


cdef inline bint bias_acquire(BiasedLock *b, bint may_block) noexcept nogil:
    """Take the lock. With `may_block` false (the caller holds the GIL) give up rather than wait, and say so."""
    cdef uint64_t me = <uint64_t>thread_pointer()
    if likely(load64(&b.owner, RELAXED) == me):
        store_i32(&b.inside, True, RELAXED)
        light_barrier()
        if likely(load64(&b.owner, ACQUIRE) == me):
            return True
        store_i32(&b.inside, False, RELEASE)
    return bias_revoke(b, may_block)


cdef inline void bias_release(BiasedLock *b, bint keep) noexcept nogil:
    """Give it back; with `keep`, biased to this thread."""
    if likely(b.inside):
        store_i32(&b.inside, False, RELEASE)
        return
    if keep:
        store64(&b.owner, <uint64_t>thread_pointer(), RELEASE)
    lock_release(&b.lock)
