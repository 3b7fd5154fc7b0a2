"""A zone with what hinting knows of it: the struct, and its arrays in memory.

The `PageZone` comes first, so a pointer to it is one to the whole: the zone's own code knows of no more than its part,
and what hinting keeps stands at a fixed distance behind it, without another pointer to follow.

Bytes: a bit for each granule (of 2 MiB: 0.0002 a page) and a bit for each word of these; with `min_age`, 8 a granule for
its stamp. The bitmap stands in a reservation of its own, which is opened as far as the zone reaches, and so do the stamps.
"""
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, mmap, munmap
from pagehint.sync.atomic cimport atomic_i32
from pagehint.zone.metadata cimport (granules_for, open_array, whole_pages, zone_create, zone_destroy,
                                     zone_metadata_bytes, zone_open)
from pagehint.zone.zone cimport PageZone

cdef enum:
    HOLD_BUCKETS = 32
    NO_LIMIT = -1

cdef struct HintCounters:           # written under the zone lock only
    uint64_t hints_set
    uint64_t hints_cleared_by_alloc
    uint64_t work_queued
    uint64_t scans
    uint64_t blocks_isolated
    uint64_t isolation_refused
    uint64_t blocks_returned
    uint64_t blocks_reported
    uint64_t pages_reported
    uint64_t blocks_failed

cdef struct Hints:                  # protected by the zone lock
    uint64_t *bits                  # one a granule; written under the lock, read without it
    uint64_t *filled                # one bit a word of `bits`: it is not empty
    uint64_t *freed_at              # when each granule was, in nanoseconds, if its bit is set; NULL before it is needed
    bint on
    atomic_i32 queued               # a pass is queued and has not begun with this zone
    uint64_t count                  # bits set
    uint64_t threshold
    const int32_t *delay_armed      # the queue's: the delay is running, or nobody wants one
    int64_t min_age                 # nanoseconds a granule is free before it may be reported, 0: none
    int64_t look_at                 # when to look for ripe granules; none is before
    uint64_t limit                  # pages in use or warm at most, or NO_LIMIT
    uint64_t reporting_pages        # out with the host
    HintCounters counters
    uint64_t holds[HOLD_BUCKETS]    # rounds of the engine that held the lock for under 2**i nanoseconds
    uint64_t longest_hold           # nanoseconds
    # Not protected by the lock.
    void *queue                     # WorkQueue, of the zone's machine
    uint64_t rounds_seen            # by the thread that runs the engine: how often the lock had been taken by its last round

cdef struct HintedZone:
    PageZone zone
    Hints hints


cdef inline Hints *hints_of(const PageZone *z) noexcept nogil:
    return &(<HintedZone *> z).hints


cdef inline void queue_zone(Hints *h) noexcept nogil:
    """Have the next pass look at this zone. Zone lock held; the engine is told when it is released."""
    h.counters.work_queued += not h.queued
    h.queued = True


cdef inline uint64_t words_for(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    return granules_for(z, nr_leaves) // 64 + 1


cdef inline uint64_t bits_bytes(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    return words_for(z, nr_leaves) * 8


cdef inline uint64_t filled_bytes(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    return (words_for(z, nr_leaves) // 64 + 1) * 8


cdef inline uint64_t stamps_bytes(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    return granules_for(z, nr_leaves) * 8


cdef inline uint64_t reserved_bytes(const PageZone *z) noexcept nogil:
    """Of the bitmap and its second level, as far as the zone may ever grow."""
    return whole_pages(bits_bytes(z, z.limit_leaves)) + whole_pages(filled_bytes(z, z.limit_leaves))


cdef inline int hints_open(PageZone *z, uint64_t nr_leaves) noexcept nogil:
    """Make the arrays usable for the first `nr_leaves` leaves; -1 and errno where the kernel refuses."""
    cdef Hints *h = hints_of(z)
    if (open_array(h.bits, bits_bytes(z, nr_leaves)) or open_array(h.filled, filled_bytes(z, nr_leaves))
            or (h.freed_at != NULL and open_array(h.freed_at, stamps_bytes(z, nr_leaves)))):
        return -1
    return 0


cdef inline void hints_close(PageZone *z) noexcept nogil:
    """Unmap the arrays; nobody uses the zone any more."""
    cdef Hints *h = hints_of(z)
    munmap(h.bits, reserved_bytes(z))
    if h.freed_at != NULL:
        munmap(h.freed_at, stamps_bytes(z, z.limit_leaves))


cdef inline HintedZone *hinted_zone_create(uint64_t start_pfn, uint64_t end_pfn, int max_order,
                                           int min_order) noexcept nogil:
    """A zone without present pages and without hints; NULL and errno where memory lacks."""
    cdef PageZone *z = zone_create(sizeof(HintedZone), start_pfn, end_pfn, max_order, min_order)
    cdef Hints *h
    cdef void *arrays
    if z == NULL:
        return NULL
    arrays = mmap(NULL, reserved_bytes(z), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if arrays == MAP_FAILED:
        zone_destroy(z)
        return NULL
    h = hints_of(z)
    h.bits = <uint64_t *> arrays
    h.filled = h.bits + whole_pages(bits_bytes(z, z.limit_leaves)) // 8
    h.limit = <uint64_t>NO_LIMIT
    if hints_open(z, z.nr_leaves):
        hints_close(z)
        zone_destroy(z)
        return NULL
    return <HintedZone *> z


cdef inline void hinted_zone_destroy(PageZone *z) noexcept nogil:
    hints_close(z)
    zone_destroy(z)


cdef inline int hinted_zone_open(PageZone *z, uint64_t nr_leaves) noexcept nogil:
    """Make the metadata of the first `nr_leaves` leaves usable; -1 and errno where the kernel refuses."""
    return zone_open(z, nr_leaves) or hints_open(z, nr_leaves)


cdef inline int keep_ages(PageZone *z) noexcept nogil:
    """Have stamps for the granules from now on; -1 and errno where the kernel refuses. The zone does not grow meanwhile.

    A reservation of its own, which few zones need: at 8 bytes a granule it may be larger than the other one.
    """
    cdef Hints *h = hints_of(z)
    cdef void *stamps
    if h.freed_at != NULL:
        return 0
    stamps = mmap(NULL, stamps_bytes(z, z.limit_leaves), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if stamps == MAP_FAILED:
        return -1
    if open_array(stamps, stamps_bytes(z, z.nr_leaves)):
        munmap(stamps, stamps_bytes(z, z.limit_leaves))
        return -1
    h.freed_at = <uint64_t *> stamps
    return 0


cdef inline uint64_t hinted_zone_metadata_bytes(const PageZone *z) noexcept nogil:
    """Bytes in use for a zone, per-CPU page sets not counted."""
    cdef uint64_t stamps = stamps_bytes(z, z.nr_leaves) if hints_of(z).freed_at != NULL else 0
    return (sizeof(HintedZone) + zone_metadata_bytes(z) + bits_bytes(z, z.nr_leaves) + filled_bytes(z, z.nr_leaves)
            + stamps)
