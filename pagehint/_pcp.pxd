"""Per-CPU page sets: stacks of small blocks in front of a zone, so that threads seldom meet at its lock.

A block in a set is withheld: in its leaf, the `free` bit of its first page is set beside the `head` bit. That one
bit, flipped atomically, is what makes a double free certain to be seen, on whichever CPU it happens; `head` itself
changes under the zone lock only. One set of one CPU is 3 KiB; it is filled and drained by halves.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagehint._atomic cimport ACQ_REL, ACQUIRE, fetch_and64, fetch_or64, load8
from pagehint._buddy cimport NOT_FREE, buddy_free
from pagehint._check cimport E_AGAIN, E_HELD, E_NOMEM, OK, check_used
from pagehint._hint cimport hint_broken, hint_freed
from pagehint._lock cimport Lock, lock_acquire, lock_release
from pagehint._migratetype cimport zone_take
from pagehint._watermark cimport may_take
from pagehint._zone cimport HELD, LEAF_SHIFT, MT_ISOLATE, PageZone
from pagehint._wake cimport zone_unlock

cdef extern from "<sched.h>" nogil:
    int sched_getcpu()

cdef enum:
    PCP_ORDERS = 4              # orders 0 to 3, as in Linux: up to PAGE_ALLOC_COSTLY_ORDER
    PCP_TYPES = 3
    PCP_SLOTS = 240             # 128 + 64 + 32 + 16
    PCP_BATCH = 64

cdef struct Pcp:
    Lock lock
    int batch                   # pages moved at once; half of what a stack may hold
    int count[PCP_TYPES][PCP_ORDERS]
    uint32_t stack[PCP_TYPES][PCP_SLOTS]


cdef inline uint32_t *pcp_stack(Pcp *pcp, int mt, int order) noexcept nogil:
    return &pcp.stack[mt][256 - (256 >> order)]


cdef inline int pcp_batch(const Pcp *pcp, int order) noexcept nogil:
    """Blocks moved at once."""
    return max(pcp.batch >> order, 1)


cdef inline Pcp *pcp_here(PageZone *z, int nr_cpus) noexcept nogil:
    """The set of the CPU we run on. Only a hint for speed: its lock is what makes it safe."""
    cdef int cpu = sched_getcpu()
    return <Pcp *>z.pcp + (cpu % nr_cpus if cpu > 0 else 0)


cdef inline void pcp_drain(PageZone *z, Pcp *pcp, int mt, int order, int n) noexcept nogil:
    """Give the `n` oldest blocks of a stack back to the buddy, by the ordinary path. Both locks held."""
    cdef uint32_t *stack = pcp_stack(pcp, mt, order)
    cdef int i, left = pcp.count[mt][order] - n
    for i in range(n):
        hint_freed(z, stack[i], order, buddy_free(z, stack[i], order))
    for i in range(left):
        stack[i] = stack[i + n]
    pcp.count[mt][order] = left


cdef inline void pcp_drain_all(PageZone *z, Pcp *pcp) noexcept nogil:
    """Empty one CPU's set of one zone."""
    cdef int mt, order
    lock_acquire(&pcp.lock, True)
    lock_acquire(&z.lock, True)
    for mt in range(PCP_TYPES):
        for order in range(PCP_ORDERS):
            pcp_drain(z, pcp, mt, order, pcp.count[mt][order])
    zone_unlock(z)
    lock_release(&pcp.lock)


cdef inline int pcp_fill(PageZone *z, Pcp *pcp, int mt, int order, uint64_t reserve, bint may_block) noexcept nogil:
    """Move up to a batch from the buddy into an empty stack. Set's lock held."""
    cdef uint32_t *stack = pcp_stack(pcp, mt, order)
    cdef uint64_t page = 0
    cdef int n, source
    if not lock_acquire(&z.lock, may_block):
        return E_AGAIN
    for n in range(pcp_batch(pcp, order)):
        if not may_take(z, <uint64_t>1 << order, reserve):
            break
        source = zone_take(z, mt, order, HELD, &page)
        if source == NOT_FREE:
            break
        hint_broken(z, page, order, source)
        stack[n] = <uint32_t>page
        pcp.count[mt][order] = n + 1
    zone_unlock(z)
    return OK if pcp.count[mt][order] else E_NOMEM


cdef inline int pcp_alloc(PageZone *z, Pcp *pcp, int mt, int order, uint64_t reserve, bint may_block,
                          uint64_t *page) noexcept nogil:
    cdef int rc, top
    if not lock_acquire(&pcp.lock, may_block):
        return E_AGAIN
    if pcp.count[mt][order] == 0:
        rc = pcp_fill(z, pcp, mt, order, reserve, may_block)
        if rc != OK:
            lock_release(&pcp.lock)
            return rc
    top = pcp.count[mt][order] - 1
    page[0] = pcp_stack(pcp, mt, order)[top]
    pcp.count[mt][order] = top
    fetch_and64(&z.leaves[page[0] >> LEAF_SHIFT].free, ~(<uint64_t>1 << (page[0] & 63)), ACQ_REL)
    lock_release(&pcp.lock)
    return OK


cdef inline int pcp_free(PageZone *z, Pcp *pcp, uint64_t page, int order, bint may_block) noexcept nogil:
    """Put a block on a stack. OK, E_AGAIN, or anything else: the caller asks the zone itself."""
    cdef uint64_t first = <uint64_t>1 << (page & 63)
    cdef int mt, rc, most
    if not lock_acquire(&pcp.lock, may_block):
        return E_AGAIN
    # Read under the set's lock: whoever isolates the pageblock drains the sets afterwards.
    mt = load8(&z.types[page >> 9], ACQUIRE)
    rc = E_HELD if mt == MT_ISOLATE else check_used(z, page, order)
    if rc == OK:
        most = 2 * pcp_batch(pcp, order)
        if pcp.count[mt][order] >= most:
            if not lock_acquire(&z.lock, may_block):
                lock_release(&pcp.lock)
                return E_AGAIN
            pcp_drain(z, pcp, mt, order, most // 2)
            zone_unlock(z)
        if fetch_or64(&z.leaves[page >> LEAF_SHIFT].free, first, ACQ_REL) & first:
            rc = E_HELD             # another thread freed it between the check and now
        else:
            pcp_stack(pcp, mt, order)[pcp.count[mt][order]] = <uint32_t>page
            pcp.count[mt][order] += 1
    lock_release(&pcp.lock)
    return rc
