"""Which granules of an arena read as zero because nothing was written since they were mapped or dropped.

A set bit means that no page of the granule is in use and all of it reads as zero. All bits are set in a fresh mapping.
Taking any page of a granule out of the free blocks clears its bit, with the zone lock held: for use, or out of
circulation, because the zone does not know what the watcher does with the page.

The watcher sets the bit again while it has the granule: always after an madvise(2) that drops the contents
(MADV_DONTNEED), and after one that may keep them (MADV_FREE) only if the bit was set before.
"""
from libc.stdint cimport uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memset
from pagehint.sync.atomic cimport ACQUIRE, ACQ_REL, RELAXED, fetch_and64, fetch_or64, load64, store64

cdef struct Zeroed:
    uint64_t nr_granules
    uint64_t *bits              # atomic: cleared with the zone lock held, set without it
    uint64_t *noted             # each granule's bit as `zeroed_note` last found it; written with the zone lock held


cdef inline Zeroed *zeroed_create(uint64_t nr_granules) noexcept nogil:
    """The bits of a fresh mapping, all set; NULL where memory lacks. One allocation, to be freed by `free`."""
    cdef uint64_t words = (nr_granules + 63) // 64
    cdef Zeroed *k = <Zeroed *> malloc(sizeof(Zeroed) + 2 * words * 8)
    if k != NULL:
        k.nr_granules = nr_granules
        k.bits = <uint64_t *> (k + 1)
        k.noted = k.bits + words
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
