"""How long granules have been free. With `min_age`, only a *ripe* granule is reported: one that has been free so long.

Each time that a granule is free is a ski rental: keep its memory, which costs by the second, or report it, which costs
once (the report, and the page faults when it is used again). If `min_age` is the time after which both have cost the
same, the total is at most twice that of a policy which knows the future (Karlin and others, 1988).

The *reserve* of a zone is its lowest hinted granules, up to a number of them. These are ripe when they have been free
for `reserve_age`, which is longer. So a loop that wants a little memory at a slow pace finds it warm: an arena hands out
the front of a short extent, and the longest one is behind everything else. glibc's heap keeps the memory at its top for
that. Which granules are in the reserve changes as lower ones are freed and taken. Each look decides it anew, for all of
the look, by the hints that it finds (`find_reserve`).

A granule's stamp is the time at which the hook set its bit, by the clock of the session, in nanoseconds. It is written
under the zone lock, before the bit. A search for ripe granules needs no lock: its finds are looked at again under it.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from pagehint.hinting.bitmap cimport hint_find, hint_select
from pagehint.hinting.hinted_zone cimport Hints, forget_ages, hints_of
from pagehint.hinting.learning.learnt_age cimport LearntAge, is_old_enough
from pagehint.hinting.learning.pauses cimport pauses_begin, pauses_start
from pagehint.hinting.queue cimport WorkQueue, queue_now
from pagehint.sync.atomic cimport RELAXED, load64, peek64, store64
from pagehint.sync.lock cimport assert_held
from pagehint.zone.page_sets.run_set cimport run_set_close, run_set_is_open, run_set_open
from pagehint.zone.zone cimport PageZone

cdef enum:
    RUN_LOOKS = 4               # in `reserve_age`: at whether the runs that a zone keeps are still wanted

cdef struct Ripe:               # what one look at a zone takes for ripe, and has found; on the stack of its thread
    bint any_age                # each granule is ripe
    uint64_t reserve            # granules that are to be in the reserve
    int64_t until               # nanoseconds: a granule freed at this time or before is ripe
    int64_t oldest              # nanoseconds: the oldest stamp that was not ripe; INT64_MAX: there was none
    uint64_t reserve_end        # granules below this one are in the reserve; the next two are as the last two, for them
    int64_t reserve_until
    int64_t reserve_oldest
    const LearntAge *learnt     # of an age that is learnt; else NULL
    # `is_of_age`. A pointer, so that it is called out of line: the code around has the registers.
    bint (*is_of_age)(const Hints *h, uint64_t granule, Ripe *ripe) noexcept nogil
    int64_t now
    int64_t kept                # nanoseconds: the oldest stamp of what is older, but not ripe; INT64_MAX: there was none
    uint64_t excess             # pages over the zone's limit (`limit.pxd`): while there are any, each granule is ripe


cdef inline void set_longest_age(Hints *h, int64_t age) noexcept nogil:
    """Write `reserve_age`, which `has_ages` reads without the lock. Zone lock held."""
    store64(<uint64_t *> &h.reserve_age, <uint64_t>age, RELAXED)


cdef inline void set_ages(Hints *h, const WorkQueue *q) noexcept nogil:
    """Take over the ages of the session. Zone lock held."""
    cdef int64_t longest = q.break_even if h.learns else max(q.min_age, <int64_t>0)
    if not h.learns:
        h.min_age = longest
    h.reserve = q.reserve if q.reserve_age > longest else 0
    set_longest_age(h, q.reserve_age if h.reserve else longest)


cdef inline void begin_ages(Hints *h, const WorkQueue *q) noexcept nogil:
    """A session begins, with its ages; if they are learnt, no stamp stands for anything. Zone lock held."""
    h.learns = False
    if q.break_even:
        pauses_start(h, q.break_even, queue_now(q))
    set_ages(h, q)


cdef inline bint has_ages(const Hints *h) noexcept nogil:
    """Whether a granule may be too young to be reported. Also asked without the zone lock: a pass may ask in vain."""
    return peek64(<const uint64_t *> &h.reserve_age) != 0


cdef inline Ripe ripe_at(const Hints *h, int64_t now, bint everything) noexcept nogil:
    """What is ripe at this time, in a zone within its limit: each granule for a flush, or without ages. Zone lock held.

    As if nothing were in the reserve: `find_reserve` says what is.
    """
    cdef Ripe ripe
    ripe.any_age = everything or not has_ages(h)
    ripe.reserve = h.reserve
    ripe.until = now - h.min_age
    ripe.reserve_until = now - h.reserve_age
    ripe.oldest = ripe.reserve_oldest = ripe.kept = INT64_MAX
    ripe.learnt = h.learnt if h.learns else NULL
    ripe.is_of_age, ripe.now = is_of_age, now
    ripe.reserve_end = ripe.excess = 0
    return ripe


cdef inline void find_reserve(const PageZone *z, Ripe *ripe) noexcept nogil:
    """Find where the zone's reserve ends, for one look. Needs no lock: it is a guess if hints change meanwhile.

    The ages are those at which the look began: another thread may change the zone's. O(words of hints in the reserve).
    """
    cdef const Hints *h = hints_of(z)
    cdef uint64_t end = load64(&z.nr_granules, RELAXED)
    if ripe.reserve and not ripe.any_age:
        ripe.reserve_end = end if load64(&h.count, RELAXED) <= ripe.reserve else hint_select(h, ripe.reserve, end)


cdef inline void age_begin(PageZone *z, uint64_t granule, uint64_t n) noexcept nogil:
    """Stamp `n` granules that have just become free; their bits are set next. Zone lock held. O(n).

    Beyond the reserve one granule is due after `min_age`: one of these, or an older one that they have moved out of it.
    """
    cdef Hints *h = hints_of(z)
    cdef int64_t now = queue_now(<WorkQueue *> h.queue)
    cdef int64_t due = now + (h.min_age if h.count + n > h.reserve else h.reserve_age)
    cdef uint64_t i
    assert_held(&z.lock)
    if h.count == 0 or due < h.look_at:
        h.look_at = due
        if h.queued and due < h.told_at:
            z.notify_at = 0         # the queue waits for a later time
    if h.learns:
        pauses_begin(h, granule, n, now)
        return
    for i in range(granule, granule + n):
        store64(&h.freed_at[i], <uint64_t>now, RELAXED)


cdef inline int64_t runs_pause(const Hints *h) noexcept nogil:
    """Nanoseconds between looks at the runs that a zone keeps: they are used, or given up (`page_sets/run_set.pxd`)."""
    return h.reserve_age // RUN_LOOKS


cdef inline void keep_runs(PageZone *z, int64_t now) noexcept nogil:
    """Keep runs until a look finds that none is wanted any more. The zone is queued. Zone lock held."""
    cdef Hints *h = hints_of(z)
    if z.run_set != NULL and not run_set_is_open(z):
        h.runs_at = now + runs_pause(h)
        h.look_at = min(h.look_at, h.runs_at)
        run_set_open(z)


cdef inline void age_begun(PageZone *z, uint64_t page, uint64_t n, int64_t since) noexcept nogil:
    """Stamp the granules of pages that have just become free, but were given up before, at `since`. Zone lock held.

    A learner knows of a pause from now on only: until then the run was kept for whoever wants it.
    """
    cdef Hints *h = hints_of(z)
    cdef uint64_t granule = page >> z.min_order, end = ((page + n - 1) >> z.min_order) + 1
    while granule < end and not h.learns:
        granule = hint_find(h, granule, end)
        if granule < end:
            store64(&h.freed_at[granule], min(h.freed_at[granule], <uint64_t>since), RELAXED)
            h.look_at = min(h.look_at, since + h.reserve_age)
            granule += 1


cdef inline void age_change(PageZone *z, const WorkQueue *q) noexcept nogil:
    """Have a zone go by the ages of now. Zone lock held.

    O(hinted granules) if it had none before, O(granules) if it begins to learn, else O(1).
    """
    cdef Hints *h = hints_of(z)
    cdef int64_t min_age = h.min_age, reserve_age = h.reserve_age
    cdef uint64_t reserve = h.reserve, granule
    cdef bint other_way = q.break_even != (h.learnt.break_even if h.learns else 0)
    if not h.on:
        return
    if not other_way:
        set_ages(h, q)
    else:
        if q.break_even:
            forget_ages(z)      # what is hinted gets stamps below, of now
        begin_ages(h, q)
    if not h.reserve:
        run_set_close(z)
    if h.min_age == min_age and h.reserve == reserve and h.reserve_age == reserve_age and not other_way:
        return
    if reserve_age == 0 or other_way and h.learns:      # what was hinted meanwhile has no stamps
        granule = hint_find(h, 0, z.nr_granules)
        while granule < z.nr_granules:
            age_begin(z, granule, 1)
            granule = hint_find(h, granule + 1, z.nr_granules)
    h.look_at = 0               # the next pass finds what the new ages make ripe, and says when to look again
    if h.queued:
        z.notify_at = 0


cdef inline bint is_ripe(const Hints *h, uint64_t granule, Ripe *ripe) noexcept nogil:
    """Whether a granule whose bit is set may be reported. Exact under the zone lock; without it, a guess."""
    return ripe.any_age or ripe.excess or ripe.is_of_age(h, granule, ripe)


cdef inline bint is_of_age(const Hints *h, uint64_t granule, Ripe *ripe) noexcept nogil:
    """Whether a granule has been free for as long as it must; if not, `ripe` takes note of when it will have been."""
    cdef int64_t freed_at = <int64_t>load64(&h.freed_at[granule], RELAXED)
    if granule < ripe.reserve_end:
        if freed_at <= ripe.reserve_until:
            return True
        ripe.reserve_oldest = min(ripe.reserve_oldest, freed_at)
    else:
        if freed_at <= ripe.until:
            if ripe.learnt == NULL or is_old_enough(ripe.learnt, ripe.now - freed_at):
                return True
            ripe.kept = min(ripe.kept, freed_at)
        else:
            ripe.oldest = min(ripe.oldest, freed_at)
    return False


cdef inline int ripe_order(const Hints *h, int min_order, uint64_t granule, int order, Ripe *ripe) noexcept nogil:
    """Largest order, up to `order`, of a ripe block that begins with this ripe granule.

    A block is as old as its youngest granule. Zone lock held. O(granules of the block).
    """
    cdef int o = min_order
    cdef uint64_t n = 1, i
    while o < order:
        for i in range(n, 2 * n):
            if not is_ripe(h, granule + i, ripe):
                return o
        n *= 2
        o += 1
    return o
