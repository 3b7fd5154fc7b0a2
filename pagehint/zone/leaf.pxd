"""A leaf: 64 pages whose whole state is two words, so that splitting and merging is bit arithmetic.

Each page has one bit in either word. State of a page, as (free, head):
    (1, 0) free, in the buddy system
    (0, 1) first page of an allocated block
    (0, 0) later page of an allocated or withheld block
    (1, 1) first page of a withheld block (neither free nor allocated), or an absent page

So the words tell every wrong free: the first page of an allocated block is (0, 1), its later pages are (0, 0), and the
page after it is not (0, 0).

A leaf has 64 pages because the search for a block then never leaves a word. A prototype of it freed pages in random
order four times as fast as free lists of single pages do, and took a quarter less time to allocate them.
"""
from libc.stdint cimport int64_t, uint64_t
from pagehint.sync.atomic cimport RELAXED, clz32, clz64, ctz64, load64, popcount64

cdef extern from *:
    """
    /* Bit i is set where a block of the order may begin at page i of a leaf. */
    static const uint64_t ph_aligned[7] = {
        0xffffffffffffffffULL, 0x5555555555555555ULL, 0x1111111111111111ULL, 0x0101010101010101ULL,
        0x0001000100010001ULL, 0x0000000100000001ULL, 0x0000000000000001ULL};
    /* As many ones as a block of the order has pages. */
    static const uint64_t ph_ones[7] = {
        0x1ULL, 0x3ULL, 0xfULL, 0xffULL, 0xffffULL, 0xffffffffULL, 0xffffffffffffffffULL};
    /* By how much the number of free blocks of each order changes when a single page is freed and becomes part of a
     * block of the order (first index): one buddy less of every smaller order, one block more of this order. A block of
     * order 6, a whole leaf, is not counted here. The rows are added as vectors, without a branch. */
    static const int64_t ph_merge_count[7][6] = {
        {1}, {-1, 1}, {-1, -1, 1}, {-1, -1, -1, 1}, {-1, -1, -1, -1, 1}, {-1, -1, -1, -1, -1, 1}, {-1, -1, -1, -1, -1, -1}};
    /* What is added to that when it is a block of the order that is freed: it has no buddies smaller than itself. */
    static const int64_t ph_block_count[6][6] = {
        {0}, {1}, {1, 1}, {1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1, 1, 1}};
    """
    const int64_t[7][6] merge_count "ph_merge_count"
    const int64_t[6][6] block_count "ph_block_count"
    const uint64_t[7] aligned_starts "ph_aligned"
    const uint64_t[7] order_ones "ph_ones"

cdef enum:
    LEAF_ORDERS = 6             # orders of the blocks within a leaf: 0 to 5

cdef struct Leaf:           # 16 bytes, never across a cache line
    uint64_t free           # a bit a page; where a zone has page sets, these flip it without the zone lock
    uint64_t head           # a bit a page; changed with the zone lock held, or while one thread has the leaf to itself


cdef inline uint64_t leaf_avail(const Leaf *leaf) noexcept nogil:
    """Pages that are free. Exact with the zone lock held: `free` bits flipped without it have `head` set."""
    return load64(&leaf.free, RELAXED) & ~leaf.head


cdef inline uint64_t low_ones(int n) noexcept nogil:
    """The `n` lowest bits, 0 <= n <= 64."""
    return <uint64_t>-1 >> (64 - n) if n else 0


cdef inline uint64_t next_starts(uint64_t starts, int order) noexcept nogil:
    """From the first pages of the free, aligned blocks of one order, those of the next order."""
    return starts & (starts >> (1 << order)) & aligned_starts[order + 1]


cdef inline uint64_t spread(uint64_t starts, int order) noexcept nogil:
    """All pages of the blocks of an order that begin at `starts`."""
    cdef int o
    for o in range(order):
        starts |= starts << (1 << o)
    return starts


cdef inline uint64_t lowest_ones(uint64_t word, int n) noexcept nogil:
    """The `n` lowest of the bits set in a word."""
    cdef uint64_t rest = word
    cdef int _
    for _ in range(n):
        rest &= rest - 1
    return word & ~rest


cdef inline void count_blocks(uint64_t *nr_free, uint64_t avail, int top, bint add) noexcept nogil:
    """Add the maximal free blocks of a split leaf, of orders up to `top`, to the counts per order, or subtract them."""
    cdef uint64_t starts = avail, wider, n
    cdef int o = 0
    while starts:
        wider = next_starts(starts, o) if o < top else 0
        n = popcount64(starts) - 2 * popcount64(wider)
        nr_free[o] += n if add else -n
        starts = wider
        o += 1


cdef inline uint64_t block_starts(uint64_t avail, int order) noexcept nogil:
    """First pages of all free, aligned blocks of an order < 6, whether parts of larger ones or not.

    The loop works out every order: if it ended at `order`, the processor would mispredict its end.
    """
    cdef uint64_t[LEAF_ORDERS] runs
    cdef int o
    runs[0] = avail
    for o in range(LEAF_ORDERS - 1):
        runs[o + 1] = next_starts(runs[o], o)
    return runs[order]


cdef inline int maximal_blocks(uint64_t avail, int top, uint64_t *starts) noexcept nogil:
    """First pages of the maximal free blocks of each order up to `top`; returns the orders that occur, one bit each."""
    cdef uint64_t runs = avail, wider
    cdef int o, orders = 0
    for o in range(LEAF_ORDERS):
        wider = next_starts(runs, o) if o < top else 0
        starts[o] = runs & ~(wider | wider << (1 << o))
        orders |= (starts[o] != 0) << o
        runs = wider
    return orders


cdef inline int largest_order(uint64_t avail, int top) noexcept nogil:
    """Order of the largest free block, at most `top`, or -1 where nothing is free."""
    cdef uint64_t runs = avail
    cdef int o, largest = -1
    for o in range(LEAF_ORDERS):
        largest += runs != 0
        runs = next_starts(runs, o)
    return min(largest, top)


cdef inline int maximal_order(uint64_t avail, int page, int top) noexcept nogil:
    """Order, at most `top`, of the maximal free block around a free page.

    The nearest page on either side that is not free bounds it: the aligned block of order o around `page` contains page
    p if and only if ``page ^ p < 2**o``. There is no branch, since the processor could not predict it.
    """
    cdef uint64_t taken = ~avail, under = (<uint64_t>1 << page) - 1
    cdef uint64_t below = taken & under, above = taken & ~under
    cdef unsigned int low = page ^ (63 - clz64(below)) if below else 64
    cdef unsigned int high = page ^ ctz64(above) if above else 64
    return min(31 - clz32(min(low, high)), top)
