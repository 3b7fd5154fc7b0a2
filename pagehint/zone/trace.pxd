"""A trace: many operations one after the other, for which the zone lock is not taken each time but held.

It is held from one operation to the next, for up to OPS_ROUND of them. There are two kinds of traces. In the one,
allocations are placed by the allocator: they and frees refer to each other by slots of a table. An allocation writes
its PFN to its slot, and a free reads the PFN from its slot. In the other, another allocator has placed them: pages are
taken and given at their PFNs. What is given may be a part of a block that was taken as one, or parts of several. Then
the blocks are split where they are, and nothing is freed for a moment that is to stay in use.
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from pagehint.sync.atomic cimport clz64, ctz64, likely, peek64, prefetch, unlikely
from pagehint.sync.lock cimport lock_acquire
from pagehint.zone.buddy cimport NOT_FREE, buddy_free, free_block_around, leaf_fill, set_head, set_kind
from pagehint.zone.check cimport check_kind
from pagehint.zone.hook cimport notice_freed, zone_unlock
from pagehint.zone.leaf cimport aligned_starts, low_ones, order_ones
from pagehint.zone.page_alloc cimport (ALONE, How, Machine, ZoneTry, locate, machine_alloc, machine_drain_runs,
                                       machine_free, zone_alloc_held, zone_free_held)
from pagehint.zone.page_sets.page_set cimport PCP_ORDERS
from pagehint.zone.run cimport mark_tails
from pagehint.zone.status cimport E_ALIGN, E_FREE, E_NOMEM, E_OWNED, E_SIZE, E_SLOT, E_WITHHELD, OK
from pagehint.zone.withhold cimport page_used
from pagehint.zone.zone cimport FULL, KIND_ORDER, KIND_STATE, LEAF_PAGES, LEAF_SHIFT, PageZone, TAIL, USED, is_split

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
    machine_drain_runs(m)
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


# ---- at their PFNs, in zones without page sets and extents ----------------------------------------------------

cdef inline int round_at(Machine *m, Round *r, PageZone **near, uint64_t pfn, uint64_t n) noexcept nogil:
    """Hold the lock of the zone that these pages are in, which becomes `near`: where they are looked for first."""
    cdef PageZone *z = near[0]
    cdef int rc
    if unlikely(pfn - z.tail_pfn >= peek64(&z.end_pfn) - z.tail_pfn or n > peek64(&z.end_pfn) - pfn):
        rc = locate(m, pfn, n, &z)
        if rc != OK:
            return rc
        near[0] = z
    round_use(r, z)
    return OK


cdef inline int used_block_around(const PageZone *z, uint64_t i, uint64_t *head) noexcept nogil:
    """Order of the allocated block of whole leaves that leaf `i` is in, and in `head` its first leaf; else NOT_FREE."""
    cdef uint64_t h = i
    cdef int kind = TAIL, o
    for o in range(LEAF_SHIFT, z.max_order + 1):
        h = i >> (o - LEAF_SHIFT) << (o - LEAF_SHIFT)
        kind = z.kinds[h]
        if kind != TAIL:
            break
    if kind & KIND_STATE != USED or i - h >= <uint64_t>1 << ((kind & KIND_ORDER) - LEAF_SHIFT):
        return NOT_FREE
    head[0] = h
    return kind & KIND_ORDER


cdef inline void halve(PageZone *z, uint64_t head, int order, uint64_t i, int wanted) noexcept nogil:
    """Split the allocated block of `order` at leaf `head` by halves, until one of order `wanted` begins at leaf `i`."""
    cdef uint64_t half
    while order > wanted:
        order -= 1
        half = <uint64_t>1 << (order - LEAF_SHIFT)
        set_kind(z, head + half, USED | order)
        set_kind(z, head, USED | order)
        head |= i & half


cdef inline int leaves_used(const PageZone *z, uint64_t i, uint64_t end) noexcept nogil:
    """Whether leaves `i` to `end` consist of allocated blocks; if not, why nothing can be freed there. O(leaves)."""
    cdef int kind
    while i < end:
        kind = z.kinds[i]
        if is_split(kind):
            if z.leaves[i].free:
                return E_FREE if z.leaves[i].free & ~z.leaves[i].head else E_WITHHELD
            if not z.leaves[i].head & 1:
                return E_SIZE           # the end of a run
            i += 1
        elif kind & KIND_STATE == USED:
            i += <uint64_t>1 << ((kind & KIND_ORDER) - LEAF_SHIFT)
        else:
            return check_kind(z, i << LEAF_SHIFT)
    return OK


cdef inline int join_or_halve(PageZone *z, uint64_t i, int order) noexcept nogil:
    """Have an allocated block of whole leaves begin at leaf `i`: out of a larger one, or of smaller ones.

    If these pages are not all in use as blocks, returns why not, and has changed nothing.
    """
    cdef uint64_t head = 0, end = i + (<uint64_t>1 << (order - LEAF_SHIFT))
    cdef int around = used_block_around(z, i, &head), rc
    if around >= order:
        halve(z, head, around, i, order)
        return OK
    rc = leaves_used(z, i, end)
    if rc == OK:
        mark_tails(z, i, end)
        set_kind(z, i, USED | order)
    return rc


cdef inline int split_in_leaf(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Have an allocated block of `order` < 6 begin at this page of a split leaf: out of blocks that its pages are in.

    What is left of these blocks becomes blocks of that order, too. If the pages are not all in use, returns why not, and
    has changed nothing. O(1).
    """
    cdef uint64_t i = page >> LEAF_SHIFT, free = z.leaves[i].free, head = z.leaves[i].head
    cdef int at = page & 63, first, end
    cdef uint64_t pages = order_ones[order] << at
    cdef uint64_t before = (free | head) & low_ones(at + 1), after = (free | head) & ~low_ones(at + (1 << order))
    if free & ~head & pages:
        return E_FREE
    if before == 0:
        return E_SIZE                   # the end of a run
    first = 63 - clz64(before)
    if free & (pages | <uint64_t>1 << first):
        return E_WITHHELD
    end = ctz64(after) if after else LEAF_PAGES
    set_head(z, i, head | (aligned_starts[order] & low_ones(end) & ~low_ones(first)))
    return OK


cdef inline int zone_give_parts(PageZone *z, uint64_t page, int order) noexcept nogil:
    """As `zone_give`, of pages that are not allocated as one block. A function of its own, as it is seldom needed."""
    cdef uint64_t i = page >> LEAF_SHIFT
    cdef int rc
    if order >= LEAF_SHIFT:
        rc = join_or_halve(z, i, order)
    elif is_split(z.kinds[i]):
        rc = split_in_leaf(z, page, order)
    else:
        rc = join_or_halve(z, i, LEAF_SHIFT)
        if rc == OK:
            leaf_fill(z, i, order, USED, FULL)
    return rc


cdef inline int zone_give(PageZone *z, uint64_t page, int order) noexcept nogil:
    """Free these pages, which are allocated, in whatever blocks. Zone lock held.

    O(max_page_order) for a block, or a part of one; for several blocks also O(pages / 64). Runs are not given in parts.
    """
    cdef bint ours
    cdef int rc
    if unlikely(page & ((<uint64_t>1 << order) - 1)):
        return E_ALIGN
    if order >= LEAF_SHIFT:
        ours = z.kinds[page >> LEAF_SHIFT] == (USED | order)
    else:
        ours = page_used(z, page, order)
    if not ours:
        rc = zone_give_parts(z, page, order)
        if rc != OK:
            return rc
    notice_freed(z, page, order, buddy_free(z, page, order))
    return OK


cdef inline uint64_t free_pages_in(const PageZone *z, uint64_t page, uint64_t end) noexcept nogil:
    """Pages from `page` to `end` that are free. Zone lock held. O(blocks, and pages that are not free)."""
    cdef uint64_t head = 0, n = 0, next
    cdef int order
    while page < end:
        order = free_block_around(z, page, 0, &head)
        next = min(head + (<uint64_t>1 << order), end) if order != NOT_FREE else page + 1
        n += next - page if order != NOT_FREE else 0
        page = next
    return n
