"""The thread that watches for memory pressure: `watcher.pyx`."""
from libc.stdint cimport int64_t
from pagehint.pressure.sources cimport Sources
from pagehint.sync.atomic cimport atomic_i32, atomic_u64
from pagehint.sync.condition cimport pthread_cond_t, pthread_mutex_t

cdef struct Watcher:
    pthread_mutex_t mutex       # protects what is not atomic, but for `until`, which is the thread's
    pthread_cond_t settled      # where it is waited for that `opened` or `refused` is set
    bint started                # there is a thread, or there was one
    bint opened                 # what `sources` says holds
    int refused                 # an errno: there is no thread, or not any more,
    const char *call            # because of this call
    Sources sources
    int64_t until               # nanoseconds: memory is short until then, if there is no other alarm
    atomic_i32 memory_short
    atomic_u64 times            # that it has become so
