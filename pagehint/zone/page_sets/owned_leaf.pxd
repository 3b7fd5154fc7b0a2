"""Owned leaves: one page set writes their words, with its lock held and without atomic operations.

A page set owns each leaf that it takes from its stock. All blocks in an owned leaf have one order, and each is
allocated or in the owner's stack. A thread that frees such a block past the owner first has the leaf shared, with the
owner's lock held: from then on its bits are flipped atomically, by any thread. It stays shared until it is wholly free
and comes to a stock again. The owner is noted in the leaf's links, which a leaf on no list does not need.

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

# All of these are called with the lock of the owning set held.


cdef inline uint32_t owner_mark(int cpu) noexcept nogil:
    """What `next` is in the links of a leaf that this CPU's set owns."""
    return <uint32_t>OWNER | <uint32_t>cpu


cdef inline bint owned_by(const PageZone *z, uint64_t i, uint32_t mark) noexcept nogil:
    """Whether the set with this mark owns a leaf. Certain with its lock held, without which the mark is not written."""
    return load8(&z.kinds[i], ACQUIRE) == OWNED and load32(&z.links[i].next, RELAXED) == mark


cdef inline void own_leaf(PageZone *z, uint64_t i, int order, uint32_t mark) noexcept nogil:
    """Fill a leaf from the set's stock with withheld blocks of an order; the set then owns it."""
    store32(&z.links[i].next, mark, RELAXED)
    leaf_fill(z, i, order, WITHHELD, OWNED)


cdef inline void own_leaf_alloc(PageZone *z, uint64_t i, int at) noexcept nogil:
    """Make a withheld block of an owned leaf, at page `at` of it, allocated."""
    store64(&z.leaves[i].free, z.leaves[i].free & ~(<uint64_t>1 << at), RELAXED)


cdef inline bint own_leaf_withhold(PageZone *z, uint64_t i, int at, int order) noexcept nogil:
    """Withhold an allocated block of an owned leaf; False if there is no such block.

    `at` is aligned to the order. All blocks of the leaf have one order, which `head` tells; `free` tells the rest.
    """
    cdef uint64_t free = z.leaves[i].free, first = <uint64_t>1 << at
    if unlikely(z.leaves[i].head != aligned_starts[order] or free & first):
        return False
    store64(&z.leaves[i].free, free | first, RELAXED)
    return True


cdef inline void share_leaf(PageZone *z, uint64_t i) noexcept nogil:
    """Share a leaf if it is owned, namely by this set."""
    if z.kinds[i] == OWNED:
        set_kind(z, i, FULL)


cdef inline void share_line(PageZone *z, uint64_t i, uint32_t mark) noexcept nogil:
    """Share the set's leaves in the cache line of leaf `i`: a thread that frees one page will free others."""
    cdef uint64_t leaf, first = i // LINE_LEAVES * LINE_LEAVES
    for leaf in range(first, first + LINE_LEAVES):
        if owned_by(z, leaf, mark):
            set_kind(z, leaf, FULL)
