"""The zone: its metadata, its free lists, and how many pages it has of each sort.

Pages and leaves are indices relative to `base_pfn`. That is the zone's start rounded down to a block of the largest
order, or to a pageblock if this is larger. So a page's index is aligned as its PFN is, and a block's buddy is found by
one exclusive-or.

The metadata takes 0.397 bytes a page: 0.25 for the leaves, 0.125 for the links, 0.016 for the kinds, 0.004 for the
lines and 0.002 for the types. `metadata.pxd` says where it stands.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from pagehint.sync.atomic cimport PH_ASSERT, RELAXED, peek64, store32
from pagehint.sync.lock cimport Lock, assert_held
from pagehint.zone.leaf cimport Leaf
from pagehint.zone.zeroed cimport Zeroed

cdef enum:
    LEAF_SHIFT = 6
    LEAF_PAGES = 64
    LINE_LEAVES = 4             # leaves whose words share a cache line
    LINE_ORDER = 8              # order of the block that they are
    PAGEBLOCK_ORDER = 9
    PAGEBLOCK_LEAVES = 8
    MAX_ORDER_LIMIT = 32
    NR_ORDERS = 33
    # Page offsets in page sets have 32 bits, so a zone spans at most 2**32 pages: 16 TiB of 4 KiB pages.
    LIMIT_LEAVES = 1 << 26
    NO_ORDER = 127              # larger than the order of any block

cdef enum:                      # migratetypes; the first three are those that an allocation may ask for
    MT_UNMOVABLE = 0
    MT_MOVABLE = 1
    MT_RECLAIMABLE = 2
    MT_ISOLATE = 3
    NR_TYPES = 4
    NR_LISTS = 132              # NR_TYPES * NR_ORDERS

cdef enum:                      # `PageZone.words`
    WORDS_PLAIN = 0             # nobody
    WORDS_ATOMIC = 1            # per-CPU page sets: they flip bits of `Leaf.free` without the lock
    WORDS_CROSSED = 2           # the next leaf: what is allocated at the end of a leaf may go on there (`run.pxd`)

# The kind of a leaf, one byte each. ABSENT is zero, so that a hole costs no memory.
cdef enum:
    ABSENT = 0
    SPLIT = 1                   # SPLIT + o: holds blocks under 64 pages, by its words; the largest free one has order o
    FULL = 7                    # as SPLIT, with nothing free
    OWNED = 8                   # as FULL, and its words are written by one page set only; see `owned_leaf.pxd`
    TAIL = 9                    # inside a block or a run that begins in an earlier leaf
    RUN = 10                    # first leaf of a run that is one allocation and no block; see `run.pxd`
    MIDDLE = 11                 # first whole leaf of a run that begins inside the leaf before it
    WITHHELD = 0x40             # WITHHELD | order: first leaf of a withheld block: neither free nor allocated
    FREE = 0x80                 # FREE | order: first leaf of a free block of 64 pages or more
    USED = 0xC0                 # USED | order: first leaf of an allocated block of 64 pages or more
    KIND_STATE = 0xC0           # the bits that are WITHHELD, FREE or USED
    KIND_ORDER = 0x3F           # the bits that are the order beside them

# The neighbours of a leaf in its free list, by index; the heads of the lists have the indices from `limit_leaves` on.
# A leaf on no list uses them for other things: `next` for its owner (`owned_leaf.pxd`), `prev` for the number of a
# run's whole leaves (`run.pxd`).
cdef struct Links:              # 8 bytes
    uint32_t next
    uint32_t prev

cdef struct FreeArea:               # of one migratetype
    uint64_t nr_free[NR_ORDERS]     # maximal free blocks of each order

cdef struct PageZone
ctypedef void (*hook_fn)(PageZone *z, uint64_t page, int order, int around) noexcept nogil
ctypedef void (*notify_fn)(PageZone *z) noexcept nogil

cdef struct Extent:                 # that begins in a slot: `extents.pxd`
    uint64_t pages                  # 0: none begins here
    uint32_t first                  # page
    uint32_t next                   # slots of its neighbours in the list of its bin, or NO_SLOT
    uint32_t prev

cdef enum:
    NR_BINS = 928                   # for up to 2**33 pages: `bin_of` of `extents.pxd`
    BIN_WORDS = 15
    NO_SLOT = 0xFFFFFFFF

cdef struct Extents:                # the free memory of a zone by size: `extents.pxd`
    int slot_shift                  # a slot is 2**slot_shift pages, the least that is an extent
    uint64_t filled[BIN_WORDS]      # a bit for each bin: it is not empty
    uint32_t bins[NR_BINS]          # the first slot in each list, or NO_SLOT
    # The zone's own hook keeps this up to date, and passes on to the watcher's what that one wants to know.
    hook_fn freed
    hook_fn broken
    int freed_from
    int broken_from
    Extent *slots                   # open as far as the zone reaches: `metadata.pxd`

cdef enum:
    RUNS = 6

cdef struct RunSet:                 # a cache line: `run_set.pxd`
    uint64_t runs[RUNS]             # first page << 32 | pages; 0: none
    uint32_t longest                # pages of the longest run that is kept
    int32_t next                    # which of them gives way next, if all are there
    int32_t open
    int32_t used                    # since `run_set_was_used`

cdef struct PageZone:
    # First lines: read on every operation. The pointers are set when the zone is built; what else is here is written
    # with the lock held, when the zone grows or the hook changes, and is also read without it.
    Leaf *leaves                    # one a leaf, as in the next two arrays
    Links *links
    uint8_t *kinds
    uint8_t *types                  # migratetype of each pageblock; written with the lock held
    uint8_t *lines                  # of each LINE_LEAVES leaves, the CPU (low byte) whose page set they last filled
    uint64_t base_pfn
    uint64_t tail_pfn               # from here on no other zone has memory: `start_pfn`, if none interleaves
    uint64_t end_pfn                # first PFN after the zone
    uint64_t nr_leaves
    uint64_t nr_granules
    uint32_t limit_leaves           # leaves for which the reservation has room, at most LIMIT_LEAVES
    int max_order
    int max_leaf_order              # of a block in a leaf's words, a whole leaf included: min(6, max_order)
    int min_order                   # a granule is 2**min_order pages
    int words                       # WORDS_: who else than the thread with the lock matters to a leaf's words
    # The hook (`hook.pxd`): what the watcher has called, for blocks of these orders and above; NO_ORDER: for none.
    hook_fn freed
    hook_fn broken
    int freed_from
    int broken_from
    # What follows is written all the time and protected by the lock. Counts are pages where nothing else is said.
    Lock lock
    uint64_t free_pages
    int64_t notify_at               # usable free pages from which on `notify` is called; INT64_MAX: never, 0: at once
    notify_fn notify                # called with the lock held, which it releases
    Extents *extents                # of an arena's zone, where runs may begin at any page; else NULL. Set when built
    uint64_t nonempty[NR_TYPES]     # bit o: list o is not empty; a split leaf is on the list of its largest free block
    FreeArea areas[NR_TYPES]
    uint64_t bulk_pages             # in blocks of whole leaves that bulk frees have withheld and not yet freed
    uint64_t isolate_pageblocks     # pageblocks of type isolate
    uint64_t managed_pages          # present and online
    uint64_t growable_pages         # that the zone's owner can add whenever they are wanted: as good as free
    uint64_t watermark[3]           # min, low, high: `WMARK_` of `watermark.pxd`
    # Set before the zone is used.
    void *pcp                       # page sets: Pcp[nr_cpus], or NULL
    RunSet *run_set                 # of an arena that is a heap; else NULL
    Zeroed *zeroed                  # of an arena in this process's own memory; else NULL
    int index                       # of the zone in its machine
    uint64_t start_pfn
    void *mapping                   # the reservation that all arrays are in
    uint64_t mapping_bytes


cdef inline int type_of(const PageZone *z, uint64_t leaf) noexcept nogil:
    """Migratetype of the pageblock that a leaf is in."""
    return z.types[leaf >> 3]


cdef inline bint is_split(int kind) noexcept nogil:
    """Whether a leaf of this kind is split: its words say what its pages are."""
    return SPLIT <= kind <= OWNED


cdef inline bint is_shared(int kind) noexcept nogil:
    """As `is_split`, of a leaf that no page set owns."""
    return SPLIT <= kind <= FULL


cdef inline uint32_t list_head(const PageZone *z, int mt, int order) noexcept nogil:
    """Index in `links` of a list's head."""
    return z.limit_leaves + <uint32_t>(mt * NR_ORDERS + order)


cdef inline uint64_t list_first(const PageZone *z, int mt, int order) noexcept nogil:
    """The first leaf of a list that is not empty. Zone lock held."""
    return z.links[list_head(z, mt, order)].next


# A list is a ring through its head, so that adding and removing need no branch: the processor could not predict it.

cdef inline void list_insert(PageZone *z, uint64_t leaf, int mt, int order, uint32_t prev) noexcept nogil:
    """Put a leaf into the list of its largest order, behind `prev`. Zone lock held."""
    cdef Links *links = z.links
    cdef uint32_t i = <uint32_t>leaf, next = links[prev].next
    assert_held(&z.lock)
    # Atomic, since `owned_by` reads this word without the lock: it may be an owner's mark.
    store32(&links[i].next, next, RELAXED)
    links[i].prev = prev
    links[next].prev = i
    store32(&links[prev].next, i, RELAXED)
    z.nonempty[mt] |= <uint64_t>1 << order


cdef inline void list_add(PageZone *z, uint64_t leaf, int mt, int order) noexcept nogil:
    """Put a leaf first in its list: it is taken first."""
    list_insert(z, leaf, mt, order, list_head(z, mt, order))


cdef inline void list_add_last(PageZone *z, uint64_t leaf, int mt, int order) noexcept nogil:
    """Put a leaf last in its list: it is taken last."""
    list_insert(z, leaf, mt, order, z.links[list_head(z, mt, order)].prev)


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
    """Free pages in pageblocks of type isolate, which no allocation gets.

    Exact with the zone lock held. Without it, changes that other threads are making may be counted in part.
    """
    cdef uint64_t pages = 0
    cdef int o
    if peek64(&z.isolate_pageblocks) == 0:
        return 0
    for o in range(z.max_order + 1):
        pages += z.areas[MT_ISOLATE].nr_free[o] << o
    return pages


cdef inline uint64_t usable_free_pages(const PageZone *z) noexcept nogil:
    """Free pages that allocations may get. As exact as `isolate_free_pages`."""
    cdef uint64_t isolated = isolate_free_pages(z), free = peek64(&z.free_pages)
    return free - isolated if free > isolated else 0
