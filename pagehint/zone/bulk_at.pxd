"""Blocks at exact places, many at once: all or none. As in `bulk.pxd`, the zone lock is held for some blocks at a time.

First it is asked whether all of them are free. What was taken is given back if another thread has taken the rest
meanwhile.
"""
from libc.stdint cimport uint64_t
from pagehint.zone.buddy cimport (MOST_WHOLE_LEAVES, NOT_FREE, Taken, buddy_take, free_block_around, leaf_fill,
                                  leaf_take_pages, split_off_leaf)
from pagehint.zone.bulk cimport bulk_begin, bulk_end
from pagehint.zone.hook cimport notice_broken, notice_broken_many
from pagehint.zone.leaf cimport aligned_starts, leaf_avail, low_ones
from pagehint.zone.page_alloc cimport How, Machine, grow_to, locate, machine_free
from pagehint.zone.run cimport block_order_at
from pagehint.zone.status cimport E_BUSY, E_ISOLATE, OK
from pagehint.zone.trace cimport Round, round_end, round_use
from pagehint.zone.zone cimport (FULL, LEAF_PAGES, LEAF_SHIFT, MT_ISOLATE, PageZone, SPLIT, USED, WITHHELD, is_split,
                                 type_of)

cdef struct Runs:               # ascending, none overlapping another
    const uint64_t *pfns
    const uint64_t *counts      # pages of each, at least one
    uint64_t n


cdef inline int check_runs(Machine *m, const Runs *runs, uint64_t *refused) noexcept nogil:
    """Whether each run is in one zone, free, and not isolate; if not, `refused` is the first that is not. O(free blocks)"""
    cdef PageZone *z = NULL
    cdef Round r
    cdef uint64_t pfn, n, page, end, head = 0
    cdef int source, rc = OK
    r.zone = NULL
    r.left = 0
    refused[0] = 0
    while rc == OK and refused[0] < runs.n:
        pfn, n = runs.pfns[refused[0]], runs.counts[refused[0]]
        rc = locate(m, pfn, n, &z)
        if rc != OK and m.grow != NULL:
            round_end(&r)
            rc = locate(m, pfn, n, &z) if grow_to(m, pfn + n) else rc
        if rc != OK:
            break
        page, end = pfn - z.base_pfn, pfn - z.base_pfn + n
        while page < end and rc == OK:
            round_use(&r, z)
            source = free_block_around(z, page, 0, &head)
            if type_of(z, page >> LEAF_SHIFT) == MT_ISOLATE:
                rc = E_ISOLATE
            elif source == NOT_FREE:
                rc = E_BUSY
            else:
                page = head + (<uint64_t>1 << source)
        refused[0] += rc == OK
    round_end(&r)
    return rc


cdef inline bint take_in_leaf(PageZone *z, uint64_t i, uint64_t pages, int order) noexcept nogil:
    """Take pages of one leaf as blocks of `order` < 6, if all are free. Zone lock held."""
    cdef Taken taken
    cdef uint64_t head = 0
    cdef bint whole = not is_split(z.kinds[i])
    if whole:
        taken.source = free_block_around(z, i << LEAF_SHIFT, 0, &head)
        if taken.source == NOT_FREE:
            return False
        split_off_leaf(z, head, taken.source, i)
    elif pages & ~leaf_avail(&z.leaves[i]):
        return False
    else:
        taken.source = z.kinds[i] - SPLIT
    taken.leaf = i
    taken.nr_leaves = 1
    taken.whole = False
    taken.starts = pages & aligned_starts[order]
    leaf_take_pages(z, i, pages, taken.starts, pages, whole)
    notice_broken_many(z, &taken, order)
    return True


cdef inline uint64_t take_leaves(PageZone *z, uint64_t page, uint64_t end, int order) noexcept nogil:
    """Take whole leaves from `page` on as blocks of `order`; return how many pages, 0 if they are not free.

    One block, if it is a whole leaf or more, or MOST_WHOLE_LEAVES of smaller ones, at most. Zone lock held.
    """
    cdef uint64_t head = 0, i = page >> LEAF_SHIFT, leaf
    cdef int source = free_block_around(z, page, 0, &head), taken = order
    if source == NOT_FREE:
        return 0
    if is_split(z.kinds[i]):
        return LEAF_PAGES if order < LEAF_SHIFT and take_in_leaf(z, i, <uint64_t>-1, order) else 0
    if order < LEAF_SHIFT:
        end = min(end, min(head + (<uint64_t>1 << source), page + MOST_WHOLE_LEAVES * LEAF_PAGES))
        taken = block_order_at(page, end, z.max_order)
    if buddy_take(z, page, taken, USED if order >= LEAF_SHIFT else WITHHELD) == NOT_FREE:
        return 0
    if order < LEAF_SHIFT:
        # The first leaf last: until then other threads see one withheld block.
        for leaf in range(i + (<uint64_t>1 << (taken - LEAF_SHIFT)), i, -1):
            leaf_fill(z, leaf - 1, order, USED, FULL)
    notice_broken(z, page, taken, source)
    return <uint64_t>1 << taken


cdef inline uint64_t gather_runs(Machine *m, const Runs *runs, PageZone *z, uint64_t *run, uint64_t *at) noexcept nogil:
    """The pages that the runs have in one leaf, that of page `at` of run `run`. Both go on to what is behind it."""
    cdef uint64_t pages = 0, page, n, leaf = (runs.pfns[run[0]] + at[0] - z.base_pfn) >> LEAF_SHIFT
    cdef PageZone *other = z
    while True:
        page = runs.pfns[run[0]] + at[0] - z.base_pfn
        n = min(LEAF_PAGES - (page & 63), runs.counts[run[0]] - at[0])
        pages |= low_ones(<int>n) << (page & 63)
        at[0] += n
        if at[0] < runs.counts[run[0]]:
            return pages
        run[0], at[0] = run[0] + 1, 0
        # Pages of one leaf may be of two zones.
        if (run[0] == runs.n or (runs.pfns[run[0]] - z.base_pfn) >> LEAF_SHIFT != leaf
                or locate(m, runs.pfns[run[0]], 1, &other) != OK or other != z):
            return pages


cdef inline int take_runs(Machine *m, const Runs *runs, int order, uint64_t *run, uint64_t *at) noexcept nogil:
    """Take all runs as blocks; E_BUSY at what another thread has taken: `run` runs, and `at` pages, are taken then."""
    cdef PageZone *z = NULL
    cdef Round r
    cdef uint64_t page, end, got, next_run, next_at
    cdef int rc = OK
    r.zone = NULL
    r.left = 0
    run[0] = at[0] = 0
    while run[0] < runs.n and rc == OK:
        rc = locate(m, runs.pfns[run[0]], runs.counts[run[0]], &z)
        if rc != OK:
            break
        round_use(&r, z)
        page = runs.pfns[run[0]] + at[0] - z.base_pfn
        end = runs.pfns[run[0]] + runs.counts[run[0]] - z.base_pfn
        next_run, next_at = run[0], at[0]
        if type_of(z, page >> LEAF_SHIFT) == MT_ISOLATE:
            rc = E_ISOLATE
        elif page & 63 == 0 and end - page >= LEAF_PAGES:
            got = take_leaves(z, page, end, order)
            rc = OK if got else E_BUSY
            next_at += got
            if next_at == runs.counts[next_run]:
                next_run, next_at = next_run + 1, 0
        elif not take_in_leaf(z, page >> LEAF_SHIFT, gather_runs(m, runs, z, &next_run, &next_at), order):
            rc = E_BUSY
        if rc == OK:
            run[0], at[0] = next_run, next_at
    round_end(&r)
    return rc


cdef inline void give_runs_back(Machine *m, const Runs *runs, int order, How how, uint64_t run, uint64_t at) noexcept nogil:
    """Free the blocks that `take_runs` has taken: `run` runs, and `at` pages of the next."""
    cdef uint64_t k, block
    for k in range(run + 1):
        for block in range((runs.counts[k] if k < run else at) >> order):
            machine_free(m, runs.pfns[k] + (block << order), order, how)


cdef inline int machine_alloc_at_bulk(Machine *m, const Runs *runs, int order, How how, uint64_t *refused) noexcept nogil:
    """Take these very runs as blocks of `order`, to which they are aligned, all or none; if none, `refused` is why not.

    As `machine_alloc_at`, whatever the watermarks and the migratetypes are. O(free blocks in the runs, and pages / 64).
    """
    cdef uint64_t at = 0
    cdef int rc
    bulk_begin(m, 0)            # a fork must not find some runs taken; none is withheld while no lock is held
    # Looked at before anything is taken: what is refused is refused without a call of the hook.
    rc = check_runs(m, runs, refused)
    if rc == OK:
        rc = take_runs(m, runs, order, refused, &at)
        if rc != OK:
            give_runs_back(m, runs, order, how, refused[0], at)
    bulk_end(m, 0)
    return rc
