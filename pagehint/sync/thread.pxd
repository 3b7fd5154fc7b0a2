"""Threads of our own. They are native: whatever a program has made of `threading`, they are threads.

Every signal is blocked in them from their first instruction on. So a signal goes to a thread of the program, or waits
until one asks for it (sigwait, signalfd, ppoll); it never comes to a thread that the program does not know of.
"""
from libc.errno cimport errno
from libc.limits cimport UINT_MAX
from posix.signal cimport sigset_t
from pagehint.sync.lock cimport pthread_self, pthread_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_attr_t:
        pass
    int pthread_attr_init(pthread_attr_t *)
    int pthread_attr_destroy(pthread_attr_t *)
    int pthread_attr_getstacksize(const pthread_attr_t *, size_t *)
    int pthread_attr_setstacksize(pthread_attr_t *, size_t)
    int pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *) noexcept nogil, void *)
    int pthread_detach(pthread_t)
    int pthread_join(pthread_t, void **)
    int pthread_setname_np(pthread_t, const char *)

cdef extern from "<signal.h>" nogil:
    int SIG_SETMASK
    int sigfillset(sigset_t *)
    int pthread_sigmask(int, const sigset_t *, sigset_t *)

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)


cdef enum:
    # Not all headers have these.
    SYS_CLOSE_RANGE = 436       # of Linux 5.9
    CLOSE_RANGE_UNSHARE = 2
    PYTHON_STACK = 1 << 20      # bytes, at least, for a thread that calls Python: musl's default is an eighth of it


cdef inline int thread_start(pthread_t *thread, pthread_attr_t *attr, void *(*run)(void *) noexcept nogil,
                             void *arg) noexcept nogil:
    """Start a thread; 0, or an errno where the kernel gives none. If `attr` is NULL, the thread may call Python."""
    cdef sigset_t every, before
    cdef pthread_attr_t for_python
    cdef size_t stack
    cdef int failed
    pthread_attr_init(&for_python)
    pthread_attr_getstacksize(&for_python, &stack)
    pthread_attr_setstacksize(&for_python, max(stack, <size_t>PYTHON_STACK))
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, &before)
    failed = pthread_create(thread, &for_python if attr == NULL else attr, run, arg)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    pthread_attr_destroy(&for_python)
    return failed


cdef inline void name_this_thread(const char *name) noexcept nogil:
    """What debuggers and `top` call the thread: at most 15 characters."""
    pthread_setname_np(pthread_self(), name)


cdef inline int own_descriptors() noexcept nogil:
    """Give this thread file descriptors of its own, of which there are none yet; 0, or an errno where that is refused.

    So the files that it opens are never seen, closed or mistaken by the rest of the process, a daemon that closes all of
    them for instance, nor do forked children inherit them.
    """
    return errno if syscall(SYS_CLOSE_RANGE, 0, UINT_MAX, CLOSE_RANGE_UNSHARE) else 0
