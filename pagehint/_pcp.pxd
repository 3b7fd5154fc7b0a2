"""Per-CPU page sets: stacks of small blocks in front of a zone, so that threads seldom meet at its lock.

A block in a set is withheld: in its leaf, the `free` bit of its first page is set beside the `head` bit. That one
bit, flipped atomically, is what makes a double free certain to be seen, on whichever CPU it happens; `head` itself
changes under the zone lock only.

So that two CPUs do not flip bits in the same cache line all the time, a stack is filled from the set's reserve, where it
can be had a whole line of leaf words (256 pages), and a block of a line that another CPU filled from goes to the bottom
of the stack: it is not handed out while the zone has others, and is the first to go back. What is too much goes back by
halves. 3.1 KiB a CPU.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from pagehint._atomic cimport (ACQ_REL, ACQUIRE, RELAXED, clz64, ctz64, fetch_and64, likely, load8, peek64, popcount64,
                               store8, unlikely)
from pagehint._bias cimport BiasedLock, bias_acquire, bias_init, bias_release, bias_revoke
from pagehint._buddy cimport Taken, buddy_alloc, buddy_free, leaf_fill, set_kind
from pagehint._check cimport E_AGAIN, E_HELD, E_NOMEM, OK
from pagehint._hint cimport hint_broken, hint_broken_many, hint_freed
from pagehint._leaf cimport aligned_starts
from pagehint._lock cimport lock_acquire
from pagehint._migratetype cimport zone_take_many
from pagehint._testpoint cimport AT_SET_DRAINED, test_point
from pagehint._watermark cimport WMARK_MIN, may_take, spare_pages
from pagehint._withhold cimport withhold_page
from pagehint._zone cimport HELD, LEAF_PAGES, LEAF_SHIFT, LINE_LEAVES, LINE_ORDER, MT_ISOLATE, PageZone
from pagehint._wake cimport zone_unlock

cdef extern from *:
    """
    #include <sched.h>
    #if defined(__has_include) && __has_include(<sys/rseq.h>)
    #include <sys/rseq.h>
    /* The kernel keeps the number in the thread's own memory; one load instead of a call. */
    #define PH_CPU() (((volatile struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset))->cpu_id)
    #else
    #define PH_CPU() ((unsigned int)sched_getcpu())
    #endif
    """
    unsigned int current_cpu "PH_CPU" () noexcept nogil

cdef enum:
    PCP_ORDERS = 4              # orders 0 to 3, as in Linux: up to PAGE_ALLOC_COSTLY_ORDER
    PCP_TYPES = 3
    PCP_SLOTS = 240             # 128 + 64 + 32 + 16
    PCP_BATCH = 64

cdef struct Reserve:            # whole leaves, each held as a block of order 6; none where page is end
    uint64_t page
    uint64_t end

cdef struct Pcp:
    BiasedLock lock             # a line of its own; all else is protected by it
    uint8_t cpu                 # low byte of the CPU's number
    int batch                   # pages moved at once; half of what a stack may hold
    int count[PCP_TYPES][PCP_ORDERS]
    int foreign[PCP_TYPES][PCP_ORDERS]      # of these, those of other CPUs' lines, at the bottom
    Reserve reserve[PCP_TYPES]
    uint32_t stack[PCP_TYPES][PCP_SLOTS]
    uint64_t spare[4]           # up to a cache line: the next CPU's set follows


cdef inline void pcp_init(Pcp *pcp, int cpu, uint64_t managed_pages) noexcept nogil:
    """An empty set, of zeroed memory. As in Linux, it holds no more than about a thousandth of its zone."""
    bias_init(&pcp.lock)
    pcp.cpu = <uint8_t>cpu
    pcp.batch = <int>min(max(managed_pages // 1024, <uint64_t>1), <uint64_t>PCP_BATCH)


cdef inline uint32_t *pcp_stack(Pcp *pcp, int mt, int order) noexcept nogil:
    return &pcp.stack[mt][256 - (256 >> order)]


cdef inline int pcp_batch(const Pcp *pcp, int order) noexcept nogil:
    """Blocks moved at once."""
    return max(pcp.batch >> order, 1)


cdef inline uint64_t pcp_held(const Pcp *pcp) noexcept nogil:
    """Pages in a set. Exact with its lock held, or when nothing else runs."""
    cdef uint64_t pages = 0
    cdef int mt, order
    for mt in range(PCP_TYPES):
        pages += pcp.reserve[mt].end - pcp.reserve[mt].page
        for order in range(PCP_ORDERS):
            pages += <uint64_t>pcp.count[mt][order] << order
    return pages


cdef inline Pcp *pcp_here(PageZone *z, int nr_cpus) noexcept nogil:
    """The set of the CPU we run on. Only a hint for speed: its lock is what makes it safe."""
    cdef unsigned int cpu = current_cpu()       # huge where the kernel does not say
    return <Pcp *>z.pcp + (cpu if likely(cpu < <unsigned int>nr_cpus) else 0)


# ---- free ---------------------------------------------------------------------------------------------------

cdef inline void pcp_drain(PageZone *z, Pcp *pcp, int mt, int order, int n) noexcept nogil:
    """Give the `n` oldest blocks of a stack back to the buddy, by the ordinary path. Both locks held."""
    cdef uint32_t *stack = pcp_stack(pcp, mt, order)
    cdef int i, left = pcp.count[mt][order] - n
    for i in range(n):
        hint_freed(z, stack[i], order, buddy_free(z, stack[i], order))
    for i in range(left):
        stack[i] = stack[i + n]
    pcp.count[mt][order] = left
    pcp.foreign[mt][order] = max(pcp.foreign[mt][order] - n, 0)


cdef inline void pcp_drain_held(PageZone *z, Pcp *pcp) noexcept nogil:
    """Empty one CPU's set of one zone. The set's lock held."""
    cdef Reserve *reserve
    cdef int mt, order
    lock_acquire(&z.lock, True)
    for mt in range(PCP_TYPES):
        for order in range(PCP_ORDERS):
            pcp_drain(z, pcp, mt, order, pcp.count[mt][order])
        reserve = &pcp.reserve[mt]
        while reserve.page < reserve.end:
            hint_freed(z, reserve.page, LEAF_SHIFT, buddy_free(z, reserve.page, LEAF_SHIFT))
            reserve.page += LEAF_PAGES
    zone_unlock(z)


cdef inline void pcp_drain_all(PageZone *z, Pcp *pcp) noexcept nogil:
    """Empty one CPU's set of one zone."""
    bias_acquire(&pcp.lock, True)
    pcp_drain_held(z, pcp)
    bias_release(&pcp.lock, False)


cdef inline void sets_drain(PageZone *z, int nr_cpus) noexcept nogil:
    """Empty all of a zone's sets, one after the other."""
    cdef int cpu
    if z.pcp != NULL:
        for cpu in range(nr_cpus):
            pcp_drain_all(z, <Pcp *> z.pcp + cpu)


cdef inline void sets_hold(PageZone *z, int nr_cpus, bint drain) noexcept nogil:
    """Take the locks of all of a zone's sets, and empty them if wanted."""
    cdef int cpu
    if z.pcp != NULL:
        for cpu in range(nr_cpus):
            bias_revoke(&(<Pcp *> z.pcp + cpu).lock, True)
            if drain:
                pcp_drain_held(z, <Pcp *> z.pcp + cpu)


cdef inline void sets_let_go(PageZone *z, int nr_cpus) noexcept nogil:
    cdef int cpu
    if z.pcp != NULL:
        for cpu in range(nr_cpus):
            bias_release(&(<Pcp *> z.pcp + cpu).lock, False)


cdef inline int pcp_free(PageZone *z, Pcp *pcp, uint64_t page, int order, bint may_block) noexcept nogil:
    """Put a block on a stack. OK, E_AGAIN, or E_HELD: the caller asks the zone itself."""
    cdef uint32_t *stack
    cdef int mt, most, rc = E_HELD
    if unlikely(not bias_acquire(&pcp.lock, may_block)):
        return E_AGAIN
    # Read under the set's lock: whoever isolates the pageblock drains the sets afterwards.
    mt = load8(&z.types[page >> 9], ACQUIRE)
    if likely(mt != MT_ISOLATE and page & ((1 << order) - 1) == 0):
        most = 2 * pcp_batch(pcp, order)
        if unlikely(pcp.count[mt][order] >= most or pcp.foreign[mt][order] >= most // 2):
            if not lock_acquire(&z.lock, may_block):
                bias_release(&pcp.lock, True)
                return E_AGAIN
            pcp_drain(z, pcp, mt, order, most // 2)
            zone_unlock(z)
            test_point(AT_SET_DRAINED)
        if likely(withhold_page(z, page, order)):
            stack = pcp_stack(pcp, mt, order)
            if load8(&z.lines[page >> LINE_ORDER], RELAXED) == pcp.cpu:
                stack[pcp.count[mt][order]] = <uint32_t>page
            else:
                stack[pcp.count[mt][order]] = stack[pcp.foreign[mt][order]]
                stack[pcp.foreign[mt][order]] = <uint32_t>page
                pcp.foreign[mt][order] += 1
            pcp.count[mt][order] += 1
            rc = OK
    bias_release(&pcp.lock, True)
    return rc


# ---- allocate -----------------------------------------------------------------------------------------------

cdef inline void pcp_push(PageZone *z, Pcp *pcp, int mt, int order, uint64_t leaf, uint64_t starts) noexcept nogil:
    """Stack the blocks that begin at `starts` in a leaf, the lowest on top."""
    cdef uint32_t *stack = pcp_stack(pcp, mt, order)
    cdef int n = pcp.count[mt][order]
    store8(&z.lines[leaf // LINE_LEAVES], pcp.cpu, RELAXED)
    while starts:
        stack[n] = <uint32_t>(leaf << LEAF_SHIFT) | (63 - clz64(starts))
        starts &= ~(<uint64_t>1 << (63 - clz64(starts)))
        n += 1
    pcp.count[mt][order] = n


cdef inline void pcp_take_reserve(PageZone *z, Pcp *pcp, int mt) noexcept nogil:
    """Reserve a line of leaves, if nothing smaller is free, so that no large block is broken needlessly. Both locks held."""
    cdef uint64_t page = 0
    cdef int source
    if z.areas[mt].nonempty == 0 or ctz64(z.areas[mt].nonempty) < LINE_ORDER or pcp.batch < PCP_BATCH:
        return
    source = buddy_alloc(z, mt, LINE_ORDER, HELD, &page)
    hint_broken(z, page, LINE_ORDER, source)
    pcp.reserve[mt].page = page
    pcp.reserve[mt].end = page + (1 << LINE_ORDER)
    while page < pcp.reserve[mt].end:
        set_kind(z, page >> LEAF_SHIFT, HELD | LEAF_SHIFT)
        page += LEAF_PAGES


cdef inline int pcp_fill(PageZone *z, Pcp *pcp, int mt, int order, uint64_t reserve, bint may_block) noexcept nogil:
    """Move up to a batch onto a stack without blocks of its own: from the reserve, else from the buddy. Set's lock held."""
    cdef Reserve *own = &pcp.reserve[mt]
    cdef Taken taken
    cdef uint64_t left
    if own.page == own.end:
        if not lock_acquire(&z.lock, may_block):
            return E_AGAIN
        left = min(spare_pages(z, reserve) >> order, <uint64_t>pcp_batch(pcp, order))
        if spare_pages(z, reserve) >= 1 << LINE_ORDER:
            pcp_take_reserve(z, pcp, mt)
        while own.page == own.end and left and zone_take_many(z, mt, order, left, HELD, &taken):
            hint_broken_many(z, &taken, order)
            if taken.whole:             # just one leaf: a batch is no more
                leaf_fill(z, taken.leaf, order, HELD)
            pcp_push(z, pcp, mt, order, taken.leaf, taken.starts)
            left -= popcount64(taken.starts)
        zone_unlock(z)
    if own.page != own.end:
        leaf_fill(z, own.page >> LEAF_SHIFT, order, HELD)
        pcp_push(z, pcp, mt, order, own.page >> LEAF_SHIFT, aligned_starts[order])
        own.page += LEAF_PAGES
    return OK if pcp.count[mt][order] else E_NOMEM


cdef inline int pcp_alloc(PageZone *z, Pcp *pcp, int mt, int order, uint64_t reserve, bint may_block,
                          uint64_t *page) noexcept nogil:
    cdef int rc, top
    # What a set holds is not free memory to those who must leave a reserve. Looked at without the zone lock: about right.
    if unlikely(reserve + peek64(&z.watermark[WMARK_MIN]) != 0) and not may_take(z, <uint64_t>1 << order, reserve):
        return E_NOMEM
    if unlikely(not bias_acquire(&pcp.lock, may_block)):
        return E_AGAIN
    if unlikely(pcp.count[mt][order] == pcp.foreign[mt][order]):
        rc = pcp_fill(z, pcp, mt, order, reserve, may_block)
        if rc != OK:
            bias_release(&pcp.lock, True)
            return rc
        pcp.foreign[mt][order] = min(pcp.foreign[mt][order], pcp.count[mt][order] - 1)      # for want of others
    top = pcp.count[mt][order] - 1
    page[0] = pcp_stack(pcp, mt, order)[top]
    pcp.count[mt][order] = top
    fetch_and64(&z.leaves[page[0] >> LEAF_SHIFT].free, ~(<uint64_t>1 << (page[0] & 63)), ACQ_REL)
    bias_release(&pcp.lock, True)
    return OK
