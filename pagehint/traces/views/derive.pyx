# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=False
"""The events of a recording in turn, each led to what it does to the pages (`moves.pxd`).

It is compiled, and runs without the GIL: recordings have tens of millions of events.
"""
from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as free_memory
from libc.string cimport memcpy, memset

import numpy as np

from pagehint.traces.views.contradictions cimport (CAUSE_ISOLATE_HALF, MOST_EXAMPLES, NR_CAUSES, Contradictions,
                                                   contradict)
from pagehint.traces.events cimport (EVENT_ALLOC, EVENT_BULK_ALLOC, EVENT_EXTFRAG, EVENT_FREE, EVENT_FREE_DIRECT,
                                     EVENT_ISOLATE, EVENT_ISOLATE_RET, EVENT_LOST, EVENT_MARK, EVENT_MOVE_BLOCK,
                                     EVENT_PCPU_DRAIN, EVENT_PUTBACK, EVENT_REPORT_CALL, EVENT_REPORT_CALL_END,
                                     EVENT_ZONE_LOCKED, FLAG_BY_REPORTING, FLAG_CHANGE_OWNERSHIP, NO_ORDER, NO_TYPE,
                                     EventRow)
from pagehint.traces.operations cimport (OPERATION_GIVE, OPERATION_ISOLATE, OPERATION_LOST, OPERATION_MARK,
                                         OPERATION_PUTBACK, OPERATION_REPORTED, OPERATION_TAKE, OperationRow)
from pagehint.traces.views.moves cimport (Derivation, alloc, compare_report, free, give, is_block, is_free, isolate,
                                          put_back, set_types, take, user_alloc, user_free)
from pagehint.traces.views.output cimport Output, emit
from pagehint.traces.views.places cimport (FREE, LISTED, MOST_ORDER, PAGEBLOCK_ORDER, TARGET, Places, place_of,
                                           set_block)

from pagehint.traces.operations import OPERATION_DTYPE

cdef enum:
    NO_ISOLATION = 0xFFFFFFFF

cdef enum:                      # what a view makes of an event
    PASSED_OVER = 0
    NOTED = 1                   # it is an operation as it is
    REPORTS = 2                 # of isolation and free page reporting: every view compares itself with it
    MOVES = 3                   # it moves the pages of a block
    RETYPES = 4                 # it says the migratetype of a pageblock
    USES = 5                    # it moves the pages of a block, which are with a user or free

cdef enum:                      # the views, as `views.py` numbers them
    ALL = 0
    KMEM = 1
    USER = 2

cdef struct Cpu:                # what its latest events have left open
    uint32_t isolation          # the row of an isolation that has not ended
    uint64_t taken              # the page of its event before, if that was a ZONE_LOCKED

cdef struct Reading:
    Derivation derivation
    const EventRow *events
    const uint8_t *removals     # by row: an EXTFRAG that is a removal, as far as the event after it on its CPU tells
    Cpu *cpus
    uint8_t roles[256]          # by event
    int view
    bint reported               # the latest report has succeeded, and nothing has been isolated since


cdef void set_roles(Reading *r) noexcept nogil:
    """Say what the view makes of each event."""
    cdef int moves = USES if r.view == USER else MOVES
    memset(r.roles, PASSED_OVER, sizeof(r.roles))
    r.roles[<int>EVENT_MARK] = r.roles[<int>EVENT_LOST] = NOTED
    r.roles[<int>EVENT_ISOLATE] = r.roles[<int>EVENT_ISOLATE_RET] = r.roles[<int>EVENT_PUTBACK] = REPORTS
    r.roles[<int>EVENT_REPORT_CALL] = r.roles[<int>EVENT_REPORT_CALL_END] = REPORTS
    r.roles[<int>EVENT_ALLOC] = r.roles[<int>EVENT_FREE] = moves
    if r.view != USER:
        r.roles[<int>EVENT_ZONE_LOCKED] = r.roles[<int>EVENT_PCPU_DRAIN] = r.roles[<int>EVENT_EXTFRAG] = MOVES
    if r.view == ALL:
        r.roles[<int>EVENT_BULK_ALLOC] = r.roles[<int>EVENT_FREE_DIRECT] = MOVES
        r.roles[<int>EVENT_MOVE_BLOCK] = RETYPES


cdef inline bint goes_past_the_lists(const Derivation *d, int order) noexcept nogil:
    """Whether a free of this order always goes to the free lists: the CPUs have lists of 0 to 3 and huge pages alone."""
    return 3 < order != d.pageblock_order


cdef void find_removals(const Reading *r, uint32_t nr_rows, uint32_t *after, uint8_t *removals) noexcept nogil:
    """Find each EXTFRAG after which its CPU does not take the same page: in Linux 6.12 it is the removal itself.

    `after` is by CPU, and all zero.
    """
    cdef uint32_t number
    cdef const EventRow *event
    cdef const EventRow *next_one
    for number in range(nr_rows, 0, -1):
        event = &r.events[number - 1]
        if r.roles[event.event] != MOVES:
            continue
        if event.event == EVENT_EXTFRAG:
            next_one = &r.events[after[event.cpu] - 1] if after[event.cpu] else NULL
            removals[number - 1] = (next_one == NULL or next_one.event != EVENT_ZONE_LOCKED
                                    or next_one.pfn != event.pfn)
        after[event.cpu] = number


cdef inline void move(Reading *r, uint32_t row, const EventRow *event, Cpu *cpu) noexcept nogil:
    """An event that moves the pages of a block, between the free lists, the CPUs' lists and users."""
    cdef Derivation *d = &r.derivation
    cdef int kind = event.event
    if kind == EVENT_EXTFRAG and event.flags & FLAG_CHANGE_OWNERSHIP and 0 <= event.fallback_order <= MOST_ORDER:
        set_types(d, row, event.pfn, event.fallback_order, event.migratetype)
    if kind == EVENT_ALLOC:
        alloc(d, r.events, row, event.pfn, event.order)
    elif kind == EVENT_FREE:
        free(d, row, event.pfn, event.order)
        if goes_past_the_lists(d, event.order):
            give(d, row, event.pfn, event.order, NO_TYPE)
    elif kind == EVENT_PCPU_DRAIN:
        give(d, row, event.pfn, event.order, event.migratetype)
    elif kind == EVENT_BULK_ALLOC:
        alloc(d, r.events, row, event.pfn, event.order)
    elif kind == EVENT_FREE_DIRECT:
        if not (goes_past_the_lists(d, event.order) and is_free(d, event.pfn, event.order)):    # given by its free
            give(d, row, event.pfn, event.order, event.migratetype)
    elif kind == EVENT_ZONE_LOCKED or (r.removals[row] and cpu.taken != event.pfn):
        take(d, row, event.pfn, event.order, event.migratetype)


cdef inline void use(Reading *r, uint32_t row, const EventRow *event) noexcept nogil:
    """An event that moves the pages of a block between users and the free lists."""
    if event.event == EVENT_ALLOC:
        user_alloc(&r.derivation, row, event.pfn, event.order, event.migratetype)
    else:
        user_free(&r.derivation, row, event.pfn, event.order)


cdef void unended(Reading *r, size_t nr_cpus) noexcept nogil:
    """Count the isolations whose end is not in the recording."""
    cdef size_t cpu
    for cpu in range(nr_cpus):
        half_an_isolation(r, r.cpus[cpu].isolation)


cdef void half_an_isolation(Reading *r, uint32_t begun) noexcept nogil:
    """Count an isolation that has begun and not ended, if there is one."""
    if begun != NO_ISOLATION:
        contradict(&r.derivation.found, CAUSE_ISOLATE_HALF, begun, r.events[begun].pfn, r.events[begun].order)


cdef void end_isolation(Reading *r, uint32_t row, const EventRow *event, Cpu *cpu) noexcept nogil:
    """An isolation has ended: with success, unless it returns 0."""
    cdef uint32_t begun = cpu.isolation
    cdef const EventRow *block
    cpu.isolation = NO_ISOLATION
    if begun == NO_ISOLATION:
        contradict(&r.derivation.found, CAUSE_ISOLATE_HALF, row, event.pfn, event.order)
        return
    block = &r.events[begun]
    if event.value == 0 or not is_block(&r.derivation, begun, block.pfn, block.order):
        return
    if event.flags & FLAG_BY_REPORTING:
        r.reported = False
        compare_report(&r.derivation, block.pfn, block.order)
        if r.view != ALL:
            emit(&r.derivation.out, row, OPERATION_ISOLATE, block.pfn, block.order, NO_TYPE, 0)
    if r.view == ALL:
        isolate(&r.derivation, row, block.pfn, block.order, event.flags & FLAG_BY_REPORTING)


cdef void report(Reading *r, uint32_t row, const EventRow *event, Cpu *cpu) noexcept nogil:
    """An event of isolation and free page reporting."""
    cdef int kind = event.event, flags
    if kind == EVENT_ISOLATE:
        half_an_isolation(r, cpu.isolation)
        cpu.isolation = row
    elif kind == EVENT_ISOLATE_RET:
        end_isolation(r, row, event, cpu)
    elif kind == EVENT_REPORT_CALL:
        r.reported = False
    elif kind == EVENT_REPORT_CALL_END:
        r.reported = event.value == 0
    elif kind == EVENT_PUTBACK and is_block(&r.derivation, row, event.pfn, event.order):
        flags = OPERATION_REPORTED if r.reported else 0
        if r.view == ALL:
            put_back(&r.derivation, row, event.pfn, event.order, event.migratetype, flags)
        else:
            emit(&r.derivation.out, row, OPERATION_PUTBACK, event.pfn, event.order, event.migratetype, flags)


cdef inline void one_event(Reading *r, uint32_t row) noexcept nogil:
    """Lead an event to what it does."""
    cdef const EventRow *event = &r.events[row]
    cdef int role = r.roles[event.event]
    r.derivation.out.time = max(r.derivation.out.time, event.time)
    if role == MOVES:
        if is_block(&r.derivation, row, event.pfn, event.order):
            move(r, row, event, &r.cpus[event.cpu])
        r.cpus[event.cpu].taken = event.pfn if event.event == EVENT_ZONE_LOCKED else UINT64_MAX
    elif role == USES:
        if is_block(&r.derivation, row, event.pfn, event.order):
            use(r, row, event)
    elif role == REPORTS:
        report(r, row, event, &r.cpus[event.cpu])
    elif role == RETYPES:       # in Linux 6.12 it sets the type; in 6.1, which does not tell the old one, pages move alone
        if event.fallback_migratetype != NO_TYPE and event.pfn < r.derivation.places.nr_pages:
            set_types(&r.derivation, row, event.pfn, r.derivation.pageblock_order, event.migratetype)
    elif role == NOTED:
        emit(&r.derivation.out, row, OPERATION_MARK if event.event == EVENT_MARK else OPERATION_LOST,
             <uint64_t>max(event.value, 0), NO_ORDER, NO_TYPE, 0)


cdef void correct(Derivation *d, uint32_t row, const OperationRow *correction) noexcept nogil:
    """Do what no event told, if it can still have been so."""
    if correction.pfn >= d.places.nr_pages:
        return
    if correction.op == OPERATION_TAKE and place_of(&d.places, correction.pfn) == FREE:
        emit(&d.out, row, OPERATION_TAKE, correction.pfn, 0, NO_TYPE, 0)
        set_block(&d.places, correction.pfn, 0, TARGET, row)
    elif correction.op == OPERATION_GIVE and place_of(&d.places, correction.pfn) == LISTED:
        emit(&d.out, row, OPERATION_GIVE, correction.pfn, 0, NO_TYPE, 0)
        set_block(&d.places, correction.pfn, 0, FREE, row)


cdef void all_events(Reading *r, uint32_t nr_rows, const OperationRow *corrections, size_t nr_corrections) noexcept nogil:
    """Go through the recording. Each correction is done before the event of its row."""
    cdef uint32_t row
    cdef size_t done = 0
    for row in range(nr_rows):
        while done < nr_corrections and corrections[done].row <= row:
            correct(&r.derivation, row, &corrections[done])
            done += 1
        one_event(r, row)
    while done < nr_corrections:
        correct(&r.derivation, nr_rows - 1, &corrections[done])
        done += 1


cdef object rows_of(const Output *out):
    """The operations as an array of `OPERATION_DTYPE`."""
    cdef OperationRow[::1] rows
    if out.full:
        raise MemoryError(f"no memory for more than {out.nr_rows} operations")
    table = np.empty(out.nr_rows, OPERATION_DTYPE)
    if out.nr_rows:
        rows = table
        memcpy(&rows[0], out.rows, out.nr_rows * sizeof(OperationRow))
    return table


cdef object examples_of(const Contradictions *found):
    """By cause: how often, and the first of them as (row, PFN, order)."""
    cdef int cause, number
    return [(found.counts[cause], [(found.examples[cause][number].row, found.examples[cause][number].pfn,
                                    found.examples[cause][number].order)
                                   for number in range(<int>min(found.counts[cause], <uint64_t>MOST_EXAMPLES))])
            for cause in range(NR_CAUSES)]


def derive(const EventRow[::1] events, int view, uint8_t[::1] places, uint8_t[::1] types, int pageblock_order,
           const OperationRow[::1] corrections):
    """Lead a recording's events to operations.

    Parameters
    ----------
    events : array of `EVENT_DTYPE`, shape (rows,)
        The recording.
    view : int
        0: all events; 1: those of the kernel; 2: alloc and free.
    places : array of uint8, shape (pages,)
        Where each page lies at the start; afterwards, where it lies at the end. A multiple of 8192 pages.
    types : array of uint8, shape (pages / 512,)
        The migratetype of each 512 pages, likewise; 255 if it is not known.
    pageblock_order : int
        Of the kernel, 9 to 13. Its huge pages are as large.
    corrections : array of `OPERATION_DTYPE`, shape (corrections,)
        What happened besides, by ascending row: takes and gives of single pages, before the event of this row.

    Returns
    -------
    table, late : arrays of `OPERATION_DTYPE`
        The operations; and what must have happened unseen, which `views.py` dates: ``row`` is the first row before which
        it can have been, ``time`` the last.
    found : list
        By cause, how many contradictions, and the first of them as (row, pfn, order).
    nr_at_start : int
        Contradictions of pages that lay where they did at the start.
    since : array of uint32, shape (pages,)
        The row after that which brought the page to its place; 0 if it was there at the start.
    figures : tuple of int
        Blocks captured by compaction, blocks isolated for reports, those of them not wholly free, wrong pages in these.

    Raises
    ------
    MemoryError
        There is no memory for the operations.
    """
    cdef Reading r
    cdef uint32_t nr_rows = <uint32_t>events.shape[0]
    cdef size_t nr_cpus = 65536, cpu
    if places.shape[0] != types.shape[0] << PAGEBLOCK_ORDER or places.shape[0] & ((1 << MOST_ORDER) - 1):
        raise ValueError(f"{places.shape[0]} pages and {types.shape[0]} pageblocks are not of one memory")
    if events.shape[0] >= NO_ISOLATION:
        raise ValueError(f"a recording of {events.shape[0]} events; at most {NO_ISOLATION - 1} can be numbered")
    memset(&r, 0, sizeof(r))
    since = np.zeros(places.shape[0], np.uint32)
    removals = np.zeros(nr_rows, np.uint8)
    after = np.zeros(nr_cpus, np.uint32)
    cdef uint32_t[::1] since_view = since, after_view = after
    cdef uint8_t[::1] removals_view = removals
    cdef const OperationRow *first_correction = &corrections[0] if corrections.shape[0] else NULL
    r.view, r.derivation.pageblock_order = view, pageblock_order
    set_roles(&r)
    if nr_rows == 0:
        return rows_of(&r.derivation.out), rows_of(&r.derivation.late), examples_of(&r.derivation.found), 0, since, (0,) * 4
    if places.shape[0]:                                     # else every page is outside
        r.derivation.places = Places(places.shape[0], &places[0], &since_view[0], &types[0])
    r.events, r.removals = &events[0], &removals_view[0]
    r.cpus = <Cpu *>calloc(nr_cpus, sizeof(Cpu))
    if r.cpus == NULL:
        raise MemoryError("no memory for what each CPU has left open")
    try:
        with nogil:
            for cpu in range(nr_cpus):
                r.cpus[cpu] = Cpu(NO_ISOLATION, UINT64_MAX)
            find_removals(&r, nr_rows, &after_view[0], &removals_view[0])
            all_events(&r, nr_rows, first_correction, corrections.shape[0])
            unended(&r, nr_cpus)
        return (rows_of(&r.derivation.out), rows_of(&r.derivation.late), examples_of(&r.derivation.found),
                r.derivation.found.nr_at_start, since,
                (r.derivation.nr_captured, r.derivation.nr_isolated, r.derivation.nr_isolated_wrong,
                 r.derivation.nr_wrong_pages))
    finally:
        free_memory(r.cpus)
        free_memory(r.derivation.out.rows)
        free_memory(r.derivation.late.rows)
