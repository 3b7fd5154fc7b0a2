"""Leaves that one page set owns: their words are written with that set's lock held, without atomic operations.

A set owns the leaves that it fills from its stock, of which no page was allocated. Another thread that wants to change the
words, to free a page that was allocated there, has the leaf shared first, with the owner's lock held. It then stays shared
until it is whole and in stock again. The owner is noted in the leaf's links, which a leaf on no list does not need.

The idea is that of sharded free lists (mimalloc: Leijen, Zorn, de Moura, APLAS 2019), with the locks of
`sync/biased_lock.pxd`.
"""
from libc.stdint cimport uint32_t, uint64_t
from pagehint.sync.atomic cimport ACQUIRE, RELAXED, load32, load8, store32, store64, unlikely
from pagehint.zone.buddy cimport leaf_fill, set_kind
from pagehint.zone.leaf cimport aligned_starts
from pagehint.zone.zone cimport FULL, LINE_LEAVES, OWNED, PageZone, WITHHELD

cdef enum:
    OWNER = 0x80000000          # beside a CPU's number: no leaf and no list has such an index

# All of these: the lock of the set of this CPU held.


cdef inline uint32_t owner_mark(int cpu) noexcept nogil:
    return <uint32_t>OWNER | <uint32_t>cpu


cdef inline bint owned_by(const PageZone *z, uint64_t i, uint32_t mark) noexcept nogil:
    """Whether this set owns a leaf; certain, since others write the set's mark nowhere."""
    return load8(&z.kinds[i], ACQUIRE) == OWNED and load32(&z.links[i].next, RELAXED) == mark


cdef inline void own_leaf(PageZone *z, uint64_t i, int order, uint32_t mark) noexcept nogil:
    """A leaf of the set's stock becomes one full of withheld blocks of an order, and the set's own."""
    store32(&z.links[i].next, mark, RELAXED)
    leaf_fill(z, i, order, WITHHELD, OWNED)


cdef inline void own_leaf_alloc(PageZone *z, uint64_t i, int at) noexcept nogil:
    """A withheld block of a leaf of the set's own becomes allocated."""
    store64(&z.leaves[i].free, z.leaves[i].free & ~(<uint64_t>1 << at), RELAXED)


cdef inline bint own_leaf_withhold(PageZone *z, uint64_t i, int at, int order) noexcept nogil:
    """An allocated block of a leaf of the set's own becomes withheld; False if it is not such a block.

    `at` is aligned to the order. All blocks of such a leaf are of one order, so two looks tell.
    """
    cdef uint64_t free = z.leaves[i].free, first = <uint64_t>1 << at
    if unlikely(z.leaves[i].head != aligned_starts[order] or free & first):
        return False
    store64(&z.leaves[i].free, free | first, RELAXED)
    return True


cdef inline void share_leaf(PageZone *z, uint64_t i) noexcept nogil:
    """Let everybody flip bits in a leaf of the set's own."""
    if z.kinds[i] == OWNED:
        set_kind(z, i, FULL)


cdef inline void share_line(PageZone *z, uint64_t i, uint32_t mark) noexcept nogil:
    """As `share_leaf`, for those of the four in a cache line that this set owns: who frees one page will free others."""
    cdef uint64_t leaf, first = i // LINE_LEAVES * LINE_LEAVES
    for leaf in range(first, first + LINE_LEAVES):
        if owned_by(z, leaf, mark):
            set_kind(z, leaf, FULL)
