"""An asymmetric memory barrier: free for the side that passes it all the time, a system call for the other side.

``light_barrier()`` in one thread and ``heavy_barrier()`` in another order the threads' accesses as two full fences
would: if each thread stores, passes its barrier, and then loads what the other one stored, at least one sees the
other's store. The heavy side has the kernel make every running thread of the process pass a fence (membarrier(2),
which liburcu was the first to use so). Where the kernel cannot, the light side is a fence itself.

ThreadSanitizer knows neither barriers nor fences. It need not, since a barrier here only decides which of two threads
sees the other. The data that a lock protects are ordered by release and acquire operations, on the lock's `word` or
on a thread's record, which ThreadSanitizer does know. It would report data that nothing but a barrier orders. Under
ThreadSanitizer the light side is a fence all the same.
"""

cdef extern from *:
    """
    #include <linux/membarrier.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static int ph_fence_needed = 1;     /* until the kernel has accepted the registration */

    __attribute__((constructor)) static void ph_barrier_register(void)
    {
        long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
        if (commands > 0 && (commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED)
            && syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0)
            ph_fence_needed = 0;
    }

    #ifdef __SANITIZE_THREAD__
    #pragma GCC diagnostic ignored "-Wtsan"
    #define PH_LIGHT_BARRIER() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #else
    #define PH_LIGHT_BARRIER() \\
        (__builtin_expect(ph_fence_needed, 0) ? __atomic_thread_fence(__ATOMIC_SEQ_CST) \\
                                              : __atomic_signal_fence(__ATOMIC_SEQ_CST))
    #endif

    static void ph_heavy_barrier(void)
    {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0 || ph_fence_needed)
            return;
        ph_barrier_register();          /* a forked child may have to register again */
        if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0)) {
            perror("pagehint: membarrier");
            abort();                    /* the light side is no fence here, so nothing would order the two */
        }
    }
    """
    void light_barrier "PH_LIGHT_BARRIER" () noexcept nogil
    void heavy_barrier "ph_heavy_barrier" () noexcept nogil
