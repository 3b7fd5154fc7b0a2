"""The zone lock: spins briefly, then sleeps; counts how often it was taken and how often it was contended.

Rules (checked by assertion in a debug build):
* It is held only inside ``noexcept nogil`` functions, so nobody can wait for the GIL, raise, or
  call back while holding it.
* A per-CPU page set's lock is taken before a zone's lock, never after; two zones' locks are never
  held at once, except across ``fork``, in ascending order.
"""
from libc.stdint cimport uint64_t
from pagehint._atomic cimport PH_ASSERT, PH_DEBUG, cpu_relax

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    ctypedef unsigned long pthread_t
    int pthread_mutex_init(pthread_mutex_t *, const pthread_mutexattr_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_trylock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    pthread_t pthread_self()

cdef enum:
    # About two microseconds of pauses: longer than almost every critical section, far shorter than a time slice.
    LOCK_SPINS = 60

cdef struct Lock:
    pthread_mutex_t mutex
    uint64_t acquired       # times taken; written only by the holder
    uint64_t contended      # of those, how often somebody else held it first
    pthread_t owner         # debug build only: who holds it


cdef inline void lock_init(Lock *lk) noexcept nogil:
    pthread_mutex_init(&lk.mutex, NULL)
    lk.acquired = 0
    lk.contended = 0
    lk.owner = 0


cdef inline void lock_destroy(Lock *lk) noexcept nogil:
    pthread_mutex_destroy(&lk.mutex)


cdef inline void lock_taken(Lock *lk) noexcept nogil:
    lk.acquired += 1
    if PH_DEBUG:
        lk.owner = pthread_self()


cdef inline bint lock_acquire(Lock *lk, bint may_block) noexcept nogil:
    """Take the lock. With `may_block` false (the caller holds the GIL) give up rather than wait, and say so."""
    cdef int spin
    if pthread_mutex_trylock(&lk.mutex) == 0:
        lock_taken(lk)
        return True
    if not may_block:
        return False
    for spin in range(LOCK_SPINS):
        cpu_relax()
        if spin & 7 == 7 and pthread_mutex_trylock(&lk.mutex) == 0:
            lock_taken(lk)
            lk.contended += 1
            return True
    pthread_mutex_lock(&lk.mutex)
    lock_taken(lk)
    lk.contended += 1
    return True


cdef inline void lock_release(Lock *lk) noexcept nogil:
    if PH_DEBUG:
        PH_ASSERT(lk.owner == pthread_self())
        lk.owner = 0
    pthread_mutex_unlock(&lk.mutex)


cdef inline void assert_held(Lock *lk) noexcept nogil:
    """State, and in a debug build check, that the calling thread holds the lock."""
    if PH_DEBUG:
        PH_ASSERT(lk.owner == pthread_self())
