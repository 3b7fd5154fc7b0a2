/* Free page hinting: the threads that allocate and free, the worker, flush, enable, disable, fork.
 *
 * `verify/run` has the configurations, and the faults (FAULT_) that must be found; README.md says what is left out.
 * A process or an inline has the name of the function in the code that it models, or says which that is. A `d_step` or
 * `atomic` that begins with UNLOCKED(z) is a hold of that zone's lock, one that begins with MUTEX a hold of the queue's
 * mutex.
 */
#ifndef MAX_PAGES
#define MAX_PAGES 1
#endif
#ifndef MOST                    /* blocks that a batch of a zone may have, by the size of the zone */
#define MOST MAX_PAGES
#endif
#ifndef THRESHOLD
#define THRESHOLD 2
#endif
#ifndef DELAY                   /* 0: delay=None */
#define DELAY 1
#endif
#ifndef THREADS                 /* that allocate and free */
#define THREADS 1
#endif
#ifndef OPS                     /* how often each */
#define OPS 1
#endif
#ifndef LARGEST                 /* order of their largest block */
#define LARGEST 0
#endif
#ifndef FLUSHES
#define FLUSHES 0
#endif
#ifndef CONTROLLERS             /* threads that switch hinting on and off; with none it is on from the beginning */
#define CONTROLLERS 0
#endif
#ifndef CYCLES                  /* how often each */
#define CYCLES 1
#endif
#ifndef MAY_FAIL                /* how often callbacks may fail, in all */
#define MAY_FAIL 0
#endif
/* And, to be defined or not: CALLBACK_USES_MEMORY, ENABLE_MAY_FAIL, FORK, MANUAL_WORKQUEUE, SETTINGS, CHURN (the
 * threads allocate and free for ever), TIMEOUTS, AGES (with `min_age`), LISTS (allocations go by the order of the free
 * lists), COMES_BACK (the host has reported memory again at any moment, and says so when a flush asks), MARK_FREE. */

#if defined(AGES) || defined(COMES_BACK)
#define FLUSH_IS_KNOWN
#endif

#include "zone.pml"
#include "queue.pml"

/* Threads by number. There can be two workers at once: one of an enable that failed may not have ended yet. */
#define WORKER 1                /* and 2; or, without a worker, two threads that run passes themselves */
#define FLUSHER 3
#define CONTROLLER 4            /* and 5 */
#define THREAD 6                /* and 7 */

bit last_resort;                /* Machine.last_resort */
byte callbacks;                 /* Reporter.callbacks: the session that they belong to, or 0 */
byte batch_n, batch_zone;       /* hinting/batch.pxd: Batch */
byte batch_pages[MAX_PAGES], batch_orders[MAX_PAGES], batch_failed;
bit alive[3];                   /* the worker's thread runs */
byte child;                     /* in a forked child, the process that is its only thread; else 0 */
bit interrupted;                /* Reporter.interrupted: a callback of this pass has raised a KeyboardInterrupt */
byte interrupts;                /* Reporter.interrupts: the threads on which one has, a bit each */
/* For the proof only. */
byte calls;                     /* callbacks that are running */
byte may_fail = MAY_FAIL;
bit flushing;

/* The zone lock is handed over to a thread that has waited too long (sync/lock.pxd), which threads without end need. */
#ifdef CHURN
byte wanted;
#ifdef FAULT_LOCK_IS_NOT_HANDED_OVER
#define WANT(z)
#else
#define WANT(z) wanted = (z) + 1;
#endif
#define HAVE wanted = 0;
#define UNLOCKED_FOR_THREAD(z) (UNLOCKED(z) && wanted != (z) + 1)
#define LAST_OP (ops + 1)
#else
#define WANT(z)
#define HAVE
#define UNLOCKED_FOR_THREAD(z) UNLOCKED(z)
#define LAST_OP OPS
#endif

hidden byte candidate, larger;
hidden byte fits;

#ifdef FORK
#define PROVIDED provided (!child || child == _pid)
#else
#define PROVIDED
#endif

/* ==== allocate and free, past the page sets: zone/page_alloc.pxd, _core.pyx ======================================= */

inline notice_broken(z, first, order) {         /* notice_broken, on_broken */
#ifndef FAULT_ALLOCATED_KEEPS_BIT
    if
    :: zone[z].hook -> hint_assign(z, MASK(first, order), 0)
    :: else
    fi;
#endif
#ifdef LISTS
    zone[z].cold = zone[z].cold & ~PAGES_OF(first, order);
#endif
#ifdef COMES_BACK
    zone[z].back = zone[z].back & ~MASK(first, order);
#endif
    zone[z].owed = zone[z].owed & ~MASK(first, order);
    zone[z].due = zone[z].due & ~MASK(first, order)
}

inline zone_alloc(me, z, order) {               /* zone_alloc, machine_alloc_at: any block that fits may be taken */
    atomic {
        UNLOCKED_FOR_THREAD(z);
#ifdef LISTS
        d_step { list_first(z, order); check_cold(z); candidate = head; page = PAGES };
#else
        candidate = PAGES;
        page = 0;
#endif
        do
        :: page < PAGES ->
            d_step { free_block_around(z, page); fits = source != NOT_FREE && source >= order };
            if
            :: fits -> candidate = page; if :: break :: skip fi
            :: else
            fi;
            page = page + (1 << order)
        :: else -> break
        od;
        d_step {
            page = candidate;
            got = page < PAGES;
            if
            :: got ->
                free_block_around(z, page);
                buddy_take(z, page, order, USED);
                hand_over(z, page, order, BUDDY, me);
                notice_broken(z, page, order)
            :: else -> page = 0
            fi;
            zone_unlock(z, tell);
            assert(!tell)                       /* taking memory tells the queue nothing */
        }
    }
}

inline machine_alloc(me, order) {               /* machine_alloc: the preferred zone, and then those below it */
    z = prefer;
    zone_alloc(me, z, order);
    do
    :: !got && z > 0 -> z--; zone_alloc(me, z, order)
    :: else -> break
    od
}

#ifdef FAULT_WORKER_WAITS_FOR_ITSELF
#define MUST_WAIT(me) out
#else
#define MUST_WAIT(me) (out && runner != me)
#endif

inline settle(me) {                             /* Memory.settle, queue_wait_batch */
    d_step { MUTEX; waiters++; sleep_settled(me, MUST_WAIT(me)) };
    do
    :: asleep ->
        until_woken(me);
#ifdef TIMEOUTS
        d_step { MUTEX; asleep = MUST_WAIT(me); if :: asleep -> waiters--; settled_sleepers = 0 :: else fi };
        if
        :: asleep -> d_step { MUTEX; waiters++; sleep_settled(me, MUST_WAIT(me)) }
        :: else
        fi
#else
        d_step { MUTEX; sleep_settled(me, MUST_WAIT(me)) }
#endif
    :: else -> break
    od
}

inline take_block(me, order) {                 /* PageAllocator.alloc_pages, begin_last_resort, end_last_resort */
    machine_alloc(me, order);
    if
    :: !got ->
        settle(me);
        atomic { !last_resort; last_resort = 1 };       /* machine_hold */
        machine_alloc(me, order);
        /* NO MEMORY MEANS THAT THERE IS NONE, not that it is with the host. */
        assert(got || batch_n == 0 || runner == me);
        last_resort = 0;                                /* machine_let_go */
#ifdef FAULT_RESUME_DOES_NOT_WAKE
        d_step { MUTEX; waiters-- }
#else
        d_step { MUTEX; waiters--; settled_sleepers = 0 }       /* queue_resume */
#endif
    :: else
    fi
}

#ifdef FAULT_HOOK_BEFORE_LOCK
#define HOOK(z) seen
#else
#define HOOK(z) zone[z].hook
#endif

inline notice_freed(z, first, order) {          /* notice_freed, on_freed */
    if
    :: HOOK(z) && merged >= MIN_ORDER -> hint_freed_block(z, MASK(first, order))
    :: else
    fi;
    find_whole(z);
    zone[z].owed = (zone[z].hook -> zone[z].owed | (all_free & MASK(first, order)) : zone[z].owed)
}

inline give_back(me, z, first, order) {        /* PageAllocator.free_pages, machine_free, zone_free_held */
#ifdef FAULT_HOOK_BEFORE_LOCK
    seen = zone[z].hook;
#endif
#ifdef FAULT_UNLOCKED_COUNT
    seen = zone[z].hint_count;
#endif
    d_step {
        UNLOCKED_FOR_THREAD(z);
        zone[z].locked = 1;
        hand_over(z, first, order, me, BUDDY);
        buddy_free(z, first, order, true, 0);
        changed = 0;
        notice_freed(z, first, order);
#ifdef FAULT_UNLOCKED_COUNT
        zone[z].hint_count = seen + changed;
        seen = 0
#endif
    };
    d_step { evaluate(z); zone_unlock(z, tell) };
    queue_notify(tell)
}

proctype Thread(byte me; byte prefer) PROVIDED
{
    byte z, page, order, tell, ops, seen;
    bit got, asleep;
    do
    :: ops < LAST_OP ->
        ops = (ops < OPS -> ops + 1 : ops);
        if
        :: order = 0
        :: LARGEST > 0 -> order = 1
        :: LARGEST > 1 -> order = 2
        fi;
        take_block(me, order);
        if
        :: got -> give_back(me, z, page, order)
        :: else
        fi;
        page = 0;
        order = 0;
        z = 0;
        got = 0
    :: else -> break
    od
}

/* ==== a pass: hinting/engine.pyx, hinting/batch.pxd =============================================================== */

#define GOES_ON (session == own && !stopping && !interrupted)   /* goes_on; all read without the mutex */

inline callback_begins() {
    d_step {
        /* NO CALLBACK ON A DISABLED ENGINE: none after disable has returned, none before all is in place. */
        assert(is_enabled && session == own && callbacks == own);
        calls++
    }
}

#define ZONE_BATCH(n) ((n) < MOST -> (n) : MOST)                        /* zone_batch */
#define REPORT_GATE(n) (LOW + (ZONE_BATCH(n) << MIN_ORDER))             /* report_gate */
#ifdef FAULT_GATE_BY_THE_SETTING
#define GATE(n) (LOW + ((n) << MIN_ORDER))
#else
#define GATE(n) REPORT_GATE(n)
#endif
#ifdef FAULT_BATCH_BY_THE_SETTING
#define BATCH(n) (n)
#else
#define BATCH(n) ZONE_BATCH(n)
#endif

inline gate(z, most) {                          /* gate_is_open */
    open = zone[z].free_pages >= GATE(most);
    zone[z].notify_at = (open -> zone[z].notify_at : GATE(max_pages));
    zone[z].due = (open -> zone[z].due : 0)
}

#ifdef AGES
#define RIPE(z) (flush -> zone[z].hints : zone[z].hints & ~zone[z].young)       /* is_ripe, of all hinted granules */
#define SEEN(z, i) seen_young = seen_young || (zone[z].hints & ~RIPE(z) & (1 << (i)))   /* Ripe.oldest */
#ifdef FAULT_RIPE_WITHOUT_LOCK
#define TAKEN(z) (zone[z].hints & (RIPE(z) | (1 << cursor)))
#else
#define TAKEN(z) RIPE(z)
#endif
#else
#define RIPE(z) zone[z].hints
#define SEEN(z, i) skip
#define TAKEN(z) zone[z].hints
#endif

inline isolate_batch(z) {                       /* isolate_batch */
    i = cursor;
    larger = 0;
    do
    :: i < (PAGES >> MIN_ORDER) && batch_n < BATCH(most) && (TAKEN(z) & (1 << i)) ->
        free_block_around(z, (i << MIN_ORDER));
        assert(source != NOT_FREE);             /* a set bit means that the granule is free */
        merged = MIN_ORDER;
        do
        :: merged < source && !((i << MIN_ORDER) & (1 << merged)) &&
           (TAKEN(z) & MASK((i << MIN_ORDER) + (1 << merged), merged)) ==
           MASK((i << MIN_ORDER) + (1 << merged), merged) -> merged++
        :: else -> break
        od;
#ifdef AGES
        /* NOTHING IS REPORTED TOO YOUNG, but by a flush. */
        assert(flush || !(zone[z].young & MASK(i << MIN_ORDER, merged)));
#endif
#ifdef FAULT_SPLIT_LOSES_OTHER_HALF
        hint_assign(z, MASK(head, source), 0);
#else
#ifndef FAULT_BATCH_KEEPS_BIT
        hint_assign(z, MASK(i << MIN_ORDER, merged), 0);
#endif
#endif
#ifndef FAULT_BATCH_STAYS_LISTED
        buddy_take(z, (i << MIN_ORDER), merged, WITHHELD);
#endif
        batch_pages[batch_n] = i << MIN_ORDER;
        batch_orders[batch_n] = merged;
        batch_n++;
        n_free = i;
        hand_over(z, batch_pages[batch_n - 1], merged, BUDDY, HOST);
        i = n_free + NR_GRANULES(merged);
        larger = larger + (1 << merged) - (1 << MIN_ORDER)
    :: i < (PAGES >> MIN_ORDER) && batch_n < BATCH(most) && !(TAKEN(z) & (1 << i)) -> SEEN(z, i); i++
    :: else -> break
    od;
    cursor = i;
    /* A BATCH LEAVES THE LOW WATERMARK WHOLE, but for as much as its blocks are larger than granules. */
    assert(zone[z].free_pages + larger >= LOW);
#ifdef FAULT_PUT_BACK_IS_BLIND
    was_free = 0;
    i = 0;
    do
    :: i < PAGES -> was_free = was_free | ((zone[z].owner[i] == BUDDY || zone[z].owner[i] == HOST) << i); i++
    :: else -> break
    od;
#endif
    i = 0
}

#ifdef FAULT_PUT_BACK_IS_BLIND                  /* merges only with what was free as the batch was isolated */
byte was_free;
#define MAY_MERGE ((was_free >> (head ^ (1 << merged))) & 1)
#else
#define MAY_MERGE true
#endif
#ifdef FAULT_PUT_BACK_IN_FRONT
#define TAKEN_BY_HOST(n) 0
#else
#define TAKEN_BY_HOST(n) (!(batch_failed & (1 << (n))))
#endif

inline put_back(z) {                            /* put_back */
    do
    :: batch_n > 0 ->
        batch_n--;
        hand_over(z, batch_pages[batch_n], batch_orders[batch_n], HOST, BUDDY);
        buddy_free(z, batch_pages[batch_n], batch_orders[batch_n], MAY_MERGE, TAKEN_BY_HOST(batch_n));
#ifdef LISTS
        zone[z].cold = (batch_failed & (1 << batch_n) -> zone[z].cold :
                        zone[z].cold | PAGES_OF(batch_pages[batch_n], batch_orders[batch_n]));
#endif
#ifdef FAULT_PUT_BACK_LOSES_NEIGHBOUR
        hint_assign(z, MASK(head, merged), 0);
#endif
        if
#ifndef FAULT_FAILED_TAKEN_FOR_REPORTED
        :: (batch_failed & (1 << batch_n)) && zone[z].hook ->
            hint_assign(z, MASK(batch_pages[batch_n], batch_orders[batch_n]), 1);
            zone[z].due = zone[z].due & ~MASK(batch_pages[batch_n], batch_orders[batch_n])
#endif
        :: else
        fi;
        batch_pages[batch_n] = 0;
        batch_orders[batch_n] = 0
    :: else -> break
    od;
    batch_failed = 0
}

#ifdef FORK
inline fork(me) {                               /* fork_prepare, fork_parent, fork_child */
    atomic { !last_resort; last_resort = 1 };
    f = 0;
    do
#ifndef FAULT_FORK_TAKES_NO_ZONE_LOCK
    :: f < ZONES -> atomic { UNLOCKED(f); zone[f].locked = 1 }; f++
#endif
    :: else -> break
    od;
    f = 0;
    atomic {
        MUTEX;
        if
        :: skip                                 /* the parent: nothing changes */
        :: d_step {                             /* the child: all other threads are gone */
                child = _pid;
                calls = (runner == me);
                do
                :: f < ZONES -> hint_off(f); f++
                :: else -> break
                od;
                f = 0;
                batch_failed = (1 << batch_n) - 1;
                put_back(batch_zone);
                out = 0;                        /* queue_forked */
                waiters = 0;
                queue_over();
                /* NOTHING IS WITH THE HOST in the child. */
                do
                :: f < ZONES * PAGES -> assert(zone[f / PAGES].owner[f % PAGES] != HOST); f++
                :: else -> break
                od;
                f = 0
            }
        fi;
#ifndef FAULT_FORK_TAKES_NO_ZONE_LOCK
        do
        :: f < ZONES -> zone[f].locked = 0; check_zone(f); f++
        :: else -> break
        od;
        f = 0;
#endif
        last_resort = 0
    }
}
bit ticks;                      /* the child must go on, or the threads that are gone would look like a deadlock */
#define CHILD_ENDS if :: child == _pid -> do :: ticks = !ticks od :: else fi
#else
#define CHILD_ENDS
#endif

inline report(me) {                             /* Reporter.report, and what the callback may do */
    callback_begins();
#ifdef CALLBACK_USES_MEMORY
    take_block(me, order);
    if
    :: got -> give_back(me, z, page, order)
    :: else
    fi;
    page = 0;
    z = 0;
    got = 0;
#endif
#ifdef FORK
    if
    :: fork(me)
    :: skip
    fi;
#endif
    if
    :: session == own ->
        atomic {
            i = 0;
            do
            :: i < batch_n ->
                if
                :: skip
                :: may_fail > 0 -> batch_failed = batch_failed | (1 << i)
                fi;
                i++
            :: else -> break
            od;
            d_step {
                may_fail = (batch_failed -> may_fail - 1 : may_fail);
                i = 0;
                do
                :: i < batch_n ->
                    changed = MASK(batch_pages[i], batch_orders[i]);
                    /* NOTHING IS REPORTED TWICE, and nothing that was not free. */
                    assert((zone[wz].owed & changed) == changed && zone[wz].owner[batch_pages[i]] == HOST);
                    if
                    :: batch_failed & (1 << i)
                    :: else -> zone[wz].owed = zone[wz].owed & ~changed; zone[wz].due = zone[wz].due & ~changed
                    fi;
                    i++
                :: else -> break
                od;
                zfail = zfail || batch_failed;
#ifdef MANUAL_WORKQUEUE
                if
                :: batch_failed -> interrupted = 1; interrupts = interrupts | BIT(me)  /* it may be an interrupt */
                :: else
                fi;
#endif
                calls--
            }
        }
    :: else
    fi
}

#ifdef FAULT_ANNOUNCED_AFTER_ISOLATION
#define OUT 0
#else
#define OUT 1
#endif
#ifdef FAULT_BATCH_WHILE_STOPPING
#define BATCH_WHILE_STOPPING true
#else
#define BATCH_WHILE_STOPPING (!stopping)
#endif

inline batch_begin(me) {                        /* queue_batch_begin */
    asleep = 1;
    do
    :: asleep ->
        d_step {
            MUTEX;
            sleep_settled(me, waiters && !stopping);
            if
            :: asleep
            :: !asleep && BATCH_WHILE_STOPPING -> out = OUT; most = max_pages
            :: else -> most = 0
            fi
        };
        if
        :: asleep -> !(settled_sleepers & BIT(me))
        :: else
        fi
    :: else -> break
    od
}

#ifdef COMES_BACK
hidden byte marked;

inline mark_granules(z, wanted) {               /* mark_granules: as if what is wanted and free had just been freed */
    find_whole(z);
#ifdef FAULT_MARKED_THOUGH_USED
    all_free = ALL_GRANULES;
#endif
    marked = (wanted) & all_free;
    if
#ifdef FAULT_MARKED_WHEN_OFF
    :: true ->
#else
    :: zone[z].hook ->
#endif
#ifdef FAULT_MARKED_TWICE
        zone[z].hint_count = zone[z].hint_count + ONES(marked & zone[z].hints);
#endif
        marked = marked & ~zone[z].hints;
        if
        :: marked -> hint_freed_block(z, marked)
        :: else
        fi;
        zone[z].owed = zone[z].owed | marked;
        zone[z].back = zone[z].back & ~marked;
#ifndef FAULT_MARKED_AND_NOBODY_TOLD
        evaluate(z)
#endif
    :: else
    fi
}

inline ask(me) {                                /* Reporter.ask; what the host says is true as it says it */
    d_step {
        UNLOCKED(wz);
        find_whole(wz);
        wanted = all_free & ~zone[wz].hints;
        zone_unlock(wz, tell)
    };
    queue_notify(tell);
    if
    :: wanted && GOES_ON ->
        callback_begins();
        d_step { wanted = wanted & zone[wz].back; calls-- };
        if
        :: wanted && session == own ->
            d_step { UNLOCKED(wz); mark_granules(wz, wanted); zone_unlock(wz, tell) };
            queue_notify(tell)
        :: else
        fi
    :: else
    fi;
    wanted = 0
}

/* Somebody reads memory that the host has dropped: of one zone, a granule or all. */
proctype Reader()
{
    byte read;
    if
    :: read = 1
    :: read = 255
    fi;
    d_step {
        find_whole(0);
        zone[0].back = (zone[0].hook -> all_free & ~zone[0].owed & read : 0);
        read = 0
    }
}

#ifdef MARK_FREE
proctype Marker()                               /* PageAllocator.mark_free, of all memory */
{
    byte tell;
    d_step { UNLOCKED(0); mark_granules(0, 255); zone_unlock(0, tell) };
    queue_notify(tell)
}
#endif
#define BACK(z) zone[z].back
#else
#define BACK(z) 0
#endif

inline look_at_zone(me) {                       /* look_at_zone, begin_look, report_batch */
#if defined(COMES_BACK) && !defined(FAULT_CAME_BACK_IS_NOT_ASKED)
    if
    :: flush -> ask(me)
    :: else
    fi;
#endif
    most = max_pages;                           /* read without the mutex, as `gate` does */
    WANT(wz)
    d_step {
        UNLOCKED(wz);
        HAVE
#ifndef FAULT_QUEUED_UNTIL_THE_END
        zone[wz].queued = 0;
#endif
        open = zone[wz].hint_count > 0;
#ifdef AGES
        seen_young = 0;
        if
        :: open && !flush && zone[wz].later -> open = 0; zone[wz].queued = 1; zone[wz].notify_at = 0      /* look_later */
        :: open && (flush || !zone[wz].later) -> gate(wz, most)
        :: else
        fi;
        zone[wz].later = zone[wz].later || open;
        looking = open;
#else
        if
        :: open -> gate(wz, most)
        :: else
        fi;
#endif
        zone_unlock(wz, tell)
    };
    queue_notify(tell);
    do
    :: open && GOES_ON ->
        d_step {                                /* next_ripe: needs no lock */
            i = cursor;
            do
            :: i < (PAGES >> MIN_ORDER) && !(RIPE(wz) & (1 << i)) -> SEEN(wz, i); i++
            :: else -> break
            od;
            cursor = i
        };
        if
        :: cursor == (PAGES >> MIN_ORDER) -> break
        :: else
        fi;
        if
        :: !prepared ->                         /* Reporter.prepare */
            callback_begins();
            atomic {
                if
                :: prepared = 1
                :: may_fail > 0 ->
                    may_fail--;
                    zfail = 1;
                    zone[0].due = 0;
                    zone[ZONES - 1].due = 0
                fi;
                calls--
            }
        :: else
        fi;
        if
        :: !prepared -> break
        :: else
        fi;
        batch_begin(me);
        if
        :: !most -> break
        :: else
        fi;
        WANT(wz)
        d_step {
            UNLOCKED(wz);
            HAVE
            gate(wz, most);
            if
            :: open -> isolate_batch(wz)
            :: else
            fi;
            batch_zone = wz;
#ifdef FAULT_NOTED_AFTER_UNLOCK
            noted = batch_n;
            batch_n = 0;
#endif
            zone_unlock(wz, tell)
        };
#ifdef FAULT_ANNOUNCED_AFTER_ISOLATION
        d_step { MUTEX; out = 1 };
#endif
#ifdef FAULT_NOTED_AFTER_UNLOCK
        batch_n = noted;
        noted = 0;
#endif
        queue_notify(tell);
        if
        :: batch_n ->
            report(me);
            if
            :: session != own -> break
            :: else
            fi;
            WANT(wz)
            d_step { UNLOCKED(wz); HAVE put_back(wz); zone_unlock(wz, tell) };
            queue_notify(tell)
        :: else
        fi;
#ifdef FAULT_END_OF_BATCH_DOES_NOT_WAKE
        d_step { MUTEX; out = 0 }
#else
        d_step { MUTEX; out = 0; settled_sleepers = 0 }         /* queue_batch_end */
#endif
    :: else -> break
    od;
#ifdef AGES
    if
    :: looking && session == own ->             /* end_look */
        d_step {
            UNLOCKED(wz);
            if
            :: cursor < (PAGES >> MIN_ORDER) || zfail -> zone[wz].later = 0
            :: cursor == (PAGES >> MIN_ORDER) && !zfail && seen_young && zone[wz].hint_count ->
                zone[wz].later = 1;
#ifndef FAULT_YOUNG_ARE_FORGOTTEN
                zone[wz].queued = 1;
                zone[wz].notify_at = 0
#endif
            :: else
            fi;
            zone_unlock(wz, tell)
        };
        queue_notify(tell)
    :: else
    fi;
    looking = 0;
    seen_young = 0;
#endif
#ifdef FAULT_QUEUED_UNTIL_THE_END
    atomic { UNLOCKED(wz); zone[wz].queued = 0 };
#endif
    cursor = 0;
    most = 0;
    open = 0
}

inline run_pass(me) {                           /* run_pass */
    d_step {
        MUTEX;
#ifndef FAULT_WORK_UNTIL_THE_END
        work = 0;
#endif
#ifndef FAULT_INTERRUPT_LEFT_BEHIND
        interrupted = 0;
#endif
        ticket = flush_wanted;
#ifdef FLUSH_IS_KNOWN
        flush = flush || flush_wanted > flush_done;
#endif
#ifndef FAULT_FLUSH_SERVED_BY_ANY_PASS
        everything = everything || flush_wanted > flush_done;
#endif
#ifndef FAULT_DELAY_STOPPED_AT_THE_END
        if
        :: everything -> queue_disarm()
        :: else
        fi;
#endif
        whole = 1
    };
    do
    :: wz < ZONES ->
        if
        :: everything || zone[wz].queued ->     /* read without the lock */
            look_at_zone(me);
            failed = failed || zfail;
            if
            :: zfail && !prepared -> break
            :: else -> zfail = 0
            fi
        :: else
        fi;
        if
        :: GOES_ON -> wz++
        :: else -> whole = 0; break
        fi
    :: else -> break
    od;
    if
    :: prepared && session == own -> callback_begins(); calls--         /* Reporter.cleanup */
    :: else
    fi;
    if
    :: session == own ->
        d_step {
            MUTEX;
            failures = failed;                  /* queue_backoff */
            not_before = failed;
#ifdef FAULT_WORK_UNTIL_THE_END
            work = failed;
#else
            work = (failed -> WORK_NOW : work);
#endif
#ifdef FAULT_DELAY_STOPPED_AT_THE_END
            if
            :: everything -> queue_disarm()
            :: else
            fi;
#endif
            flush_done = (whole && ticket > flush_done -> ticket : flush_done);
            queue_release();
            settled_sleepers = 0
        }
    :: else
    fi;
    wz = 0;
    prepared = 0;
    failed = 0;
    zfail = 0;
    ticket = 0;
    everything = 0
#ifdef FLUSH_IS_KNOWN
    ;
    flush = 0
#endif
}

#ifdef AGES
hidden byte aged;
inline ages_over() {
    aged = 0;
    do
    :: aged < ZONES -> zone[aged].young = 0; zone[aged].later = 0; aged++
    :: else -> break
    od;
    work = (work -> WORK_NOW : 0)
}
#ifdef LIVENESS
inline ages_pass() {                            /* the time that is waited for comes */
    if
    :: work == WORK_LATER -> ages_over()
    :: skip
    fi
}
#else
inline ages_pass() {                            /* one may have come of age, or all; `look_at` may come, even early */
    aged = 0;
    do
    :: aged < ZONES ->
        if
        :: zone[aged].young = 0
        :: zone[aged].young -> zone[aged].young = zone[aged].young & (zone[aged].young - 1)
        :: skip
        fi;
        if
        :: zone[aged].later = 0
        :: skip
        fi;
        aged++
    :: else -> break
    od;
    if
    :: work == WORK_LATER -> work = WORK_NOW
    :: skip
    fi
}
#endif
#endif

inline time_passes() {                          /* a delay or a back-off may be over, or not */
    if
    :: late = deadline
    :: skip
    fi;
    if
    :: not_before = 0
    :: skip
    fi
#ifdef AGES
    ;
    ages_pass()
#endif
}
#define DUE (!not_before && (work == WORK_NOW || late))                 /* queue_due */
#define OVERDUE (!not_before && (late || (work == WORK_NOW && failures)))       /* overdue */

/* _work, HintingEngine.work. */
proctype Worker(byte me; byte own) PROVIDED
{
    byte wz, cursor, most, ticket, tell;
#ifdef FAULT_NOTED_AFTER_UNLOCK
    byte noted;
#endif
    bit everything, prepared, failed, zfail, whole, open, asleep, timed, idle;
#ifdef FLUSH_IS_KNOWN
    bit flush;
#endif
#ifdef COMES_BACK
    byte wanted;
#endif
#ifdef AGES
    bit looking, seen_young;
#endif
#ifdef CALLBACK_USES_MEMORY
    byte z, page, order, seen, prefer;
    bit got;
#endif
#ifdef FORK
    byte f;
#endif
    do
    :: atomic {
            MUTEX;                              /* queue_lock, or the end of sleep_until */
            time_passes();
#ifdef FLUSH_IS_KNOWN
            flush = flush_wanted > flush_done;
#endif
            everything = flush_wanted > flush_done || OVERDUE;
            if
            :: session != own || stopping ->
                if
                :: session == own -> worker = 0; settled_sleepers = 0
                :: else
                fi;
                break
            :: session == own && !stopping && is_enabled && (everything || DUE) ->
                queue_claim(me);
                idle = 0
            :: else ->
                idle = 1;
                timed = is_enabled && (work || deadline);       /* queue_next */
                everything = 0;
#ifdef FLUSH_IS_KNOWN
                flush = 0;
#endif
#ifdef FAULT_WAKE_WITHOUT_MUTEX
                mutex = 1
#else
                wake_sleepers = wake_sleepers | BIT(me) /* sleep_until(&q.wake, ...) */
#endif
            fi
        };
        if
        :: !idle -> run_pass(me); whole = 0
        :: else ->
#ifdef FAULT_WAKE_WITHOUT_MUTEX
            d_step { mutex = 0; wake_sleepers = wake_sleepers | BIT(me) };
#endif
end_asleep: if
            :: !(wake_sleepers & BIT(me))
#ifdef AGES
            :: atomic { timed -> wake_sleepers = wake_sleepers & ~BIT(me); late = deadline; not_before = 0; ages_over() }
#else
            :: atomic { timed -> wake_sleepers = wake_sleepers & ~BIT(me); late = deadline; not_before = 0 }
#endif
            fi
        fi
    od;
    alive[me] = 0;
    CHILD_ENDS
}

/* ==== on and off: hinting/engine.pyx ============================================================================== */

inline hint_free_blocks(z) {                    /* hint_free_blocks; here one block in each hold of the lock */
    if
    :: mark < PAGES -> free_block_around(z, mark); mark = (source != NOT_FREE -> head : mark)
    :: else
    fi;
    more = 0;
    do
    :: mark < PAGES && !more ->
        free_block_around(z, mark);
        if
        :: source == NOT_FREE -> mark++
        :: else ->
            if
            :: source >= MIN_ORDER ->
                hint_freed_block(z, MASK(mark, source));
                zone[z].owed = zone[z].owed | MASK(mark, source)
            :: else
            fi;
            mark = mark + (1 << source);
            more = 1
        fi
    :: else -> break
    od
}

inline hook_zone(z) {                           /* hook_zone */
    d_step {
        UNLOCKED(z);
        zone[z].threshold = (threshold -> threshold : max_pages);
        zone[z].queued = 0;
        zone[z].notify_at = NEVER;
        zone[z].hook = 1;
        mark = 0;
        hint_free_blocks(z);
        evaluate(z);
        zone_unlock(z, tell)
    };
    queue_notify(tell);
    do
    :: more -> d_step { UNLOCKED(z); hint_free_blocks(z); evaluate(z); zone_unlock(z, tell) }; queue_notify(tell)
    :: else -> break
    od;
    mark = 0
}

inline hook_zones() {                           /* in publish */
    z = 0;
    do
    :: z < ZONES -> hook_zone(z); z++
    :: else -> break
    od;
    z = 0
}

#ifdef MANUAL_WORKQUEUE
#define MANUAL 1
#else
#define MANUAL 0
#endif
inline queue_set() {                            /* queue_set, in publish */
    d_step {
        MUTEX;
        manual = MANUAL;
        max_pages = MAX_PAGES;
        threshold = THRESHOLD;
        delay = DELAY;
        work = 0;
        failures = 0;
        not_before = 0;
        queue_disarm()
    }
}

#define WORKER_OF(session) (1 + (((session) >> 1) & 1))

inline enable(me) {                             /* enable, begin_session, start_worker, publish */
    d_step {
        MUTEX;
        on = !is_enabled && !enabling;
        if
        :: on ->
            session++;
            own = session;
            enabling = 1;
            stopping = 0;
            worker = !MANUAL
#ifdef FAULT_PUBLISHED_BEFORE_INITIALISED
            ;
            is_enabled = 1
#endif
        :: else                                 /* HintingActiveError */
        fi
    };
    if
    :: on && !MANUAL ->                         /* thread.start */
        assert(!alive[WORKER_OF(own)]);
        alive[WORKER_OF(own)] = 1;
        run Worker(WORKER_OF(own), own)
    :: else
    fi;
#ifdef ENABLE_MAY_FAIL
    if
    :: on -> d_step { MUTEX; queue_over() }; on = 0    /* for instance an interrupt while the thread begins */
    :: skip
    fi;
#endif
    if
    :: on ->
#ifdef FAULT_PUBLISHED_BEFORE_INITIALISED
        queue_set();
        hook_zones();
        callbacks = own;
#else
        callbacks = own;
#ifdef FAULT_RESET_AFTER_HOOK
        hook_zones();
        queue_set();
#else
        queue_set();
        hook_zones();
#endif
#endif
        d_step { MUTEX; is_enabled = 1; enabling = 0; signal_wake() }
    :: else
    fi
}

inline switch_off() {                           /* switch_off */
    z = 0;
    do
    :: z < ZONES -> d_step { UNLOCKED(z); hint_off(z); zone_unlock(z, tell); assert(!tell) }; z++
    :: else -> break
    od;
    z = 0
}

#ifdef FAULT_DISABLE_DOES_NOT_WAIT_FOR_PASS
#define BUSY false
#else
#define BUSY (worker || running)
#endif

inline disable(me) {                            /* disable */
    d_step {
        MUTEX;
        own = session;
        on = is_enabled;
        was_on = on;
        if
        :: on -> queue_stop()
        :: else
        fi
    };
    do
    :: on ->
        d_step { MUTEX; sleep_settled(me, session == own && BUSY) };
        until_woken(me);
        d_step {
            MUTEX;
            on = session == own;
            mine = on && !BUSY;
            if
            :: mine -> queue_claim(me)
            :: else
            fi
        };
        if
        :: mine ->
            callbacks = 0;
#ifdef FAULT_OVER_BEFORE_HOOK_IS_OFF
            d_step { MUTEX; queue_over() };
            switch_off();
#else
            switch_off();
            d_step { MUTEX; queue_over() };
#endif
            !alive[WORKER_OF(own)];             /* thread.join */
            break
        :: else
        fi
    :: else -> break
    od;
    /* NO CALLBACK RUNS WHEN DISABLE RETURNS, unless it is another session's. */
    assert(!was_on || (session != own && callbacks != own && (calls == 0 || callbacks)))
}

proctype Controller(byte me) PROVIDED
{
    byte z, mark, tell, own, n;
    bit on, mine, more, asleep, was_on;
    do
    :: n < CYCLES -> n++; enable(me); disable(me)
    :: else -> break
    od
}

/* ==== flush: hinting/engine.pyx =================================================================================== */

proctype Flusher(byte me) PROVIDED              /* flush, with a worker */
{
    byte own, ticket, n, z;
    bit on, done, asleep;
    do
    :: n < FLUSHES && is_enabled ->                /* require_hinting, without the mutex */
        n++;
        d_step {
            MUTEX;
            flushing = 1;
            own = session;
            on = is_enabled && !stopping;
            flush_wanted = flush_wanted + on;
            ticket = flush_wanted;
#ifndef FAULT_FLUSH_DOES_NOT_WAKE
            signal_wake();
#endif
            z = 0;
            do
            :: z < ZONES -> zone[z].due = (on -> zone[z].owed | BACK(z) : 0); z++
            :: else -> break
            od;
            z = 0
        };
        do
        :: on && !done ->
            d_step { MUTEX; sleep_settled(me, session == own && !stopping && flush_done < ticket) };
            until_woken(me);
            d_step {
                MUTEX;
                done = session == own && flush_done >= ticket;
                on = session == own && !stopping
            }
        :: else -> break
        od;
        flushing = 0;
        d_step {
            z = 0;
            do
            :: z < ZONES ->
                /* WHAT WAS FREE BEFORE A FLUSH IS REPORTED AFTER IT, unless it was used, failed, or under the gate. */
                assert(!done || !zone[z].due);
                zone[z].due = 0;
                z++
            :: else -> break
            od;
            z = 0;
            done = 0
        }
    :: n < FLUSHES && !is_enabled -> n++           /* HintingInactiveError */
    :: n == FLUSHES -> break
    od
}

#ifdef MANUAL_WORKQUEUE
/* flush, and run_pending, without a worker: pass_manually, claim_pass. */
proctype Caller(byte me; bit everything)
{
    byte wz, cursor, most, ticket, tell, own, z;
    bit prepared, failed, zfail, whole, open, asleep, due, flush = everything;
    d_step {                                    /* flush; with hinting off, `due` stays false */
        MUTEX;
        z = 0;
        do
        :: z < ZONES -> zone[z].due = (flush && is_enabled && !stopping -> zone[z].owed : zone[z].due); z++
        :: else -> break
        od;
        z = 0
    };
    do
    :: atomic {
            MUTEX;
            time_passes();
            sleep_settled(me, running && is_enabled && manual && !stopping);
            due = !asleep && is_enabled && manual && !stopping && (everything || DUE);
            if
            :: due -> everything = everything || OVERDUE; own = session; queue_claim(me)
            :: else
            fi
        };
        if
        :: asleep -> until_woken(me)
        :: else -> break
        fi
    od;
    if
    :: due -> run_pass(me)
    :: else
    fi;
    /* WHAT A CALLBACK RAISES IS RAISED ON THE THREAD WHERE IT RAN, and cuts short no other pass. */
#ifdef FAULT_INTERRUPT_LEFT_BEHIND
    due = due && !interrupted;
    interrupted = 0;
#else
    due = due && !(interrupts & BIT(me));
#endif
    interrupts = interrupts & ~BIT(me);
    d_step {
        assert(!due || whole || stopping || session != own);
        z = 0;
        do
        :: z < ZONES -> assert(!flush || !due || !whole || !zone[z].due); z++
        :: else -> break
        od
    }
}
#endif

#ifdef SETTINGS
proctype Settings()                             /* set_max_pages, set_threshold, set_delay, after_change */
{
    byte z, tell, limit;
    atomic {
        MUTEX;
        if
        :: max_pages = 1
        :: threshold = 1
        :: delay = !delay; queue_disarm()
        fi;
        limit = (threshold -> threshold : max_pages)
    };
    do
    :: z < ZONES ->
        d_step { UNLOCKED(z); zone[z].threshold = limit; zone[z].notify_at = NEVER; evaluate(z); zone_unlock(z, tell) };
        queue_notify(tell);
        z++
    :: else -> break
    od
}
#endif

#ifdef FORK
proctype Forker(byte me) PROVIDED               /* a thread that forks, and in the child allocates */
{
    byte z, page, tell, f, prefer = ZONES - 1;
    bit got, asleep;
    fork(me);
    if
    :: child == _pid -> take_block(me, 0); CHILD_ENDS
    :: else
    fi
}
#endif

/* ==== the beginning, and the end ================================================================================== */

byte watch;                     /* a granule of zone 0, any */
#define OWED ((zone[0].owed >> watch) & 1)

init {
    byte z, mark, tell, own;
    bit on, more;
    atomic {
        d_step {
            z = 0;
            do
            :: z < ZONES ->
                mark = PAGES;
                do
                :: mark > 0 ->
                    mark = mark - (1 << MAX_ORDER);
                    zone[z].kinds[mark] = FREE + MAX_ORDER;
                    list_insert(z, mark, 0)
                :: else -> break
                od;
                zone[z].free_pages = PAGES;
                zone[z].notify_at = NEVER;
                z++
            :: else -> break
            od;
            z = 0
        };
#ifdef LIVENESS
        do
        :: watch < (PAGES >> MIN_ORDER) - 1 -> watch++
        :: break
        od;
#endif
#if CONTROLLERS == 0
        enable(0);
#endif
#if CONTROLLERS > 0
        run Controller(CONTROLLER);
#endif
#if CONTROLLERS > 1
        run Controller(CONTROLLER + 1);
#endif
#if THREADS > 0
        run Thread(THREAD, ZONES - 1);
#endif
#if THREADS > 1
        run Thread(THREAD + 1, 0);
#endif
#if THREADS > 2
        run Thread(THREAD + 2, 0);
#endif
#if FLUSHES > 0
        run Flusher(FLUSHER);
#endif
#ifdef MANUAL_WORKQUEUE
        run Caller(WORKER, 1);
        run Caller(WORKER + 1, 0);
#endif
#ifdef SETTINGS
        run Settings();
#endif
#ifdef FORK
        run Forker(CONTROLLER);
#endif
#ifdef COMES_BACK
        run Reader();
#endif
#ifdef MARK_FREE
        run Marker();
#endif
        on = 0;
        own = 0
    };
    timeout;                                    /* nothing can happen any more */
    d_step {
        assert(child || (batch_n == 0 && !out && !waiters && !running && !calls && !enabling));
        z = 0;
        do
        :: z < ZONES ->
            /* NOTHING IS LOST: all that is owed has been reported, unless hinting is off, or the gate is closed, or
             * there is no delay and the threshold is not reached. */
            assert(!zone[z].owed || !is_enabled || manual || zone[z].free_pages < REPORT_GATE(max_pages) ||
                   (!delay && zone[z].hint_count < zone[z].threshold) || child);
            assert(is_enabled || (!zone[z].hook && !zone[z].hints));
            z++
        :: else -> break
        od;
        z = 0
    }
}

#ifdef LIVENESS
ltl reported { [] ((OWED && is_enabled) -> <> (!OWED || !is_enabled)) } /* or taken for use, or hinting goes off */
ltl flushed { [] (flushing -> <> !flushing) }
#endif
