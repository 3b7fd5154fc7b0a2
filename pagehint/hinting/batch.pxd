"""A batch: the free blocks that are out with the host at one time. It is isolated, reported, and put back.

From isolation to put-back a block is *withheld*: it is on no free list, in no page set, and no caller has it. That must
be so, since the host may drop its contents at any moment. Isolating a batch is one hold of the zone lock, putting it
back another; no lock is held between. The cycle is that of Linux's page hinting series (v10, June 2019).
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from pagehint.hinting.age cimport Ripe, is_ripe, ripe_order
from pagehint.hinting.bitmap cimport HintScan, granules_of, hint_assign, hint_find, hints_all_set, scan_begin, scan_next
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.hinting.learning.pauses cimport pauses_reported
from pagehint.hinting.queue cimport WorkQueue, queue_now
from pagehint.hinting.watch cimport hint_block
from pagehint.sync.atomic cimport PH_ASSERT, add64, sub64, unlikely
from pagehint.sync.lock cimport assert_held
from pagehint.sync.testpoint cimport AT_BETWEEN_PUT_BACK_AND_RE_HINT, AT_BIT_TAKEN, test_point
from pagehint.zone.buddy cimport NOT_FREE, buddy_free, buddy_free_cold, buddy_take, free_block_around, make_last
from pagehint.zone.extents cimport extents_give, extents_take
from pagehint.zone.zeroed cimport zeroed_clear, zeroed_note
from pagehint.zone.zone cimport FREE, LEAF_SHIFT, MT_ISOLATE, PageZone, WITHHELD, type_of

cdef extern from "pagehint.h":
    ctypedef struct pagehint_block:
        uint64_t pfn
        uint32_t order
        uint32_t zone

# Used by the thread that runs the pass. It lies beside the zones, so that a forked child can put back what is in it.
cdef struct Batch:
    pagehint_block *blocks      # room for `room` of them; grows while no batch is out
    uint8_t *failed             # one byte a block, in the same piece of memory: not 0, the host has not taken it
    uint64_t room               # blocks
    uint64_t n                  # blocks that are out; written under the lock of `zone`
    PageZone *zone              # the zone of all of them; written under its lock

cdef enum:
    SCAN_GRANULES = 4096        # granules that one lock round looks at: 512 bytes of bitmap


cdef inline uint64_t batch_grow(Batch *batch, uint64_t most) noexcept nogil:
    """Make room for `most` blocks, while none is out; returns how many fit, if memory is short fewer.

    The old room is freed last, so that a child that is forked meanwhile finds the one or the other.
    """
    cdef void *old = batch.blocks
    cdef void *blocks
    if most > batch.room:
        blocks = malloc(most * (sizeof(pagehint_block) + 1))
        if blocks != NULL:
            batch.blocks = <pagehint_block *> blocks
            batch.failed = <uint8_t *> (batch.blocks + most)
            batch.room = most
            free(old)
    return min(most, batch.room)


cdef inline uint64_t next_ripe(const Hints *h, uint64_t granule, uint64_t end, Ripe *ripe) noexcept nogil:
    """First granule from `granule` on that is hinted and ripe, or `end`. Needs no lock. O(hints that are not ripe)."""
    cdef HintScan scan
    if granule >= end:
        return end
    scan_begin(h, &scan, granule)
    granule = scan_next(h, &scan, end)
    while granule < end and not is_ripe(h, granule, ripe):
        granule = scan_next(h, &scan, end)
    return granule


cdef inline void keep_cold_last(PageZone *z, const pagehint_block *blocks, uint64_t n) noexcept nogil:
    """Put what a batch has left of larger free blocks behind what is warm. Zone lock held. O(n * max_page_order).

    What has hints is warm, and stays in front. Parts that are smaller than a leaf stay where their leaf is.
    """
    cdef uint64_t i, page, rest, first
    cdef int o
    for i in range(n):
        page = blocks[i].pfn - z.base_pfn
        for o in range(max(<int>blocks[i].order, <int>LEAF_SHIFT), z.max_order):
            rest = ((page >> o) ^ 1) << o
            first = rest >> z.min_order
            if (rest >> LEAF_SHIFT < z.nr_leaves and z.kinds[rest >> LEAF_SHIFT] == (FREE | o)
                    and hint_find(hints_of(z), first, first + granules_of(z, o)) == first + granules_of(z, o)):
                make_last(z, rest, o)


cdef inline uint64_t isolate_batch(PageZone *z, uint64_t *cursor, uint64_t max_blocks, int max_order, Ripe *ripe,
                                   pagehint_block *blocks) noexcept nogil:
    """Isolate up to `max_blocks` blocks from granule `cursor` on, move the cursor past them, and return how many.

    A block is as large as the set bits, the free block around it and `max_order` allow, and all of it is ripe. The rest
    of the free block stays free and keeps its bits. Looks at SCAN_GRANULES granules at most, so the lock's hold is
    bounded. Zone lock held. O(max_blocks * (max_page_order + granules per block)).
    """
    cdef Hints *h = hints_of(z)
    cdef uint64_t n = 0, granule, page, head = 0, end
    cdef HintScan scan
    cdef int order, source, split = 0       # whether any block was only a part of a free one
    cdef bint choose = not ripe.any_age
    assert_held(&z.lock)
    end = min(cursor[0] + SCAN_GRANULES, z.nr_granules)
    if cursor[0] >= end:
        return 0
    scan_begin(h, &scan, cursor[0])
    while n < max_blocks:
        granule = scan_next(h, &scan, end)
        cursor[0] = min(granule + 1, end)
        if granule == end:
            break
        if choose and not is_ripe(h, granule, ripe):
            continue                        # bit and stamp stay for a later look
        page = granule << z.min_order
        source = free_block_around(z, page, z.min_order, &head)
        PH_ASSERT(source != NOT_FREE)       # a set bit means that the granule is free
        if type_of(z, page >> LEAF_SHIFT) == MT_ISOLATE:
            continue                        # the bit stays until the pageblock gets another migratetype
        order = z.min_order
        while (order < source and order < max_order and page & (<uint64_t>1 << order) == 0
               and hints_all_set(h, (page >> z.min_order) + granules_of(z, order), granules_of(z, order))):
            order += 1
        if choose:
            order = ripe_order(h, z.min_order, granule, order, ripe)
            ripe.excess -= min(ripe.excess, <uint64_t>1 << order)
        hint_assign(z, granule, granules_of(z, order), False)
        split |= order ^ source
        buddy_take(z, page, order, WITHHELD)
        if unlikely(z.extents != NULL):
            extents_take(z, page, <uint64_t>1 << order)
            if z.zeroed != NULL:            # until the report says so, it is not known what the block will hold
                zeroed_note(z.zeroed, granule, granules_of(z, order))
                zeroed_clear(z.zeroed, granule, granules_of(z, order))
        test_point(AT_BIT_TAKEN)
        blocks[n].pfn = z.base_pfn + page
        blocks[n].order = order
        blocks[n].zone = z.index
        if order > z.min_order:
            cursor[0] = granule + granules_of(z, order)
            scan_begin(h, &scan, min(cursor[0], z.nr_granules - 1))
        n += 1
        add64(&h.reporting_pages, <uint64_t>1 << order)
        h.counters.blocks_isolated += 1
    if unlikely(split):
        keep_cold_last(z, blocks, n)
    return n


cdef inline void tell_learner(PageZone *z, const pagehint_block *blocks, uint64_t n,
                              const uint8_t *failed) noexcept nogil:
    """Have the learner know what of a batch the host has taken. Zone lock held. O(granules)."""
    cdef Hints *h = hints_of(z)
    cdef int64_t now = queue_now(<WorkQueue *> h.queue)
    cdef uint64_t i
    for i in range(n):
        if not failed[i]:
            pauses_reported(h, (blocks[i].pfn - z.base_pfn) >> z.min_order, granules_of(z, blocks[i].order), now)


cdef inline void put_back(PageZone *z, const pagehint_block *blocks, uint64_t n, const uint8_t *failed) noexcept nogil:
    """Put a batch back by the ordinary merge path, without telling the hook. Zone lock held. O(n * max_page_order).

    What the host has taken gets no bit, so it is not reported again. It is behind what is warm in the free lists, alone or
    merged, since using it costs a fault of its host's. What failed gets its bits back, and is warm.
    """
    cdef Hints *h = hints_of(z)
    cdef uint64_t i, page
    cdef int order
    assert_held(&z.lock)
    if unlikely(h.learns):
        tell_learner(z, blocks, n, failed)
    for i in range(n):
        page = blocks[i].pfn - z.base_pfn
        order = blocks[i].order
        if failed[i]:
            buddy_free(z, page, order)
        else:
            buddy_free_cold(z, page, order)
        if unlikely(z.extents != NULL):
            extents_give(z, page, <uint64_t>1 << order)
        sub64(&h.reporting_pages, <uint64_t>1 << order)
        h.counters.blocks_returned += 1
        test_point(AT_BETWEEN_PUT_BACK_AND_RE_HINT)
        if failed[i]:
            h.counters.blocks_failed += 1
            if h.on:
                hint_block(z, page, order)
        else:
            h.counters.blocks_reported += 1
            h.counters.pages_reported += <uint64_t>1 << order
