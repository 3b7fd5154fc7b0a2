"""What the operating system has handed over zeroed and nobody has touched since: a bit for each granule of an arena.

A bit set means that the whole granule is free, or out for reporting by one who leaves it so, and reads as zero. All are set
in a fresh mapping. Breaking into a granule clears its bit, under the zone lock, whoever does it; so does isolating it, since
what a host does with a block is its own affair. MADV_DONTNEED sets it, and what leaves contents alone, MADV_FREE among
it, sets it where it was set before: pages that had been touched may come back from MADV_FREE with what they held.
"""
from libc.stdint cimport uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memset
from pagehint.sync.atomic cimport ACQUIRE, ACQ_REL, RELAXED, fetch_and64, fetch_or64, load64, store64

cdef struct Zeroed:
    uint64_t nr_granules
    uint64_t *bits              # changed by atomic operations: reports set some without a lock
    uint64_t *noted             # as `bits` was when something was last taken from a granule with `zeroed_note`


cdef inline Zeroed *zeroed_create(uint64_t nr_granules) noexcept nogil:
    """Of fresh memory; NULL where there is none for this. One piece, for `free`."""
    cdef uint64_t words = (nr_granules + 63) // 64
    cdef Zeroed *k = <Zeroed *> malloc(sizeof(Zeroed) + 2 * words * 8)
    if k != NULL:
        k.nr_granules = nr_granules
        k.bits = <uint64_t *> (k + 1)
        k.noted = k.bits + words
        memset(k.bits, 0xFF, words * 8)
        memset(k.noted, 0, words * 8)
    return k


cdef inline uint64_t granule_mask(uint64_t granule, uint64_t end) noexcept nogil:
    """The bits of granules from `granule` to `end` that are in the word of the first."""
    cdef uint64_t mask = <uint64_t>-1 << (granule & 63)
    return mask if end >= (granule | 63) + 1 else mask & ~(<uint64_t>-1 << (end & 63))


cdef inline void zeroed_note(Zeroed *k, uint64_t granule, uint64_t n) noexcept nogil:
    """Remember what is known of `n` granules, for whoever is about to take something from them. Zone lock held."""
    cdef uint64_t end = min(granule + n, k.nr_granules), mask, i
    while granule < end:
        i = granule >> 6
        mask = granule_mask(granule, end)
        store64(&k.noted[i], (k.noted[i] & ~mask) | (load64(&k.bits[i], ACQUIRE) & mask), RELAXED)
        granule = (i + 1) << 6


cdef inline bint was_zeroed(const Zeroed *k, uint64_t granule) noexcept nogil:
    """What was noted of a granule. For who has taken of it and has it still: then nobody's note makes a zero a one."""
    return granule < k.nr_granules and (load64(&k.noted[granule >> 6], RELAXED) >> (granule & 63)) & 1


cdef inline void zeroed_clear(Zeroed *k, uint64_t granule, uint64_t n) noexcept nogil:
    """These granules are being used. Zone lock held."""
    cdef uint64_t end = min(granule + n, k.nr_granules), mask, i
    while granule < end:
        i = granule >> 6
        mask = granule_mask(granule, end)
        if load64(&k.bits[i], RELAXED) & mask:
            fetch_and64(&k.bits[i], ~mask, ACQ_REL)
        granule = (i + 1) << 6


cdef inline void zeroed_set(Zeroed *k, uint64_t granule, uint64_t n, bint dropped) noexcept nogil:
    """These granules, which are isolated, have been dropped, or else are as they were."""
    cdef uint64_t end = min(granule + n, k.nr_granules), mask, i
    while granule < end:
        i = granule >> 6
        mask = granule_mask(granule, end)
        fetch_or64(&k.bits[i], mask if dropped else mask & load64(&k.noted[i], RELAXED), ACQ_REL)
        granule = (i + 1) << 6
