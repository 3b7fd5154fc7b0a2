/* The work queue, its mutex, and its two condition variables: hinting/queue.pxd.
 *
 * A hold of the mutex is one indivisible step, which begins with MUTEX: no process holds it from one step to the next.
 * A thread that sleeps is a bit in `wake_sleepers` or `settled_sleepers`.
 */

byte wake_sleepers, settled_sleepers;

bit delay_armed = 1;
byte session;
bit enabling, is_enabled, stopping, manual, worker;
#define WORK_NOW 1
#define WORK_LATER 2
byte work;                      /* `work_at`: it has come, or will come; 0: there is no work */
bit delay;                      /* there is a delay, */
bit deadline;                   /* it runs, */
bit late;                       /* and is over */
bit not_before;                 /* back-off: a pass has failed, and the time for the next has not come */
bit failures;                   /* the last pass failed */
byte flush_wanted, flush_done;
bit running;
byte runner;
bit out;
byte waiters;
byte max_pages, threshold;      /* settings */

#ifdef FAULT_WAKE_WITHOUT_MUTEX
bit mutex;                      /* held by the worker, between its look at the queue and its sleep */
#define MUTEX !mutex
#else
#define MUTEX true
#endif
#define BIT(thread) (1 << (thread))

inline signal_wake() {          /* pthread_cond_signal(&q.wake): one is enough, since no two sleep there */
    assert((wake_sleepers & (wake_sleepers - 1)) == 0);
    wake_sleepers = 0
}

inline queue_disarm() {         /* queue_disarm */
    deadline = 0;
    late = 0;
    delay_armed = !delay
}

inline queue_arm() {            /* queue_arm */
    if
    :: delay && !delay_armed -> delay_armed = 1; deadline = 1
    :: else
    fi
}

inline queue_claim(me) {        /* queue_claim */
    running = 1;
    runner = me
}

inline queue_release() {        /* queue_release */
    runner = 0;
    running = 0
}

inline queue_stop() {           /* queue_stop */
    stopping = 1;
    wake_sleepers = 0;
    settled_sleepers = 0
}

inline queue_over() {           /* queue_over */
    session++;
    is_enabled = 0;
    enabling = 0;
    worker = 0;
    work = 0;
    flush_done = flush_wanted;
    queue_release();
    queue_disarm();
    delay_armed = 1;
    wake_sleepers = 0;
    settled_sleepers = 0
}

/* queue_notify: by a thread that has just released a zone's lock, if the zone has asked for it. */
inline queue_notify(tell) {
    if
    :: tell ->
#ifdef FAULT_WAKE_WITHOUT_MUTEX
        d_step { work = (tell == TELL_WORK -> WORK_NOW : work); if :: tell == TELL_DELAY -> queue_arm() :: else fi };
        d_step { signal_wake(); tell = 0 }
#else
        d_step {
            MUTEX;
            if
            :: tell == TELL_WORK -> work = WORK_NOW
            :: tell == TELL_LATER -> work = (work -> work : WORK_LATER)
            :: else -> queue_arm()
            fi;
            signal_wake();
            tell = 0
        }
#endif
    :: else
    fi
}

/* pthread_cond_wait, in two parts: within a step, sleep if need be; then wait to be woken. The waits of disable, flush
 * and allocation end by themselves after 50 ms; here they do only with TIMEOUTS, so that no wake-up may be missing. */
inline sleep_settled(me, need) {
    if
    :: need -> settled_sleepers = settled_sleepers | BIT(me); asleep = 1
    :: else -> asleep = 0
    fi
}

inline until_woken(me) {
    if
    :: asleep ->
        if
        :: !(settled_sleepers & BIT(me))
#ifdef TIMEOUTS
        :: atomic { settled_sleepers & BIT(me) -> settled_sleepers = settled_sleepers & ~BIT(me) }
#endif
        fi
    :: else
    fi
}
