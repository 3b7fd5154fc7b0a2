"""An arena as a heap: allocations of whole pages, known by their address, which become longer and shorter.

This serves NumPy's requests, and malloc's of any thread. NumPy's come mostly with the GIL, but also without it: it grows an
array without the GIL while it reads one from text. So there is no Python object in here. The functions are inline, so that
a request and what it calls, down to the zone, are one piece of code.
"""
cimport cython
from libc.stdint cimport UINT32_MAX, int32_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport MADV_DONTNEED, madvise
from pagehint.allocator.memory cimport Memory
from pagehint.arena.huge_pages cimport HugePages, choose_pages, probe_freed
from pagehint.arena.mapping cimport Mapping
from pagehint.arena.populate cimport Populator, mincore, populate_ahead, populate_end
from pagehint.sync.atomic cimport (ACQUIRE, RELAXED, RELEASE, SEQ_CST, atomic_i32, fetch_add64, fetch_add_i32, load64,
                                   load_i32, store_i32, swap64_if, unlikely)
from pagehint.zone.page_alloc cimport Machine, machine_resize_run, machine_take_run
from pagehint.zone.page_sets.run_set cimport run_set_drain, run_set_pages, run_set_put, run_set_take, zone_give_run
from pagehint.zone.status cimport OK
from pagehint.zone.zeroed cimport was_zero_from, was_zeroed
from pagehint.zone.zone cimport MT_MOVABLE, PageZone

cdef extern from *:
    # Cython has no atomic pointers.
    Heap *load_heap "__atomic_load_n" (Heap **p, int order) noexcept nogil
    void store_heap "__atomic_store_n" (Heap **p, Heap *value, int order) noexcept nogil
    void *load_pointer "__atomic_load_n" (void **p, int order) noexcept nogil
    void store_pointer "__atomic_store_n" (void **p, void *value, int order) noexcept nogil

cdef enum:
    THRESHOLD = 65536           # bytes; a smaller request would waste much of a page, and the C heap is quick with it
    LAZY_GRANULES = 8           # zeros of so many and more may be dropped rather than written
    ALWAYS_LAZY = 16            # zeros of so many and more always are; fewer fit into caches
    KEPT = 1 << 20              # bytes of the longest run that is kept for the next request (`run_set.pxd`)
    FILLED_AGAIN = 15           # zeros that are written after one that was dropped and then filled

cdef enum:                      # ways to make a granule read as zero
    SPARE                       # it does
    DROP
    WRITE

cdef struct Heap:
    char *base
    # No allocation has ended more bytes behind `base`. Only so far the addresses are surely the arena's: what is not open
    # yet may be others'.
    uint64_t reached
    Machine *m
    PageZone *zone              # the arena's one zone, whose first PFN is 0
    int page_shift
    # By its first page, the pages of each allocation, and 0 where none begins; the mapping's. The size that NumPy gives with
    # a free cannot be used: NumPy computes it from the array's shape, which other libraries change, and where an array
    # could not grow while it was read from text, the shape is that of the first attempt.
    uint32_t *lengths
    atomic_i32 open
    uint64_t live               # allocations now; the counts after it are since the beginning
    uint64_t from_arena
    uint64_t from_heap
    uint64_t full
    uint64_t cleared            # bytes
    uint64_t spared             # bytes that were zero already
    uint64_t dropped            # bytes that the system is to hand over zeroed
    void *lazy                  # the last allocation that was dropped, until it is freed
    void *lazy_page             # the last page of it that was
    int32_t filled              # so many of the next ones are expected to be filled
    HugePages *huge_pages       # the mapping's, as the next two are
    Populator *populator        # or NULL
    uint64_t *populated
    # The list of the heaps that the process's handler has given memory from: `numpy/handler.pyx`.
    Heap *next
    void *listed                # the ArenaHeap, with one reference, while this is in the list; else NULL


@cython.final
cdef class ArenaHeap:
    cdef Heap *h
    cdef Mapping mapping
    cdef Memory memory
    cdef bint was_listed        # threads may still read `h` in the list, without a lock: it is never freed
    cdef bint serves_malloc     # it does for as long as the process lives: `malloc/serving.pyx`

cdef inline bint heap_has(const Heap *h, const void *p) noexcept nogil:
    return <uint64_t>(<const char *> p - h.base) < load64(&h.reached, ACQUIRE)


cdef inline void heap_reaches(Heap *h, uint64_t end) noexcept nogil:
    """Note where an allocation ends, before its address is known to anybody."""
    cdef uint64_t reached = load64(&h.reached, RELAXED)
    while reached < end and not swap64_if(&h.reached, reached, end):
        reached = load64(&h.reached, RELAXED)


cdef inline uint64_t page_of(const Heap *h, const void *p) noexcept nogil:
    return <uint64_t>(<const char *> p - h.base) >> h.page_shift


cdef inline uint64_t pages_for(const Heap *h, size_t size) noexcept nogil:
    return (size >> h.page_shift) + ((size & ((<size_t>1 << h.page_shift) - 1)) != 0)


cdef inline bint heap_drop(Heap *h) noexcept nogil:
    """Count one allocation less; returns whether it was the last."""
    return fetch_add64(&h.live, -1, SEQ_CST) == 1


cdef inline bint take_pages(Heap *h, uint64_t n, uint64_t *pfn) noexcept nogil:
    """Take pages from the zone; what is kept for other requests is given up for them."""
    if machine_take_run(h.m, h.m.default_zone, n, MT_MOVABLE, pfn) == OK:
        return True
    if run_set_pages(h.zone) == 0:
        return False
    run_set_drain(h.zone)
    return machine_take_run(h.m, h.m.default_zone, n, MT_MOVABLE, pfn) == OK


cdef inline void *heap_take(Heap *h, size_t size, bint *fresh, Heap **current) noexcept nogil:
    """Take pages for a request; NULL if there is no such run. Never waits for one. Counts the request as live even then.

    `fresh`: they come from the zone, so that `heap_populate` and `heap_clear` may do something for them; others are
    those of an allocation that was freed just before. If `current` is not NULL, it must still point to `h` after the
    request was counted: a thread that changes `current` looks at `live` afterwards, and misses none.
    """
    cdef uint64_t n = pages_for(h, size), pfn = 0
    fetch_add64(&h.live, 1, SEQ_CST)
    if n > UINT32_MAX or not h.open or (current != NULL and load_heap(current, SEQ_CST) != h):
        fetch_add64(&h.full, 1, RELAXED)
        return NULL
    fresh[0] = not run_set_take(h.zone.run_set, n, &pfn)
    if fresh[0]:
        if not take_pages(h, n, &pfn):
            fetch_add64(&h.full, 1, RELAXED)
            return NULL
        heap_reaches(h, (pfn + n) << h.page_shift)
        choose_pages(h.huge_pages, h.base, h.page_shift, h.zone, pfn, n)
    h.lengths[pfn] = <uint32_t>n
    fetch_add64(&h.from_arena, 1, RELAXED)
    return h.base + (pfn << h.page_shift)


cdef inline int how_to_clear(const PageZone *z, int page_shift, uint64_t start, uint64_t end, uint64_t granule,
                             bint lazily) noexcept nogil:
    """What makes a granule read as zero which is, but for others' pages in the first and the last, from `start` to `end`."""
    cdef int shift = page_shift + z.min_order
    if (was_zeroed(z.zeroed, granule)
            or granule << shift < start and was_zero_from(z.zeroed, start >> page_shift, z.min_order)):
        return SPARE
    if lazily and start <= granule << shift and (granule + 1) << shift <= end:
        return DROP
    return WRITE


cdef inline bint is_lazy(Heap *h, uint64_t granules) noexcept nogil:
    """Whether zeros of so many granules are to be dropped; counts those that are not."""
    if granules < LAZY_GRANULES or granules >= ALWAYS_LAZY or load_i32(&h.filled, RELAXED) <= 0:
        return granules >= LAZY_GRANULES
    fetch_add_i32(&h.filled, -1, RELAXED)
    return False


cdef inline void heap_clear(Heap *h, void *p, size_t size, bint fresh) noexcept nogil:
    """Make an allocation read as zero that was just taken.

    Granules that were zero are spared. Of a large allocation the whole granules are dropped: the system hands them over
    zeroed, each when it is touched, as it does with fresh memory. What is not used then costs next to nothing, but what is
    takes up to twice as long as with zeroes in a cache. So of those that fit there the next ones are written after one that
    was dropped and was filled when it was freed. The system refuses to drop locked memory, and a sandbox may refuse it
    anyway: then zeroes are written.
    """
    cdef const PageZone *z = h.zone
    cdef int shift = h.page_shift + z.min_order, how
    cdef uint64_t start = <char *> p - h.base, end = start + size, at = start, granule, next
    cdef uint64_t pages_end = start + (pages_for(h, size) << h.page_shift)
    cdef bint lazily
    if not fresh:
        memset(p, 0, size)
        fetch_add64(&h.cleared, size, RELAXED)
        return
    lazily = is_lazy(h, size >> shift)
    while at < end:
        granule = at >> shift
        how = how_to_clear(z, h.page_shift, start, pages_end, granule, lazily)
        granule += 1
        while granule << shift < end and how_to_clear(z, h.page_shift, start, pages_end, granule, lazily) == how:
            granule += 1
        next = min(granule << shift, end)
        if how == SPARE:
            fetch_add64(&h.spared, next - at, RELAXED)
        elif how == DROP and madvise(h.base + at, (granule << shift) - at, MADV_DONTNEED) == 0:
            fetch_add64(&h.dropped, next - at, RELAXED)
            store_pointer(&h.lazy_page, h.base + (granule << shift) - (<uint64_t>1 << h.page_shift), RELAXED)
            store_pointer(&h.lazy, p, RELEASE)
        else:
            memset(h.base + at, 0, next - at)
            fetch_add64(&h.cleared, next - at, RELAXED)
        at = next


cdef inline void heap_populate(Heap *h, void *p) noexcept nogil:
    """Have an allocation that was just taken populated ahead of the thread that writes to it."""
    cdef uint64_t pfn = page_of(h, p)
    populate_ahead(h.populator, h.base, h.page_shift, h.zone, pfn, h.lengths[pfn], h.populated)


cdef inline void heap_leave(Heap *h, void *p, uint64_t n) noexcept nogil:
    """End populating an allocation of `n` pages, some or all of which are about to be freed."""
    populate_end(h.populator, <char *> p, n << h.page_shift)


cdef inline bint heap_resize(Heap *h, void *p, size_t size) noexcept nogil:
    """Make an allocation longer or shorter in its place; False if the pages after it are not free."""
    cdef uint64_t pfn = page_of(h, p), n = h.lengths[pfn], wanted = max(pages_for(h, size), <uint64_t>1)
    if wanted != n:
        if wanted < n:
            heap_leave(h, p, n)
        if wanted > UINT32_MAX or machine_resize_run(h.m, pfn, n, wanted) != OK:
            return False
        h.lengths[pfn] = <uint32_t>wanted
        heap_reaches(h, (pfn + wanted) << h.page_shift)
    return True


cdef inline void end_lazy(Heap *h) noexcept nogil:
    """See whether the last allocation that was dropped was filled; it is about to be freed."""
    cdef unsigned char present = 0
    mincore(load_pointer(&h.lazy_page, RELAXED), <size_t>1 << h.page_shift, &present)
    store_i32(&h.filled, FILLED_AGAIN if present & 1 else 0, RELAXED)
    store_pointer(&h.lazy, NULL, RELAXED)


cdef inline bint heap_give(Heap *h, void *p) noexcept nogil:
    """Free the pages of an allocation, or keep them for the next one. It counts as live until `heap_drop`.

    False if no allocation begins in this page; then nothing was done.
    """
    cdef uint64_t pfn = page_of(h, p), n = h.lengths[pfn]
    if unlikely(n == 0):
        return False
    h.lengths[pfn] = 0
    if run_set_put(h.zone, pfn, n):
        return True
    if p == load_pointer(&h.lazy, ACQUIRE):
        end_lazy(h)
    probe_freed(h.huge_pages, h.base, h.page_shift, pfn)
    heap_leave(h, p, n)
    zone_give_run(h.zone, pfn, n)
    return True
