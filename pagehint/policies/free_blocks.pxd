"""A kernel's free lists in their order, for blocks from one order on: which block is next, not only which is free.

Linux reports what it finds on its lists, from the front. So to predict which blocks it reports, the lists have to be in
its order. Of the rules by which Linux 6.1 and 6.12 keep it, these decide for blocks of `shift` and more:

- A block that is freed goes to the front. Below the two largest orders it goes to the back if the block that it would
  make with its buddy has a free buddy itself: it is likely to merge soon. A reported block that is put back goes to the
  back, merged or not.
- The halves that an allocation leaves go to the front of their lists; the allocated pages are taken from the front.
- A pageblock that gets another type has its free blocks moved to the back of the lists of that type, by address.
- A block is flagged as reported as long as it is neither split nor merged nor taken.

Below `shift`, all that matters is whether a leaf, `2**shift` pages, is free entirely: then it is a block, or part of
one. Lists are circular, and a list's head is a node behind those of the leaves.
"""
from libc.stdint cimport int8_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr

from pagehint.traces.intervals.free_pages cimport FreePages, clear_bits, is_block, set_bits

cdef enum:
    NR_TYPES = 8
    MOVABLE = 1
    NR_MERGEABLE = 3            # unmovable, movable, reclaimable: pageblocks of these may merge with one another
    NOT_LISTED = -1
    MOST_ORDERS = 12

cdef struct BlockZone:          # as the dtype `ZONE_DTYPE`
    uint64_t start              # PFN of the first page
    uint64_t end                # one more than that of the last
    uint64_t managed            # pages
    uint64_t watermark_min
    uint64_t watermark_low

cdef struct FreeBlocks:
    FreePages free              # its granules are the leaves
    int shift                   # the least order on the lists
    int max_order               # the largest
    int pageblock_order
    int isolate_type            # the migratetype of pageblocks that nothing is taken from
    uint64_t nr_leaves
    uint32_t nr_zones
    const BlockZone *zones
    uint64_t *zone_free         # pages on the lists of each zone, of all orders
    uint64_t *nr_free           # listed blocks, by zone and order
    uint32_t *next              # by leaf, then by list
    uint32_t *previous
    int8_t *order               # by leaf: of the listed block that begins there, or NOT_LISTED
    uint8_t *type               # the migratetype of the list that it is on
    uint8_t *reported
    uint8_t *zone               # by leaf
    uint8_t *block_type         # by pageblock: its migratetype
    uint64_t doubtful           # operations on what is not as they have it


cdef inline uint32_t head_of(const FreeBlocks *b, uint32_t zone, int order, int type) noexcept nogil:
    """The node that is before the first block of a list, and behind its last."""
    return b.nr_leaves + (zone * MOST_ORDERS + order - b.shift) * NR_TYPES + type


cdef inline uint64_t leaves_of(const FreeBlocks *b, int order) noexcept nogil:
    return <uint64_t>1 << (order - b.shift)


cdef inline uint64_t *nr_free_of(const FreeBlocks *b, uint32_t zone, int order) noexcept nogil:
    return b.nr_free + zone * MOST_ORDERS + order - b.shift


cdef inline int type_of_pages(const FreeBlocks *b, uint64_t leaf) noexcept nogil:
    """The migratetype of the pageblock that a leaf begins in."""
    return b.block_type[leaf << b.shift >> b.pageblock_order]


cdef inline uint64_t end_of_zone(const FreeBlocks *b, uint32_t zone) noexcept nogil:
    """One more than the last leaf that can be of a zone."""
    return min((b.zones[zone].end + ((<uint64_t>1 << b.shift) - 1)) >> b.shift, b.nr_leaves)


cdef inline uint64_t next_marked(const uint8_t *marks, uint64_t leaf, uint64_t end) noexcept nogil:
    """The next leaf whose mark is 1, or `end`."""
    cdef const void *found = memchr(marks + leaf, 1, end - leaf) if leaf < end else NULL
    return end if found == NULL else <const uint8_t *>found - marks


cdef inline void link_between(FreeBlocks *b, uint32_t node, uint32_t before, uint32_t after) noexcept nogil:
    b.next[before] = b.previous[after] = node
    b.previous[node] = before
    b.next[node] = after


cdef inline void unlink(FreeBlocks *b, uint32_t node) noexcept nogil:
    b.next[b.previous[node]] = b.next[node]
    b.previous[b.next[node]] = b.previous[node]


cdef inline void list_block(FreeBlocks *b, uint64_t leaf, int order, int type, bint to_back) noexcept nogil:
    """Put a block on its list."""
    cdef uint32_t head = head_of(b, b.zone[leaf], order, type)
    if to_back:
        link_between(b, leaf, b.previous[head], head)
    else:
        link_between(b, leaf, head, b.next[head])
    b.order[leaf], b.type[leaf], b.reported[leaf] = order, type, False
    nr_free_of(b, b.zone[leaf], order)[0] += 1


cdef inline void unlist_block(FreeBlocks *b, uint64_t leaf) noexcept nogil:
    """Take a block off its list."""
    unlink(b, leaf)
    nr_free_of(b, b.zone[leaf], b.order[leaf])[0] -= 1
    b.order[leaf], b.reported[leaf] = NOT_LISTED, False


cdef inline void rotate_to_front(FreeBlocks *b, uint32_t head, uint32_t node) noexcept nogil:
    """Make a node the first of its list, and what was before it the last."""
    if node != head and b.next[head] != node:
        unlink(b, head)
        link_between(b, head, b.previous[node], node)


cdef inline uint64_t block_around(const FreeBlocks *b, uint64_t leaf) noexcept nogil:
    """The first leaf of the listed block that a leaf is in, or `nr_leaves` if it is in none."""
    cdef int order
    cdef uint64_t first
    for order in range(b.shift, b.max_order + 1):
        first = leaf & ~(leaves_of(b, order) - 1)
        if b.order[first] == order:
            return first
    return b.nr_leaves


cdef inline bint is_listed(const FreeBlocks *b, uint64_t leaf, int order, uint8_t zone) noexcept nogil:
    """Whether just this block is on a list."""
    return leaf < b.nr_leaves and b.order[leaf] == order and b.zone[leaf] == zone


cdef inline bint may_merge(const FreeBlocks *b, uint64_t leaf, uint64_t buddy, int order, int type) noexcept nogil:
    cdef int other
    if not is_listed(b, buddy, order, b.zone[leaf]):
        return False
    other = type_of_pages(b, buddy)
    return order < b.pageblock_order or type == other or (type < NR_MERGEABLE and other < NR_MERGEABLE)


cdef inline bint merge_likely(const FreeBlocks *b, uint64_t leaf, int order) noexcept nogil:
    """Whether the block that it would make with its buddy could merge on: then it had better stay free for a while."""
    cdef uint64_t larger
    if order >= b.max_order - 1:
        return False
    larger = leaf & ~leaves_of(b, order)
    return is_listed(b, larger ^ leaves_of(b, order + 1), order + 1, b.zone[leaf])


cdef inline int free_block(FreeBlocks *b, uint64_t *leaf, int order, int type, bint put_back) noexcept nogil:
    """List a block, merged as far as it goes: its order then, and in `leaf` where it begins."""
    cdef uint64_t buddy
    if type < 0:
        type = type_of_pages(b, leaf[0])
    while order < b.max_order:
        buddy = leaf[0] ^ leaves_of(b, order)
        if not may_merge(b, leaf[0], buddy, order, type):
            break
        unlist_block(b, buddy)
        leaf[0] &= buddy
        order += 1
    list_block(b, leaf[0], order, type, put_back or merge_likely(b, leaf[0], order))
    return order


cdef inline void split_block(FreeBlocks *b, uint64_t first, uint64_t leaf, int order, int type) noexcept nogil:
    """Take the block of `order` at a leaf out of the listed one at `first`, and list what is left of that."""
    cdef int left = b.order[first]
    if type < 0:
        type = b.type[first]
    unlist_block(b, first)
    while left > order:
        left -= 1
        if leaf & leaves_of(b, left):
            list_block(b, first, left, type, False)
            first += leaves_of(b, left)
        else:
            list_block(b, first + leaves_of(b, left), left, type, False)


cdef inline void take_pages(FreeBlocks *b, uint64_t pfn, int order, int type) noexcept nogil:
    """Pages of listed blocks are taken. The caller has seen to it that they are a block, and none of it is out."""
    cdef uint64_t leaf = pfn >> b.shift, first, n
    cdef int part = min(order, b.shift)
    while leaf << b.shift < pfn + (<uint64_t>1 << order):
        first = block_around(b, leaf)
        if first < b.nr_leaves:         # the rest of the block, up to all that is taken, leaves its list with it
            split_block(b, first, leaf, min(<int>b.order[first], max(order, b.shift)), type)
        n = clear_bits(b.free.words, max(pfn, leaf << b.shift), part)
        b.free.count[leaf] -= n
        b.zone_free[b.zone[leaf]] -= n
        b.doubtful += n != <uint64_t>1 << part
        leaf += 1


cdef inline uint64_t give_pages(FreeBlocks *b, uint64_t pfn, int order, int *merged, int type) noexcept nogil:
    """Pages come back. The leaf of the block that they became, in `merged` its order, or NOT_LISTED if they are part of
    a leaf still in use."""
    cdef uint64_t leaf = pfn >> b.shift, n, block = leaf
    cdef int part = min(order, b.shift)
    cdef bint sound = True
    merged[0] = NOT_LISTED
    while leaf << b.shift < pfn + (<uint64_t>1 << order):
        n = set_bits(b.free.words, max(pfn, leaf << b.shift), part)
        b.free.count[leaf] += n
        b.zone_free[b.zone[leaf]] += n
        sound = sound and n == <uint64_t>1 << part
        leaf += 1
    b.doubtful += not sound
    if sound and b.free.count[block] == <uint32_t>1 << b.shift:
        merged[0] = free_block(b, &block, max(order, b.shift), type, False)
        return block
    if not sound:                       # list what has become whole, a leaf at a time
        for leaf in range(pfn >> b.shift, leaf):
            if b.free.count[leaf] == <uint32_t>1 << b.shift and block_around(b, leaf) == b.nr_leaves:
                block = leaf
                merged[0] = free_block(b, &block, b.shift, type, False)
    return block


cdef inline void set_type(FreeBlocks *b, uint64_t pfn, int order, int type) noexcept nogil:
    """The pageblocks of a block get a type, and the free blocks that begin there move to that type's lists."""
    cdef uint64_t leaf = pfn >> b.shift, end = (pfn + (<uint64_t>1 << order)) >> b.shift, block
    cdef int of_block
    cdef uint8_t reported
    for block in range(pfn >> b.pageblock_order, max((pfn >> b.pageblock_order) + 1,
                                                     (pfn + (<uint64_t>1 << order)) >> b.pageblock_order)):
        b.block_type[block] = type
    while leaf < end:
        of_block = b.order[leaf]
        if of_block == NOT_LISTED:
            leaf += 1
            continue
        if b.type[leaf] != type:
            reported = b.reported[leaf]
            unlist_block(b, leaf)
            list_block(b, leaf, of_block, type, True)
            b.reported[leaf] = reported     # moved as a whole, it keeps its flag
        leaf += leaves_of(b, of_block)
