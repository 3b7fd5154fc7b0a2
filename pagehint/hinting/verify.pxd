"""The consistency check of a zone's hints. The zone lock and the locks of its page sets are held.

It runs after `zone/verify.pxd`, and relies on what that has found to hold. It shares as little as it can with the code
that it checks, so that a fault there is not repeated here.
"""
from libc.stdint cimport uint64_t
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.hinting.learning.learnt_age cimport NR_SLOTS
from pagehint.zone.leaf cimport leaf_avail, low_ones
from pagehint.zone.verify cimport Finding, found, found_in_all
from pagehint.zone.zone cimport FREE, KIND_ORDER, KIND_STATE, LEAF_SHIFT, PageZone, is_split


cdef inline bint granule_is_free(const PageZone *z, uint64_t page) noexcept nogil:
    """Whether all of the granule that begins at `page` is inside one free block."""
    cdef uint64_t i = page >> LEAF_SHIFT, h, avail
    cdef int order
    if is_split(z.kinds[i]):
        avail = leaf_avail(&z.leaves[i])
        return z.min_order < LEAF_SHIFT and (avail >> (page & 63)) & low_ones(1 << z.min_order) == low_ones(1 << z.min_order)
    for order in range(max(z.min_order, LEAF_SHIFT), z.max_order + 1):
        h = page >> order << order >> LEAF_SHIFT
        if z.kinds[h] & KIND_STATE == FREE and z.kinds[h] & KIND_ORDER >= order:
            return True         # `verify_zone` has found that the later leaves are tails of this block
    return False


cdef inline bint verify_pauses(const PageZone *z, Finding *f) noexcept nogil:
    """Whether a pause goes on in a granule that is in use, or the learner knows of another number of them.

    A granule that is being reported is in nobody's use, and its pause goes on.
    """
    cdef const Hints *h = hints_of(z)
    cdef uint64_t granule, count = 0, young = 0
    cdef int i
    for granule in range(z.nr_granules):
        count += h.freed_at[granule] != 0
        if h.freed_at[granule] and not h.reporting_pages and not granule_is_free(z, granule << z.min_order):
            return found(f, "a pause of a granule that is not free", granule << z.min_order)
    for i in range(NR_SLOTS):
        young += h.learnt.young[i]
    if count != h.learnt.nr_free or young > count:
        return found_in_all(z, f, "the learner's granules are not those that pause")
    return False


cdef inline bint verify_hints(const PageZone *z, Finding *f) noexcept nogil:
    """Whether a bit is set for a granule that is not free, or second level or count disagree with the bits."""
    cdef const Hints *h = hints_of(z)
    cdef uint64_t granule, count = 0
    # To the end of the last word: no bit past the zone's end may be set either.
    for granule in range((z.nr_granules + 63) // 64 * 64):
        if not (h.bits[granule >> 6] >> (granule & 63)) & 1:
            continue
        count += 1
        if granule >= z.nr_granules or not granule_is_free(z, granule << z.min_order):
            return found(f, "a hint for a granule that is not free", granule << z.min_order)
        if h.learns and h.freed_at[granule] == 0:
            return found(f, "a hint for a granule whose pause is not known", granule << z.min_order)
    for granule in range(0, z.nr_granules, 64):
        if (h.filled[granule >> 12] >> ((granule >> 6) & 63)) & 1 != (h.bits[granule >> 6] != 0):
            return found(f, "the second level of the hints is not in step", granule << z.min_order)
    if count != h.count:
        return found_in_all(z, f, "the hint count is not the number of bits")
    if not h.on and count:
        return found_in_all(z, f, "hints while hinting is off")
    return h.learns and verify_pauses(z, f)
