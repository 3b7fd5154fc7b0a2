"""The memory of an arena, opened in steps as it is needed.

What is not open yet is not there for the kernel, so nothing counts it: no limit of the process (RLIMIT_AS, RLIMIT_DATA),
no overcommit, no mlockall(2), no core dump. The zone's pages end where the open memory ends. A request for which there is
no room has the arena grow: the next step is mapped, and the zone reaches further. A limit that refuses the step makes the
arena as full as a smaller one.

The addresses of an arena are contiguous. They are far from those at which the kernel places mappings by itself, so they
need not be reserved: a step that finds another mapping in its place is refused. (Go's heap grows so.) Where there are no
such addresses, they are reserved by an inaccessible mapping, which counts for RLIMIT_AS only.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from posix.mman cimport (MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED,
                         MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, madvise, mmap, munmap)
from pagehint.hinting.hinted_zone cimport hinted_zone_open
from pagehint.hinting.limit cimport zone_excess
from pagehint.sync.atomic cimport RELAXED, store64
from pagehint.sync.lock cimport lock_acquire, lock_release
from pagehint.zone.hook cimport watched_from, zone_unlock
from pagehint.zone.metadata cimport leaves_for, open_array, zone_extend
from pagehint.zone.page_alloc cimport Machine
from pagehint.zone.run cimport run_appear
from pagehint.zone.zone cimport NO_ORDER, PageZone

cdef enum:
    FIXED_NOREPLACE = 0x100000  # MAP_FIXED_NOREPLACE, of Linux 4.17; not all headers have it
    MORE = 8                    # a step opens this part of what is open already beside what is needed

cdef struct Opening:
    char *base
    size_t most                 # bytes that the arena can have
    size_t open                 # bytes that it has, from `base` on; changes with `Machine.growing` held
    size_t granule              # bytes; a step is whole granules
    int page_shift
    bint reserved               # an inaccessible mapping reserves the addresses
    bint hugepages              # they are wanted, and the kernel has them
    int denied                  # an errno, if they were refused
    uint32_t *lengths           # what the arena's heap notes of each page, opened as far as the pages are
    Machine *m                  # its zone is to grow; NULL: there is none yet
    const uint64_t *given_back  # bytes that went back so far and were in memory until then: the mapping's count; atomic
    # Of this and of what was handed out again, what the process that forked this one had done; `growing` held.
    uint64_t inherited_back     # bytes
    uint64_t inherited_again    # granules


cdef inline bint reserve(Opening *o) noexcept nogil:
    """Reserve the addresses from a mapping that the kernel places. False and errno if it refuses."""
    cdef size_t over
    cdef char *at = <char *> mmap(NULL, o.most + o.granule, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if <void *> at == MAP_FAILED:
        o.base = NULL
        return False
    over = -<size_t>at & (o.granule - 1)
    if over:
        munmap(at, over)
    munmap(at + over + o.most, o.granule - over)
    o.base = at + over
    o.reserved = True
    return True


cdef inline void unmap(Opening *o, char *at, size_t nr_bytes) noexcept nogil:
    """Close memory again; its addresses stay reserved if they were."""
    if o.reserved:
        mmap(at, nr_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
    else:
        munmap(at, nr_bytes)


cdef inline void grow_zone(Opening *o, PageZone *z, uint64_t end_pfn) noexcept nogil:
    """Have the zone reach to `end_pfn`. The new pages are free and get no hints, since the host has no memory for them."""
    cdef uint64_t page = z.end_pfn - z.base_pfn
    cdef int *from_order = watched_from(z)
    cdef int freed_from
    lock_acquire(&z.lock, True)
    freed_from = from_order[0]
    from_order[0] = NO_ORDER
    zone_extend(z, end_pfn)
    run_appear(z, page, end_pfn - z.base_pfn)
    from_order[0] = freed_from
    store64(&z.growable_pages, (o.most >> o.page_shift) - (end_pfn - z.base_pfn), RELAXED)
    zone_excess(z)
    zone_unlock(z)


cdef inline bint open_to(Opening *o, size_t to) noexcept nogil:
    """Open the memory up to byte `to`, for the zone as well, or change nothing. False and errno if the kernel refuses."""
    cdef char *at = o.base + o.open
    cdef size_t nr_bytes = to - o.open
    cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (MAP_FIXED if o.reserved else FIXED_NOREPLACE)
    cdef void *got = mmap(at, nr_bytes, PROT_READ | PROT_WRITE, flags, -1, 0)
    if got != at:
        if got != MAP_FAILED:       # Linux before 4.17, which takes the address for a wish
            munmap(got, nr_bytes)
        return False
    if (open_array(o.lengths, (to >> o.page_shift) * sizeof(uint32_t))
            or o.m != NULL and hinted_zone_open(o.m.zones[0], leaves_for(o.m.zones[0], to >> o.page_shift))):
        unmap(o, at, nr_bytes)
        return False
    # Tried, since the kernel may have none, or refuse; which granules get them is chosen later.
    if o.hugepages and madvise(at, nr_bytes, MADV_HUGEPAGE):
        o.hugepages = False
        o.denied = errno
    madvise(at, nr_bytes, MADV_NOHUGEPAGE)
    o.open = to
    if o.m != NULL:
        grow_zone(o, o.m.zones[0], to >> o.page_shift)
    return True


cdef inline bint grow_arena(void *opening, uint64_t end_pfn) noexcept nogil:
    """`Machine.grow` of an arena: whether it reaches to `end_pfn` now. `Machine.growing` held."""
    cdef Opening *o = <Opening *> opening
    cdef size_t need
    if end_pfn > o.most >> o.page_shift:
        return False
    need = ((end_pfn << o.page_shift) + o.granule - 1) & ~(o.granule - 1)
    return (need <= o.open or open_to(o, min(need + (o.open // MORE & ~(o.granule - 1)), o.most))
            or open_to(o, need))


cdef inline void stop_growing(Opening *o) noexcept nogil:
    """Open no further step."""
    lock_acquire(&o.m.growing, True)
    o.m.grow = NULL
    o.m.zones[0].growable_pages = 0
    lock_release(&o.m.growing)


cdef inline void close_all(Opening *o) noexcept nogil:
    """Close all of it for ever, and keep the addresses, also those that were not reserved before."""
    if o.m != NULL:
        stop_growing(o)
    if mmap(o.base, o.open, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED:
        madvise(o.base, o.open, MADV_DONTNEED)      # a sandbox that has no mapping made any more
