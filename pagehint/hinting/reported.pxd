"""What is with the host, and what of it came back: whole granules that are free, and not hinted.

That is one thing with a hint's meaning: a free granule has a hint until it is reported. With `mark_free=False` it also
holds for what has been free since before hinting was enabled. The host takes such memory again when somebody reads it: a
dump, a migration, a lock on all memory. So a flush asks it (`Reporter.ask`), and what came back is hinted again, as if it
had just been freed. All of this goes by groups of granules, a hold of the zone lock each.
"""
from libc.stdint cimport uint64_t
from libc.string cimport memset
from pagehint.hinting.age cimport age_begin, has_ages
from pagehint.hinting.bitmap cimport granules_of, hint_set_in_word
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.hinting.watch cimport evaluate
from pagehint.sync.atomic cimport ctz64, popcount64
from pagehint.sync.lock cimport assert_held, lock_acquire
from pagehint.zone.buddy cimport NOT_FREE, free_block_around
from pagehint.zone.hook cimport zone_unlock
from pagehint.zone.zeroed cimport granule_mask, not_zeroed, zeroed_clear, zeroed_use
from pagehint.zone.zone cimport FULL, LEAF_SHIFT, PageZone, is_split

cdef enum:
    GROUP_WORDS = 64                    # words of a group, a bit for each granule
    GROUP_GRANULES = GROUP_WORDS * 64   # 8 GiB of granules of 2 MiB


cdef inline uint64_t next_granule(const PageZone *z, uint64_t granule) noexcept nogil:
    """The granule after one that is not free; past its leaf, if nothing in that is free. Zone lock held."""
    cdef uint64_t leaf = (granule << z.min_order) >> LEAF_SHIFT
    if z.min_order >= LEAF_SHIFT or (is_split(z.kinds[leaf]) and z.kinds[leaf] < FULL):
        return granule + 1
    return ((leaf + 1) << LEAF_SHIFT) >> z.min_order


cdef inline void free_granules(PageZone *z, uint64_t first, uint64_t *words) noexcept nogil:
    """Set a bit for each granule of a group that is entirely free, and clear the others. Zone lock held.

    The group begins at `first`, a multiple of GROUP_GRANULES. O(granules * max_page_order) at most.
    """
    cdef uint64_t granule = first, end = min(first + GROUP_GRANULES, z.nr_granules), head = 0, last
    cdef int order
    assert_held(&z.lock)
    memset(words, 0, GROUP_WORDS * sizeof(uint64_t))
    while granule < end:
        order = free_block_around(z, granule << z.min_order, z.min_order, &head)
        if order == NOT_FREE:
            granule = next_granule(z, granule)
            continue
        last = min(end, (head >> z.min_order) + granules_of(z, order))
        while granule < last:
            words[(granule - first) >> 6] |= granule_mask(granule, last)
            granule = min((granule | 63) + 1, last)


cdef inline void reported_granules(PageZone *z, uint64_t first, uint64_t *words) noexcept nogil:
    """As `free_granules`, without those that are hinted. Zone lock held."""
    cdef uint64_t i, most = min(<uint64_t>GROUP_WORDS, (z.nr_granules - first + 63) >> 6)
    free_granules(z, first, words)
    for i in range(most):
        words[i] &= ~hints_of(z).bits[(first >> 6) + i]


cdef inline uint64_t granules_to_ask_for(PageZone *z, uint64_t first, uint64_t *words) noexcept nogil:
    """As `reported_granules`, with those that are hinted and known to be zero; how many.

    The host has not been asked to take these, since they are taken to be with it (`arena/madvise.pxd`).
    """
    cdef uint64_t word = first >> 6, i, n = 0, bits
    free_granules(z, first, words)
    for i in range(min(<uint64_t>GROUP_WORDS, (z.nr_granules - first + 63) >> 6)):
        bits = ~hints_of(z).bits[word + i]
        if z.zeroed != NULL and (word + i) << 6 < z.zeroed.nr_granules:
            bits |= ~not_zeroed(z.zeroed, word + i)
        words[i] &= bits
        n += popcount64(words[i])
    return n


cdef inline void forget_zeroes(PageZone *z, uint64_t granule) noexcept nogil:
    """Take a granule that its host has memory for for one that may hold anything. Zone lock held."""
    zeroed_use(z.zeroed, granule << z.min_order, <uint64_t>1 << z.min_order, z.min_order)
    zeroed_clear(z.zeroed, granule, 1)


cdef inline uint64_t mark_granules(PageZone *z, uint64_t first, const uint64_t *wanted) noexcept nogil:
    """Hint those granules of a group that are wanted and free, as if they had just been freed; how many. Zone lock held."""
    cdef Hints *h = hints_of(z)
    cdef uint64_t words[GROUP_WORDS]
    cdef uint64_t i, granule, left, marked = 0
    if not h.on:
        return 0
    free_granules(z, first, words)
    for i in range(min(<uint64_t>GROUP_WORDS, (z.nr_granules - first + 63) >> 6)):
        words[i] &= wanted[i]
        left = words[i] if z.zeroed != NULL or has_ages(h) else 0
        while left:
            granule = first + (i << 6) + <uint64_t>ctz64(left)
            left &= left - 1
            if z.zeroed != NULL:
                forget_zeroes(z, granule)
            if has_ages(h) and not (h.bits[granule >> 6] >> (granule & 63)) & 1:
                age_begin(z, granule, 1)
        marked += hint_set_in_word(z, (first >> 6) + i, words[i])
    h.counters.hints_set += marked
    if marked:
        evaluate(z)
    return marked


cdef inline uint64_t mark_free_granules(PageZone *z, uint64_t granule, uint64_t end) noexcept nogil:
    """Hint what is free of the granules from `granule` to `end`, a group in a hold of the zone lock; how many."""
    cdef uint64_t wanted[GROUP_WORDS]
    cdef uint64_t n = 0, first, last
    while granule < end:
        first = granule // GROUP_GRANULES * GROUP_GRANULES
        last = min(end, first + GROUP_GRANULES)
        memset(wanted, 0, sizeof(wanted))
        while granule < last:
            wanted[(granule - first) >> 6] |= granule_mask(granule, last)
            granule = min((granule | 63) + 1, last)
        lock_acquire(&z.lock, True)
        n += mark_granules(z, first, wanted)
        zone_unlock(z)
    return n
