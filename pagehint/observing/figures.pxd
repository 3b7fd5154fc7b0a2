"""What the arenas of the process hold, as text, found without the GIL and without Python.

So a process that is busy, in C code that keeps the GIL above all, says it like any other, and to be asked changes nothing
in it: no Python code runs, no collection of garbage, nothing is taken from the C heap.
"""
from libc.errno cimport errno
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset
from pagehint.arena.opening cimport Opening
from pagehint.arena.resident cimport mincore
from pagehint.hinting.age cimport has_ages
from pagehint.hinting.bitmap cimport hint_find
from pagehint.hinting.count cimport hints_in_isolation, hints_too_young
from pagehint.hinting.gate cimport report_gate
from pagehint.hinting.hinted_zone cimport Hints, hints_of
from pagehint.hinting.learning.learnt_age cimport NR_BINS
from pagehint.hinting.limit cimport Limit
from pagehint.hinting.queue cimport WorkQueue
from pagehint.sync.atomic cimport ACQUIRE, RELAXED, load64, popcount64
from pagehint.sync.lock cimport lock_acquire, lock_release
from pagehint.zone.extents cimport add_free_bits
from pagehint.zone.page_alloc cimport Machine
from pagehint.zone.page_sets.run_set cimport run_set_pages
from pagehint.zone.zone cimport LEAF_SHIFT, MAX_ORDER_LIMIT, MT_ISOLATE, PageZone

cdef enum:
    TEXT = 64 << 10             # bytes
    ARENA_TEXT = 2 << 10        # of an arena, at most
    ARENAS = 31                 # TEXT has room for no more
    GRANULE_PAGES = 512         # at most
    GRANULE_SHIFT = 21
    ROUND = 4096                # leaves that are looked at before others get the locks: with pages of 4 KiB it is 1 GiB

cdef struct Seen:               # of an arena's memory, as the kernel says; in pages
    uint64_t resident
    uint64_t warm               # of granules that are entirely free, and not with the host
    uint64_t fragmented         # free, beside others in use
    uint64_t came_back          # granules that were reported, and have memory again
    bint in_full                # all granules are looked at, and not only those that are hinted
    bint hinting
    int refused                 # 0, or why the kernel does not say
    uint64_t next               # the granule to go on with; UINT64_MAX: all were looked at

cdef struct Report:             # on the arenas of the process, in lock rounds, which are calls of `each_memory`
    bint brief
    Machine *arenas[ARENAS]
    int nr_arenas
    Machine *current
    bint ended                  # it was not there any more
    Seen seen
    uint64_t free_bits[ROUND]   # a bit a page, of one round
    size_t n                    # bytes of text so far
    char text[TEXT]


cdef inline size_t room(const Report *r) noexcept nogil:
    return TEXT - r.n


cdef inline void wrote(Report *r, int n) noexcept nogil:
    """Count what snprintf has written, which is no more than there was room for."""
    r.n += min(<size_t>max(n, 0), room(r) - 1)


# ---- what the kernel says

cdef inline void see_granule(Seen *seen, const Opening *o, const Hints *h, uint64_t granule,
                             const uint64_t *free_bits) noexcept nogil:
    """Add a granule to what is seen. `free_bits` is its pages', eight in a byte; NULL: all are free."""
    cdef unsigned char present[GRANULE_PAGES]
    cdef size_t at = granule << GRANULE_SHIFT, nr_bytes = min(o.open - at, <size_t>1 << GRANULE_SHIFT)
    cdef uint64_t n = nr_bytes >> o.page_shift, first = at >> o.page_shift & 63
    cdef uint64_t resident = 0, nr_free = 0, both = 0, i, eight, free_here = 0xFF, here
    cdef bint hinted = load64(&h.bits[granule >> 6], RELAXED) >> (granule & 63) & 1
    memset(present, 0, sizeof(present))
    if not seen.refused and mincore(o.base + at, nr_bytes, present):
        seen.refused = errno
    for i in range(0, n, 8):
        if free_bits != NULL:
            free_here = free_bits[(first + i) >> 6] >> ((first + i) & 63) & 0xFF
        if n - i < 8:
            free_here &= (<uint64_t>1 << (n - i)) - 1
        if not seen.refused:
            memcpy(&eight, present + i, 8)
            here = (eight & 0x0101010101010101ULL) * 0x0102040810204080ULL >> 56    # the first page's bit is the lowest
        elif hinted or not seen.hinting:
            here = 0xFF if n - i >= 8 else (<uint64_t>1 << (n - i)) - 1
        else:                   # everything may be in memory but for what was given back
            here = ~free_here & (0xFF if n - i >= 8 else (<uint64_t>1 << (n - i)) - 1)
        nr_free += popcount64(free_here)
        both += popcount64(free_here & here)
        resident += popcount64(here)
    seen.resident += resident
    if nr_free < n:
        seen.fragmented += both
    elif hinted or not seen.hinting:
        seen.warm += resident
    else:
        seen.came_back += resident > 0


cdef inline void see_round(Report *r, const Opening *o, PageZone *z) noexcept nogil:
    """Look at the granules of one round, from where the last one ended. `Machine.growing` held.

    Brief: at those that are hinted, which are free. O(pages of that). Else at all that may hold anything: O(granules / 64),
    and O(pages) of those.
    """
    cdef Seen *seen = &r.seen
    cdef uint64_t leaves = load64(&z.nr_leaves, RELAXED), leaf = (seen.next << z.min_order) >> LEAF_SHIFT
    cdef uint64_t open = min(load64(&z.nr_granules, RELAXED), (o.open + (1 << GRANULE_SHIFT) - 1) >> GRANULE_SHIFT)
    cdef uint64_t end = min(((leaf + ROUND) << LEAF_SHIFT) >> z.min_order, open), granule = seen.next
    cdef const uint64_t *bits = NULL
    if seen.in_full and granule < end:
        memset(r.free_bits, 0, sizeof(r.free_bits))
        lock_acquire(&z.lock, True)
        add_free_bits(z, leaf, min(leaf + ROUND, leaves), r.free_bits - leaf)
        lock_release(&z.lock)
    while granule < end:
        if not seen.in_full:
            granule = hint_find(hints_of(z), granule, end)
        elif load64(&z.zeroed.bits[granule >> 6], ACQUIRE) >> (granule & 63) & 1:     # nothing is there
            granule += 1
            continue
        else:
            bits = r.free_bits + (((granule << z.min_order) >> LEAF_SHIFT) - leaf)
        if granule < end:
            see_granule(seen, o, hints_of(z), granule, bits)
        granule += 1
    seen.next = end if end < open else UINT64_MAX


# ---- what the metadata say

cdef inline uint64_t handed_out_again(const Hints *h) noexcept nogil:
    """Granules that were taken again within the break-even age after they had been reported. Zone lock held."""
    cdef uint64_t n = 0
    cdef int i
    for i in range(NR_BINS):
        n += h.learnt.regret.too_soon[i]
    return n


cdef inline void write_zone(Report *r, PageZone *z, const WorkQueue *q, const Opening *o) noexcept nogil:
    """Write the counts of an arena's zone, by the names of `Zone.figures`, as `explain_zones` reads them.

    `Machine.growing` held.
    """
    cdef Hints copy
    cdef uint64_t managed, free_pages, sets, gate, again = 0, young = 0, in_isolation = 0
    cdef uint64_t[MAX_ORDER_LIMIT + 1] nr_free
    cdef int order, mt
    cdef bint isolated
    lock_acquire(&z.lock, True)
    memcpy(&copy, hints_of(z), sizeof(copy))
    managed, free_pages, isolated = z.managed_pages, z.free_pages, z.isolate_pageblocks != 0
    gate = report_gate(z, q.max_pages)
    for order in range(z.max_order + 1):
        nr_free[order] = 0
        for mt in range(MT_ISOLATE):
            nr_free[order] += z.areas[mt].nr_free[order]
    if copy.learns:
        again = handed_out_again(&copy)
    sets = run_set_pages(z)
    lock_release(&z.lock)
    if isolated:
        in_isolation = min(hints_in_isolation(z), copy.count)
    if has_ages(&copy):
        young = min(hints_too_young(z, &copy), copy.count - in_isolation)
    r.seen.hinting = copy.on
    wrote(r, snprintf(r.text + r.n, room(r),
                      '"managed_pages":%llu,"free_pages":%llu,"reporting_pages":%llu,"pcp_pages":%llu,"hints_pending":%llu,'
                      '"hints_in_isolation":%llu,"hints_too_young":%llu,"threshold":%llu,"gate":%llu,"hinting":%s,',
                      <unsigned long long>managed, <unsigned long long>free_pages, <unsigned long long>copy.reporting_pages,
                      <unsigned long long>sets, <unsigned long long>copy.count, <unsigned long long>in_isolation,
                      <unsigned long long>young, <unsigned long long>copy.threshold, <unsigned long long>gate,
                      b"true" if copy.on else b"false"))
    if copy.learns:
        wrote(r, snprintf(r.text + r.n, room(r), '"again":%llu,',
                          <unsigned long long>(again - min(again, o.inherited_again)) << z.min_order << o.page_shift))
    wrote(r, snprintf(r.text + r.n, room(r), '"nr_free":['))
    for order in range(z.max_order + 1):
        wrote(r, snprintf(r.text + r.n, room(r), "%s%llu", b"," if order else b"", <unsigned long long>nr_free[order]))
    wrote(r, snprintf(r.text + r.n, room(r), "],"))


cdef inline void begin_arena(Report *r, Machine *m, const WorkQueue *q) noexcept nogil:
    """Write the counts of an arena, and begin to see what of it is in memory. `Machine.growing` held."""
    cdef const Opening *o = <const Opening *> m.grower
    cdef const Limit *limit = <const Limit *> hints_of(m.zones[0]).limit
    cdef uint64_t back = load64(o.given_back, RELAXED)
    memset(&r.seen, 0, sizeof(r.seen))
    wrote(r, snprintf(r.text + r.n, room(r),
                      '%s{"page_size":%llu,"min_order":%d,"size":%llu,"given_back":%llu,"memory_short":%s,',
                      b"," if r.text[r.n - 1] == b"}" else b"", 1ULL << o.page_shift, <int>m.zones[0].min_order,
                      <unsigned long long>o.most, <unsigned long long>(back - min(back, o.inherited_back)),
                      b"true" if limit.memory_short else b"false"))
    write_zone(r, m.zones[0], q, o)
    r.seen.in_full = not (r.brief and r.seen.hinting)   # without hints nothing but all granules says what is warm


cdef inline void end_arena(Report *r) noexcept nogil:
    """Write what of an arena is in memory."""
    wrote(r, snprintf(r.text + r.n, room(r), '"warm":%llu,"estimated":%s', <unsigned long long>r.seen.warm,
                      b"true" if r.seen.refused else b"false"))
    if r.seen.in_full:
        wrote(r, snprintf(r.text + r.n, room(r), ',"resident":%llu,"fragmented":%llu,"came_back":%llu',
                          <unsigned long long>r.seen.resident, <unsigned long long>r.seen.fragmented,
                          <unsigned long long>r.seen.came_back))
    wrote(r, snprintf(r.text + r.n, room(r), "}"))


cdef inline void note_inherited(Machine *m, WorkQueue *q) noexcept nogil:
    """As `memory_fn`, in a forked child: what its parent had done is not the child's."""
    cdef Opening *o
    cdef Hints *h = hints_of(m.zones[0])
    lock_acquire(&m.growing, True)
    if m.grow != NULL:
        o = <Opening *> m.grower
        o.inherited_back = load64(o.given_back, RELAXED)
        o.inherited_again = handed_out_again(h) if h.learns else 0
    lock_release(&m.growing)
