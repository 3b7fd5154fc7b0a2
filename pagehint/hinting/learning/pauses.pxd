"""What a zone's hook tells the learner: each pause of a granule, in a session with `min_age="auto"`.

A granule's stamp is when its pause began, from the free that has set its bit to the allocation that takes it, whether
the host has it meanwhile or not; 0 where no pause is known. (Without a learner the stamps of granules in use are what
they were.) All of this is with the zone lock held, but for `learnt_next_look`.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from pagehint.hinting.hinted_zone cimport Hints
from pagehint.hinting.learning.learnt_age cimport (LearntAge, learn_free, learn_lost, learn_reported, learn_start,
                                                   learn_taken, learn_time, learnt_age, next_old_enough)
from pagehint.sync.atomic cimport RELAXED, store64

cdef enum:
    FLOOR_SHIFT = 10            # of the break-even age: what is younger is not reported, so that batches can fill


cdef inline bint is_hinted(const Hints *h, uint64_t granule) noexcept nogil:
    return (h.bits[granule >> 6] >> (granule & 63)) & 1


cdef inline void pauses_ask(Hints *h, int64_t now) noexcept nogil:
    """Have the zone's age be the one that is learnt so far. Only a pass does so, or who switches hinting on."""
    h.min_age = max(learnt_age(h.learnt, now), h.learnt.break_even >> FLOOR_SHIFT)


cdef inline void pauses_start(Hints *h, int64_t break_even, int64_t now) noexcept nogil:
    """Begin to learn, from pauses that begin from now on. No stamp stands for anything."""
    learn_start(h.learnt, break_even, now)
    h.learns = True
    pauses_ask(h, now)


cdef inline void pauses_begin(Hints *h, uint64_t granule, uint64_t n, int64_t now) noexcept nogil:
    """Granules are about to be hinted: a pause begins, but for those that are hinted already."""
    cdef LearntAge *learnt = h.learnt
    cdef uint64_t i, begun = 0
    learn_time(learnt, now)
    now = max(now, <int64_t>(learnt.slot << learnt.slot_shift), <int64_t>1)
    for i in range(granule, granule + n):
        if h.freed_at[i]:
            if is_hinted(h, i):
                continue
            learn_lost(learnt, h.freed_at[i])        # it came back from the host
        store64(&h.freed_at[i], <uint64_t>now, RELAXED)
        begun += 1
    learn_free(learnt, now, begun)


cdef inline void pauses_end(Hints *h, uint64_t granule, uint64_t n, int64_t now) noexcept nogil:
    """Granules are taken for use, and have their bits still if they were not reported."""
    cdef uint64_t i
    for i in range(granule, granule + n):
        if h.freed_at[i]:
            learn_taken(h.learnt, h.freed_at[i], max(now, <int64_t>h.freed_at[i]), not is_hinted(h, i))
            store64(&h.freed_at[i], 0, RELAXED)


cdef inline void pauses_reported(Hints *h, uint64_t granule, uint64_t n, int64_t now) noexcept nogil:
    """Granules were reported, and the host has taken them."""
    cdef uint64_t i
    for i in range(granule, granule + n):
        if h.freed_at[i]:
            learn_reported(h.learnt, h.freed_at[i], max(now, <int64_t>h.freed_at[i]))


cdef inline int64_t learnt_next_look(const LearntAge *l, int64_t kept, int64_t now) noexcept nogil:
    """When to look again at what is warm: once a slot, since the age changes; sooner if what is kept comes of age.

    `kept` is the oldest stamp of what is older than the age, but is kept; INT64_MAX: there is none.
    """
    cdef int64_t slot = <int64_t>1 << l.slot_shift, next = now + slot
    if kept != INT64_MAX:
        next = min(next, max(kept + next_old_enough(l, now - kept), now + (slot >> 4)))
    return next
