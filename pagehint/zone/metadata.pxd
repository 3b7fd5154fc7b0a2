"""A zone's metadata in memory: one reservation, opened as far as the zone reaches. No lock; nobody else knows it yet."""
from libc.stdint cimport INT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from posix.mman cimport (MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, mmap,
                         mprotect, munmap)
from posix.unistd cimport _SC_PAGESIZE, sysconf
from pagehint.hinting.limit cimport NO_LIMIT
from pagehint.sync.atomic cimport RELAXED, RELEASE, store64
from pagehint.sync.lock cimport lock_init
from pagehint.zone.leaf cimport Leaf
from pagehint.zone.zone cimport (LEAF_PAGES, LEAF_SHIFT, LIMIT_LEAVES, LINE_LEAVES, Links, MT_MOVABLE, NO_HINTS,
                                 NR_LISTS, PAGEBLOCK_LEAVES, PAGEBLOCK_ORDER, PageZone)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "<string.h>" nogil:
    void *memset(void *p, int value, size_t n)

cdef inline uint64_t whole_pages(uint64_t nr_bytes) noexcept nogil:
    cdef uint64_t page = sysconf(_SC_PAGESIZE)
    return (nr_bytes + page - 1) // page * page


cdef inline int open_array(void *array, uint64_t nr_bytes) noexcept nogil:
    return mprotect(array, whole_pages(nr_bytes), PROT_READ | PROT_WRITE)


cdef inline uint64_t leaves_for(const PageZone *z, uint64_t end_pfn) noexcept nogil:
    return (end_pfn - z.base_pfn + LEAF_PAGES - 1) >> LEAF_SHIFT


cdef inline uint64_t granules_for(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    """Granules in so many leaves, the last one perhaps in part; by the granule's size, not the largest block's."""
    return ((nr_leaves << LEAF_SHIFT) + (<uint64_t>1 << z.min_order) - 1) >> z.min_order


cdef inline uint64_t hint_words_for(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    return granules_for(z, nr_leaves) // 64 + 1


cdef inline int zone_open(PageZone *z, uint64_t nr_leaves) noexcept nogil:
    """Make the metadata of the first `nr_leaves` leaves usable; -1 and errno where the kernel refuses."""
    if (open_array(z.leaves, nr_leaves * sizeof(Leaf)) or open_array(z.links, nr_leaves * sizeof(Links))
            or open_array(z.kinds, nr_leaves) or open_array(z.types, nr_leaves // PAGEBLOCK_LEAVES + 1)
            or open_array(z.lines, nr_leaves // LINE_LEAVES + 1)
            or open_array(z.hints, hint_words_for(z, nr_leaves) * 8)
            or open_array(z.hint_words, (hint_words_for(z, nr_leaves) // 64 + 1) * 8)
            or (z.freed_at != NULL and open_array(z.freed_at, granules_for(z, nr_leaves) * 8))):
        return -1
    return 0


cdef inline int zone_keep_ages(PageZone *z) noexcept nogil:
    """Have stamps for the granules from now on; -1 and errno where the kernel refuses. Nobody lets the zone grow meanwhile.

    A reservation of its own, which few zones need: at 8 bytes a granule it may be larger than the other one.
    """
    cdef void *stamps
    if z.freed_at != NULL:
        return 0
    stamps = mmap(NULL, granules_for(z, LIMIT_LEAVES) * 8, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if stamps == MAP_FAILED:
        return -1
    if open_array(stamps, granules_for(z, z.nr_leaves) * 8):
        munmap(stamps, granules_for(z, LIMIT_LEAVES) * 8)
        return -1
    z.freed_at = <uint64_t *> stamps
    return 0


cdef inline void zone_extend(PageZone *z, uint64_t end_pfn) noexcept nogil:
    """Let the zone reach to `end_pfn`, the new part absent. Its metadata is open; zone lock held if the zone is known."""
    cdef uint64_t known = (z.nr_leaves + PAGEBLOCK_LEAVES - 1) // PAGEBLOCK_LEAVES
    cdef uint64_t nr_leaves = leaves_for(z, end_pfn)
    memset(z.types + known, MT_MOVABLE, (nr_leaves + PAGEBLOCK_LEAVES - 1) // PAGEBLOCK_LEAVES - known)
    store64(&z.nr_leaves, nr_leaves, RELAXED)
    store64(&z.nr_granules, granules_for(z, nr_leaves), RELAXED)
    store64(&z.end_pfn, end_pfn, RELEASE)       # last: who finds a page in the zone finds all that is known about it


cdef inline uint64_t zone_metadata_bytes(const PageZone *z) noexcept nogil:
    cdef uint64_t words = hint_words_for(z, z.nr_leaves)
    cdef uint64_t stamps = granules_for(z, z.nr_leaves) if z.freed_at != NULL else 0
    return (z.nr_leaves * (sizeof(Leaf) + sizeof(Links) + 1) + z.nr_leaves // PAGEBLOCK_LEAVES + 1
            + z.nr_leaves // LINE_LEAVES + 1 + (words + words // 64 + 1 + stamps) * 8
            + NR_LISTS * sizeof(Links) + sizeof(PageZone))


cdef inline PageZone *zone_create(uint64_t start_pfn, uint64_t end_pfn, int max_order, int min_order) noexcept nogil:
    """A zone without present pages; NULL and errno where memory lacks."""
    cdef PageZone *z = <PageZone *> aligned_alloc(64, (sizeof(PageZone) + 63) // 64 * 64)
    cdef uint64_t leaves, links, kinds, types, lines, hints, hint_words
    cdef uint32_t i
    cdef uint8_t *at
    if z == NULL:
        return NULL
    memset(z, 0, sizeof(PageZone))
    z.max_order = max_order
    z.leaf_top = min(max_order, LEAF_SHIFT)
    z.min_order = min_order
    z.hint_order = z.break_order = NO_HINTS
    z.limit = <uint64_t>NO_LIMIT
    z.wake_at = INT64_MAX
    z.start_pfn = start_pfn
    z.base_pfn = start_pfn >> max(max_order, PAGEBLOCK_ORDER) << max(max_order, PAGEBLOCK_ORDER)
    z.limit_leaves = LIMIT_LEAVES
    leaves = whole_pages(LIMIT_LEAVES * sizeof(Leaf))
    links = whole_pages((LIMIT_LEAVES + NR_LISTS) * sizeof(Links))
    kinds = whole_pages(LIMIT_LEAVES)
    types = whole_pages(LIMIT_LEAVES // PAGEBLOCK_LEAVES + 1)
    hints = whole_pages(hint_words_for(z, LIMIT_LEAVES) * 8)
    hint_words = whole_pages((hint_words_for(z, LIMIT_LEAVES) // 64 + 1) * 8)
    lines = whole_pages(LIMIT_LEAVES // LINE_LEAVES + 1)
    z.mapping_bytes = leaves + links + kinds + types + lines + hints + hint_words
    z.mapping = mmap(NULL, z.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if z.mapping == MAP_FAILED:
        free(z)
        return NULL
    at = <uint8_t *> z.mapping
    z.leaves = <Leaf *> at
    z.links = <Links *> (at + leaves)
    z.kinds = at + leaves + links
    z.types = at + leaves + links + kinds
    z.lines = at + leaves + links + kinds + types
    z.hints = <uint64_t *> (z.lines + lines)
    z.hint_words = <uint64_t *> (z.lines + lines + hints)
    if (leaves_for(z, end_pfn) > LIMIT_LEAVES or zone_open(z, leaves_for(z, end_pfn))
            or open_array(&z.links[LIMIT_LEAVES], NR_LISTS * sizeof(Links))):
        munmap(z.mapping, z.mapping_bytes)
        free(z)
        return NULL
    for i in range(<uint32_t>LIMIT_LEAVES, <uint32_t>(LIMIT_LEAVES + NR_LISTS)):
        z.links[i].next = z.links[i].prev = i
    zone_extend(z, end_pfn)
    lock_init(&z.lock)
    return z


cdef inline void zone_destroy(PageZone *z) noexcept nogil:
    munmap(z.mapping, z.mapping_bytes)
    if z.freed_at != NULL:
        munmap(z.freed_at, granules_for(z, LIMIT_LEAVES) * 8)
    free(z.pcp)
    free(z.zeroed)
    free(z)
