/* The zone lock: sync/lock.pxd. This shows what hinting.pml relies on, in which the lock is a bit: one thread holds it,
 * and no thread sleeps while it is free.
 *
 * Stores of `word` and `woken` wait in their thread's store buffer until they reach memory, in order and at any time,
 * as on x86. An atomic operation and a system call wait for their own thread's buffer, a heavy barrier (membarrier) for
 * those of all threads. The light barrier only keeps the compiler from moving accesses, which this model does not do.
 */
#ifndef THREADS
#define THREADS 3
#endif
#ifndef OPS
#define OPS 1
#endif

#define FREE 0
#define HELD 1
#define HANDED 2
#define NOTHING 3               /* in a store buffer */

byte word = FREE, sleepers, starving;
bit woken;
byte futex;                     /* threads asleep on `woken`, a bit each */
byte buffered_word[THREADS] = NOTHING, buffered_woken[THREADS] = NOTHING;
byte inside;                    /* for the proof: threads that hold the lock */

#define BIT(thread) (1 << (thread))
#define DRAINED(thread) (buffered_word[thread] == NOTHING && buffered_woken[thread] == NOTHING)

inline drain(thread) {          /* the oldest store first: no thread stores `word` after `woken` without draining */
    word = (buffered_word[thread] == NOTHING -> word : buffered_word[thread]);
    woken = (buffered_woken[thread] == NOTHING -> woken : buffered_woken[thread]);
    buffered_word[thread] = NOTHING;
    buffered_woken[thread] = NOTHING
}

/* The memory: a store arrives. */
active proctype Memory()
{
    byte t;
end:
    do
    :: d_step { buffered_word[0] != NOTHING -> word = buffered_word[0]; buffered_word[0] = NOTHING }
    :: d_step { buffered_word[1] != NOTHING -> word = buffered_word[1]; buffered_word[1] = NOTHING }
    :: d_step { buffered_word[THREADS - 1] != NOTHING -> word = buffered_word[THREADS - 1]; buffered_word[THREADS - 1] = NOTHING }
    :: d_step { !DRAINED(0) && buffered_word[0] == NOTHING -> drain(0) }
    :: d_step { !DRAINED(1) && buffered_word[1] == NOTHING -> drain(1) }
    :: d_step { !DRAINED(THREADS - 1) && buffered_word[THREADS - 1] == NOTHING -> drain(THREADS - 1) }
    od
}

inline lock_try(state) {        /* lock_try */
    d_step {
        drain(me);
        got = word == state;
        word = (got -> HELD : word)
    }
}

inline heavy_barrier() {        /* heavy_barrier */
#ifdef FAULT_NO_HEAVY_BARRIER
    skip
#else
    d_step {
        t = 0;
        do
        :: t < THREADS -> drain(t); t++
        :: else -> break
        od;
        t = 0
    }
#endif
}

inline lock_sleep() {           /* lock_sleep */
    d_step { drain(me); sleepers++ };
    do
    :: !got ->
        buffered_woken[me] = 0;
        heavy_barrier();
        lock_try(FREE);
        if
        :: !got -> lock_try(HANDED)
        :: else
        fi;
        if
        :: got -> break
        :: else
        fi;
        if                      /* it has waited too long, or has not yet */
        :: patient -> d_step { drain(me); patient = 0; starving++ }
        :: skip
        fi;
        d_step {                /* futex_wait */
            drain(me);
            if
            :: !woken -> futex = futex | BIT(me)
            :: else
            fi
        };
        !(futex & BIT(me));
        lock_try(FREE);         /* lock_spin(lk, True); it may look more often, which is as if it came later */
        if
        :: !got -> lock_try(HANDED)
        :: else
        fi
    :: else -> break
    od;
#ifdef FAULT_STAYS_WOKEN
    skip;
#else
    buffered_woken[me] = 0;
#endif
    d_step {
        drain(me);
        sleepers--;
        starving = (patient -> starving : starving - 1)
    };
    patient = 1
}

inline lock_release() {         /* lock_release */
    d_step {
        DRAINED(me);
        buffered_word[me] = (starving -> HANDED : FREE)
    };
    seen = sleepers;
    if
    :: seen && !(buffered_woken[me] == NOTHING -> woken : buffered_woken[me]) ->
        buffered_woken[me] = 1;
        atomic {                /* futex_wake */
            drain(me);
            if
            :: futex & 1 -> futex = futex & ~1
            :: futex & 2 -> futex = futex & ~2
            :: futex & 4 -> futex = futex & ~4
            :: !futex
            fi
        }
    :: else
    fi
}

active [THREADS] proctype Thread()
{
    byte me = _pid - 1, ops, seen, t;
    bit got, patient = 1;
    do
    :: ops < OPS ->
        ops++;
        lock_try(FREE);         /* lock_acquire, lock_wait, lock_spin(lk, False) */
        if
        :: !got -> lock_sleep()
        :: else
        fi;
        inside++;
        assert(inside == 1);    /* MUTUAL EXCLUSION */
        inside--;
        lock_release();
        got = 0
    :: else -> break
    od
}
