"""Threads of our own. They are native: whatever a program has made of `threading`, they are threads.

Every signal is blocked in them from their first instruction on. So a signal goes to a thread of the program, or waits
until one asks for it (sigwait, signalfd, ppoll); it never comes to a thread that the program does not know of.
"""
from posix.signal cimport sigset_t
from pagehint.sync.lock cimport pthread_self, pthread_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_attr_t:
        pass
    int pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *) noexcept nogil, void *)
    int pthread_detach(pthread_t)
    int pthread_join(pthread_t, void **)
    int pthread_setname_np(pthread_t, const char *)

cdef extern from "<signal.h>" nogil:
    int SIG_SETMASK
    int sigfillset(sigset_t *)
    int pthread_sigmask(int, const sigset_t *, sigset_t *)


cdef inline int thread_start(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *) noexcept nogil,
                             void *arg) noexcept nogil:
    """Start a thread; 0, or an errno where the kernel gives none. `attr` may be NULL."""
    cdef sigset_t every, before
    cdef int failed
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, &before)
    failed = pthread_create(thread, attr, run, arg)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    return failed


cdef inline void name_this_thread(const char *name) noexcept nogil:
    """What debuggers and `top` call the thread: at most 15 characters."""
    pthread_setname_np(pthread_self(), name)
