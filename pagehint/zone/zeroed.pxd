"""Which granules of an arena read as zero because nothing was written since they were mapped or dropped.

A set bit means that no page of the granule is in use and all of it reads as zero. All bits are set in a fresh mapping.
Taking any page of a granule out of the free blocks clears its bit, with the zone lock held: for use, or out of
circulation, because the zone does not know what the watcher does with the page.

The watcher sets the bit again while it has the granule: always after an madvise(2) that drops the contents
(MADV_DONTNEED), and after one that may keep them (MADV_FREE) only if the bit was set before.

Runs are placed from low addresses on, so most of a granule whose bit is clear was often never used: it is known, too, from
which page on.
"""
from libc.stdint cimport uint16_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memset
from pagehint.sync.atomic cimport ACQUIRE, ACQ_REL, RELAXED, fetch_and64, fetch_or64, load16, load64, store16, store64

cdef struct Zeroed:
    uint64_t nr_granules
    uint64_t *bits              # atomic: cleared with the zone lock held, set without it
    uint64_t *noted             # each granule's bit as `zeroed_note` last found it; written with the zone lock held
    # Of a granule whose bit is clear, the page from which on none was used since the bit was set, so that these read as
    # zero; and what `zeroed_note_run` last found there. Written with the zone lock held.
    uint16_t *used_to
    uint16_t *noted_to


cdef inline Zeroed *zeroed_create(uint64_t nr_granules) noexcept nogil:
    """The bits of a fresh mapping, all set; NULL where memory lacks. One allocation, to be freed by `free`."""
    cdef uint64_t words = (nr_granules + 63) // 64
    cdef Zeroed *k = <Zeroed *> malloc(sizeof(Zeroed) + 2 * words * 8 + 2 * 64 * words * sizeof(uint16_t))
    if k != NULL:
        k.nr_granules = nr_granules
        k.bits = <uint64_t *> (k + 1)
        k.noted = k.bits + words
        k.used_to = <uint16_t *> (k.noted + words)
        k.noted_to = k.used_to + 64 * words
        memset(k.used_to, 0xFF, 2 * 64 * words * sizeof(uint16_t))
        memset(k.bits, 0xFF, words * 8)
        memset(k.noted, 0, words * 8)
    return k


cdef inline uint64_t not_zeroed(const Zeroed *k, uint64_t i) noexcept nogil:
    """Of 64 granules, from ``64 * i`` on, those that may hold something: a bit for each."""
    cdef uint64_t left = k.nr_granules - (i << 6)
    return ~load64(&k.bits[i], ACQUIRE) & (<uint64_t>-1 >> (64 - left) if left < 64 else <uint64_t>-1)


cdef inline uint64_t granule_mask(uint64_t granule, uint64_t end) noexcept nogil:
    """Mask of the granules from `granule` to `end` in the word that the first one is in."""
    cdef uint64_t mask = <uint64_t>-1 << (granule & 63)
    return mask if end >= (granule | 63) + 1 else mask & ~(<uint64_t>-1 << (end & 63))


cdef inline void zeroed_note(Zeroed *k, uint64_t granule, uint64_t n) noexcept nogil:
    """Note the bits of `n` granules, for a caller that is about to take pages of them. Zone lock held."""
    cdef uint64_t end = min(granule + n, k.nr_granules), mask, i
    while granule < end:
        i = granule >> 6
        mask = granule_mask(granule, end)
        store64(&k.noted[i], (k.noted[i] & ~mask) | (load64(&k.bits[i], ACQUIRE) & mask), RELAXED)
        granule = (i + 1) << 6


cdef inline void zeroed_use(Zeroed *k, uint64_t page, uint64_t n, int min_order) noexcept nogil:
    """Pages are being taken. Best before their granules' bits are cleared, else more counts as used. Zone lock held.

    O(granules).
    """
    cdef uint64_t granule = page >> min_order, end
    while granule <= (page + n - 1) >> min_order and granule < k.nr_granules:
        end = min(page + n - (granule << min_order), <uint64_t>1 << min_order)
        if load64(&k.bits[granule >> 6], RELAXED) >> (granule & 63) & 1:
            k.used_to[granule] = 0
        k.used_to[granule] = max(k.used_to[granule], <uint16_t>end)
        granule += 1


cdef inline void zeroed_note_run(Zeroed *k, uint64_t page, uint64_t n, int min_order) noexcept nogil:
    """As `zeroed_note`, for a run: also from where on the granule that it begins in reads as zero. O(granules / 64)."""
    cdef uint64_t granule = page >> min_order
    zeroed_note(k, granule, ((page + n - 1) >> min_order) - granule + 1)
    if granule < k.nr_granules:
        store16(&k.noted_to[granule], k.used_to[granule], RELAXED)


cdef inline bint was_zero_from(const Zeroed *k, uint64_t page, int min_order) noexcept nogil:
    """Whether a run that begins at `page` read as zero in the granule that it begins in. The caller still has it.

    Another thread that takes other pages of it notes a later page, from which on fewer read as zero.
    """
    cdef uint64_t granule = page >> min_order
    return granule < k.nr_granules and load16(&k.noted_to[granule], RELAXED) <= page - (granule << min_order)


cdef inline bint was_zeroed(const Zeroed *k, uint64_t granule) noexcept nogil:
    """The bit that was noted of a granule. For a caller that has taken pages of the granule and still has them.

    Another thread that takes other pages of it notes the bit again, but finds it clear: the note can change from set to
    clear, never back.
    """
    return granule < k.nr_granules and (load64(&k.noted[granule >> 6], RELAXED) >> (granule & 63)) & 1


cdef inline void zeroed_clear(Zeroed *k, uint64_t granule, uint64_t n) noexcept nogil:
    """Pages of these granules are taken. Zone lock held."""
    cdef uint64_t end = min(granule + n, k.nr_granules), mask, i
    while granule < end:
        i = granule >> 6
        mask = granule_mask(granule, end)
        if load64(&k.bits[i], RELAXED) & mask:
            fetch_and64(&k.bits[i], ~mask, ACQ_REL)
        granule = (i + 1) << 6


cdef inline void zeroed_set(Zeroed *k, uint64_t granule, uint64_t n, bint dropped) noexcept nogil:
    """Set the bits of granules that are out of circulation: all if `dropped`, else those that are noted as set."""
    cdef uint64_t end = min(granule + n, k.nr_granules), mask, i
    while granule < end:
        i = granule >> 6
        mask = granule_mask(granule, end)
        fetch_or64(&k.bits[i], mask if dropped else mask & load64(&k.noted[i], RELAXED), ACQ_REL)
        granule = (i + 1) << 6
