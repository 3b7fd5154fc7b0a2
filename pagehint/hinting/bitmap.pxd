"""The hint bitmap: which granules are free, in the buddy, and unreported since they were last in use.

A bit is written under the zone lock only, and the count changes with it, so the count is exact. The worker looks for the
next bit without the lock, hence the relaxed atomic accesses. A second level has a bit for each word of the first that is
not empty, so that an empty terabyte is passed over in a hundred nanoseconds.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.sync.atomic cimport PH_ASSERT, RELAXED, ctz64, load64, popcount64, prefetch, store64
from pagehint.sync.lock cimport assert_held
from pagehint.zone.leaf cimport low_ones
from pagehint.zone.zone cimport PageZone


cdef enum:
    SCAN_AHEAD = 6                  # groups of 64 words: some dozen bits of a bitmap with few

cdef struct HintScan:           # a walk over the bits
    uint64_t index              # of the word it is in
    uint64_t word               # the bits of that word still to come
    uint64_t filled             # the words after it, of the 64 that share a word of the second level, that are not empty
    uint64_t ahead              # the group of 64 words that is being prefetched
    uint64_t ahead_filled       # what is left of it


cdef inline void hint_store(Hints *h, uint64_t i, uint64_t word) noexcept nogil:
    """Write a word of the bitmap, and keep the second level in step. Zone lock held."""
    cdef uint64_t *filled = &h.filled[i >> 6]
    cdef uint64_t bit = <uint64_t>1 << (i & 63)
    store64(&h.bits[i], word, RELAXED)
    store64(filled, filled[0] | bit if word else filled[0] & ~bit, RELAXED)


cdef inline uint64_t hint_assign_one(PageZone *z, uint64_t granule, bint value) noexcept nogil:
    """As `hint_assign`, for one bit."""
    cdef Hints *h = hints_of(z)
    cdef uint64_t i = granule >> 6, bit = <uint64_t>1 << (granule & 63), old = h.bits[i]
    assert_held(&z.lock)
    PH_ASSERT(granule < z.nr_granules)
    if (old & bit != 0) == value:
        return 0
    store64(&h.bits[i], old ^ bit, RELAXED)
    if old & ~bit == 0:             # the word was empty, or is now
        store64(&h.filled[i >> 6], h.filled[i >> 6] ^ <uint64_t>1 << (i & 63), RELAXED)
    h.count += 1 if value else -1
    return 1


cdef inline uint64_t hint_assign(PageZone *z, uint64_t granule, uint64_t n, bint value) noexcept nogil:
    """Set or clear `n` bits from `granule` on; return how many changed. Zone lock held."""
    cdef Hints *h = hints_of(z)
    cdef uint64_t changed = 0, end = granule + n, mask, old, new
    cdef int bit, width
    assert_held(&z.lock)
    PH_ASSERT(end <= z.nr_granules)
    while granule < end:
        bit = granule & 63
        width = <int>min(<uint64_t>(64 - bit), end - granule)
        mask = low_ones(width) << bit
        old = h.bits[granule >> 6]
        new = old | mask if value else old & ~mask
        if new != old:
            changed += popcount64(new ^ old)
            hint_store(h, granule >> 6, new)
        granule += width
    if value:
        h.count += changed
    else:
        h.count -= changed
    return changed


cdef inline uint64_t granules_of(const PageZone *z, int order) noexcept nogil:
    """Granules that a block of `order` overlaps."""
    return <uint64_t>1 << (order - z.min_order) if order > z.min_order else 1


cdef inline void scan_look_ahead(const Hints *h, HintScan *scan, uint64_t last) noexcept nogil:
    """Prefetch one word more, some groups of 64 ahead: few bits are one cache miss after the other else. No branch."""
    cdef bint empty = scan.ahead_filled == 0
    scan.ahead += empty and scan.ahead < last
    scan.ahead_filled = load64(&h.filled[scan.ahead], RELAXED) if empty else scan.ahead_filled
    prefetch(&h.bits[scan.ahead << 6 | <uint64_t>ctz64(scan.ahead_filled | <uint64_t>1 << 63)])
    scan.ahead_filled &= scan.ahead_filled - 1


cdef inline void scan_begin(const Hints *h, HintScan *scan, uint64_t granule) noexcept nogil:
    """Look for bits from `granule` on, which is in the bitmap."""
    scan.index = granule >> 6
    scan.word = load64(&h.bits[scan.index], RELAXED) & (<uint64_t>-1 << (granule & 63))
    scan.filled = load64(&h.filled[scan.index >> 6], RELAXED) & (<uint64_t>-2 << (scan.index & 63))
    scan.ahead = scan.index >> 6
    scan.ahead_filled = 0


cdef inline uint64_t scan_next(const Hints *h, HintScan *scan, uint64_t end) noexcept nogil:
    """The next granule whose bit is set, or `end`. Needs no lock: a bit may be set or cleared at once."""
    cdef uint64_t last = (end - 1) >> 12, group, granule
    while scan.word == 0:
        group = scan.index >> 6
        while scan.filled == 0:
            group += 1
            if group > last:
                return end
            scan.filled = load64(&h.filled[group], RELAXED)
            scan.ahead = max(scan.ahead, min(group + SCAN_AHEAD, last))     # roughly: a wrong prefetch does no harm
        scan.index = group << 6 | <uint64_t>ctz64(scan.filled)
        scan.filled &= scan.filled - 1
        scan.word = load64(&h.bits[scan.index], RELAXED)
        scan_look_ahead(h, scan, last)
    granule = scan.index << 6 | <uint64_t>ctz64(scan.word)
    scan.word &= scan.word - 1
    return min(granule, end)


cdef inline uint64_t hint_find(const Hints *h, uint64_t granule, uint64_t end) noexcept nogil:
    """First granule at or after `granule` whose bit is set, or `end`. Needs no lock."""
    cdef HintScan scan
    if granule >= end:
        return end
    scan_begin(h, &scan, granule)
    return scan_next(h, &scan, end)


cdef inline bint hints_all_set(const Hints *h, uint64_t granule, uint64_t n) noexcept nogil:
    """Whether `n` bits, a power of two and aligned, are all set. Zone lock held."""
    cdef uint64_t mask, i
    if n < 64:
        mask = low_ones(<int>n) << (granule & 63)
        return h.bits[granule >> 6] & mask == mask
    for i in range(granule >> 6, (granule + n) >> 6):
        if h.bits[i] != <uint64_t>-1:
            return False
    return True
