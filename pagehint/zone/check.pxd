"""Whether a block or a run is allocated, in just this size; if not, why it cannot be freed. Nothing is changed.

Zone lock held throughout. The answer is exact, unless another thread frees or allocates the same block meanwhile by way
of a page set, which takes no zone lock.
"""
from libc.stdint cimport uint64_t
from pagehint.sync.atomic cimport ACQUIRE, load64, load8
from pagehint.zone.leaf cimport low_ones
from pagehint.zone.run cimport goes_on
from pagehint.zone.status cimport E_ABSENT, E_FREE, E_INSIDE, E_SIZE, E_WITHHELD, OK
from pagehint.zone.zone cimport (FREE, KIND_STATE, LEAF_PAGES, LEAF_SHIFT, MIDDLE, OWNED, PageZone, RUN, TAIL,
                                 USED, is_split)

cdef inline int check_first(const PageZone *z, uint64_t i, int at, int n) noexcept nogil:
    """Whether the `n` pages from page `at` of a split leaf are one allocation, or its first pages."""
    cdef uint64_t free = load64(&z.leaves[i].free, ACQUIRE), head = load64(&z.leaves[i].head, ACQUIRE)
    cdef uint64_t mask = low_ones(n) << at, first = <uint64_t>1 << at
    if head & free & first:
        return E_WITHHELD
    if free & first:
        return E_FREE
    if not head & first:
        return E_INSIDE
    return OK if (head | free) & mask == first else E_SIZE


cdef inline int check_words(const PageZone *z, uint64_t i, int at, int n) noexcept nogil:
    """Whether the `n` pages from page `at` of a split leaf are one allocation."""
    cdef int rc = check_first(z, i, at, n)
    if rc != OK:
        return rc
    if at + n == LEAF_PAGES:
        return E_SIZE if goes_on(z, i) else OK
    return OK if ((load64(&z.leaves[i].head, ACQUIRE) | load64(&z.leaves[i].free, ACQUIRE)) >> (at + n)) & 1 else E_SIZE


cdef inline int check_kind(const PageZone *z, uint64_t page) noexcept nogil:
    """Why nothing can be freed at a page whose leaf is not split, and begins no block or run of the size in question."""
    cdef int kind = load8(&z.kinds[page >> LEAF_SHIFT], ACQUIRE)
    if kind == 0:
        return E_ABSENT
    if kind & KIND_STATE == FREE:
        return E_FREE
    if kind & KIND_STATE == USED or kind == RUN:
        return E_INSIDE if page & 63 else E_SIZE
    if kind == TAIL or kind == MIDDLE:
        return E_INSIDE
    return E_WITHHELD


cdef inline int check_used(const PageZone *z, uint64_t page, int order) noexcept nogil:
    """Whether the block of this order at this page is allocated, as one block of this order."""
    cdef uint64_t i = page >> LEAF_SHIFT
    cdef int kind = load8(&z.kinds[i], ACQUIRE)
    if order < LEAF_SHIFT:
        if is_split(kind):
            return check_words(z, i, page & 63, 1 << order)
    elif kind == (USED | order):
        return OK
    elif is_split(kind):
        return check_words(z, i, page & 63, LEAF_PAGES) or E_SIZE
    return check_kind(z, page)


cdef inline int check_begin(const PageZone *z, uint64_t page) noexcept nogil:
    """Whether a run that goes beyond its first leaf begins at this page."""
    cdef uint64_t i = page >> LEAF_SHIFT
    cdef int kind = z.kinds[i]
    if page & 63 and is_split(kind) and kind != OWNED and z.extents != NULL:
        return check_first(z, i, page & 63, LEAF_PAGES - (page & 63))
    if is_split(kind):
        return check_first(z, i, page & 63, 1) or E_SIZE
    return OK if kind == RUN and page & 63 == 0 else check_kind(z, page)


cdef inline int check_run(const PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """Whether `n` pages are allocated as one run. Zone lock held. O(n / 64)."""
    cdef uint64_t i = page >> LEAF_SHIFT, last, words
    cdef int rest, rc
    n = min(n, (z.nr_leaves << LEAF_SHIFT) + 1)         # no run is as long
    last = (page + n) >> LEAF_SHIFT
    rest = (page + n) & 63
    if is_split(z.kinds[i]) and z.kinds[i] != OWNED and (page & 63) + n <= LEAF_PAGES:      # a page set has no runs
        return check_words(z, i, page & 63, <int>n)
    rc = check_begin(z, page)
    if rc != OK:
        return rc
    if last > z.nr_leaves or (last == z.nr_leaves and rest) or (page & 63) + n < LEAF_PAGES:
        return E_SIZE
    # `i` is the first whole leaf, `last` the leaf after the whole ones: the run must end `rest` pages into it.
    if page & 63:
        i += 1
        if i < last and z.kinds[i] != MIDDLE:
            return E_SIZE
    while i + 1 < last:
        i += 1
        if z.kinds[i] != TAIL:
            return E_SIZE
    if last == z.nr_leaves:
        return OK
    if not is_split(z.kinds[last]):
        return E_SIZE if rest or z.kinds[last] == TAIL or z.kinds[last] == MIDDLE else OK
    words = z.leaves[last].free | z.leaves[last].head
    if words & low_ones(rest) or not (words >> rest) & 1:
        return E_SIZE
    return OK
