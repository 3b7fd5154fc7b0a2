"""Per-CPU page sets: stacks of small blocks in front of a zone, so that threads seldom meet at its lock.

A block in a set is withheld: in its leaf, the `free` bit of its first page is set beside the `head` bit. Every thread
flips that bit atomically, so a double free is noticed on whichever CPU it happens (`withhold.pxd`). The exception are
the leaves that a set owns, whose bits are written with the set's lock held (`owned_leaf.pxd`).

Two CPUs should not flip bits in the same cache line all the time. So a set takes, where the zone has one, a whole line
of leaves (256 pages) into its stock, and fills its stacks from the stock. A block in a line that another CPU's set was
filled from is foreign: it goes to the bottom of the stack, is handed out only when the zone has nothing else, and goes
back to the zone first. A full stack gives back its older half.

The idea is that of Linux's per-CPU page lists. A set has 3.25 KiB; there is one for each CPU and zone. A set's lock is
taken before its zone's.
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
from pagehint.zone.page_sets.owned_leaf cimport (OWNER, own_leaf, own_leaf_alloc, own_leaf_withhold, owned_by,
                                                 owner_mark, share_leaf, share_line)
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
    /* The kernel keeps the CPU's number in the thread's own memory (rseq): one load instead of a call. */
    #define PH_CPU() (((volatile struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset))->cpu_id)
    #else
    #define PH_CPU() ((unsigned int)sched_getcpu())
    #endif
    """
    unsigned int current_cpu "PH_CPU" () noexcept nogil

cdef enum:
    PCP_ORDERS = 4              # orders 0 to 3, as in Linux: up to PAGE_ALLOC_COSTLY_ORDER
    PCP_TYPES = 3               # every migratetype but isolate
    PCP_SLOTS = 240             # blocks in the full stacks of a type: 128 + 64 + 32 + 16
    PCP_BATCH = 64              # pages moved at once, at most; a stack has room for twice as many
    PCP_PATIENCE = 256          # blocks of shared leaves that a stack hands out before it looks for an owned leaf

cdef struct Stock:              # whole leaves in a row, each a withheld block of order 6; none if `page` is `end`
    uint64_t page
    uint64_t end

cdef struct Stack:              # blocks of one migratetype and order
    uint32_t *blocks            # their first pages, in `Pcp.slots`
    int count
    int foreign                 # of these, those at the bottom, of lines that other CPUs' sets were filled from
    int batch                   # blocks moved at once; there is room for twice as many
    int shared                  # blocks of shared leaves handed out since `pcp_renew`

cdef struct Pcp:                # of one CPU and zone; protected by its lock
    BiasedLock lock
    uint8_t cpu                 # low byte of the CPU's number
    uint32_t mark               # in the links of the leaves that the set owns
    int batch                   # pages moved at once
    Stack stacks[PCP_TYPES][PCP_ORDERS]
    Stock stock[PCP_TYPES]
    uint32_t slots[PCP_TYPES][PCP_SLOTS]
    uint64_t spare[3]           # up to a whole cache line, since the next CPU's set follows


cdef inline void pcp_init(Pcp *pcp, int cpu, uint64_t managed_pages) noexcept nogil:
    """Make an empty set of zeroed memory. As in Linux, a batch is no more than about a thousandth of the zone."""
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
    """The set of the CPU that the thread runs on; by the time it takes the set's lock it may run on another."""
    cdef unsigned int cpu = current_cpu()       # huge where the kernel does not say
    return <Pcp *>z.pcp + (cpu if likely(cpu < <unsigned int>nr_cpus) else 0)


cdef inline bint leaf_is_owned(const PageZone *z, uint64_t i) noexcept nogil:
    """Whether a page set owns a leaf. Without the owner's lock, what was true a moment ago."""
    return load8(&z.kinds[i], ACQUIRE) == OWNED


cdef inline bint leaf_disown(PageZone *z, uint64_t i, bint alone, bint may_block) noexcept nogil:
    """Have a leaf shared that a page set owns. False if its lock is contended and the caller must not wait.

    The caller holds no lock, or if `alone`, the locks of all sets.
    """
    cdef uint32_t mark = load32(&z.links[i].next, RELAXED)
    cdef Pcp *pcp
    if not leaf_is_owned(z, i) or not mark & <uint32_t>OWNER:
        return True                 # it is shared by now
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
    """Free the `n` blocks at the bottom of a stack, the oldest, into the zone. Both locks held."""
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
    """Empty a set. Its lock held."""
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
    """Empty a set."""
    bias_acquire(&pcp.lock, True)
    pcp_drain_held(z, pcp)
    bias_release(&pcp.lock, False)


cdef inline void sets_drain(PageZone *z, int nr_cpus) noexcept nogil:
    """Empty each of a zone's sets, one after the other."""
    cdef int cpu
    if z.pcp != NULL:
        for cpu in range(nr_cpus):
            pcp_drain_all(z, <Pcp *> z.pcp + cpu)


cdef inline void sets_hold(PageZone *z, int nr_cpus, bint drain) noexcept nogil:
    """Take the locks of all of a zone's sets, and with `drain` empty them."""
    cdef int cpu
    if z.pcp != NULL:
        for cpu in range(nr_cpus):
            bias_revoke(&(<Pcp *> z.pcp + cpu).lock, True)
            if drain:
                pcp_drain_held(z, <Pcp *> z.pcp + cpu)


cdef inline void sets_let_go(PageZone *z, int nr_cpus) noexcept nogil:
    """Release the locks that `sets_hold` took."""
    cdef int cpu
    if z.pcp != NULL:
        for cpu in range(nr_cpus):
            bias_release(&(<Pcp *> z.pcp + cpu).lock, False)


cdef inline bint pcp_make_room(PageZone *z, Pcp *pcp, int mt, int order, bint may_block) noexcept nogil:
    """Give the older half of a stack back to the zone. The set's lock held."""
    if not lock_acquire(&z.lock, may_block):
        return False
    pcp_drain(z, pcp, mt, order, pcp.stacks[mt][order].batch)
    zone_unlock(z)
    test_point(AT_SET_DRAINED)
    return True


cdef inline int pcp_free_shared(PageZone *z, Pcp *pcp, Stack *s, uint64_t page, int order) noexcept nogil:
    """Withhold a block of a leaf that the set does not own, and stack it, at the bottom if it is foreign."""
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
    """Withhold a block of a leaf that the set owns, and stack it, if there is room. The set's lock held."""
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
    """Free a block in the common case: the set's lock is biased to this thread, the set owns the leaf and has room."""
    cdef ThreadRecord *me = bias_enter(&pcp.lock)
    cdef bint done
    if unlikely(me == NULL):
        return False
    done = pcp_push_back(z, pcp, page, order)
    bias_leave(me)
    return done


cdef inline int pcp_free(PageZone *z, Pcp *pcp, uint64_t page, int order, bint may_block) noexcept nogil:
    """Free a block to a stack. OK, E_AGAIN, or E_WITHHELD: the caller then frees it to the zone itself."""
    cdef Stack *s
    cdef int mt, rc = E_WITHHELD
    if unlikely(not bias_acquire(&pcp.lock, may_block)):
        return E_AGAIN
    # Read with the set's lock held: a thread that isolates the pageblock drains the sets afterwards.
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
    """Stack the withheld blocks that begin at `starts` in a leaf, the lowest on top."""
    cdef Stack *s = &pcp.stacks[mt][order]
    store8(&z.lines[leaf // LINE_LEAVES], pcp.cpu, RELAXED)
    while starts:
        s.blocks[s.count] = <uint32_t>(leaf << LEAF_SHIFT) | (63 - clz64(starts))
        starts &= ~(<uint64_t>1 << (63 - clz64(starts)))
        s.count += 1


cdef inline void pcp_take_stock(PageZone *z, Pcp *pcp, int mt) noexcept nogil:
    """Take a line of leaves into the stock, if no smaller block of the type is free. Both locks held.

    So no large block is split while there are smaller ones.
    """
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
    """Stack the blocks of one leaf of the stock, which the set then owns."""
    cdef uint64_t leaf = pcp.stock[mt].page >> LEAF_SHIFT
    own_leaf(z, leaf, order, pcp.mark)
    pcp_push(z, pcp, mt, order, leaf, aligned_starts[order])
    pcp.stock[mt].page += LEAF_PAGES


cdef inline int pcp_fill(PageZone *z, Pcp *pcp, int mt, int order, uint64_t reserve, bint may_block) noexcept nogil:
    """Fill a stack that has none but foreign blocks: from the stock, else from the zone. The set's lock held."""
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
            if taken.whole:             # one leaf, since a batch is no more
                leaf_fill(z, taken.leaf, order, WITHHELD, FULL)
            pcp_push(z, pcp, mt, order, taken.leaf, taken.starts)
            left -= popcount64(taken.starts)
        zone_unlock(z)
    if stock.page != stock.end:
        pcp_push_own(z, pcp, mt, order)
    if s.count == 0:
        return E_NOMEM
    s.foreign = min(s.foreign, s.count - 1)     # for want of others, hand out a foreign one
    return OK


cdef inline void pcp_renew(PageZone *z, Pcp *pcp, int mt, int order, uint64_t reserve) noexcept nogil:
    """Put the blocks of a leaf that the set owns on top, if one can be had. The set's lock held.

    Leaves become shared when a thread allocates on this CPU and frees on another one. Without this, the stack would go
    on handing out blocks of shared leaves for as long as they come back.
    """
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
    """Take the topmost block, if its leaf is owned. The set's lock held."""
    cdef uint64_t top = s.blocks[s.count - 1]
    if unlikely(not leaf_is_owned(z, top >> LEAF_SHIFT)):
        return False
    own_leaf_alloc(z, top >> LEAF_SHIFT, top & 63)
    s.count -= 1
    page[0] = top
    return True


cdef inline bint pcp_alloc_quick(PageZone *z, Pcp *pcp, int mt, int order, uint64_t *page) noexcept nogil:
    """Take a block in the common case: the set's lock is biased to this thread, and the set owns its leaf."""
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
    """Take a block from a set. OK, E_NOMEM or E_AGAIN."""
    cdef Stack *s = &pcp.stacks[mt][order]
    cdef int rc = OK
    # The blocks in a set are not counted as free, so a request that must leave pages free looks at the zone first. It
    # does so without the zone lock: the answer may be off by what other threads are taking or freeing.
    if unlikely(reserve + peek64(&z.watermark[WMARK_MIN]) != 0) and not may_take(z, <uint64_t>1 << order, reserve):
        return E_NOMEM
    if unlikely(not bias_acquire(&pcp.lock, may_block)):
        return E_AGAIN
    if unlikely(s.shared >= PCP_PATIENCE):
        pcp_renew(z, pcp, mt, order, reserve)
    if unlikely(s.count == s.foreign):
        rc = pcp_fill(z, pcp, mt, order, reserve, may_block)
    if rc == OK and not pcp_pop(z, s, page):
        # The leaf of a block on this stack is owned by this set or shared; this one is shared.
        s.count -= 1
        s.shared += 1
        page[0] = s.blocks[s.count]
        fetch_and64(&z.leaves[page[0] >> LEAF_SHIFT].free, ~(<uint64_t>1 << (page[0] & 63)), ACQ_REL)
    bias_release(&pcp.lock, True)
    return rc
