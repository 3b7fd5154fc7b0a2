"""An asymmetric memory barrier: free for the side that passes it all the time, a system call for the other side.

``light_barrier()`` in one thread and ``heavy_barrier()`` in another order the threads' accesses as two full fences
would: if each thread stores, passes its barrier, and then loads what the other one stored, at least one sees the
other's store. The heavy side has the kernel make every running thread of the process pass a fence (membarrier(2),
which liburcu was the first to use so). Where the kernel does not, the light side is a fence itself.

The two meet at a lock, and the lock has the word that says whether its light side is a fence: `fences`, from
`fences_at_first()` on. It is not the module's: several modules use the same lock, also those of other packages that are
compiled against these files, and each has its own copy of this code. What one of them learns, all see.

From one day on the kernel may refuse (a filter of system calls). A heavy side that finds this out switches the fences
of its lock on, and waits for PH_STORES_SETTLE once, in place of the barrier that it did not get. This is sound if a
processor makes each store visible in less time than that, as in the bounded TSO model (Morrison and Afek, "Temporally
bounding TSO for fence-free asymmetric synchronization", ASPLOS 2015). A store buffer holds some dozens of stores, each
of which takes at most microseconds. Say the heavy side has stored X, switches the fences on, and waits; a light side
stores Y, looks at `fences`, and loads X.

* The light side finds the fences on: then it passes a fence, as the heavy side does.
* It finds them off, and X as it was: then it had the old X before X became visible, and Y was issued before that. At
  the end of the wait Y is visible, and the heavy side sees it.
* It finds them off, and loads X late, after it was preempted perhaps. A switch of threads is a fence in the kernel, so
  Y is visible before it, and the load comes after it. An interrupt or a virtual machine's exit discards what has not
  retired, and what has retired drains meanwhile.

So after one such wait, every light side that found the fences off has its store visible; later ones are fences. A heavy
side that comes then needs a fence and no wait: `fences` is FENCES_SETTLED.

ThreadSanitizer knows neither barriers nor fences. It need not, since a barrier here only decides which of two threads
sees the other. The data that a lock protects are ordered by release and acquire operations, on the lock's `word` or
on a thread's record, which ThreadSanitizer does know. It would report data that nothing but a barrier orders. Under
ThreadSanitizer the light side is a fence all the same.
"""
from libc.stdint cimport int32_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    enum { PH_NO_FENCES, PH_FENCES_ON, PH_FENCES_SETTLED };

    /* Of the kernel's interface, which never changes. Its headers are a package of their own where musl is the libc. */
    enum {
        PH_MEMBARRIER_QUERY = 0,
        PH_MEMBARRIER_PRIVATE_EXPEDITED = 1 << 3,
        PH_MEMBARRIER_REGISTER_PRIVATE_EXPEDITED = 1 << 4,
    };

    #define PH_STORES_SETTLE 2000000        /* nanoseconds: more than a thousand times what a store takes */

    static int32_t ph_fences_at_first = PH_FENCES_SETTLED;      /* until the kernel has accepted the registration */

    static int ph_barrier_register(void)
    {
        long commands = syscall(SYS_membarrier, PH_MEMBARRIER_QUERY, 0, 0);
        return commands > 0 && (commands & PH_MEMBARRIER_PRIVATE_EXPEDITED)
               && syscall(SYS_membarrier, PH_MEMBARRIER_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
    }

    __attribute__((constructor)) static void ph_barrier_load(void)
    {
        if (ph_barrier_register())
            ph_fences_at_first = PH_NO_FENCES;
    }

    #ifdef __SANITIZE_THREAD__
    #pragma GCC diagnostic ignored "-Wtsan"
    #define PH_LIGHT_BARRIER(fences) __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #else
    #define PH_LIGHT_BARRIER(fences) \\
        (__builtin_expect(__atomic_load_n(fences, __ATOMIC_RELAXED), 0) ? __atomic_thread_fence(__ATOMIC_SEQ_CST) \\
                                                                        : __atomic_signal_fence(__ATOMIC_SEQ_CST))
    #endif

    static int64_t ph_barrier_clock(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
    }

    /* Wait until every store that was issued before is visible. Spins where the kernel lets nobody sleep. */
    static void ph_stores_settle(void)
    {
        int64_t end = ph_barrier_clock() + PH_STORES_SETTLE;
        struct timespec pause = {0, PH_STORES_SETTLE};
        while (ph_barrier_clock() < end)
            nanosleep(&pause, NULL);
    }

    static int ph_barrier_expedited(void)
    {
        return syscall(SYS_membarrier, PH_MEMBARRIER_PRIVATE_EXPEDITED, 0, 0) == 0;
    }

    __attribute__((noinline, cold)) static void ph_heavy_barrier(int32_t *fences)
    {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (__atomic_load_n(fences, __ATOMIC_ACQUIRE) == PH_FENCES_SETTLED)
            return;
        /* Refused: a forked child may have to register again. */
        if (ph_barrier_expedited() || (ph_barrier_register() && ph_barrier_expedited()))
            return;
        __atomic_store_n(fences, PH_FENCES_ON, __ATOMIC_SEQ_CST);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        ph_stores_settle();
        __atomic_store_n(fences, PH_FENCES_SETTLED, __ATOMIC_SEQ_CST);
    }
    """
    int32_t fences_at_first "ph_fences_at_first"                        # of a lock's `fences`
    void light_barrier "PH_LIGHT_BARRIER" (int32_t *fences) noexcept nogil
    void heavy_barrier "ph_heavy_barrier" (int32_t *fences) noexcept nogil
