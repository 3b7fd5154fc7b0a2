/* A zone: its buddy system, its hint bits, its hook, and what its unlock tells the queue.
 *
 * A page here is the smallest block that the model knows; a granule is `1 << MIN_ORDER` of them. As in the code, all of
 * this runs under the zone lock: here as one indivisible step of the process that holds it.
 */

#ifndef ZONES
#define ZONES 1
#endif
#ifndef PAGES                   /* of each zone, at most 8 */
#define PAGES 4
#endif
#ifndef MAX_ORDER               /* 2: a free may merge twice */
#define MAX_ORDER 2
#endif
#ifndef MIN_ORDER
#define MIN_ORDER 0
#endif
#ifndef LOW                     /* the low watermark, in pages */
#define LOW 0
#endif

#define TAIL 0                  /* zone/zone.pxd: a page's kind; FREE, USED and WITHHELD plus the block's order */
#define FREE 1
#define USED 6
#define WITHHELD 11
#define IS_FREE(kind) ((kind) >= FREE && (kind) < USED)
#define NOT_FREE 15
#define NEVER 255               /* INT64_MAX */

#define BUDDY 0                 /* what has a page: the buddy system, the host, or a thread, by its number */
#define HOST 15

typedef PageZone {              /* zone/zone.pxd: PageZone, and hinting/hinted_zone.pxd: Hints */
    bit locked;                 /* `lock.word` */
    bit hook;                   /* `on`, and `freed_from` is not NO_ORDER */
    bit queued;
    byte notify_at;
    byte threshold;
    byte hint_count;            /* `count` */
    byte hints;                 /* `bits`, one a granule */
    byte free_pages;
    byte kinds[PAGES];
#ifdef AGES
    byte young;                 /* granules whose bits are set, and whose stamps say that they are not ripe */
    bit later;                  /* the time `look_at` has not come */
#endif
#ifdef LISTS
    byte place[PAGES];          /* of a free block, at its first page: 1 at the front of its order's list, 2 after it, ... */
    byte cold;                  /* for the proof only: pages that the host has dropped, and nobody has used since */
#endif
#ifdef COMES_BACK
    byte back;                  /* for the proof only: reported granules that the host has memory for again */
#endif
    /* For the proof only. */
    byte owner[PAGES];
    byte owed;                  /* granules that have become free with hinting on, and have not been reported since */
    byte due                    /* of these, those that the flush on its way must have reported when it returns */
};
PageZone zone[ZONES];

#define UNLOCKED(z) (!zone[z].locked)
#define ONES(x) (((x) & 1) + (((x) >> 1) & 1) + (((x) >> 2) & 1) + (((x) >> 3) & 1) \
                 + (((x) >> 4) & 1) + (((x) >> 5) & 1) + (((x) >> 6) & 1) + (((x) >> 7) & 1))
#define NR_GRANULES(order) ((order) > MIN_ORDER -> 1 << ((order) - MIN_ORDER) : 1)             /* granules_of */
#define ALL_GRANULES ((1 << (PAGES >> MIN_ORDER)) - 1)
#define MASK(first, order) ((((1 << NR_GRANULES(order)) - 1) << ((first) >> MIN_ORDER)) & 255)

/* Used within one indivisible step only, so no part of the state. */
hidden byte o, head, source, merged, half, buddy, changed, i, all_free, n_free;

/* -- zone/zone.pxd: the free lists, where a configuration has them (LISTS) ------------------------------------------- */

#ifdef LISTS
hidden byte l, n_listed;

inline list_del(z, first) {                     /* list_del */
    l = 0;
    do
    :: l < PAGES ->
        zone[z].place[l] = (zone[z].kinds[l] == zone[z].kinds[first] && zone[z].place[l] > zone[z].place[first] ->
                            zone[z].place[l] - 1 : zone[z].place[l]);
        l++
    :: else -> break
    od;
    zone[z].place[first] = 0
}

inline list_insert(z, first, last) {            /* list_add, or list_add_last; the block's kind is set */
    n_listed = 0;
    l = 0;
    do
    :: l < PAGES ->
        n_listed = n_listed + (zone[z].kinds[l] == zone[z].kinds[first] && zone[z].place[l]);
        zone[z].place[l] = (zone[z].kinds[l] == zone[z].kinds[first] && zone[z].place[l] && !(last) ->
                            zone[z].place[l] + 1 : zone[z].place[l]);
        l++
    :: else -> break
    od;
    zone[z].place[first] = (last -> n_listed + 1 : 1)
}

inline list_first(z, order) {                   /* in `source` the least order that suffices, and in `head` what is first */
    source = order;
    head = PAGES;
    do
    :: source <= MAX_ORDER && head == PAGES ->
        l = 0;
        do
        :: l < PAGES -> head = (zone[z].kinds[l] == FREE + source && zone[z].place[l] == 1 -> l : head); l++
        :: else -> break
        od;
        source = (head == PAGES -> source + 1 : source)
    :: else -> break
    od
}

#ifdef FAULT_REST_IN_FRONT                      /* keep_cold_last: what a batch leaves of a block, if nothing of it is hinted */
#define REST_IS_COLD(z, first, order, state) 0
#else
#define REST_IS_COLD(z, first, order, state) ((state) == WITHHELD && !(zone[z].hints & MASK(first, order)))
#endif
#define PAGES_OF(first, order) (((1 << (1 << (order))) - 1) << (first))
/* WARM BEFORE COLD: what is all cold is first in its list only if nothing there is all warm. */
inline check_cold(z) {
    l = 0;
    do
    :: l < PAGES && head < PAGES ->
        assert((PAGES_OF(head, source) & ~zone[z].cold) || zone[z].kinds[l] != FREE + source ||
               (PAGES_OF(l, source) & zone[z].cold));
        l++
    :: else -> break
    od
}
#else
#define list_del(z, first) skip
#define list_insert(z, first, last) skip
#endif

/* -- zone/buddy.pxd ------------------------------------------------------------------------------------------------ */

inline free_block_around(z, first) {            /* free_block_around: its order in `source`, its first page in `head` */
    o = 0;
    do
    :: o < MAX_ORDER && zone[z].kinds[(first >> o) << o] == TAIL -> o++
    :: else -> break
    od;
    head = (first >> o) << o;
    source = NOT_FREE;
    if
    :: IS_FREE(zone[z].kinds[head]) && first - head < (1 << (zone[z].kinds[head] - FREE)) ->
        source = zone[z].kinds[head] - FREE
    :: else
    fi
}

inline buddy_take(z, first, order, state) {     /* buddy_take: from the block at `head`, of order `source` */
    o = source;
    list_del(z, head);
    do
    :: o > order ->
        o--;
        half = 1 << o;
        if
        :: first & half -> zone[z].kinds[head] = FREE + o; list_insert(z, head, REST_IS_COLD(z, head, o, state)); head = head + half
        :: else -> zone[z].kinds[head + half] = FREE + o; list_insert(z, head + half, REST_IS_COLD(z, head + half, o, state))
        fi
    :: else -> break
    od;
    zone[z].kinds[head] = state + order;
    zone[z].free_pages = zone[z].free_pages - (1 << order)
}

/* buddy_free, buddy_free_cold, merge_leaves: `merged` is the order it has become; `last` if behind all others of it. */
inline buddy_free(z, first, order, may_merge, last) {
    head = first;
    merged = order;
    zone[z].free_pages = zone[z].free_pages + (1 << order);
    do
    :: merged < MAX_ORDER && zone[z].kinds[head ^ (1 << merged)] == FREE + merged && (may_merge) ->
        buddy = head ^ (1 << merged);
        list_del(z, buddy);
        zone[z].kinds[head] = TAIL;
        zone[z].kinds[buddy] = TAIL;
        head = head & buddy;
        merged++
    :: else -> break
    od;
    zone[z].kinds[head] = FREE + merged;
    list_insert(z, head, last)
}

/* -- for the proof ---------------------------------------------------------------------------------------------- */

inline hand_over(z, first, order, from, to) {
    i = first;
    do
    :: i < first + (1 << order) ->
        assert(zone[z].owner[i] == from);       /* NO PAGE IN TWO HANDS: it is taken only from what has it */
        zone[z].owner[i] = to;
        i++
    :: else -> break
    od
}

inline find_whole(z) {                          /* the granules that are free, in `all_free` */
    all_free = ALL_GRANULES;
    i = 0;
    do
    :: i < PAGES ->
        all_free = (zone[z].owner[i] == BUDDY -> all_free : all_free & ~(1 << (i >> MIN_ORDER)));
        i++
    :: else -> break
    od
}

inline check_zone(z) {                          /* whenever the lock is released */
    find_whole(z);
    /* THE COUNT IS THE NUMBER OF BITS; a bit is set if and only if its granule is free, and not reported since. */
    assert(zone[z].hint_count == ONES(zone[z].hints));
    assert(zone[z].hints == (zone[z].hook -> zone[z].owed & all_free : 0));
    i = 0;
    n_free = 0;
    do
    :: i < PAGES ->
        free_block_around(z, i);
        assert((source != NOT_FREE) == (zone[z].owner[i] == BUDDY));
        /* The free set is made of maximal blocks. */
        assert(source == NOT_FREE || source == MAX_ORDER || zone[z].kinds[head ^ (1 << source)] != FREE + source);
        n_free = n_free + (source != NOT_FREE);
        i++
    :: else -> break
    od;
    assert(zone[z].free_pages == n_free)
}

/* -- hinting/bitmap.pxd, hinting/watch.pxd ------------------------------------------------------------------------- */

inline hint_assign(z, mask, value) {            /* hint_assign: how many bits changed in `changed` */
    changed = zone[z].hints;
    zone[z].hints = (value -> zone[z].hints | (mask) : zone[z].hints & ~(mask));
    changed = ONES(changed ^ zone[z].hints);
#ifdef AGES
    zone[z].young = zone[z].young & zone[z].hints;
#endif
    zone[z].hint_count = (value -> zone[z].hint_count + changed : zone[z].hint_count - changed)
}

inline hint_freed_block(z, mask) {              /* hint_freed_block, age_begin */
#ifdef AGES
    zone[z].later = zone[z].later || zone[z].hint_count == 0;
    zone[z].young = zone[z].young | (mask);
    hint_assign(z, mask, 1)
#else
    hint_assign(z, mask, 1)
#endif
}

inline evaluate(z) {                            /* evaluate; reads the queue's `delay_armed` without its mutex */
    if
    :: !zone[z].hook || zone[z].hint_count == 0 || zone[z].queued || zone[z].notify_at != NEVER
    :: else ->
        if
        :: zone[z].hint_count >= zone[z].threshold -> zone[z].queued = 1; zone[z].notify_at = 0
        :: zone[z].hint_count < zone[z].threshold && !delay_armed -> zone[z].notify_at = 0
        :: else
        fi
    fi
}

inline hint_off(z) {                            /* hint_off */
    zone[z].hook = 0;
    zone[z].notify_at = NEVER;
    zone[z].queued = 0;
#ifdef AGES
    zone[z].later = 0;
#endif
    hint_assign(z, 255, 0);
    zone[z].owed = 0
}

/* -- zone/hook.pxd, hinting/notify.pxd ----------------------------------------------------------------------------- */

#define TELL_DELAY 1
#define TELL_WORK 2
#define TELL_LATER 3            /* when `look_at` has come */
#ifdef AGES
#define LATER(z) zone[z].later
#else
#define LATER(z) 0
#endif

inline zone_unlock(z, tell) {                   /* zone_unlock, unlock_and_notify; then `queue_notify` if `tell` */
    if
    :: zone[z].notify_at != NEVER && zone[z].free_pages >= zone[z].notify_at ->
        zone[z].notify_at = NEVER;
        zone[z].queued = zone[z].queued || zone[z].hint_count >= zone[z].threshold;
        tell = (zone[z].queued -> (LATER(z) -> TELL_LATER : TELL_WORK) : (zone[z].hint_count -> TELL_DELAY : 0))
    :: else -> tell = 0
    fi;
    zone[z].locked = 0;
    check_zone(z)
}
