"""A zone's metadata in memory: one reservation of address space, opened as far as the zone reaches.

The reservation is as large as any zone can get, so a zone that grows by hotplug opens more of it and no pointer moves.
The kernel provides an opened page when it is first touched, so a hole in the zone costs next to none. No lock is
needed: a zone that is being built, and the part that one grows by, are not known to other threads until `zone_extend`.
"""
from libc.stdint cimport INT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.mman cimport (MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, mmap,
                         mprotect, munmap)
from posix.unistd cimport _SC_PAGESIZE, sysconf
from pagehint.sync.atomic cimport RELAXED, RELEASE, store64
from pagehint.sync.lock cimport lock_init
from pagehint.zone.leaf cimport Leaf
from pagehint.zone.zone cimport (Extent, Extents, LEAF_PAGES, LEAF_SHIFT, LIMIT_LEAVES, LINE_LEAVES, Links, MT_MOVABLE,
                                 NO_ORDER, NO_SLOT, NR_BINS, NR_LISTS, PAGEBLOCK_LEAVES, PAGEBLOCK_ORDER, PageZone)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "<string.h>" nogil:
    void *memset(void *p, int value, size_t n)

cdef enum:
    ARRAYS = 5                  # leaves, links, kinds, types, lines


cdef inline uint64_t whole_pages(uint64_t nr_bytes) noexcept nogil:
    """Round up to the system's page size."""
    cdef uint64_t page = sysconf(_SC_PAGESIZE)
    return (nr_bytes + page - 1) // page * page


cdef inline int open_array(void *array, uint64_t nr_bytes) noexcept nogil:
    """Make the first bytes of a reserved array usable; -1 and errno where the kernel refuses."""
    return mprotect(array, whole_pages(nr_bytes), PROT_READ | PROT_WRITE)


cdef inline uint64_t leaves_for(const PageZone *z, uint64_t end_pfn) noexcept nogil:
    """Leaves of a zone that reaches to `end_pfn`, the last one perhaps in part."""
    return (end_pfn - z.base_pfn + LEAF_PAGES - 1) >> LEAF_SHIFT


cdef inline uint64_t granules_for(const PageZone *z, uint64_t nr_leaves) noexcept nogil:
    """Granules in so many leaves, the last one perhaps in part."""
    return ((nr_leaves << LEAF_SHIFT) + (<uint64_t>1 << z.min_order) - 1) >> z.min_order


cdef inline uint64_t slots_bytes(const Extents *x, uint64_t nr_leaves) noexcept nogil:
    """Bytes of the slots of so many leaves' pages, and one for the end."""
    return ((nr_leaves << LEAF_SHIFT >> x.slot_shift) + 1) * sizeof(Extent)


cdef inline Extents *extents_create(const PageZone *z, int slot_shift) noexcept nogil:
    """No extents yet, with room for what the zone can get, open as far as it reaches; NULL where memory lacks."""
    cdef Extents *x = <Extents *> calloc(1, sizeof(Extents))
    cdef int b
    if x == NULL:
        return NULL
    x.slot_shift = slot_shift
    x.freed_from = x.broken_from = NO_ORDER
    for b in range(NR_BINS):
        x.bins[b] = NO_SLOT
    x.slots = <Extent *> mmap(NULL, whole_pages(slots_bytes(x, z.limit_leaves)), PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if x.slots != MAP_FAILED:
        if open_array(x.slots, slots_bytes(x, z.nr_leaves)) == 0:
            return x
        munmap(x.slots, whole_pages(slots_bytes(x, z.limit_leaves)))
    free(x)
    return NULL


cdef inline int zone_open(PageZone *z, uint64_t nr_leaves) noexcept nogil:
    """Make the metadata of the first `nr_leaves` leaves usable; -1 and errno where the kernel refuses."""
    if (open_array(z.leaves, nr_leaves * sizeof(Leaf)) or open_array(z.links, nr_leaves * sizeof(Links))
            or open_array(z.kinds, nr_leaves) or open_array(z.types, nr_leaves // PAGEBLOCK_LEAVES + 1)
            or open_array(z.lines, nr_leaves // LINE_LEAVES + 1)
            or (z.extents != NULL and open_array(z.extents.slots, slots_bytes(z.extents, nr_leaves)))):
        return -1
    return 0


cdef inline int open_heads(PageZone *z) noexcept nogil:
    """Make the heads of the lists usable, which stand behind the last leaf's links and need not begin a page."""
    cdef uint64_t before = z.limit_leaves * sizeof(Links), page = sysconf(_SC_PAGESIZE), first = before // page * page
    return open_array(<uint8_t *> z.links + first, before - first + NR_LISTS * sizeof(Links))


cdef inline void types_begin(PageZone *z, uint64_t page, uint64_t end) noexcept nogil:
    """Make the pageblocks from `page` to `end` movable. No thread uses them yet.

    A pageblock that is a hole never needs a type, so a zone of few pages and a large span has little metadata.
    """
    cdef uint64_t first = page >> PAGEBLOCK_ORDER
    memset(z.types + first, MT_MOVABLE, ((end - 1) >> PAGEBLOCK_ORDER) + 1 - first)


cdef inline void zone_reach(PageZone *z, uint64_t end_pfn) noexcept nogil:
    """Let the zone reach to `end_pfn`, the new part absent, and its pageblocks without types. Its metadata is open.

    The zone lock is held if other threads know the zone.
    """
    cdef uint64_t nr_leaves = leaves_for(z, end_pfn)
    store64(&z.nr_leaves, nr_leaves, RELAXED)
    store64(&z.nr_granules, granules_for(z, nr_leaves), RELAXED)
    store64(&z.end_pfn, end_pfn, RELEASE)       # last: a thread that finds a page in the zone finds its metadata, too


cdef inline void zone_extend(PageZone *z, uint64_t end_pfn) noexcept nogil:
    """As `zone_reach`, and make the new pageblocks movable."""
    cdef uint64_t known = (z.nr_leaves + PAGEBLOCK_LEAVES - 1) // PAGEBLOCK_LEAVES << PAGEBLOCK_ORDER
    if end_pfn - z.base_pfn > known:
        types_begin(z, known, end_pfn - z.base_pfn)
    zone_reach(z, end_pfn)


cdef inline uint64_t zone_metadata_bytes(const PageZone *z) noexcept nogil:
    """Bytes of the arrays as far as the zone reaches, touched or not."""
    return (z.nr_leaves * (sizeof(Leaf) + sizeof(Links) + 1) + z.nr_leaves // PAGEBLOCK_LEAVES + 1
            + z.nr_leaves // LINE_LEAVES + 1 + NR_LISTS * sizeof(Links))


cdef inline uint64_t array_sizes(const PageZone *z, uint64_t *sizes) noexcept nogil:
    """Bytes of each array, in address order, when the zone is as large as it can get; returns their sum."""
    cdef uint64_t total = 0
    cdef int i
    sizes[0] = z.limit_leaves * sizeof(Leaf)
    sizes[1] = (<uint64_t>z.limit_leaves + NR_LISTS) * sizeof(Links)
    sizes[2] = z.limit_leaves                               # kinds
    sizes[3] = z.limit_leaves // PAGEBLOCK_LEAVES + 1       # types
    sizes[4] = z.limit_leaves // LINE_LEAVES + 1            # lines
    for i in range(ARRAYS):
        sizes[i] = whole_pages(sizes[i])
        total += sizes[i]
    return total


cdef inline PageZone *zone_create(size_t nr_bytes, uint64_t start_pfn, uint64_t end_pfn, uint64_t limit_pfn,
                                  int max_order, int min_order) noexcept nogil:
    """Create a zone without present pages, at the front of a zeroed struct of `nr_bytes`: the rest is the caller's.

    Its pageblocks have no types: see `types_begin`.

    It can grow up to `limit_pfn`, or to LIMIT_LEAVES. NULL and errno where memory lacks.
    """
    cdef PageZone *z = <PageZone *> aligned_alloc(64, (nr_bytes + 63) // 64 * 64)
    cdef uint64_t[ARRAYS] sizes
    cdef uint32_t i
    if z == NULL:
        return NULL
    memset(z, 0, nr_bytes)
    z.max_order = max_order
    z.max_leaf_order = min(max_order, LEAF_SHIFT)
    z.min_order = min_order
    z.freed_from = z.broken_from = NO_ORDER
    z.notify_at = INT64_MAX
    z.start_pfn = z.tail_pfn = start_pfn
    z.base_pfn = start_pfn >> max(max_order, PAGEBLOCK_ORDER) << max(max_order, PAGEBLOCK_ORDER)
    z.limit_leaves = <uint32_t>min(leaves_for(z, limit_pfn), <uint64_t>LIMIT_LEAVES)
    z.mapping_bytes = array_sizes(z, sizes)
    z.mapping = mmap(NULL, z.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if z.mapping == MAP_FAILED:
        free(z)
        return NULL
    z.leaves = <Leaf *> z.mapping
    z.links = <Links *> (<uint8_t *> z.leaves + sizes[0])
    z.kinds = <uint8_t *> z.links + sizes[1]
    z.types = z.kinds + sizes[2]
    z.lines = z.types + sizes[3]
    if (leaves_for(z, end_pfn) > z.limit_leaves or zone_open(z, leaves_for(z, end_pfn))
            or open_heads(z)):
        munmap(z.mapping, z.mapping_bytes)
        free(z)
        return NULL
    for i in range(z.limit_leaves, z.limit_leaves + NR_LISTS):
        z.links[i].next = z.links[i].prev = i
    zone_reach(z, end_pfn)
    lock_init(&z.lock)
    return z


cdef inline void zone_destroy(PageZone *z) noexcept nogil:
    """Free a zone that no thread uses any more."""
    munmap(z.mapping, z.mapping_bytes)
    free(z.pcp)
    free(z.zeroed)
    free(z.run_set)
    if z.extents != NULL:
        munmap(z.extents.slots, whole_pages(slots_bytes(z.extents, z.limit_leaves)))
        free(z.extents)
    free(z)
