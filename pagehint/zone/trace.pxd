"""A trace replayed in one call: an array of allocations and frees, which refer to each other by slots of a table.

An allocation writes its PFN to its slot, and a free reads the PFN from its slot. The zone lock is held from one
operation to the next, for up to OPS_ROUND of them, rather than taken for each.
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from pagehint.sync.atomic cimport likely, peek64, prefetch, unlikely
from pagehint.sync.lock cimport lock_acquire
from pagehint.zone.hook cimport zone_unlock
from pagehint.zone.page_alloc cimport (ALONE, How, Machine, ZoneTry, locate, machine_alloc, machine_free,
                                       zone_alloc_held, zone_free_held)
from pagehint.zone.page_set cimport PCP_ORDERS
from pagehint.zone.status cimport E_NOMEM, E_OWNED, E_SLOT, OK
from pagehint.zone.zone cimport LEAF_SHIFT, PageZone

cdef enum:
    OPS_ROUND = 64              # operations for which the lock is held at a time: a microsecond or two
    OPS_AHEAD = 8               # how many operations ahead to prefetch

cdef enum:                      # what an operation does
    OP_ALLOC = 0
    OP_FREE = 1

cdef struct Op:                 # as the dtype `OP_DTYPE`
    uint32_t slot
    uint16_t order
    uint16_t op                 # OP_ALLOC or OP_FREE

cdef struct Round:              # operations during which one zone's lock is held
    PageZone *zone              # NULL: none is held
    int left                    # operations before the lock is released


cdef inline void round_end(Round *r) noexcept nogil:
    """Release the lock, if one is held."""
    if r.zone != NULL:
        zone_unlock(r.zone)
        r.zone = NULL


cdef inline void round_begin(Round *r, PageZone *z) noexcept nogil:
    """Hold this zone's lock for a new round, and no other."""
    round_end(r)
    lock_acquire(&z.lock, True)
    r.zone = z
    r.left = OPS_ROUND


cdef inline void round_use(Round *r, PageZone *z) noexcept nogil:
    """Hold this zone's lock for an operation, in a new round if it is another zone's, or the round is over."""
    if unlikely(r.zone != z or r.left == 0):
        round_begin(r, z)
    r.left -= 1


cdef inline int op_alloc(Machine *m, Round *r, int preferred, int order, int mt, uint64_t *pfn) noexcept nogil:
    """Take a block past the page sets, from the preferred zone or one it falls back to."""
    cdef ZoneTry *step = m.zonelists + preferred * m.nr_zones
    cdef PageZone *z
    cdef uint64_t page = 0
    cdef int i
    for i in range(m.zonelist_length[preferred]):
        z = m.zones[step[i].zone]
        round_use(r, z)
        if likely(zone_alloc_held(z, order, mt, peek64(&step[i].reserve), &page) == OK):
            pfn[0] = z.base_pfn + page
            return OK
    return E_NOMEM


cdef inline int op_free(Machine *m, Round *r, PageZone *near, uint64_t pfn, int order, How how) noexcept nogil:
    """Free a block past the page sets. `near` is the zone where it is looked for first."""
    cdef int rc
    if unlikely(pfn - near.tail_pfn >= peek64(&near.end_pfn) - near.tail_pfn):
        rc = locate(m, pfn, 1, &near)
        if rc != OK:
            return rc
    round_use(r, near)
    rc = zone_free_held(near, pfn - near.base_pfn, order)
    if unlikely(rc == E_OWNED):
        round_end(r)
        rc = machine_free(m, pfn, order, how)
    return rc


cdef inline int op_by_set(Machine *m, Round *r, int preferred, const Op *op, int mt, How how, uint64_t *pfn) noexcept nogil:
    """Allocate or free through a page set. Its lock is taken before the zone's, so the round ends first."""
    round_end(r)
    if op.op == OP_FREE:
        return machine_free(m, pfn[0], op.order, how)
    return machine_alloc(m, preferred, op.order, mt, how, pfn)


cdef inline void op_prefetch(const PageZone *z, uint64_t pfn) noexcept nogil:
    """Prefetch what a free of this block will read, if it is in this zone; else the prefetch is useless, but safe."""
    prefetch(&z.kinds[(pfn - z.base_pfn) >> LEAF_SHIFT])
    prefetch(&z.leaves[(pfn - z.base_pfn) >> LEAF_SHIFT])
    prefetch(&z.links[(pfn - z.base_pfn) >> LEAF_SHIFT])


cdef inline int machine_run_ops(Machine *m, int preferred, int mt, int max_order, const Op *ops, uint64_t n, How how,
                                uint64_t *table, uint64_t nr_slots, uint64_t *done) noexcept nogil:
    """Run the operations from index `done` on until one is refused; `done` becomes that one's index.

    The caller makes sure that `ops` does not change meanwhile.
    """
    cdef PageZone *near = m.zones[preferred]
    cdef bint sets = near.pcp != NULL and how != ALONE
    cdef Round r
    cdef Op op
    cdef uint64_t i = done[0], ahead
    cdef int rc = OK
    r.zone = NULL
    r.left = 0
    while i < n:
        op = ops[i]
        ahead = i + OPS_AHEAD
        if ahead + OPS_AHEAD < n:
            prefetch(&table[ops[ahead + OPS_AHEAD].slot])
            if ops[ahead].slot < nr_slots:
                op_prefetch(near, table[ops[ahead].slot])
        if unlikely(op.slot >= nr_slots or op.order > max_order or op.op > OP_FREE):
            rc = E_SLOT
        elif unlikely(sets) and op.order < PCP_ORDERS:
            rc = op_by_set(m, &r, preferred, &op, mt, how, &table[op.slot])
        elif op.op == OP_FREE:
            rc = op_free(m, &r, near, table[op.slot], op.order, how)
        else:
            rc = op_alloc(m, &r, preferred, op.order, mt, &table[op.slot])
        if unlikely(rc != OK):
            break
        i += 1
    done[0] = i
    round_end(&r)
    return rc
