"""What an event does to the pages of a block: from which place to which, and the operation that comes of it.

The operations always make sense one after another: no page is given that is free, none taken that is not. Where an
event contradicts the places that those before it have left, the contradiction is counted, and what must have happened
unseen is added just before: pages that are not where they leave from are brought there first. `Derivation.late`
keeps what was added so, since it had happened earlier.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from pagehint.traces.events cimport NO_TYPE, EventRow
from pagehint.traces.operations cimport (OPERATION_GIVE, OPERATION_ISOLATE, OPERATION_PUTBACK, OPERATION_SET_TYPE,
                                         OPERATION_TAKE)
from pagehint.traces.views.contradictions cimport (CAUSE_ALLOC_FREE, CAUSE_ALLOC_IN_USE, CAUSE_FREE_FREE,
                                                   CAUSE_FREE_TWICE, CAUSE_GIVE_FREE, CAUSE_GIVE_IN_USE,
                                                   CAUSE_ISOLATE_NOT_FREE, CAUSE_NOT_A_BLOCK, CAUSE_ORDER_MISMATCH,
                                                   CAUSE_OUTSIDE, CAUSE_PUTBACK_NOT_OUT, CAUSE_RESERVED,
                                                   CAUSE_TAKE_NOT_FREE, CAUSE_TAKE_REPORTING, Contradictions, contradict)
from pagehint.traces.views.output cimport Output, emit, emit_parts
from pagehint.traces.views.places cimport (FREE, HOLE, LISTED, MOST_ORDER, PAGEBLOCK_ORDER, PLACE_BITS, REPORTING, RESERVED,
                                           TARGET, UNKNOWN, USED, Places, first_in, is_one_block, latest_row, pages_in,
                                           place_of, places_in, set_block)

cdef enum:                      # places as sets
    IS_UNKNOWN = 1 << UNKNOWN
    IS_FREE = 1 << FREE
    IS_LISTED = 1 << LISTED
    IS_USED = 1 << USED
    IS_REPORTING = 1 << REPORTING
    IS_TARGET = 1 << TARGET
    IS_RESERVED = 1 << RESERVED
    IS_HOLE = 1 << HOLE
    WITH_A_USER = IS_USED | IS_TARGET
    NOT_FREE = IS_LISTED | WITH_A_USER | IS_RESERVED

cdef struct Derivation:
    Places places
    Output out
    Output late                 # what happened unseen: before `row` at the first, before the row `time` at the latest
    Contradictions found
    int pageblock_order
    uint64_t nr_captured        # blocks that compaction handed to the task that it ran for
    uint64_t nr_isolated        # blocks that free page reporting isolated
    uint64_t nr_isolated_wrong  # those that were not wholly free here
    uint64_t nr_wrong_pages     # in these


cdef inline bint is_block(Derivation *d, uint32_t row, uint64_t pfn, int order) noexcept nogil:
    """Whether an event names a block that can be; if not, it is counted, and to be passed over."""
    if order < 0 or order > MOST_ORDER or pfn & ((<uint64_t>1 << order) - 1):
        contradict(&d.found, CAUSE_NOT_A_BLOCK, row, pfn, order)
        return False
    if pfn >= d.places.nr_pages or places_in(&d.places, pfn, order) & IS_HOLE:
        contradict(&d.found, CAUSE_OUTSIDE, row, pfn, order)
        return False
    return True


cdef inline bint is_free(const Derivation *d, uint64_t pfn, int order) noexcept nogil:
    """Whether all pages of a block are on the free lists."""
    return places_in(&d.places, pfn, order) == IS_FREE


cdef inline void accuse(Derivation *d, int cause, uint32_t row, uint64_t pfn, int order, uint32_t set) noexcept nogil:
    """Count a contradiction, by the first page whose place is one of these."""
    cdef uint64_t page = first_in(&d.places, pfn, set)
    d.found.nr_at_start += d.places.since[page] == 0
    contradict(&d.found, cause, row, page, order)


cdef inline void keep_late(Derivation *d, int op, uint32_t row, uint64_t pfn, int order, int place) noexcept nogil:
    """Note that those of a block's pages that are at a place left it unseen, after they came and before this row."""
    cdef uint64_t page
    d.late.time = row
    for page in range(pfn, pfn + (<uint64_t>1 << order)):
        if place_of(&d.places, page) == place:
            emit(&d.late, d.places.since[page], op, page, 0, NO_TYPE, 0)


cdef inline void bring_back(Derivation *d, uint32_t row, uint64_t pfn, int order, uint32_t seen) noexcept nogil:
    """Make all pages of a block free that are not, as they must have become unseen."""
    if seen & IS_REPORTING:
        emit_parts(&d.out, &d.places, row, OPERATION_PUTBACK, pfn, order, IS_REPORTING)
    if seen & NOT_FREE:
        keep_late(d, OPERATION_GIVE, row, pfn, order, LISTED)
        emit_parts(&d.out, &d.places, row, OPERATION_GIVE, pfn, order, NOT_FREE)


cdef inline void take_away(Derivation *d, uint32_t row, uint64_t pfn, int order, uint32_t seen) noexcept nogil:
    """Take all pages of a block off the free lists that are on them, as they must have left unseen."""
    if seen & IS_REPORTING:
        emit_parts(&d.out, &d.places, row, OPERATION_PUTBACK, pfn, order, IS_REPORTING)
    keep_late(d, OPERATION_TAKE, row, pfn, order, FREE)
    emit_parts(&d.out, &d.places, row, OPERATION_TAKE, pfn, order, IS_FREE | IS_REPORTING)


cdef inline void take(Derivation *d, uint32_t row, uint64_t pfn, int order, int migratetype) noexcept nogil:
    """A block leaves the free lists."""
    cdef uint32_t seen = places_in(&d.places, pfn, order)
    if seen & ~(IS_FREE | IS_UNKNOWN):
        if seen & IS_REPORTING:
            accuse(d, CAUSE_TAKE_REPORTING, row, pfn, order, IS_REPORTING)
        if seen & (IS_LISTED | WITH_A_USER):
            accuse(d, CAUSE_TAKE_NOT_FREE, row, pfn, order, IS_LISTED | WITH_A_USER)
        if seen & IS_RESERVED:
            accuse(d, CAUSE_RESERVED, row, pfn, order, IS_RESERVED)
        bring_back(d, row, pfn, order, seen)
    emit(&d.out, row, OPERATION_TAKE, pfn, order, migratetype, 0)
    set_block(&d.places, pfn, order, LISTED, row)


cdef inline void give(Derivation *d, uint32_t row, uint64_t pfn, int order, int migratetype) noexcept nogil:
    """A block that its user has freed comes to the free lists."""
    cdef uint32_t seen = places_in(&d.places, pfn, order)
    if seen == IS_LISTED or seen == IS_UNKNOWN:
        if not is_one_block(&d.places, pfn, order):
            contradict(&d.found, CAUSE_ORDER_MISMATCH, row, pfn, order)
        emit(&d.out, row, OPERATION_GIVE, pfn, order, migratetype, 0)
    else:
        if seen & (IS_FREE | IS_REPORTING):
            accuse(d, CAUSE_GIVE_FREE, row, pfn, order, IS_FREE | IS_REPORTING)
        if seen & WITH_A_USER:
            accuse(d, CAUSE_GIVE_IN_USE, row, pfn, order, WITH_A_USER)
        if seen & IS_RESERVED:
            accuse(d, CAUSE_RESERVED, row, pfn, order, IS_RESERVED)
        emit_parts(&d.out, &d.places, row, OPERATION_PUTBACK, pfn, order, IS_REPORTING)
        emit_parts(&d.out, &d.places, row, OPERATION_GIVE, pfn, order, NOT_FREE | IS_UNKNOWN)
    set_block(&d.places, pfn, order, FREE, row)


cdef inline bint is_captured(Derivation *d, const EventRow *events, int32_t pid, uint64_t pfn, int order,
                             uint32_t seen) noexcept nogil:
    """Whether compaction has handed the block to the task that it runs for, past the free lists.

    That task's own compaction has freed the last of the block's pages then, and no event says that the block left.
    """
    cdef uint32_t since
    if order == 0 or not seen & IS_FREE or seen & ~(IS_FREE | IS_UNKNOWN):
        return False
    since = latest_row(&d.places, pfn, order)
    return since > 0 and events[since - 1].pid == pid


cdef inline void alloc(Derivation *d, const EventRow *events, uint32_t row, uint64_t pfn, int order) noexcept nogil:
    """A block is handed out, which had left the free lists, unless compaction hands it out past them."""
    cdef uint32_t seen = places_in(&d.places, pfn, order)
    if seen == IS_LISTED or seen == IS_UNKNOWN:
        if not is_one_block(&d.places, pfn, order):
            contradict(&d.found, CAUSE_ORDER_MISMATCH, row, pfn, order)
    elif is_captured(d, events, events[row].pid, pfn, order, seen):
        d.nr_captured += 1
        emit(&d.out, row, OPERATION_TAKE, pfn, order, NO_TYPE, 0)
    else:
        if seen & IS_FREE:
            accuse(d, CAUSE_ALLOC_FREE, row, pfn, order, IS_FREE)
        if seen & IS_REPORTING:
            accuse(d, CAUSE_TAKE_REPORTING, row, pfn, order, IS_REPORTING)
        if seen & WITH_A_USER:
            accuse(d, CAUSE_ALLOC_IN_USE, row, pfn, order, WITH_A_USER)
        if seen & IS_RESERVED:
            accuse(d, CAUSE_RESERVED, row, pfn, order, IS_RESERVED)
        take_away(d, row, pfn, order, seen)
    set_block(&d.places, pfn, order, USED, row)


cdef inline void free(Derivation *d, uint32_t row, uint64_t pfn, int order) noexcept nogil:
    """A user gives back a block or a part of one. It goes to a CPU's list, as far as this event tells.

    What compaction had taken comes back in any parts, and reserved memory is given to the allocator so.
    """
    cdef uint32_t seen = places_in(&d.places, pfn, order)
    if seen & (IS_FREE | IS_REPORTING | IS_LISTED):
        if seen & IS_FREE:
            accuse(d, CAUSE_FREE_FREE, row, pfn, order, IS_FREE)
        if seen & IS_REPORTING:
            accuse(d, CAUSE_TAKE_REPORTING, row, pfn, order, IS_REPORTING)
        if seen & IS_LISTED:
            accuse(d, CAUSE_FREE_TWICE, row, pfn, order, IS_LISTED)
        take_away(d, row, pfn, order, seen)
    elif seen == IS_USED and is_more_than_one(&d.places, pfn, order):
        contradict(&d.found, CAUSE_ORDER_MISMATCH, row, pfn, order)
    set_block(&d.places, pfn, order, LISTED, row)


cdef inline bint is_more_than_one(const Places *places, uint64_t pfn, int order) noexcept nogil:
    """Whether several blocks were allocated where one is freed."""
    return order > 0 and not is_one_block(places, pfn, order) and not is_first_part(places, pfn, order)


cdef inline bint is_first_part(const Places *places, uint64_t pfn, int order) noexcept nogil:
    """Whether the block is the first part of a larger one."""
    return places.place[pfn] >> PLACE_BITS > order + 1


cdef inline void isolate(Derivation *d, uint32_t row, uint64_t pfn, int order, bint by_reporting) noexcept nogil:
    """A free block is taken off the lists, by free page reporting or by compaction."""
    cdef uint32_t seen = places_in(&d.places, pfn, order)
    if seen & ~(IS_FREE | IS_UNKNOWN):
        accuse(d, CAUSE_ISOLATE_NOT_FREE, row, pfn, order, ~<uint32_t>(IS_FREE | IS_UNKNOWN))
        bring_back(d, row, pfn, order, seen)
    isolate_types(d, row, pfn, order)
    emit(&d.out, row, OPERATION_ISOLATE if by_reporting else OPERATION_TAKE, pfn, order, NO_TYPE, 0)
    set_block(&d.places, pfn, order, REPORTING if by_reporting else TARGET, row)


cdef inline void put_back(Derivation *d, uint32_t row, uint64_t pfn, int order, int migratetype, int flags) noexcept nogil:
    """A block that was isolated comes back to the lists."""
    cdef uint32_t seen = places_in(&d.places, pfn, order)
    if (seen == IS_REPORTING or seen == IS_UNKNOWN) and is_one_block(&d.places, pfn, order):
        emit(&d.out, row, OPERATION_PUTBACK, pfn, order, migratetype, flags)
    else:
        if seen != IS_TARGET:
            contradict(&d.found, CAUSE_PUTBACK_NOT_OUT, row, pfn, order)
        emit_parts(&d.out, &d.places, row, OPERATION_PUTBACK, pfn, order, IS_REPORTING)
        emit_parts(&d.out, &d.places, row, OPERATION_GIVE, pfn, order, NOT_FREE | IS_UNKNOWN)
    set_block(&d.places, pfn, order, FREE, row)


cdef inline void compare_report(Derivation *d, uint64_t pfn, int order) noexcept nogil:
    """Count what is not free here of a block that the kernel's free page reporting found free."""
    cdef uint64_t wrong = 0
    d.nr_isolated += 1
    if places_in(&d.places, pfn, order) & NOT_FREE:
        wrong = pages_in(&d.places, pfn, order, NOT_FREE)
    d.nr_isolated_wrong += wrong > 0
    d.nr_wrong_pages += wrong


cdef inline void set_types(Derivation *d, uint32_t row, uint64_t pfn, int order, int migratetype) noexcept nogil:
    """The pageblocks of a block get a migratetype. What they have already is no operation."""
    cdef int whole = max(order, d.pageblock_order)
    cdef uint64_t first = pfn >> whole << whole, block
    cdef bint changes = False
    for block in range(first >> PAGEBLOCK_ORDER, (first >> PAGEBLOCK_ORDER) + (<uint64_t>1 << (whole - PAGEBLOCK_ORDER))):
        changes |= d.places.types[block] != migratetype
        d.places.types[block] = <uint8_t>migratetype
    if changes:
        emit(&d.out, row, OPERATION_SET_TYPE, first, whole, migratetype, 0)


cdef inline void isolate_types(Derivation *d, uint32_t row, uint64_t pfn, int order) noexcept nogil:
    """Linux makes pageblocks movable of which at least half is isolated, if they are unmovable or reclaimable."""
    cdef uint64_t page = pfn
    cdef int migratetype
    if order < d.pageblock_order - 1:
        return
    while page < pfn + (<uint64_t>1 << order):
        migratetype = d.places.types[page >> PAGEBLOCK_ORDER]
        if migratetype == 0 or migratetype == 2:
            set_types(d, row, page, d.pageblock_order, 1)
        page += <uint64_t>1 << d.pageblock_order


# ---- what users have, alone: as if there were no lists of the CPUs


cdef inline void user_alloc(Derivation *d, uint32_t row, uint64_t pfn, int order, int migratetype) noexcept nogil:
    """A block is handed out. What lay on a CPU's list at the start had left the free lists before."""
    cdef uint32_t seen = places_in(&d.places, pfn, order)
    if seen == IS_FREE or seen == IS_UNKNOWN:
        emit(&d.out, row, OPERATION_TAKE, pfn, order, migratetype, 0)
    else:
        if seen & IS_USED:
            accuse(d, CAUSE_ALLOC_IN_USE, row, pfn, order, IS_USED)
        if seen & IS_RESERVED:
            accuse(d, CAUSE_RESERVED, row, pfn, order, IS_RESERVED)
        emit_parts(&d.out, &d.places, row, OPERATION_TAKE, pfn, order, IS_FREE | IS_UNKNOWN)
    set_block(&d.places, pfn, order, USED, row)


cdef inline void user_free(Derivation *d, uint32_t row, uint64_t pfn, int order) noexcept nogil:
    """A block comes back, and is free at once."""
    cdef uint32_t seen = places_in(&d.places, pfn, order)
    if not seen & IS_FREE:
        if seen == IS_USED and is_more_than_one(&d.places, pfn, order):
            contradict(&d.found, CAUSE_ORDER_MISMATCH, row, pfn, order)
        emit(&d.out, row, OPERATION_GIVE, pfn, order, NO_TYPE, 0)
    else:
        accuse(d, CAUSE_FREE_FREE, row, pfn, order, IS_FREE)
        emit_parts(&d.out, &d.places, row, OPERATION_GIVE, pfn, order, NOT_FREE | IS_UNKNOWN)
    set_block(&d.places, pfn, order, FREE, row)
