"""A lock biased to the thread that took it last: that thread, its owner, takes it again without an atomic instruction.

It suits per-CPU page sets: for a while, one thread runs on a CPU and nearly always uses the same set.

At most one thread is inside. It has either taken the ordinary `lock`, or it is the `owner` and says so in its record:
* The owner writes in its record which lock it enters, passes a light barrier, and looks whether it is still the owner.
* Any other thread takes `lock`, removes the owner, passes a heavy barrier, and waits while the record of the removed
  owner says that it is inside.

By the two barriers either the owner sees that it has been removed, or the other thread sees the owner's record. A
thread writes to its own record only. A removed owner is waited for by the next thread that takes `lock`, and after that
no thread looks at its record for this lock. So it may try to enter again, and be interrupted between its write and its
look, without delaying any other thread.

The idea is biased locking (Kawachiya, Koseki, Onodera, OOPSLA 2002), made safe with membarrier(2).
"""
from libc.stdint cimport uint64_t
from pagehint.sync.atomic cimport ACQUIRE, RELAXED, RELEASE, cpu_relax, likely, load64, store64
from pagehint.sync.barrier cimport heavy_barrier, light_barrier
from pagehint.sync.lock cimport Lock, lock_acquire, lock_init, lock_release
from pagehint.sync.testpoint cimport AT_BETWEEN_TWO_LOOKS_OF_THE_OWNER, AT_OWNER_WAITED_FOR, test_point

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    #include <stdlib.h>

    /* A thread's record. It is never freed, because other threads look into it. A thread that ends is inside of no
     * lock; it leaves its record in a list of spare ones, for a thread that begins later. The list's lock is only ever
     * tried: a forked child may find it locked by a thread that does not exist there. */
    typedef struct ph_thread { uint64_t inside; struct ph_thread *next; char line[48]; } ph_thread;
    /* One instruction reads it, since glibc keeps room for such variables of libraries that are loaded later. musl keeps
     * none, and loads no library that has one. There it is found by a call, and allocating and freeing a page takes a
     * fifth more instructions. */
    #ifdef __GLIBC__
    static __thread ph_thread *ph_me __attribute__((tls_model("initial-exec")));
    #else
    static __thread ph_thread *ph_me;
    #endif
    static pthread_key_t ph_thread_key;
    static int ph_no_key;           /* the process has as many keys as it can have: no thread has a record */
    static pthread_mutex_t ph_spare_lock = PTHREAD_MUTEX_INITIALIZER;
    static ph_thread *ph_spare;

    static void ph_thread_ends(void *record)
    {
        ph_thread *me = record;
        ph_me = NULL;
        if (pthread_mutex_trylock(&ph_spare_lock))
            return;
        me->next = ph_spare;
        ph_spare = me;
        pthread_mutex_unlock(&ph_spare_lock);
    }

    __attribute__((constructor)) static void ph_thread_key_create(void)
    {
        ph_no_key = pthread_key_create(&ph_thread_key, ph_thread_ends) != 0;
    }

    __attribute__((noinline, cold)) static ph_thread *ph_thread_new(void)
    {
        ph_thread *me = NULL;
        if (ph_no_key)
            return NULL;
        if (pthread_mutex_trylock(&ph_spare_lock) == 0) {
            me = ph_spare;
            if (me)
                ph_spare = me->next;
            pthread_mutex_unlock(&ph_spare_lock);
        }
        if (!me && (me = aligned_alloc(64, sizeof(ph_thread))))
            me->inside = 0;
        if (me && pthread_setspecific(ph_thread_key, me) == 0)
            ph_me = me;
        return ph_me;       /* NULL where memory lacks, too: the thread then takes every lock without a bias */
    }
    #define PH_THIS_THREAD() (__builtin_expect(ph_me != NULL, 1) ? ph_me : ph_thread_new())
    """
    ctypedef struct ThreadRecord "ph_thread":
        uint64_t inside             # address of the lock that the thread is inside of as the owner, or 0
    ThreadRecord *this_thread "PH_THIS_THREAD" () noexcept nogil

cdef enum:
    BIAS_LOOKS = 256            # looks at an owner that is inside; then yield: it may need this CPU to leave

cdef struct BiasedLock:         # 72 bytes
    uint64_t owner              # address of the owner's record, or 0; written with `lock` held, read without it
    uint64_t former             # address of the record of a removed owner that may still be inside, or 0; `lock` held
    Lock lock                   # taken by every thread but the owner


cdef inline void bias_init(BiasedLock *b) noexcept nogil:
    b.owner = b.former = 0
    lock_init(&b.lock)


cdef inline bint bias_revoke(BiasedLock *b, bint may_block) noexcept nogil:
    """Take the lock without a bias: there is no owner afterwards, and only the calling thread is inside.

    With `may_block` false, return False rather than wait for a thread that is inside. A thread that holds several biased
    locks at a time must take them by this function, since its record has room for one lock only.
    """
    cdef int looks = 0
    if not lock_acquire(&b.lock, may_block):
        return False
    if b.owner:
        b.former = b.owner
        store64(&b.owner, 0, RELAXED)
        heavy_barrier(&b.lock.fences)
    while b.former and load64(&(<ThreadRecord *> b.former).inside, ACQUIRE) == <uint64_t> b:
        looks += 1
        if looks < BIAS_LOOKS:
            cpu_relax()
        elif may_block:
            test_point(AT_OWNER_WAITED_FOR)
            sched_yield()
        else:
            lock_release(&b.lock)
            return False
    b.former = 0
    return True


cdef inline ThreadRecord *bias_enter(BiasedLock *b) noexcept nogil:
    """Take a lock if its owner is this thread. Returns the thread's record, for `bias_leave`, or NULL."""
    cdef ThreadRecord *me = this_thread()
    if likely(me != NULL):
        test_point(AT_BETWEEN_TWO_LOOKS_OF_THE_OWNER)
        store64(&me.inside, <uint64_t> b, RELAXED)
        light_barrier(&b.lock.fences)
        if likely(load64(&b.owner, ACQUIRE) == <uint64_t> me):
            return me
        store64(&me.inside, 0, RELEASE)
    return NULL


cdef inline void bias_leave(ThreadRecord *me) noexcept nogil:
    """Release a lock that `bias_enter` took."""
    store64(&me.inside, 0, RELEASE)


cdef inline bint bias_acquire(BiasedLock *b, bint may_block) noexcept nogil:
    """Take the lock. With `may_block` false (the caller holds the GIL), return False rather than wait."""
    return bias_enter(b) != NULL or bias_revoke(b, may_block)


cdef inline void bias_release(BiasedLock *b, bint keep) noexcept nogil:
    """Release the lock. A thread that has entered as its owner stays the owner; any other becomes it with `keep`."""
    cdef ThreadRecord *me = this_thread()
    if likely(me != NULL and me.inside == <uint64_t> b):
        store64(&me.inside, 0, RELEASE)
        return
    if keep:
        store64(&b.owner, <uint64_t> me, RELEASE)
    lock_release(&b.lock)
