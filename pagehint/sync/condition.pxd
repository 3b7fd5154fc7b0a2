"""Mutexes and condition variables of the C library, for threads that sleep until there is work or it is done.

Every timeout is a moment of the monotonic clock. What an allocation or a free takes is a `Lock` (`lock.pxd`) instead.
"""
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, timespec
from pagehint.sync.clock cimport NEVER, SECOND

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, const pthread_mutexattr_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_condattr_init(pthread_condattr_t *)
    int pthread_condattr_setclock(pthread_condattr_t *, int)
    int pthread_cond_init(pthread_cond_t *, const pthread_condattr_t *)
    int pthread_cond_signal(pthread_cond_t *)
    int pthread_cond_broadcast(pthread_cond_t *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *)
    int PTHREAD_CANCEL_DISABLE
    int pthread_setcancelstate(int state, int *former)

cdef inline void cond_init(pthread_cond_t *cond) noexcept nogil:
    """Initialise a condition variable whose timeouts are moments of the monotonic clock."""
    cdef pthread_condattr_t attr
    pthread_condattr_init(&attr)
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC)
    pthread_cond_init(cond, &attr)


cdef inline void sleep_until(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t until) noexcept nogil:
    """Sleep until signalled or until the moment `until`; NEVER is no timeout. Mutex held.

    May return without either, as POSIX allows: the caller looks again at what it waits for. A thread is not cancelled here:
    it has come from a free, say, and the mutex would stay locked.
    """
    cdef timespec ts
    cdef int former
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &former)
    if until == NEVER:
        pthread_cond_wait(cond, mutex)
    else:
        ts.tv_sec = until // SECOND
        ts.tv_nsec = until % SECOND
        pthread_cond_timedwait(cond, mutex, &ts)
    pthread_setcancelstate(former, NULL)
