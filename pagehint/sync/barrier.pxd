"""An asymmetric memory barrier: nothing for the side that runs all the time, a system call for the one that seldom does.

``light_barrier()`` in one thread and ``heavy_barrier()`` in another order their accesses as two full fences would. The
kernel makes every running thread of the process pass a fence (membarrier(2), which liburcu was the first to use so);
where it cannot, the light side has to be a fence itself.

ThreadSanitizer sees neither, nor any fence. It need not: a barrier here only decides who of two sees the other. Whatever
a lock protects is ordered by the release and the acquire of its `word`, or of a thread's record, which it does see. So
it would find data that only a barrier ordered, and under it the light side is a fence all the same.
"""

cdef extern from *:
    """
    #include <linux/membarrier.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static int ph_fence_needed = 1;     /* until membarrier has been seen to work */

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
        ph_barrier_register();          /* a forked child may have to register anew */
        if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0)) {
            perror("pagehint: membarrier");
            abort();                    /* the light side relies on it */
        }
    }
    """
    void light_barrier "PH_LIGHT_BARRIER" () noexcept nogil
    void heavy_barrier "ph_heavy_barrier" () noexcept nogil
