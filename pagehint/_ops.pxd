"""A trace replayed in one call: an array of allocations and frees, that refer to each other by slots of a table."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from pagehint._atomic cimport peek64, prefetch
from pagehint._check cimport E_NOMEM, E_SLOT, OK
from pagehint._lock cimport lock_acquire
from pagehint._machine cimport (ALONE, How, Machine, WAIT, ZoneTry, locate, machine_alloc, machine_free,
                                zone_alloc_held, zone_free_held)
from pagehint._pcp cimport PCP_ORDERS
from pagehint._wake cimport zone_unlock
from pagehint._zone cimport LEAF_SHIFT, PageZone

cdef enum:
    OPS_ROUND = 64              # operations in one lock round: a microsecond or two
    OPS_AHEAD = 8               # how many operations ahead to prefetch

cdef enum:                      # what an operation does
    OP_ALLOC = 0
    OP_FREE = 1

cdef struct Op:                 # as the dtype `OP_DTYPE`
    uint32_t slot
    uint16_t order
    uint16_t op

cdef struct Round:              # the lock that is held from one operation to the next
    PageZone *zone
    int left


cdef inline void round_end(Round *r) noexcept nogil:
    if r.zone != NULL:
        zone_unlock(r.zone)
        r.zone = NULL


cdef inline void round_use(Round *r, PageZone *z) noexcept nogil:
    """Hold this zone's lock, and no lock too long."""
    if r.zone == z and r.left:
        r.left -= 1
        return
    round_end(r)
    lock_acquire(&z.lock, True)
    r.zone = z
    r.left = OPS_ROUND


cdef inline int op_alloc(Machine *m, Round *r, int preferred, int order, int mt, How how, uint64_t *pfn) noexcept nogil:
    cdef ZoneTry *step = m.zonelists + preferred * m.nr_zones
    cdef PageZone *z
    cdef uint64_t page = 0
    cdef int i
    if order < PCP_ORDERS and m.zones[preferred].pcp != NULL and how != ALONE:
        round_end(r)            # a page set's lock comes before the zone's
        return machine_alloc(m, preferred, order, mt, how, pfn)
    for i in range(m.zonelist_length[preferred]):
        z = m.zones[step[i].zone]
        round_use(r, z)
        if zone_alloc_held(z, order, mt, peek64(&step[i].reserve), &page) == OK:
            pfn[0] = z.base_pfn + page
            return OK
    return E_NOMEM


cdef inline int op_free(Machine *m, Round *r, uint64_t pfn, int order) noexcept nogil:
    cdef PageZone *z = r.zone
    cdef int rc
    if z == NULL or not z.start_pfn <= pfn < peek64(&z.end_pfn):
        rc = locate(m, pfn, 1, &z)
        if rc != OK:
            return rc
    if order < PCP_ORDERS and z.pcp != NULL:
        round_end(r)
        return machine_free(m, pfn, order, WAIT)
    round_use(r, z)
    return zone_free_held(z, pfn - z.base_pfn, order)


cdef inline void op_prefetch(const PageZone *z, const Op *op, const uint64_t *table, uint64_t nr_slots) noexcept nogil:
    """What a free that comes will look at first, if it is of this zone; a prefetch of any address is safe."""
    cdef uint64_t leaf
    if op.slot < nr_slots:
        leaf = (table[op.slot] - z.base_pfn) >> LEAF_SHIFT
        prefetch(&z.kinds[leaf])
        prefetch(&z.leaves[leaf])


cdef inline int machine_run_ops(Machine *m, int preferred, int mt, int max_order, const Op *ops, uint64_t n, How how,
                                uint64_t *table, uint64_t nr_slots, uint64_t *done) noexcept nogil:
    """Run operations until one is refused, `done` so far. Every number is checked, for they may change as we read."""
    cdef Round r
    cdef Op op
    cdef int rc = OK
    r.zone = NULL
    r.left = 0
    while done[0] < n and rc == OK:
        op = ops[done[0]]
        if done[0] + 2 * OPS_AHEAD < n:
            prefetch(&table[ops[done[0] + 2 * OPS_AHEAD].slot])
            op_prefetch(m.zones[preferred], &ops[done[0] + OPS_AHEAD], table, nr_slots)
        if op.slot >= nr_slots or op.order > max_order or op.op > OP_FREE:
            rc = E_SLOT
        elif op.op == OP_FREE:
            rc = op_free(m, &r, table[op.slot], op.order)
        else:
            rc = op_alloc(m, &r, preferred, op.order, mt, how, &table[op.slot])
        done[0] += rc == OK
    round_end(&r)
    return rc
