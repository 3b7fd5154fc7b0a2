"""Per-CPU page sets: stacks of small blocks in front of a zone, so that threads seldom meet at its lock.

A block in a set is withheld: in its leaf, the `free` bit of its first page is set beside the `head` bit. That one
bit, flipped atomically, is what makes a double free certain to be seen, on whichever CPU it happens; `head` itself
changes under the zone lock only.

So that two CPUs do not flip bits in the same cache line all the time, a stack is filled from the set's stock, where it
can be had a whole line of leaf words (256 pages), and a block of a line that another CPU filled from goes to the bottom
of the stack: it is not handed out while the zone has others, and is the first to go back. What is too much goes back by
halves. 3.1 KiB a CPU.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from pagehint.sync.atomic cimport (ACQUIRE, ACQ_REL, PH_ASSERT, RELAXED, clz64, ctz64, fetch_and64, likely, load32,
                                   load8, peek64, popcount64, store8, unlikely)
from pagehint.sync.biased_lock cimport (BiasedLock, ThreadRecord, bias_acquire, bias_enter, bias_init, bias_leave,
                                        bias_release, bias_revoke)
from pagehint.sync.lock cimport lock_acquire
from pagehint.sync.testpoint cimport AT_ABOUT_TO_SHARE_A_LEAF, AT_SET_DRAINED, test_point
from pagehint.zone.buddy cimport Taken, buddy_alloc, buddy_free, leaf_fill, set_kind
from pagehint.zone.hook cimport notice_broken, notice_broken_many, notice_freed, zone_unlock
from pagehint.zone.leaf cimport aligned_starts
from pagehint.zone.migratetype cimport zone_take_many
from pagehint.zone.owned_leaf cimport (OWNER, own_leaf, own_leaf_alloc, own_leaf_withhold, owned_by, owner_mark,
                                       share_leaf, share_line)
from pagehint.zone.status cimport E_AGAIN, E_NOMEM, E_WITHHELD, OK
from pagehint.zone.watermark cimport WMARK_MIN, may_take, spare_pages
from pagehint.zone.withhold cimport withhold_page
from pagehint.zone.zone cimport (FULL, LEAF_PAGES, LEAF_SHIFT, LINE_LEAVES, LINE_ORDER, MT_ISOLATE, OWNED, PageZone,
                                 WITHHELD)

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
    PCP_PATIENCE = 256          # blocks of shared leaves handed out before trying for some of the set's own

cdef struct Stock:              # whole leaves, each withheld as a block of order 6; none where page is end
    uint64_t page
    uint64_t end

cdef struct Stack:              # blocks of one migratetype and order
    uint32_t *blocks
    int count
    int foreign                 # of these, those of other CPUs' lines, at the bottom
    int batch                   # blocks moved at once; it may hold twice as many
    int shared                  # blocks handed out since the last look that were of leaves of nobody's own

cdef struct Pcp:
    BiasedLock lock             # a line of its own; all else is protected by it
    uint8_t cpu                 # low byte of the CPU's number
    uint32_t mark               # in the leaves that this set owns
    int batch                   # pages moved at once
    Stack stacks[PCP_TYPES][PCP_ORDERS]
    Stock stock[PCP_TYPES]
    uint32_t slots[PCP_TYPES][PCP_SLOTS]
    uint64_t spare[3]           # up to a cache line: the next CPU's set follows


cdef inline void pcp_init(Pcp *pcp, int cpu, uint64_t managed_pages) noexcept nogil:
    """An empty set, of zeroed memory. As in Linux, it holds no more than about a thousandth of its zone."""
    cdef int mt, order
    bias_init(&pcp.lock)
    pcp.cpu = <uint8_t>cpu
    pcp.mark = owner_mark(cpu)
    pcp.batch = <int>min(max(managed_pages // 1024, <uint64_t>1), <uint64_t>PCP_BATCH)
    PH_ASSERT(sizeof(Pcp) % 64 == 0)
    for mt in range(PCP_TYPES):
        for order in range(PCP_ORDERS):
            pcp.stacks[mt][order].blocks = &pcp.slots[mt][256 - (256 >> order)]
            pcp.stacks[mt][order].batch = max(pcp.batch >> order, 1)


cdef inline uint64_t pcp_pages(const Pcp *pcp) noexcept nogil:
    """Pages in a set. Exact with its lock held, or when nothing else runs."""
    cdef uint64_t pages = 0
    cdef int mt, order
    for mt in range(PCP_TYPES):
        pages += pcp.stock[mt].end - pcp.stock[mt].page
        for order in range(PCP_ORDERS):
            pages += <uint64_t>pcp.stacks[mt][order].count << order
    return pages


cdef inline Pcp *pcp_here(PageZone *z, int nr_cpus) noexcept nogil:
    """The set of the CPU we run on. Only a hint for speed: its lock is what makes it safe."""
    cdef unsigned int cpu = current_cpu()       # huge where the kernel does not say
    return <Pcp *>z.pcp + (cpu if likely(cpu < <unsigned int>nr_cpus) else 0)


cdef inline bint leaf_is_owned(const PageZone *z, uint64_t i) noexcept nogil:
    return load8(&z.kinds[i], ACQUIRE) == OWNED


cdef inline bint leaf_disown(PageZone *z, uint64_t i, bint alone, bint may_block) noexcept nogil:
    """Have a leaf shared that a set owns; no lock held, or, if `alone`, those of all sets. False if one is contended."""
    cdef uint32_t mark = load32(&z.links[i].next, RELAXED)
    cdef Pcp *pcp
    if not leaf_is_owned(z, i) or not mark & <uint32_t>OWNER:
        return True                 # not any more
    test_point(AT_ABOUT_TO_SHARE_A_LEAF)
    pcp = <Pcp *>z.pcp + (mark & ~<uint32_t>OWNER)
    if not alone and not bias_revoke(&pcp.lock, may_block):
        return False
    share_line(z, i, mark)
    if not alone:
        bias_release(&pcp.lock, False)
    return True


# ---- free ---------------------------------------------------------------------------------------------------

cdef inline void pcp_drain(PageZone *z, Pcp *pcp, int mt, int order, int n) noexcept nogil:
    """Give the `n` oldest blocks of a stack back to the buddy, by the ordinary path. Both locks held."""
    cdef Stack *s = &pcp.stacks[mt][order]
    cdef int i
    for i in range(n):
        share_leaf(z, s.blocks[i] >> LEAF_SHIFT)
        notice_freed(z, s.blocks[i], order, buddy_free(z, s.blocks[i], order))
    s.count -= n
    for i in range(s.count):
        s.blocks[i] = s.blocks[i + n]
    s.foreign = max(s.foreign - n, 0)


cdef inline void pcp_drain_held(PageZone *z, Pcp *pcp) noexcept nogil:
    """Empty one CPU's set of one zone. The set's lock held."""
    cdef Stock *stock
    cdef int mt, order
    lock_acquire(&z.lock, True)
    for mt in range(PCP_TYPES):
        for order in range(PCP_ORDERS):
            pcp_drain(z, pcp, mt, order, pcp.stacks[mt][order].count)
        stock = &pcp.stock[mt]
        while stock.page < stock.end:
            notice_freed(z, stock.page, LEAF_SHIFT, buddy_free(z, stock.page, LEAF_SHIFT))
            stock.page += LEAF_PAGES
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


cdef inline bint pcp_make_room(PageZone *z, Pcp *pcp, int mt, int order, bint may_block) noexcept nogil:
    """Give the older half of a stack back. The set's lock held."""
    if not lock_acquire(&z.lock, may_block):
        return False
    pcp_drain(z, pcp, mt, order, pcp.stacks[mt][order].batch)
    zone_unlock(z)
    test_point(AT_SET_DRAINED)
    return True


cdef inline int pcp_free_shared(PageZone *z, Pcp *pcp, Stack *s, uint64_t page, int order) noexcept nogil:
    """Stack a block of a leaf that this set does not own, if that is possible: at the bottom, if it is of another's line."""
    if not withhold_page(z, page, order):
        return E_WITHHELD
    s.blocks[s.count] = <uint32_t>page
    if load8(&z.lines[page >> LINE_ORDER], RELAXED) != pcp.cpu:
        s.blocks[s.count] = s.blocks[s.foreign]
        s.blocks[s.foreign] = <uint32_t>page
        s.foreign += 1
    s.count += 1
    return OK


cdef inline bint pcp_push_back(PageZone *z, Pcp *pcp, uint64_t page, int order) noexcept nogil:
    """Stack a block of a leaf of the set's own, if there is room and nothing else to be seen to. The set's lock held."""
    cdef int mt = load8(&z.types[page >> 9], ACQUIRE)
    cdef Stack *s
    if unlikely(mt == MT_ISOLATE or page & ((1 << order) - 1) or not owned_by(z, page >> LEAF_SHIFT, pcp.mark)):
        return False
    s = &pcp.stacks[mt][order]
    if unlikely(s.count >= 2 * s.batch or s.foreign >= s.batch
                or not own_leaf_withhold(z, page >> LEAF_SHIFT, page & 63, order)):
        return False
    s.blocks[s.count] = <uint32_t>page
    s.count += 1
    return True


cdef inline bint pcp_free_quick(PageZone *z, Pcp *pcp, uint64_t page, int order) noexcept nogil:
    """Put a block on a stack, if all is as most often: this thread's set, its own leaf, and room. Else see `pcp_free`."""
    cdef ThreadRecord *me = bias_enter(&pcp.lock)
    cdef bint done
    if unlikely(me == NULL):
        return False
    done = pcp_push_back(z, pcp, page, order)
    bias_leave(me)
    return done


cdef inline int pcp_free(PageZone *z, Pcp *pcp, uint64_t page, int order, bint may_block) noexcept nogil:
    """Put a block on a stack. OK, E_AGAIN, or E_WITHHELD: the caller asks the zone itself."""
    cdef Stack *s
    cdef int mt, rc = E_WITHHELD
    if unlikely(not bias_acquire(&pcp.lock, may_block)):
        return E_AGAIN
    # Read under the set's lock: whoever isolates the pageblock drains the sets afterwards.
    mt = load8(&z.types[page >> 9], ACQUIRE)
    if likely(mt != MT_ISOLATE and page & ((1 << order) - 1) == 0):
        s = &pcp.stacks[mt][order]
        if (unlikely(s.count >= 2 * s.batch or s.foreign >= s.batch)
                and not pcp_make_room(z, pcp, mt, order, may_block)):
            rc = E_AGAIN
        elif not owned_by(z, page >> LEAF_SHIFT, pcp.mark):
            rc = pcp_free_shared(z, pcp, s, page, order)
        elif pcp_push_back(z, pcp, page, order):
            rc = OK
    bias_release(&pcp.lock, True)
    return rc


# ---- allocate -----------------------------------------------------------------------------------------------

cdef inline void pcp_push(PageZone *z, Pcp *pcp, int mt, int order, uint64_t leaf, uint64_t starts) noexcept nogil:
    """Stack the blocks that begin at `starts` in a leaf, the lowest on top."""
    cdef Stack *s = &pcp.stacks[mt][order]
    store8(&z.lines[leaf // LINE_LEAVES], pcp.cpu, RELAXED)
    while starts:
        s.blocks[s.count] = <uint32_t>(leaf << LEAF_SHIFT) | (63 - clz64(starts))
        starts &= ~(<uint64_t>1 << (63 - clz64(starts)))
        s.count += 1


cdef inline void pcp_take_stock(PageZone *z, Pcp *pcp, int mt) noexcept nogil:
    """Reserve a line of leaves, if nothing smaller is free, so that no large block is broken needlessly. Both locks held."""
    cdef uint64_t page = 0
    cdef int source
    if z.nonempty[mt] == 0 or ctz64(z.nonempty[mt]) < LINE_ORDER or pcp.batch < PCP_BATCH:
        return
    source = buddy_alloc(z, mt, LINE_ORDER, WITHHELD, &page)
    notice_broken(z, page, LINE_ORDER, source)
    pcp.stock[mt].page = page
    pcp.stock[mt].end = page + (1 << LINE_ORDER)
    while page < pcp.stock[mt].end:
        set_kind(z, page >> LEAF_SHIFT, WITHHELD | LEAF_SHIFT)
        page += LEAF_PAGES


cdef inline void pcp_push_own(PageZone *z, Pcp *pcp, int mt, int order) noexcept nogil:
    """Stack the blocks of one leaf of the stock, which becomes the set's own."""
    cdef uint64_t leaf = pcp.stock[mt].page >> LEAF_SHIFT
    own_leaf(z, leaf, order, pcp.mark)
    pcp_push(z, pcp, mt, order, leaf, aligned_starts[order])
    pcp.stock[mt].page += LEAF_PAGES


cdef inline int pcp_fill(PageZone *z, Pcp *pcp, int mt, int order, uint64_t reserve, bint may_block) noexcept nogil:
    """Move up to a batch onto a stack without blocks of its own: from the stock, else from the buddy. Set's lock held."""
    cdef Stock *stock = &pcp.stock[mt]
    cdef Stack *s = &pcp.stacks[mt][order]
    cdef Taken taken
    cdef uint64_t left
    if stock.page == stock.end:
        if not lock_acquire(&z.lock, may_block):
            return E_AGAIN
        left = min(spare_pages(z, reserve) >> order, <uint64_t>s.batch)
        if spare_pages(z, reserve) >= 1 << LINE_ORDER:
            pcp_take_stock(z, pcp, mt)
        while stock.page == stock.end and left and zone_take_many(z, mt, order, left, WITHHELD, &taken):
            notice_broken_many(z, &taken, order)
            if taken.whole:             # just one leaf: a batch is no more
                leaf_fill(z, taken.leaf, order, WITHHELD, FULL)
            pcp_push(z, pcp, mt, order, taken.leaf, taken.starts)
            left -= popcount64(taken.starts)
        zone_unlock(z)
    if stock.page != stock.end:
        pcp_push_own(z, pcp, mt, order)
    if s.count == 0:
        return E_NOMEM
    s.foreign = min(s.foreign, s.count - 1)     # for want of others, those of other CPUs' lines
    return OK


cdef inline void pcp_renew(PageZone *z, Pcp *pcp, int mt, int order, uint64_t reserve) noexcept nogil:
    """Put blocks of an own leaf on top, if one can be had: those below have long been shared, because a thread that
    allocated here and freed elsewhere came by, and would stay so for as long as they go round."""
    cdef Stock *stock = &pcp.stock[mt]
    cdef Stack *s = &pcp.stacks[mt][order]
    s.shared = 0
    if stock.page == stock.end and lock_acquire(&z.lock, False):
        if spare_pages(z, reserve) >= 1 << LINE_ORDER:
            pcp_take_stock(z, pcp, mt)
        zone_unlock(z)
    if stock.page != stock.end and (s.count <= s.batch or pcp_make_room(z, pcp, mt, order, False)):
        pcp_push_own(z, pcp, mt, order)


cdef inline bint pcp_pop(PageZone *z, Stack *s, uint64_t *page) noexcept nogil:
    """Hand out the topmost block, if it is of a leaf of the set's own. The set's lock held."""
    cdef uint64_t top = s.blocks[s.count - 1]
    if unlikely(not leaf_is_owned(z, top >> LEAF_SHIFT)):
        return False
    own_leaf_alloc(z, top >> LEAF_SHIFT, top & 63)
    s.count -= 1
    page[0] = top
    return True


cdef inline bint pcp_alloc_quick(PageZone *z, Pcp *pcp, int mt, int order, uint64_t *page) noexcept nogil:
    """A block, if all is as most often: this thread's set, and in it one of an own leaf. Else see `pcp_alloc`."""
    cdef Stack *s = &pcp.stacks[mt][order]
    cdef ThreadRecord *me = bias_enter(&pcp.lock)
    cdef bint done
    if unlikely(me == NULL):
        return False
    done = s.count != s.foreign and pcp_pop(z, s, page)
    bias_leave(me)
    return done


cdef inline int pcp_alloc(PageZone *z, Pcp *pcp, int mt, int order, uint64_t reserve, bint may_block,
                          uint64_t *page) noexcept nogil:
    cdef Stack *s = &pcp.stacks[mt][order]
    cdef int rc = OK
    # What a set holds is not free memory to those who must leave a reserve. Looked at without the zone lock: about right.
    if unlikely(reserve + peek64(&z.watermark[WMARK_MIN]) != 0) and not may_take(z, <uint64_t>1 << order, reserve):
        return E_NOMEM
    if unlikely(not bias_acquire(&pcp.lock, may_block)):
        return E_AGAIN
    if unlikely(s.shared >= PCP_PATIENCE):
        pcp_renew(z, pcp, mt, order, reserve)
    if unlikely(s.count == s.foreign):
        rc = pcp_fill(z, pcp, mt, order, reserve, may_block)
    if rc == OK and not pcp_pop(z, s, page):
        # What is on this stack is in leaves of this set, or of nobody.
        s.count -= 1
        s.shared += 1
        page[0] = s.blocks[s.count]
        fetch_and64(&z.leaves[page[0] >> LEAF_SHIFT].free, ~(<uint64_t>1 << (page[0] & 63)), ACQ_REL)
    bias_release(&pcp.lock, True)
    return rc
