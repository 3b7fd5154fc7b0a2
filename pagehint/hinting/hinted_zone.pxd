"""A zone with its hints: the struct, and the arrays that it needs in memory.

A `HintedZone` begins with a `PageZone`, so a pointer to the one is a pointer to the other. The code of `zone/` sees the
first part only. `Hints` stands at a fixed distance behind it, so that reaching them follows no further pointer.

Bytes: a bit a granule (of 2 MiB: 0.0002 a page), and a bit for each word of these; with `min_age`, 8 a granule for its
stamp, and with an age that is learnt 6 KiB more. The bitmap has a reservation of address space of its own, opened as far
as the zone reaches; so have the stamps.
"""
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, mmap, munmap
from pagehint.hinting.learning.learnt_age cimport LearntAge
from pagehint.sync.atomic cimport atomic_i32
from pagehint.zone.metadata cimport (granules_for, open_array, whole_pages, zone_create, zone_destroy,
                                     zone_metadata_bytes, zone_open)
from pagehint.zone.zone cimport PageZone

cdef enum:
    HOLD_BUCKETS = 32

cdef struct HintCounters:           # since the zone was made; protected by the zone lock
    uint64_t hints_set              # bits
    uint64_t hints_cleared_by_alloc     # bits
    uint64_t work_queued            # requests for a pass over this zone
    uint64_t scans                  # passes that found hints that were due, and the gate open
    uint64_t blocks_isolated
    uint64_t isolation_refused      # times that the gate was closed
    uint64_t blocks_returned        # put back
    uint64_t blocks_reported        # put back, and taken by the host
    uint64_t pages_reported         # in these
    uint64_t blocks_failed          # put back, and not taken by the host

cdef struct Hints:                  # protected by the zone lock, but for the two pointers to structs of the machine
    uint64_t *bits                  # the bitmap, one bit a granule; written under the lock, searched without it
    uint64_t *filled                # its second level, one bit a word of `bits`: the word is not zero
    uint64_t *freed_at              # a stamp a granule, in nanoseconds, valid where its bit is set; NULL until needed
    bint on                         # the hook is on
    atomic_i32 queued               # a pass is to look at this zone, and has not begun to; also read without the lock
    uint64_t count                  # bits that are set
    uint64_t threshold              # count at which a pass is asked for at once
    const int32_t *delay_armed      # the queue's: the delay runs already, or there is none; read without its mutex
    int64_t min_age                 # nanoseconds that a granule must have been free before it is reported; 0: none
    uint64_t reserve                # granules: so many of the lowest hints must have been free for
    int64_t reserve_age             # so long: `min_age` or more; without a reserve as `min_age`. Also read without the lock
    int64_t look_at                 # nanoseconds: when something may be ripe; 0: look now
    int64_t told_at                 # nanoseconds: `look_at` as the queue was told last; valid while `queued`
    int64_t runs_at                 # nanoseconds: when to look whether the runs that are kept are still wanted
    uint64_t kept                   # pages in use or warm, as `limit.pxd` was told last
    int32_t at_gate                 # the zone waits for its gate to open; also read without the lock
    uint64_t reporting_pages        # pages that are out with the host
    HintCounters counters
    uint64_t holds[HOLD_BUCKETS]    # a pass's lock rounds, by the least 2**i nanoseconds that they stayed under
    uint64_t longest_hold           # nanoseconds
    void *queue                     # the WorkQueue of the zone's machine; set when the zone is made, as the next one is
    void *limit                     # the Limit of the zone's machine
    uint64_t rounds_seen            # `lock.acquired` at the end of a pass's last round; written by its thread
    bint learns                     # `min_age` is learnt (`learning/pauses.pxd`)
    LearntAge *learnt               # NULL until needed

cdef struct HintedZone:
    PageZone zone                   # first, see above
    Hints hints


cdef inline Hints *hints_of(const PageZone *z) noexcept nogil:
    return &(<HintedZone *> z).hints


cdef inline void queue_zone(Hints *h) noexcept nogil:
    """Ask for a pass over this zone. Zone lock held; the queue is told after its release, if `notify_at` says so."""
    h.counters.work_queued += not h.queued
    h.queued = True


cdef inline uint64_t words_for(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    """Words of bitmap for a zone of so many leaves."""
    return granules_for(z, nr_leaves) // 64 + 1


cdef inline uint64_t bits_bytes(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    return words_for(z, nr_leaves) * 8


cdef inline uint64_t filled_bytes(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    return (words_for(z, nr_leaves) // 64 + 1) * 8


cdef inline uint64_t stamps_bytes(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    return granules_for(z, nr_leaves) * 8


cdef inline uint64_t reserved_bytes(const PageZone *z) noexcept nogil:
    """Bytes of address space for the bitmap and its second level, as far as the zone may ever grow."""
    return whole_pages(bits_bytes(z, z.limit_leaves)) + whole_pages(filled_bytes(z, z.limit_leaves))


cdef inline int hints_open(PageZone *z, uint64_t nr_leaves) noexcept nogil:
    """Make the arrays usable for the first `nr_leaves` leaves; -1 and errno where the kernel refuses."""
    cdef Hints *h = hints_of(z)
    if (open_array(h.bits, bits_bytes(z, nr_leaves)) or open_array(h.filled, filled_bytes(z, nr_leaves))
            or (h.freed_at != NULL and open_array(h.freed_at, stamps_bytes(z, nr_leaves)))):
        return -1
    return 0


cdef inline void hints_close(PageZone *z) noexcept nogil:
    """Unmap the arrays. No thread may use the zone any more."""
    cdef Hints *h = hints_of(z)
    munmap(h.bits, reserved_bytes(z))
    if h.freed_at != NULL:
        munmap(h.freed_at, stamps_bytes(z, z.limit_leaves))
    free(h.learnt)


cdef inline HintedZone *hinted_zone_create(uint64_t start_pfn, uint64_t end_pfn, uint64_t limit_pfn, int max_order,
                                           int min_order) noexcept nogil:
    """A zone without present pages and without hints; NULL and errno where the kernel refuses memory."""
    cdef PageZone *z = zone_create(sizeof(HintedZone), start_pfn, end_pfn, limit_pfn, max_order, min_order)
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
    """Have stamps for the granules from now on; -1 and errno where the kernel refuses.

    The zone must not grow meanwhile. The stamps' reservation is made only here, since few zones need one, and at 8
    bytes a granule it may be larger than the bitmap's.
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


cdef inline int keep_pauses(PageZone *z) noexcept nogil:
    """Have room for what is learnt of a zone; -1 where there is no memory. One thread at a time."""
    cdef Hints *h = hints_of(z)
    if h.learnt == NULL:
        h.learnt = <LearntAge *> calloc(1, sizeof(LearntAge))
    return 0 if h.learnt != NULL else -1


cdef inline void forget_ages(PageZone *z) noexcept nogil:
    """Have no stamp stand for anything. Zone lock held, or hinting is off. O(granules)."""
    memset(hints_of(z).freed_at, 0, stamps_bytes(z, z.nr_leaves))


cdef inline uint64_t hinted_zone_metadata_bytes(const PageZone *z) noexcept nogil:
    """Bytes of metadata that are open for use, without the per-CPU page sets."""
    cdef uint64_t stamps = stamps_bytes(z, z.nr_leaves) if hints_of(z).freed_at != NULL else 0
    cdef uint64_t learnt = sizeof(LearntAge) if hints_of(z).learnt != NULL else 0
    return (sizeof(HintedZone) + zone_metadata_bytes(z) + bits_bytes(z, z.nr_leaves) + filled_bytes(z, z.nr_leaves)
            + stamps + learnt)
