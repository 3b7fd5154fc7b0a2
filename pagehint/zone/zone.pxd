"""The zone: its metadata, its free lists, and how much is in it.

All indices are relative to `base_pfn`, the zone's start rounded down to a block of the largest order (or a
pageblock), so that a buddy is found with one exclusive-or and alignment is that of the PFN itself.

Bytes per page: leaf words 0.25, links 0.125, kind 0.0156, pageblock types 0.002: 0.393 in all. The arrays stand in one
reserved mapping whose pages the kernel provides on first touch; a zone that grows by hotplug opens more of them, and no
pointer moves (`metadata.pxd`).
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from pagehint.sync.atomic cimport PH_ASSERT, RELAXED, peek64, store32
from pagehint.sync.lock cimport Lock, assert_held
from pagehint.zone.leaf cimport Leaf
from pagehint.zone.zeroed cimport Zeroed

cdef enum:
    LEAF_SHIFT = 6
    LEAF_PAGES = 64
    LINE_LEAVES = 4             # leaves whose words share a cache line, and the order of their pages
    LINE_ORDER = 8
    PAGEBLOCK_ORDER = 9
    PAGEBLOCK_LEAVES = 8
    MAX_ORDER_LIMIT = 32
    NR_ORDERS = 33
    # Page offsets in page sets have 32 bits, so a zone spans at most 2**32 pages: 16 TiB of 4 KiB pages.
    LIMIT_LEAVES = 1 << 26
    NO_ORDER = 127              # larger than that of any block

cdef enum:                      # migratetypes; the first three are what callers may ask for
    MT_UNMOVABLE = 0
    MT_MOVABLE = 1
    MT_RECLAIMABLE = 2
    MT_ISOLATE = 3
    NR_TYPES = 4
    NR_LISTS = 132              # NR_TYPES * NR_ORDERS

# What a leaf is, one byte each. ABSENT is zero, so that a hole costs no memory.
cdef enum:
    ABSENT = 0
    SPLIT = 1                   # SPLIT + o: holds blocks under 64 pages, the largest free one of order o (0 to 5)
    FULL = 7                    # as SPLIT, with nothing free
    OWNED = 8                   # as FULL, and its words are written by one page set only; see `owned_leaf.pxd`
    TAIL = 9                    # inside a block that begins in an earlier leaf
    RUN = 10                  # first leaf of an allocation that is not a power of two
    WITHHELD = 0x40             # WITHHELD | order: first leaf of a block that is nobody's: neither free nor allocated
    FREE = 0x80                 # FREE | order: first leaf of a free block of 64 pages or more
    USED = 0xC0                 # USED | order: first leaf of an allocated block
    KIND_STATE = 0xC0
    KIND_ORDER = 0x3F

cdef struct Links:              # 8 bytes: neighbours in a free list, by leaf index; list heads have indices past the leaves
    uint32_t next
    uint32_t prev

cdef struct FreeArea:
    uint64_t nr_free[NR_ORDERS]     # maximal free blocks of each order

cdef struct PageZone
ctypedef void (*hook_fn)(PageZone *z, uint64_t page, int order) noexcept nogil
ctypedef void (*notify_fn)(PageZone *z) noexcept nogil

cdef struct PageZone:
    # First lines: read on every operation, written only when the zone is built or grows, or the hook changes.
    Leaf *leaves
    Links *links
    uint8_t *kinds
    uint8_t *types                  # migratetype of each pageblock
    uint8_t *lines                  # for each cache line of leaves, the CPU whose page set was filled from it last, low byte
    uint64_t base_pfn
    uint64_t start_pfn
    uint64_t end_pfn
    uint64_t nr_leaves
    uint64_t nr_granules
    int max_order
    int max_leaf_order              # largest order of a block in a leaf's word, a whole leaf included: min(6, max_order)
    int min_order                   # a granule is 2**min_order pages
    bint atomic_words               # per-CPU page sets flip bits of `Leaf.free` without the zone lock
    # The hook, see `hook.pxd`: whom to tell, of blocks from these orders on. Written with the lock held.
    hook_fn freed
    hook_fn broken
    int freed_from                  # NO_ORDER: tell nobody
    int broken_from
    # What follows is written all the time, and protected by the lock.
    Lock lock
    uint64_t free_pages
    int64_t notify_at               # call `notify` when this many pages are free: INT64_MAX never, 0 now
    notify_fn notify                # releases the lock
    bint first_fit                  # runs of a leaf or more begin at the lowest address they can; set before there are any
    uint64_t nonempty[NR_TYPES]     # bit o: list o has a member; a leaf is listed once, by the largest order free in it
    FreeArea areas[NR_TYPES]
    uint64_t bulk_pages             # withheld by bulk frees and not yet freed: pages of blocks of whole leaves
    uint64_t isolate_pageblocks     # pageblocks of type isolate
    uint64_t managed_pages          # present and online
    uint64_t watermark[3]           # min, low, high
    # Set when the zone is built.
    void *pcp                       # Pcp[nr_cpus], or NULL
    Zeroed *zeroed                  # of an arena whose memory is this process's own, or NULL
    int index
    void *mapping
    uint64_t mapping_bytes
    uint64_t limit_leaves           # how far the reservation lets the zone grow


cdef inline int type_of(const PageZone *z, uint64_t leaf) noexcept nogil:
    return z.types[leaf >> 3]


cdef inline bint is_split(int kind) noexcept nogil:
    """Whether the leaf's words say what its pages are."""
    return SPLIT <= kind <= OWNED


cdef inline bint is_shared(int kind) noexcept nogil:
    """As `is_split`, of a leaf that no page set owns."""
    return SPLIT <= kind <= FULL


cdef inline uint32_t list_head(int mt, int order) noexcept nogil:
    return <uint32_t>(LIMIT_LEAVES + mt * NR_ORDERS + order)


cdef inline uint64_t list_first(const PageZone *z, int mt, int order) noexcept nogil:
    """The first leaf of a list that is not empty. Zone lock held."""
    return z.links[list_head(mt, order)].next


# A list is a ring through its head: adding and taking off need no branch, which could not be foreseen.

cdef inline void list_add(PageZone *z, uint64_t leaf, int mt, int order) noexcept nogil:
    """Put a leaf first in the list of its largest order. Zone lock held."""
    cdef Links *links = z.links
    cdef uint32_t i = <uint32_t>leaf, head = list_head(mt, order), next = links[head].next
    assert_held(&z.lock)
    # Atomic, since `owned_by` reads it without the lock, as an owner's mark.
    store32(&links[i].next, next, RELAXED)
    links[i].prev = head
    links[next].prev = i
    links[head].next = i
    z.nonempty[mt] |= <uint64_t>1 << order


cdef inline void list_del(PageZone *z, uint64_t leaf, int mt, int order) noexcept nogil:
    """Take a leaf off the list it is on. Zone lock held."""
    cdef Links *links = z.links
    cdef uint32_t next = links[leaf].next, prev = links[leaf].prev
    assert_held(&z.lock)
    PH_ASSERT((z.nonempty[mt] >> order) & 1)
    store32(&links[prev].next, next, RELAXED)
    links[next].prev = prev
    z.nonempty[mt] &= ~(<uint64_t>(next == prev) << order)     # both are the head


cdef inline uint64_t isolate_free_pages(const PageZone *z) noexcept nogil:
    """Free pages in pageblocks of type isolate, which nobody may have. Zone lock held, or about right."""
    cdef uint64_t pages = 0
    cdef int o
    if peek64(&z.isolate_pageblocks) == 0:
        return 0
    for o in range(z.max_order + 1):
        pages += z.areas[MT_ISOLATE].nr_free[o] << o
    return pages


cdef inline uint64_t usable_free_pages(const PageZone *z) noexcept nogil:
    cdef uint64_t isolated = isolate_free_pages(z), free = peek64(&z.free_pages)
    return free - isolated if free > isolated else 0
