"""The zone lock: spins briefly, then sleeps; counts how often it was taken and contended, and the longest wait.

Rules (checked by assertion in a debug build):
* It is held only inside ``noexcept nogil`` functions, so nobody can wait for the GIL, raise, or
  call back while holding it.
* A per-CPU page set's lock is taken before a zone's lock, never after; two zones' locks are never
  held at once, except across ``fork``, in ascending order.

One atomic operation takes it, a plain store gives it back; who wants to sleep makes up for that with a heavy barrier.
Whoever waits looks less and less often, so that the holder, which usually comes back at once, keeps the zone's cache
lines for a microsecond or two: alternating with every operation costs ten times as much (a convoy). Bulk calls give
way between their rounds, and the worker waits for a moment when nobody has the lock. Nobody starves: after a millisecond
asleep the lock is handed over rather than set free.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t
from pagehint.sync.atomic cimport (PH_ASSERT, PH_DEBUG, RELAXED, RELEASE, add64, cpu_relax, fetch_add_i32, likely,
                                   load_i32, store_i32, swap_i32_if, unlikely)
from pagehint.sync.barrier cimport heavy_barrier, light_barrier
from pagehint.sync.clock cimport monotonic_ns
from pagehint.sync.testpoint cimport AT_ABOUT_TO_SLEEP, AT_SLEEP_ANNOUNCED, test_point

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)

cdef extern from *:
    """
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #define PH_FUTEX_WAIT(word, expected) \\
        ((void)!syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0))
    #define PH_FUTEX_WAKE(word) ((void)!syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0))
    """
    void futex_wait "PH_FUTEX_WAIT" (int32_t *word, int32_t expected) noexcept nogil
    void futex_wake "PH_FUTEX_WAKE" (int32_t *word) noexcept nogil

cdef enum:
    LOCK_FREE = 0
    LOCK_HELD = 1
    LOCK_HANDED = 2         # given back, and only for one that sleeps
    # Pauses between two looks at a lock that is held: from a tenth of a microsecond to one or two.
    LOCK_PAUSES = 4
    LOCK_MOST_PAUSES = 32
    LOCK_LOOKS = 64         # before going to sleep: some hundred microseconds
    LOCK_GIVE_WAY = 64      # pauses for which a holder that comes back at once lets others go first
    LOCK_PATIENCE = 1000000     # nanoseconds asleep before the lock is handed over
    LOCK_COURTESY = 64          # looks, a tenth of a millisecond apart, of somebody who is in no hurry

cdef struct Lock:           # 56 bytes
    int32_t word
    int32_t sleepers        # threads that sleep, or are about to
    int32_t starving        # of those, threads that have waited too long
    int32_t woken           # what they sleep on: one of them has been woken, and has not looked in vain since
    int32_t waiting         # threads that look or sleep
    int32_t spare
    uint64_t acquired       # times taken; this and the next two are written by the holder only
    uint64_t contended      # of those, how often somebody else held it first
    int64_t longest_wait    # nanoseconds
    pthread_t owner         # debug build only: who holds it


cdef inline void lock_init(Lock *lk) noexcept nogil:
    lk.word = LOCK_FREE
    lk.sleepers = lk.starving = lk.woken = lk.waiting = 0
    lk.acquired = lk.contended = 0
    lk.longest_wait = 0
    lk.owner = 0


cdef inline void lock_taken(Lock *lk) noexcept nogil:
    add64(&lk.acquired, 1)
    if PH_DEBUG:
        lk.owner = pthread_self()


cdef inline bint lock_try(Lock *lk, int32_t state) noexcept nogil:
    return load_i32(&lk.word, RELAXED) == state and swap_i32_if(&lk.word, state, LOCK_HELD)


cdef inline bint lock_spin(Lock *lk, bint asleep) noexcept nogil:
    """Look again and again, at growing intervals. What is handed over is for those that were asleep."""
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
        # The holder stores `word` and then reads the others, with a light barrier between: it sees us, or we see that.
        heavy_barrier()
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
    """Take a lock that somebody else holds."""
    cdef int64_t began = monotonic_ns()
    fetch_add_i32(&lk.waiting, 1, RELAXED)
    if not lock_spin(lk, False):
        lock_sleep(lk, began)
    fetch_add_i32(&lk.waiting, -1, RELAXED)
    lock_taken(lk)
    lk.contended += 1
    lk.longest_wait = max(lk.longest_wait, monotonic_ns() - began)


cdef inline bint lock_acquire(Lock *lk, bint may_block) noexcept nogil:
    """Take the lock. With `may_block` false (the caller holds the GIL) give up rather than wait, and say so."""
    if likely(lock_try(lk, LOCK_FREE)):
        lock_taken(lk)
    elif may_block:
        lock_wait(lk)
    else:
        return False
    return True


cdef inline void lock_acquire_last(Lock *lk) noexcept nogil:
    """Take the lock at a moment when nobody has it, or after some milliseconds as everybody does."""
    cdef int _look
    for _look in range(LOCK_COURTESY):
        if lock_try(lk, LOCK_FREE):
            lock_taken(lk)
            return
        usleep(100)
    lock_acquire(lk, True)


cdef inline void lock_release(Lock *lk) noexcept nogil:
    if PH_DEBUG:
        PH_ASSERT(lk.owner == pthread_self())
        lk.owner = 0
    store_i32(&lk.word, LOCK_HANDED if load_i32(&lk.starving, RELAXED) else LOCK_FREE, RELEASE)
    light_barrier()
    if unlikely(load_i32(&lk.sleepers, RELAXED)) and not load_i32(&lk.woken, RELAXED):
        store_i32(&lk.woken, True, RELAXED)
        futex_wake(&lk.woken)


cdef inline void lock_give_way(Lock *lk) noexcept nogil:
    """Between two rounds of one piece of work, the lock set free: let those that look for it have it first."""
    cdef int32_t waiting = load_i32(&lk.waiting, RELAXED)
    cdef int _pause
    if unlikely(waiting):
        for _pause in range(LOCK_GIVE_WAY):
            if load_i32(&lk.waiting, RELAXED) < waiting:
                return
            cpu_relax()


cdef inline void lock_forget_sleepers(Lock *lk) noexcept nogil:
    """In a forked child, by the thread that holds it: whoever waited for the lock is not there any more."""
    lk.sleepers = lk.starving = lk.woken = lk.waiting = 0


cdef inline void assert_held(Lock *lk) noexcept nogil:
    """State, and in a debug build check, that the calling thread holds the lock."""
    if PH_DEBUG:
        PH_ASSERT(lk.owner == pthread_self())
