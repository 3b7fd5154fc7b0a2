"""The hint bitmap and its hook: which granules are free, in the buddy, and unreported since they were last in use.

The bits are written under the zone lock only, and the count changes with them, so it is exact. The worker
looks for the next bit without the lock, hence the relaxed atomic accesses. A second level has a bit for each word of
the first that is not empty, so that an empty terabyte is passed over in a hundred nanoseconds.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from pagehint.hinting.age cimport age_begin
from pagehint.hinting.limit cimport limit_enforce
from pagehint.sync.atomic cimport (PH_ASSERT, RELAXED, ctz64, likely, load64, load_i32, popcount64, prefetch, store64,
                                   unlikely)
from pagehint.sync.lock cimport assert_held
from pagehint.zone.buddy cimport Taken
from pagehint.zone.leaf cimport low_ones
from pagehint.zone.zeroed cimport zeroed_clear
from pagehint.zone.zone cimport LEAF_SHIFT, NO_HINTS, PageZone, usable_free_pages


cdef enum:
    SCAN_AHEAD = 6                  # groups of 64 words: some dozen bits of a bitmap with few

cdef struct HintScan:           # a walk over the bits
    uint64_t index              # of the word it is in
    uint64_t word               # the bits of that word still to come
    uint64_t filled             # the words after it, of the 64 that share a word of the second level, that are not empty
    uint64_t ahead              # the group of 64 words that is being prefetched
    uint64_t ahead_filled       # what is left of it


cdef inline void hint_store(PageZone *z, uint64_t i, uint64_t word) noexcept nogil:
    """Write a word of the bitmap, and keep the second level in step. Zone lock held."""
    cdef uint64_t *filled = &z.hint_words[i >> 6]
    cdef uint64_t bit = <uint64_t>1 << (i & 63)
    store64(&z.hints[i], word, RELAXED)
    store64(filled, filled[0] | bit if word else filled[0] & ~bit, RELAXED)


cdef inline uint64_t hint_assign_one(PageZone *z, uint64_t granule, bint value) noexcept nogil:
    """As `hint_assign`, for one bit."""
    cdef uint64_t i = granule >> 6, bit = <uint64_t>1 << (granule & 63), old = z.hints[i]
    assert_held(&z.lock)
    PH_ASSERT(granule < z.nr_granules)
    if (old & bit != 0) == value:
        return 0
    store64(&z.hints[i], old ^ bit, RELAXED)
    if old & ~bit == 0:             # the word was empty, or is now
        store64(&z.hint_words[i >> 6], z.hint_words[i >> 6] ^ <uint64_t>1 << (i & 63), RELAXED)
    z.hint_count += 1 if value else -1
    return 1


cdef inline uint64_t hint_assign(PageZone *z, uint64_t granule, uint64_t n, bint value) noexcept nogil:
    """Set or clear `n` bits from `granule` on; return how many changed. Zone lock held."""
    cdef uint64_t changed = 0, end = granule + n, mask, old, new
    cdef int bit, width
    assert_held(&z.lock)
    PH_ASSERT(end <= z.nr_granules)
    while granule < end:
        bit = granule & 63
        width = <int>min(<uint64_t>(64 - bit), end - granule)
        mask = low_ones(width) << bit
        old = z.hints[granule >> 6]
        new = old | mask if value else old & ~mask
        if new != old:
            changed += popcount64(new ^ old)
            hint_store(z, granule >> 6, new)
        granule += width
    if value:
        z.hint_count += changed
    else:
        z.hint_count -= changed
    return changed


cdef inline uint64_t granules_of(const PageZone *z, int order) noexcept nogil:
    """Granules that a block of `order` overlaps."""
    return <uint64_t>1 << (order - z.min_order) if order > z.min_order else 1


cdef inline void hint_evaluate(PageZone *z) noexcept nogil:
    """Ask for a run if the count or the limit calls for one. Zone lock held; the engine hears of it when it is released.

    If it has been asked for, or waits for the gate to open, that is enough: `zone_unlock` looks at both again.
    """
    limit_enforce(z)
    if z.hint_order == NO_HINTS or z.hint_count == 0 or z.queued or z.wake_at != INT64_MAX:
        return
    if z.hint_count >= z.threshold:
        z.queued = True
        z.counters.work_queued += 1
        z.wake_at = 0
    elif not load_i32(z.delay_armed, RELAXED):
        z.wake_at = 0


cdef inline void hint_mark(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Set the bits of the granules in a free block. Zone lock held."""
    if likely(order <= z.min_order):
        z.counters.hints_set += hint_assign_one(z, page >> z.min_order, True)
    else:
        z.counters.hints_set += hint_assign(z, page >> z.min_order, granules_of(z, order), True)


cdef inline void hint_mark_freed(PageZone *z, uint64_t page, int order) noexcept nogil:
    """As `hint_mark`, of what has become free at this moment. Zone lock held."""
    if z.min_age:
        age_begin(z, page >> z.min_order, granules_of(z, order))
    hint_mark(z, page, order)


cdef inline void hook_breaks(PageZone *z) noexcept nogil:
    """Have `hook_broken` called. Zone lock held, or nobody else knows of the zone."""
    z.broken = hook_broken
    z.break_order = z.min_order


cdef inline void hint_on(PageZone *z) noexcept nogil:
    """Switch the hook on. Zone lock held."""
    z.freed = hook_freed
    hook_breaks(z)
    z.hint_order = z.min_order


cdef inline void hint_off(PageZone *z) noexcept nogil:
    """Switch the hook off, and forget every hint. Zone lock held."""
    z.hint_order = NO_HINTS
    z.break_order = NO_HINTS if z.zeroed == NULL else z.min_order
    z.wake_at = INT64_MAX
    z.queued = False
    z.min_age = z.look_at = 0
    hint_assign(z, 0, z.nr_granules, False)


cdef inline void hook_freed(PageZone *z, uint64_t page, int order) noexcept nogil:
    """What `PageZone.freed` is. Zone lock held."""
    hint_mark_freed(z, page, order)
    hint_evaluate(z)


cdef inline void hook_broken(PageZone *z, uint64_t page, int order) noexcept nogil:
    """What `PageZone.broken` is. Zone lock held."""
    if likely(order <= z.min_order):
        z.counters.hints_cleared_by_alloc += hint_assign_one(z, page >> z.min_order, False)
    else:
        z.counters.hints_cleared_by_alloc += hint_assign(z, page >> z.min_order, granules_of(z, order), False)
    if unlikely(z.zeroed != NULL):
        zeroed_clear(z.zeroed, page >> z.min_order, granules_of(z, order))
    limit_enforce(z)


cdef inline void hint_freed(PageZone *z, uint64_t page, int order, int merged) noexcept nogil:
    """The hook: a block was freed and has become part of a free block of order `merged`. Zone lock held.

    Only the granules of the freed block itself are new; the rest of the merged block was free before and keeps
    its bits, so that one freed page does not report four mebibytes again.
    """
    if merged >= z.hint_order:
        z.freed(z, page, order)


cdef inline void hint_broken(PageZone *z, uint64_t page, int order, int source) noexcept nogil:
    """A block is being taken for use from a free block of order `source`. Zone lock held."""
    if source >= z.break_order:
        z.broken(z, page, order)


cdef inline void hint_broken_many(PageZone *z, const Taken *taken, int order) noexcept nogil:
    """As `hint_broken`, for what one step of a bulk allocation took. Zone lock held."""
    cdef uint64_t page = taken.leaf << LEAF_SHIFT, starts = taken.starts
    if taken.source < z.break_order:
        return
    if taken.nr_leaves > 1 or z.min_order >= LEAF_SHIFT:
        z.broken(z, page, LEAF_SHIFT + ctz64(taken.nr_leaves))
        return
    while starts:
        z.broken(z, page | ctz64(starts), order)
        starts &= starts - 1


cdef inline bint hint_ready(const PageZone *z) noexcept nogil:
    """Whether the engine must be told, to be asked just before the lock is released."""
    return z.wake_at != INT64_MAX and <int64_t>usable_free_pages(z) >= z.wake_at


cdef inline void scan_look_ahead(const PageZone *z, HintScan *scan, uint64_t last) noexcept nogil:
    """Prefetch one word more, some groups of 64 ahead: few bits are one cache miss after the other else. No branch."""
    cdef bint empty = scan.ahead_filled == 0
    scan.ahead += empty and scan.ahead < last
    scan.ahead_filled = load64(&z.hint_words[scan.ahead], RELAXED) if empty else scan.ahead_filled
    prefetch(&z.hints[scan.ahead << 6 | <uint64_t>ctz64(scan.ahead_filled | <uint64_t>1 << 63)])
    scan.ahead_filled &= scan.ahead_filled - 1


cdef inline void scan_begin(const PageZone *z, HintScan *scan, uint64_t granule) noexcept nogil:
    """Look for bits from `granule` on, which is in the bitmap."""
    scan.index = granule >> 6
    scan.word = load64(&z.hints[scan.index], RELAXED) & (<uint64_t>-1 << (granule & 63))
    scan.filled = load64(&z.hint_words[scan.index >> 6], RELAXED) & (<uint64_t>-2 << (scan.index & 63))
    scan.ahead = scan.index >> 6
    scan.ahead_filled = 0


cdef inline uint64_t scan_next(const PageZone *z, HintScan *scan, uint64_t end) noexcept nogil:
    """The next granule whose bit is set, or `end`. Needs no lock: a bit may be set or cleared at once."""
    cdef uint64_t last = (end - 1) >> 12, group, granule
    while scan.word == 0:
        group = scan.index >> 6
        while scan.filled == 0:
            group += 1
            if group > last:
                return end
            scan.filled = load64(&z.hint_words[group], RELAXED)
            scan.ahead = max(scan.ahead, min(group + SCAN_AHEAD, last))     # roughly: a wrong prefetch does no harm
        scan.index = group << 6 | <uint64_t>ctz64(scan.filled)
        scan.filled &= scan.filled - 1
        scan.word = load64(&z.hints[scan.index], RELAXED)
        scan_look_ahead(z, scan, last)
    granule = scan.index << 6 | <uint64_t>ctz64(scan.word)
    scan.word &= scan.word - 1
    return min(granule, end)


cdef inline uint64_t hint_find(const PageZone *z, uint64_t granule, uint64_t end) noexcept nogil:
    """First granule at or after `granule` whose bit is set, or `end`. Needs no lock."""
    cdef HintScan scan
    if granule >= end:
        return end
    scan_begin(z, &scan, granule)
    return scan_next(z, &scan, end)


cdef inline bint hints_all_set(const PageZone *z, uint64_t granule, uint64_t n) noexcept nogil:
    """Whether `n` bits, a power of two and aligned, are all set. Zone lock held."""
    cdef uint64_t mask, i
    if n < 64:
        mask = low_ones(<int>n) << (granule & 63)
        return z.hints[granule >> 6] & mask == mask
    for i in range(granule >> 6, (granule + n) >> 6):
        if z.hints[i] != <uint64_t>-1:
            return False
    return True
