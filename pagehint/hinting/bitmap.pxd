"""The hint bitmap, one bit a granule. A set bit is a *hint*: the granule is free, in the buddy system, and unreported.

Unreported means not reported since it was last in use. The bits and their count change together, under the zone lock,
so both are exact. (In Linux's page hinting series, v10, June 2019, a bit meant "might be free", and the counter
drifted.) A search for the next bit needs no lock, hence the relaxed atomic accesses: what it finds is looked at again
under the lock. A second level has a set bit for each word of the first that is not zero: a search passes over an empty
terabyte in a hundred nanoseconds.
"""
from libc.stdint cimport uint64_t
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.sync.atomic cimport PH_ASSERT, RELAXED, add64, ctz64, likely, load64, popcount64, prefetch, store64, sub64
from pagehint.sync.lock cimport assert_held
from pagehint.zone.leaf cimport low_ones
from pagehint.zone.zone cimport PageZone


cdef enum:
    SCAN_AHEAD = 6                  # groups of 64 words that a prefetch is ahead: in a sparse bitmap, some dozen bits

# A walk over the set bits, in ascending order; on the stack of its thread. A *group* is 64 words of the bitmap, those
# that share a word of the second level.
cdef struct HintScan:
    uint64_t index              # of the word that it is in
    uint64_t word               # the set bits of that word that are still to come
    uint64_t filled             # a bit for each later word of its group that is not zero
    uint64_t ahead              # the group that is being prefetched
    uint64_t ahead_filled       # a bit for each word of that group that is not zero and not prefetched yet


cdef inline void hint_store(Hints *h, uint64_t i, uint64_t word) noexcept nogil:
    """Write a word of the bitmap, and its bit in the second level. Zone lock held."""
    cdef uint64_t *filled = &h.filled[i >> 6]
    cdef uint64_t bit = <uint64_t>1 << (i & 63)
    store64(&h.bits[i], word, RELAXED)
    store64(filled, filled[0] | bit if word else filled[0] & ~bit, RELAXED)


cdef inline uint64_t hint_assign_one(PageZone *z, uint64_t granule, bint value) noexcept nogil:
    """As `hint_assign`, for one bit. Zone lock held."""
    cdef Hints *h = hints_of(z)
    cdef uint64_t i = granule >> 6, bit = <uint64_t>1 << (granule & 63), old = h.bits[i]
    assert_held(&z.lock)
    PH_ASSERT(granule < z.nr_granules)
    if (old & bit != 0) == value:
        return 0
    store64(&h.bits[i], old ^ bit, RELAXED)
    if old & ~bit == 0:             # the word was zero, or is now
        store64(&h.filled[i >> 6], h.filled[i >> 6] ^ <uint64_t>1 << (i & 63), RELAXED)
    add64(&h.count, 1 if value else <uint64_t>-1)
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
        add64(&h.count, changed)
    else:
        sub64(&h.count, changed)
    return changed


cdef inline uint64_t hint_set_in_word(PageZone *z, uint64_t i, uint64_t bits) noexcept nogil:
    """Set bits of one word of the bitmap; return how many changed. Zone lock held."""
    cdef Hints *h = hints_of(z)
    cdef uint64_t changed = popcount64(bits & ~h.bits[i])
    assert_held(&z.lock)
    if changed:
        hint_store(h, i, h.bits[i] | bits)
        add64(&h.count, changed)
    return changed


cdef inline uint64_t granules_of(const PageZone *z, int order) noexcept nogil:
    """Granules that a block of `order` overlaps."""
    return <uint64_t>1 << (order - z.min_order) if order > z.min_order else 1


cdef inline uint64_t hint_assign_block(PageZone *z, uint64_t page, int order, bint value) noexcept nogil:
    """As `hint_assign`, for the granules of a block, or the granule that it is a part of."""
    if likely(order <= z.min_order):
        return hint_assign_one(z, page >> z.min_order, value)
    return hint_assign(z, page >> z.min_order, granules_of(z, order), value)


cdef inline void scan_look_ahead(const Hints *h, HintScan *scan, uint64_t last) noexcept nogil:
    """Prefetch one word more, some groups ahead. Without that, each bit of a sparse bitmap waits for a cache miss.

    Has no branch, which in such a bitmap could not be predicted.
    """
    cdef bint empty = scan.ahead_filled == 0
    scan.ahead += empty and scan.ahead < last
    scan.ahead_filled = load64(&h.filled[scan.ahead], RELAXED) if empty else scan.ahead_filled
    prefetch(&h.bits[scan.ahead << 6 | <uint64_t>ctz64(scan.ahead_filled | <uint64_t>1 << 63)])
    scan.ahead_filled &= scan.ahead_filled - 1


cdef inline void scan_begin(const Hints *h, HintScan *scan, uint64_t granule) noexcept nogil:
    """Begin a walk at `granule`, which must be in the bitmap. Needs no lock."""
    scan.index = granule >> 6
    scan.word = load64(&h.bits[scan.index], RELAXED) & (<uint64_t>-1 << (granule & 63))
    scan.filled = load64(&h.filled[scan.index >> 6], RELAXED) & (<uint64_t>-2 << (scan.index & 63))
    scan.ahead = scan.index >> 6
    scan.ahead_filled = 0


cdef inline uint64_t scan_next(const Hints *h, HintScan *scan, uint64_t end) noexcept nogil:
    """The next granule whose bit is set, or `end`. Needs no lock; without it, the bit may have changed on return."""
    cdef uint64_t last = (end - 1) >> 12, group, granule
    while scan.word == 0:
        group = scan.index >> 6
        while scan.filled == 0:
            group += 1
            if group > last:
                return end
            scan.filled = load64(&h.filled[group], RELAXED)
            scan.ahead = max(scan.ahead, min(group + SCAN_AHEAD, last))     # a wrong prefetch does no harm
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


cdef inline uint64_t hint_select(const Hints *h, uint64_t n, uint64_t end) noexcept nogil:
    """The granule of the set bit with `n` others below it, or `end`. Needs no lock. O(words with set bits below it)."""
    cdef uint64_t group, filled, i, word
    for group in range((end + 4095) >> 12):
        filled = load64(&h.filled[group], RELAXED)
        while filled:
            i = group << 6 | <uint64_t>ctz64(filled)
            filled &= filled - 1
            word = load64(&h.bits[i], RELAXED)
            if n < <uint64_t>popcount64(word):
                while n:
                    word &= word - 1
                    n -= 1
                return min(i << 6 | <uint64_t>ctz64(word), end)
            n -= popcount64(word)
    return end


cdef inline bint hints_all_set(const Hints *h, uint64_t granule, uint64_t n) noexcept nogil:
    """Whether `n` bits from `granule` on are all set: `n` is a power of two, `granule` a multiple. Zone lock held."""
    cdef uint64_t mask, i
    if n < 64:
        mask = low_ones(<int>n) << (granule & 63)
        return h.bits[granule >> 6] & mask == mask
    for i in range(granule >> 6, (granule + n) >> 6):
        if h.bits[i] != <uint64_t>-1:
            return False
    return True
