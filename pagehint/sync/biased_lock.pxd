"""A lock biased to the thread that took it last, which takes it again without an atomic operation.

A per-CPU page set is nearly always used by one thread for a while: the one that runs there. It says in a record of its
own which lock it is inside of, and then looks whether the lock is still its own. Anybody else takes the ordinary lock
inside, ends the bias, and lets a heavy barrier make sure that the owner either sees that or is seen inside. A record is
written by its thread only: one that was the owner once, and was interrupted between its two looks, disturbs nobody.

After the idea of biased locking (Kawachiya, Koseki, Onodera, OOPSLA 2002), made safe with membarrier(2).
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

    /* One of a thread, and never freed, since others look into it; handed on when the thread ends, when it is inside
     * of nothing. The lock of the spare ones is only ever tried: a forked child may find it taken by nobody. */
    typedef struct ph_thread { uint64_t inside; struct ph_thread *next; char line[48]; } ph_thread;
    static __thread ph_thread *ph_me __attribute__((tls_model("initial-exec")));
    static pthread_key_t ph_thread_key;
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
        if (pthread_key_create(&ph_thread_key, ph_thread_ends))
            abort();
    }

    static ph_thread *ph_thread_new(void)
    {
        ph_thread *me = NULL;
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
        return ph_me;       /* NULL without memory: no bias then */
    }
    #define PH_THIS_THREAD() (__builtin_expect(ph_me != NULL, 1) ? ph_me : ph_thread_new())
    """
    ctypedef struct ThreadRecord "ph_thread":
        uint64_t inside                 # address of the lock it is inside of by its bias, or 0
    ThreadRecord *this_thread "PH_THIS_THREAD" () noexcept nogil

cdef enum:
    BIAS_LOOKS = 256            # at an owner inside, before letting others run: it may have lost its CPU there

cdef struct BiasedLock:         # 72 bytes
    uint64_t owner              # record of the thread it is biased to, or 0; changed with `lock` held
    uint64_t former             # of one that has lost its bias and may be inside still; `lock` held
    Lock lock


cdef inline void bias_init(BiasedLock *b) noexcept nogil:
    b.owner = b.former = 0
    lock_init(&b.lock)


cdef inline bint bias_revoke(BiasedLock *b, bint may_block) noexcept nogil:
    """Take it the long way. Ends with the ordinary lock held, nobody's bias, and nobody inside.

    Whoever takes several at a time takes them this way: a record has room for one.
    """
    cdef int looks = 0
    if not lock_acquire(&b.lock, may_block):
        return False
    if b.owner:
        b.former = b.owner
        store64(&b.owner, 0, RELAXED)
        heavy_barrier()
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
    """Take a lock that is biased to this thread, and return its record, for `bias_leave`; NULL if the lock is not."""
    cdef ThreadRecord *me = this_thread()
    if likely(me != NULL):
        test_point(AT_BETWEEN_TWO_LOOKS_OF_THE_OWNER)
        store64(&me.inside, <uint64_t> b, RELAXED)
        light_barrier()
        if likely(load64(&b.owner, ACQUIRE) == <uint64_t> me):
            return me
        store64(&me.inside, 0, RELEASE)
    return NULL


cdef inline void bias_leave(ThreadRecord *me) noexcept nogil:
    store64(&me.inside, 0, RELEASE)


cdef inline bint bias_acquire(BiasedLock *b, bint may_block) noexcept nogil:
    """Take the lock. With `may_block` false (the caller holds the GIL) give up rather than wait, and say so."""
    return bias_enter(b) != NULL or bias_revoke(b, may_block)


cdef inline void bias_release(BiasedLock *b, bint keep) noexcept nogil:
    """Give it back; with `keep`, biased to this thread."""
    cdef ThreadRecord *me = this_thread()
    if likely(me != NULL and me.inside == <uint64_t> b):
        store64(&me.inside, 0, RELEASE)
        return
    if keep:
        store64(&b.owner, <uint64_t> me, RELEASE)
    lock_release(&b.lock)
