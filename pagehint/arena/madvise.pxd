"""The reporting function of an arena, compiled: it tells the operating system that pages may be dropped."""
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t
from posix.mman cimport MADV_DONTNEED, madvise
from pagehint.hinting.batch cimport pagehint_block
from pagehint.zone.zeroed cimport Zeroed, zeroed_set

cdef struct Advice:             # what the function is called with
    char *base
    int page_shift
    int advice
    void *owner                 # the mapping, kept as long as the function can be called
    Zeroed *zeroed              # what is known of the mapping, or NULL
    int min_order               # of its granules


cdef inline int madvise_blocks(const pagehint_block *blocks, size_t n, uint8_t *failed, void *data) noexcept nogil:
    """Advise a batch; blocks that the kernel refuses are marked as failed. Called without the GIL and without a lock.

    Neighbouring blocks go in one call. Each call makes every other CPU flush its TLB, so fewer and longer calls are faster.
    """
    cdef Advice *a = <Advice *> data
    cdef size_t first = 0, next, i
    cdef uint64_t start, end
    cdef int error = 0
    cdef size_t refused = 0
    cdef bint taken
    while first < n:
        start = blocks[first].pfn
        end = start + (<uint64_t>1 << blocks[first].order)
        next = first + 1
        while next < n and blocks[next].pfn == end:
            end += <uint64_t>1 << blocks[next].order
            next += 1
        taken = madvise(a.base + (start << a.page_shift), (end - start) << a.page_shift, a.advice) == 0
        if a.zeroed != NULL:
            zeroed_set(a.zeroed, start >> a.min_order, (end - start) >> a.min_order, taken and a.advice == MADV_DONTNEED)
        if not taken:
            error = errno
            refused += next - first
            for i in range(first, next):
                failed[i] = 1
        first = next
    return -error if refused == n else 0
