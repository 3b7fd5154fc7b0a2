# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""An allocator that is built from a snapshot gets the snapshot's migratetypes and watermarks.

No other thread knows the allocator yet.
"""
from libc.stdint cimport uint8_t, uint64_t

cimport numpy as cnp
from pagehint.allocator.hotplug cimport zone_retype
from pagehint.allocator.memory cimport Memory, set_zone_watermarks
from pagehint.sync.atomic cimport RELAXED, store64
from pagehint.zone.page_alloc cimport Machine, ZoneTry
from pagehint.zone.zone cimport MT_ISOLATE, NR_TYPES, PAGEBLOCK_ORDER, PageZone

cnp.import_array()


cdef void retype_all(PageZone *z, const uint8_t *types, uint64_t end) noexcept nogil:
    """Give each pageblock the type that `types` has at its PFN. O(pageblocks), and O(blocks that move)."""
    cdef uint64_t base = z.base_pfn >> PAGEBLOCK_ORDER, block = (z.start_pfn >> PAGEBLOCK_ORDER) - base, last
    while block < end:
        last = block + 1
        while last < end and types[base + last] == types[base + block]:
            last += 1
        zone_retype(z, block, last, types[base + block])
        block = last


cdef int restore_migratetypes(Memory memory, cnp.ndarray migratetypes) except -1:
    """Give each pageblock its type: a uint8 for each, from PFN 0 to the end of the last zone."""
    cdef PageZone *z
    cdef uint64_t end, nr_blocks = <uint64_t>migratetypes.shape[0]
    cdef int i
    if nr_blocks and migratetypes.max() >= NR_TYPES:
        raise ValueError(f"migratetype {migratetypes.max()} of a pageblock is none")
    if memory.min_order > PAGEBLOCK_ORDER and (migratetypes == MT_ISOLATE).any():
        raise ValueError(
            f"min_order {memory.min_order}: a granule of several pageblocks is isolate as a whole or not at all, and in"
            f" the snapshot some pageblocks are; min_order must be at most {PAGEBLOCK_ORDER}"
        )
    for i in range(memory.m.nr_zones):
        z = memory.m.zones[i]
        end = (z.end_pfn + (1 << PAGEBLOCK_ORDER) - 1) >> PAGEBLOCK_ORDER
        if end > nr_blocks:
            raise ValueError(
                f"zone {memory.specs[i].name} ends at pageblock {end} from PFN 0 on, and {nr_blocks} have a migratetype"
            )
        with nogil:
            retype_all(z, <uint8_t *> migratetypes.data, end - (z.base_pfn >> PAGEBLOCK_ORDER))
    return 0


cdef int restore_watermarks(Memory memory, tuple watermarks, cnp.ndarray reserves) except -1:
    """Set each zone's watermarks, and what it keeps from requests that prefer another: uint64, (zones, zones)."""
    cdef Machine *m = &memory.m
    cdef ZoneTry *step
    cdef uint64_t[3] marks
    cdef const uint64_t *table = <const uint64_t *> reserves.data
    cdef int i, j
    memory.watermarks = memory.wanted_watermarks = watermarks
    for i in range(m.nr_zones):
        for j in range(m.zonelist_length[i]):
            step = &m.zonelists[i * m.nr_zones + j]
            store64(&step.reserve, table[step.zone * m.nr_zones + i], RELAXED)
        for j in range(3):
            marks[j] = watermarks[i][j]
        with nogil:
            set_zone_watermarks(m.zones[i], marks, memory.queue.max_pages)
    return 0
