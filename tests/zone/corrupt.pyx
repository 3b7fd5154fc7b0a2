# cython: language_level=3
"""For test_verify.py: breaks the metadata of a machine's last zone on purpose, one number at a time."""
from libc.stdint cimport uint32_t, uint64_t

from pagehint._core cimport PageAllocator
from pagehint.hinting.hinted_zone cimport hints_of
from pagehint.zone.page_sets.owned_leaf cimport OWNER
from pagehint.zone.page_sets.page_set cimport PCP_ORDERS, PCP_TYPES, Pcp
from pagehint.zone.zone cimport (FREE, FULL, LIMIT_LEAVES, MIDDLE, MT_ISOLATE, MT_MOVABLE, MT_RECLAIMABLE, NR_ORDERS,
                                 NR_TYPES, OWNED, PageZone, RUN, SPLIT, TAIL, USED, WITHHELD)

KINDS = {"RUN": RUN, "FREE": FREE, "FULL": FULL, "WITHHELD": WITHHELD, "OWNED": OWNED, "SPLIT": SPLIT, "TAIL": TAIL,
         "USED": USED, "MIDDLE": MIDDLE}
ISOLATE, MOVABLE, RECLAIMABLE, TYPES, OWNER_MARK = MT_ISOLATE, MT_MOVABLE, MT_RECLAIMABLE, NR_TYPES, <uint64_t>OWNER


def head_of_list(int mt, int order):
    """In a zone that may grow as far as any."""
    return LIMIT_LEAVES + mt * NR_ORDERS + order


cdef PageZone *last_zone(PageAllocator pages):
    return pages.memory.m.zones[pages.memory.m.nr_zones - 1]


def stacked(PageAllocator pages):
    """The bottom of each stack in the per-CPU page sets, as (number of the CPU, migratetype, order, page of the zone)."""
    cdef PageZone *z = last_zone(pages)
    cdef Pcp *pcp
    cdef int cpu, mt, order
    found = []
    for cpu in range(pages.memory.m.nr_cpus):
        pcp = <Pcp *> z.pcp + cpu
        for mt in range(PCP_TYPES):
            for order in range(PCP_ORDERS):
                if pcp.stacks[mt][order].count:
                    found.append((cpu, mt, order, pcp.stacks[mt][order].blocks[0]))
    return found


def swap(PageAllocator pages, str field, uint64_t i, uint64_t value):
    """Put a value somewhere, and return what was there."""
    cdef PageZone *z = last_zone(pages)
    cdef Pcp *pcp
    cdef uint64_t old
    if field == "free":
        old, z.leaves[i].free = z.leaves[i].free, value
    elif field == "head":
        old, z.leaves[i].head = z.leaves[i].head, value
    elif field == "kind":
        old, z.kinds[i] = z.kinds[i], value
    elif field == "type":
        old, z.types[i] = z.types[i], value
    elif field == "next":
        old, z.links[i].next = z.links[i].next, value
    elif field == "prev":
        old, z.links[i].prev = z.links[i].prev, value
    elif field == "nonempty":
        old, z.nonempty[i] = z.nonempty[i], value
    elif field == "nr_free":
        old = z.areas[i // NR_ORDERS].nr_free[i % NR_ORDERS]
        z.areas[i // NR_ORDERS].nr_free[i % NR_ORDERS] = value
    elif field == "hints":
        old, hints_of(z).bits[i] = hints_of(z).bits[i], value
    elif field == "hint_words":
        old, hints_of(z).filled[i] = hints_of(z).filled[i], value
    elif field == "hint_count":
        old, hints_of(z).count = hints_of(z).count, value
    elif field == "free_pages":
        old, z.free_pages = z.free_pages, value
    elif field == "managed_pages":
        old, z.managed_pages = z.managed_pages, value
    elif field == "reporting_pages":
        old, hints_of(z).reporting_pages = hints_of(z).reporting_pages, value
    elif field == "bulk_pages":
        old, z.bulk_pages = z.bulk_pages, value
    elif field == "bulk_blocks":
        old, pages.memory.m.bulk_blocks = pages.memory.m.bulk_blocks, value
    elif field == "kept_run":
        old, z.run_set.runs[i] = z.run_set.runs[i], value
    elif field == "extent_pages":
        old, z.extents.slots[i].pages = z.extents.slots[i].pages, value
    elif field == "extent_prev":
        old, z.extents.slots[i].prev = z.extents.slots[i].prev, <uint32_t>value
    elif field == "bins":
        old, z.extents.bins[i] = z.extents.bins[i], <uint32_t>value
    elif field == "filled":
        old, z.extents.filled[i] = z.extents.filled[i], value
    elif field == "stacked":        # the bottom of the first stack that has one
        cpu, mt, order, _ = stacked(pages)[0]
        pcp = <Pcp *> z.pcp + <int>cpu
        old = pcp.stacks[<int>mt][<int>order].blocks[0]
        pcp.stacks[<int>mt][<int>order].blocks[0] = value
    else:
        raise ValueError(field)
    return old
