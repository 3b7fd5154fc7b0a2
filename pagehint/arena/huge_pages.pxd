"""Huge pages where they pay.

A granule of small pages has as much in memory as was touched. With a huge page all of it is, from the first touch on; but
the touch is some six times cheaper for what is then filled, and giving it back twenty times. So which of them a granule
gets is chosen while nothing of it is in memory, for the allocation that takes the first pages of it:

* one of LARGE bytes or more gets huge pages. NumPy asks for them from this size on, too, where the C heap serves it.
* a smaller one gets them if the last few that had small pages were filled, but not every time: one in PROBE_EACH has small
  pages, since only with these the kernel can tell whether an allocation is filled.

A probe is looked at when it is freed, or when the next choice is made, whichever comes first.
"""
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc
from posix.mman cimport MADV_HUGEPAGE, MADV_NOHUGEPAGE, madvise
from pagehint.arena.resident cimport mincore
from pagehint.sync.atomic cimport RELAXED, atomic_i32, atomic_u64, fetch_and64, fetch_or64, load64
from pagehint.zone.zeroed cimport was_zeroed
from pagehint.zone.zone cimport PageZone

cdef enum:
    LARGE = 4 << 20             # bytes
    FILLED_TO_TRUST = 4         # probes in a row
    PROBE_EACH = 8
    PROBE_PAGES = 1024          # of a probe that are looked at, at most: 4 MiB

cdef struct HugePages:          # of one mapping
    bint wanted                 # the caller wants them, and the kernel has them
    uint64_t *huge              # a bit a granule: it gets a huge page; atomic
    atomic_i32 filled           # probes in a row that were filled
    atomic_u64 choices          # for small allocations
    atomic_u64 probe            # first page of the probe, plus 1; 0: there is none
    atomic_u64 probe_pages


cdef inline bint huge_pages_init(HugePages *hp, bint wanted, uint64_t nr_granules) noexcept nogil:
    """Begin with small pages everywhere; False where memory lacks. `huge` is to be freed by `free`."""
    hp.wanted = wanted
    if wanted:
        hp.huge = <uint64_t *> calloc((nr_granules + 63) // 64, 8)
    return not wanted or hp.huge != NULL


cdef inline void look_at_probe(HugePages *hp, char *base, int page_shift) noexcept nogil:
    """See whether the probe is filled; then there is none. Its pages may be others' by now: it is a guess."""
    cdef unsigned char present[PROBE_PAGES]
    cdef uint64_t probe = hp.probe, n = min(hp.probe_pages, <uint64_t>PROBE_PAGES), i, resident = 0
    hp.probe = 0
    if probe == 0 or mincore(base + ((probe - 1) << page_shift), n << page_shift, present) != 0:
        return
    for i in range(n):
        resident += present[i] & 1
    hp.filled = hp.filled + 1 if resident == n else 0


cdef inline void probe_freed(HugePages *hp, char *base, int page_shift, uint64_t page) noexcept nogil:
    """Before an allocation that begins at `page` is freed."""
    if hp != NULL and hp.probe == page + 1:
        look_at_probe(hp, base, page_shift)


cdef inline bint wants_huge(HugePages *hp, char *base, int page_shift, uint64_t page, uint64_t n) noexcept nogil:
    """Whether an allocation in a granule of which nothing is in memory is to have huge pages."""
    if n << page_shift >= LARGE:
        return True
    look_at_probe(hp, base, page_shift)
    hp.choices += 1
    if hp.filled >= FILLED_TO_TRUST and hp.choices % PROBE_EACH:
        return True
    hp.probe_pages = n
    hp.probe = page + 1
    return False


cdef inline void choose_pages(HugePages *hp, char *base, int page_shift, const PageZone *z, uint64_t page,
                              uint64_t n) noexcept nogil:
    """Choose for the granules of an allocation, just taken, that had nothing in memory. `hp` may be NULL: no choice.

    O(granules) looks at bits; a system call for each run of granules that change.
    """
    cdef uint64_t granule = page >> z.min_order, end = ((page + n - 1) >> z.min_order) + 1, first, bit
    cdef int shift = page_shift + z.min_order
    cdef bint huge
    if hp == NULL or not hp.wanted:
        return
    while granule < end and not was_zeroed(z.zeroed, granule):
        granule += 1
    if granule == end:
        return
    huge = wants_huge(hp, base, page_shift, page, n)
    while granule < end:
        first = granule
        while (granule < end and was_zeroed(z.zeroed, granule)
               and <bint>(load64(&hp.huge[granule >> 6], RELAXED) >> (granule & 63) & 1) != huge):
            bit = <uint64_t>1 << (granule & 63)
            if huge:
                fetch_or64(&hp.huge[granule >> 6], bit, RELAXED)
            else:
                fetch_and64(&hp.huge[granule >> 6], ~bit, RELAXED)
            granule += 1
        if granule > first:
            madvise(base + (first << shift), (granule - first) << shift, MADV_HUGEPAGE if huge else MADV_NOHUGEPAGE)
        else:
            granule += 1
