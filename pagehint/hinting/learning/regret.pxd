"""What a zone's learner has seen since hinting was switched on, for Python. `stats/regret.py` makes figures of it."""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy
from pagehint.hinting.age cimport has_ages
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.hinting.learning.learnt_age cimport NR_BINS, LearntAge, Regret, begin_of_bin, bin_of
from pagehint.sync.lock cimport lock_acquire
from pagehint.zone.hook cimport zone_unlock
from pagehint.zone.zone cimport PageZone


cdef inline dict zone_regret(PageZone *z):
    """The counts of a zone as of one moment; None where no age is learnt. Times are nanoseconds."""
    cdef Hints *h = hints_of(z)
    cdef LearntAge l
    cdef int64_t age = 0
    cdef bint learns
    cdef int i, nr_bins
    if not has_ages(h):
        return None
    with nogil:
        lock_acquire(&z.lock, True)
        learns = h.learns
        if learns:
            memcpy(&l, h.learnt, sizeof(l))
            age = h.min_age
        zone_unlock(z)
    if not learns:
        return None
    nr_bins = bin_of(&l, l.break_even - 1) + 1
    return {
        "break_even": l.break_even,
        "age": age,
        "edges": [begin_of_bin(&l, i) for i in range(nr_bins)] + [l.break_even],
        "short_pauses": [l.regret.short_pauses[i] for i in range(nr_bins)],
        "too_soon": [l.regret.too_soon[i] for i in range(nr_bins)],
        "long_pauses": l.regret.long_pauses,
        "reported": l.regret.reported,
        "kept": l.regret.kept,
    }
