"""The zone lock. It spins briefly, then sleeps; it counts how often it was taken and contended, and the longest wait.

Rules:
* It is held only inside ``noexcept nogil`` functions: its holder cannot wait for the GIL, raise, or call back.
* A page set's lock is taken before its zone's lock, never after it. The locks of two zones are never held at once,
  except by a fork, which takes them in ascending order.
* A debug build asserts that the thread that releases the lock holds it, and so do functions that need it held.

One atomic operation takes the lock, a plain store and a light barrier release it. A thread that goes to sleep passes
the heavy barrier in return, so that a release never misses it.

A waiting thread looks less and less often. The holder, which usually comes back at once, thereby keeps the zone's cache
lines for a microsecond or two. Two threads that alternate with every operation are ten times as slow (a lock convoy).

No thread starves: when one has waited for a millisecond, the lock is handed over to the sleepers rather than freed. A
thread with much to do gives way between its rounds (`lock_give_way`), and one without hurry waits for a moment when the
lock is free (`lock_acquire_last`).
"""
from libc.stdint cimport int32_t, int64_t, uint64_t
from pagehint.sync.atomic cimport (PH_ASSERT, PH_DEBUG, RELAXED, RELEASE, add64, cpu_relax, fetch_add_i32, likely,
                                   load_i32, store_i32, swap_i32_if, unlikely)
from pagehint.sync.barrier cimport fences_at_first, heavy_barrier, light_barrier
from pagehint.sync.clock cimport monotonic_ns
from pagehint.sync.testpoint cimport AT_ABOUT_TO_SLEEP, AT_SLEEP_ANNOUNCED, test_point

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t        # musl's is a pointer
    pthread_t pthread_self()

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #define PH_THREAD_ID() ((uint64_t)pthread_self())
    enum { PH_FUTEX_WAIT_PRIVATE = 128, PH_FUTEX_WAKE_PRIVATE = 129 };     /* of <linux/futex.h>, as in barrier.pxd */
    #define PH_FUTEX_WAIT(word, expected) \\
        ((void)!syscall(SYS_futex, word, PH_FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0))
    #define PH_FUTEX_WAKE(word) ((void)!syscall(SYS_futex, word, PH_FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0))
    """
    uint64_t thread_id "PH_THREAD_ID" () noexcept nogil     # of the calling thread; never 0
    void futex_wait "PH_FUTEX_WAIT" (int32_t *word, int32_t expected) noexcept nogil
    void futex_wake "PH_FUTEX_WAKE" (int32_t *word) noexcept nogil

cdef enum:
    LOCK_FREE = 0
    LOCK_HELD = 1
    LOCK_HANDED = 2         # released, and only one of the sleepers may take it
    # CPU pauses between two looks at a lock that is held: from a tenth of a microsecond to one or two.
    LOCK_PAUSES = 4
    LOCK_MOST_PAUSES = 32
    LOCK_LOOKS = 64         # looks before going to sleep: about a hundred microseconds
    LOCK_GIVE_WAY = 64      # CPU pauses, at most, for which `lock_give_way` leaves the lock to waiting threads
    LOCK_PATIENCE = 1000000     # nanoseconds of waiting after which a thread has the lock handed over
    LOCK_COURTESY = 64          # looks of `lock_acquire_last`, a tenth of a millisecond apart

cdef struct Lock:           # 56 bytes
    int32_t word            # LOCK_FREE, LOCK_HELD or LOCK_HANDED
    int32_t sleepers        # threads that sleep, or are about to
    int32_t starving        # of those, threads that have waited for longer than LOCK_PATIENCE
    int32_t woken           # futex of the sleepers; 1: one has been woken, and has not looked in vain since
    int32_t waiting         # threads that spin or sleep
    int32_t fences          # whether a release passes a fence (`barrier.pxd`); so does entering a lock that is biased
    uint64_t acquired       # times taken; this and the next two are written by the holder only
    uint64_t contended      # of those, times when another thread held it first
    int64_t longest_wait    # nanoseconds
    uint64_t owner          # the holder, or 0; in a debug build only


cdef inline void lock_init(Lock *lk) noexcept nogil:
    lk.word = LOCK_FREE
    lk.fences = fences_at_first
    lk.sleepers = lk.starving = lk.woken = lk.waiting = 0
    lk.acquired = lk.contended = 0
    lk.longest_wait = 0
    lk.owner = 0


cdef inline void lock_taken(Lock *lk) noexcept nogil:
    """Note that the calling thread has taken the lock."""
    add64(&lk.acquired, 1)
    if PH_DEBUG:
        lk.owner = thread_id()


cdef inline bint lock_try(Lock *lk, int32_t state) noexcept nogil:
    """Take the lock if its word is `state`."""
    return load_i32(&lk.word, RELAXED) == state and swap_i32_if(&lk.word, state, LOCK_HELD)


cdef inline bint lock_spin(Lock *lk, bint asleep) noexcept nogil:
    """Look at growing intervals, and take the lock when it is free or, if this thread was `asleep`, handed over."""
    cdef int _look, _pause, pauses = LOCK_PAUSES
    for _look in range(LOCK_LOOKS):
        for _pause in range(pauses):
            cpu_relax()
        if lock_try(lk, LOCK_FREE) or (asleep and lock_try(lk, LOCK_HANDED)):
            return True
        pauses = min(2 * pauses, <int>LOCK_MOST_PAUSES)
    return False


cdef inline void lock_sleep(Lock *lk, int64_t began) noexcept nogil:
    """Sleep until the lock can be taken, and take it."""
    cdef bint starving = False, ours = False
    fetch_add_i32(&lk.sleepers, 1, RELAXED)
    while not ours:
        store_i32(&lk.woken, False, RELAXED)
        # The holder stores `word`, passes a light barrier, and reads `sleepers` and `woken`. So it sees that this
        # thread sleeps, or this thread sees that the lock has been released.
        heavy_barrier(&lk.fences)
        test_point(AT_SLEEP_ANNOUNCED)
        if lock_try(lk, LOCK_FREE) or lock_try(lk, LOCK_HANDED):
            break
        if not starving and monotonic_ns() - began > LOCK_PATIENCE:
            starving = True
            fetch_add_i32(&lk.starving, 1, RELAXED)
        test_point(AT_ABOUT_TO_SLEEP)
        futex_wait(&lk.woken, False)
        ours = lock_spin(lk, True)
    store_i32(&lk.woken, False, RELAXED)
    fetch_add_i32(&lk.sleepers, -1, RELAXED)
    if starving:
        fetch_add_i32(&lk.starving, -1, RELAXED)


cdef inline void lock_wait(Lock *lk) noexcept nogil:
    """Take a lock that another thread holds."""
    cdef int64_t began = monotonic_ns()
    fetch_add_i32(&lk.waiting, 1, RELAXED)
    if not lock_spin(lk, False):
        lock_sleep(lk, began)
    fetch_add_i32(&lk.waiting, -1, RELAXED)
    lock_taken(lk)
    lk.contended += 1
    lk.longest_wait = max(lk.longest_wait, monotonic_ns() - began)


cdef inline bint lock_acquire(Lock *lk, bint may_block) noexcept nogil:
    """Take the lock. With `may_block` false (the caller holds the GIL), return False rather than wait."""
    if likely(lock_try(lk, LOCK_FREE)):
        lock_taken(lk)
    elif may_block:
        lock_wait(lk)
    else:
        return False
    return True


cdef inline void lock_acquire_last(Lock *lk) noexcept nogil:
    """Take the lock at a moment when it is free; if none comes within some milliseconds, as `lock_acquire` does."""
    cdef int _look
    for _look in range(LOCK_COURTESY):
        if lock_try(lk, LOCK_FREE):
            lock_taken(lk)
            return
        usleep(100)
    lock_acquire(lk, True)


cdef inline void lock_release(Lock *lk) noexcept nogil:
    if PH_DEBUG:
        PH_ASSERT(lk.owner == thread_id())
        lk.owner = 0
    store_i32(&lk.word, LOCK_HANDED if load_i32(&lk.starving, RELAXED) else LOCK_FREE, RELEASE)
    light_barrier(&lk.fences)
    if unlikely(load_i32(&lk.sleepers, RELAXED)) and not load_i32(&lk.woken, RELAXED):
        store_i32(&lk.woken, True, RELAXED)
        futex_wake(&lk.woken)


cdef inline void lock_give_way(Lock *lk) noexcept nogil:
    """Let waiting threads go first. For a thread that has released the lock and is about to take it again."""
    cdef int32_t waiting = load_i32(&lk.waiting, RELAXED)
    cdef int _pause
    if unlikely(waiting):
        for _pause in range(LOCK_GIVE_WAY):
            if load_i32(&lk.waiting, RELAXED) < waiting:
                return
            cpu_relax()


cdef inline void lock_forget_sleepers(Lock *lk) noexcept nogil:
    """In a forked child, by the thread that holds the lock: the threads that waited for it do not exist there."""
    lk.sleepers = lk.starving = lk.woken = lk.waiting = 0


cdef inline void assert_held(Lock *lk) noexcept nogil:
    """State, and in a debug build check, that the calling thread holds the lock."""
    if PH_DEBUG:
        PH_ASSERT(lk.owner == thread_id())
