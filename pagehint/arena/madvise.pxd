"""The reporting function of an arena, compiled: it tells the operating system that pages may be dropped.

A granule that was noted as zero when it was isolated (`zone/zeroed.pxd`) is with the system already: nobody has had a
page of it since it was mapped or dropped. It is taken for reported, without a system call.
"""
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t
from posix.mman cimport MADV_DONTNEED, madvise
from pagehint.arena.resident cimport resident_pages
from pagehint.hinting.batch cimport pagehint_block
from pagehint.sync.atomic cimport RELAXED, fetch_add64
from pagehint.zone.zeroed cimport Zeroed, was_zeroed, zeroed_set

cdef struct Returned:           # bytes that were resident when they were given back; atomic
    uint64_t given_back         # by either advice
    uint64_t dropped            # by MADV_DONTNEED: at once

cdef struct Advice:             # what the function is called with
    char *base
    int page_shift
    int advice
    void *owner                 # the mapping, kept as long as the function can be called
    Returned *returned          # its counts
    Zeroed *zeroed              # what is known of the mapping, or NULL
    int min_order               # of its granules


cdef inline uint64_t end_of_stretch(const Advice *a, uint64_t start, uint64_t end, bint zero) noexcept nogil:
    """The end of the granules from `start` on that are all noted as zero, or all not; `end` at most. In pages."""
    cdef uint64_t granule = start >> a.min_order
    if a.zeroed == NULL:
        return end
    while granule < end >> a.min_order and was_zeroed(a.zeroed, granule) == zero:
        granule += 1
    return granule << a.min_order


cdef inline int advise(Advice *a, uint64_t start, uint64_t end) noexcept nogil:
    """Advise pages that are not known to be zero, and count what of them was resident; 0, or an errno.

    Pages that are not resident may be in swap, so nothing but the call makes them zero.
    """
    cdef size_t nr_bytes = (end - start) << a.page_shift
    cdef char *at = a.base + (start << a.page_shift)
    cdef uint64_t resident = 0
    if resident_pages(at, nr_bytes, a.page_shift, &resident):
        resident = end - start
    if madvise(at, nr_bytes, a.advice):
        return errno
    fetch_add64(&a.returned.given_back, resident << a.page_shift, RELAXED)
    if a.advice == MADV_DONTNEED:
        fetch_add64(&a.returned.dropped, resident << a.page_shift, RELAXED)
    return 0


cdef inline int advise_run(Advice *a, uint64_t start, uint64_t end) noexcept nogil:
    """Advise the pages from `start` to `end`, stretch by stretch; 0, or the errno of a stretch that is refused."""
    cdef uint64_t next
    cdef int failed = 0, refused
    while start < end:
        next = end_of_stretch(a, start, end, True)
        if a.zeroed != NULL:
            zeroed_set(a.zeroed, start >> a.min_order, (next - start) >> a.min_order, True)
        else:
            next = start
        if next < end:
            start = next
            next = end_of_stretch(a, start, end, False)
            refused = advise(a, start, next)
            if a.zeroed != NULL and not refused and a.advice == MADV_DONTNEED:
                zeroed_set(a.zeroed, start >> a.min_order, (next - start) >> a.min_order, True)
            failed = failed or refused
        start = next
    return failed


cdef inline int madvise_blocks(const pagehint_block *blocks, size_t n, uint8_t *failed, void *data) noexcept nogil:
    """Advise a batch; blocks that the kernel refuses are marked as failed. Called without the GIL and without a lock.

    Neighbouring blocks go in one call. Each call makes every other CPU flush its TLB, so fewer and longer calls are faster.
    """
    cdef Advice *a = <Advice *> data
    cdef size_t first = 0, next, i
    cdef uint64_t start, end
    cdef int error = 0, refusal
    cdef size_t refused = 0
    while first < n:
        start = blocks[first].pfn
        end = start + (<uint64_t>1 << blocks[first].order)
        next = first + 1
        while next < n and blocks[next].pfn == end:
            end += <uint64_t>1 << blocks[next].order
            next += 1
        refusal = advise_run(a, start, end)
        if refusal:
            error = refusal
            refused += next - first
            for i in range(first, next):
                failed[i] = 1
        first = next
    return -error if refused == n else 0
