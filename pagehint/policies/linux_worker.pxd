"""Linux's free page reporting (since 5.7), as a machine of states that time and frees push on.

The rules, from the published design and `mm/page_reporting.c` of 6.1 and 6.12:

- A free that leaves a block of the reporting order or more asks for a pass. The pass begins `delay` later; meanwhile,
  further frees ask for nothing. What asks while a pass runs makes another one follow, by the same delay.
- A pass goes through the zones whose free pages are above their low watermark and `capacity` blocks of the reporting
  order; in each through the lists, from the least order and the first migratetype on. Isolated pageblocks are left out.
- From a list's front it takes blocks that are not flagged off the list, until `capacity` are out: then it rotates the
  list to the first that it has not taken, reports, puts all back, and begins at the front again.
- A list has a budget of its order's blocks by 16 times the capacity, rounded up; each full report takes one. When it is
  overdrawn and there is more, the rest waits for another pass.
- What is out at the end of a zone is reported as it is. A block that comes back without merging is flagged.

The delay is kept by the timer wheel, which turns every eight jiffies at this distance: it is rounded up to its turns.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t

from pagehint.policies.free_blocks cimport (MOVABLE, NR_MERGEABLE, NR_TYPES, FreeBlocks, free_block, head_of,
                                            leaves_of, nr_free_of, rotate_to_front, type_of_pages, unlist_block)
from pagehint.policies.report_buffer cimport ReportBuffer, note_report

cdef enum:
    MOST_CAPACITY = 1024

cdef enum WorkerState:
    WORKER_IDLE
    WORKER_REQUESTED
    WORKER_ACTIVE

cdef enum Progress:             # in a pass
    PASS_NONE                   # none is on
    PASS_FILLING                # taking blocks off a list
    PASS_REPORTING              # waiting for the host, `capacity` blocks are out, and the list goes on afterwards
    PASS_LEFTOVER               # waiting for the host with what a zone had left
    PASS_DRAINED                # the leftover is back: the next zone

cdef struct Worker:
    # Settings.
    int min_order               # of what is reported: the least order on the lists, or more
    uint32_t capacity           # blocks of a report
    int64_t delay               # nanoseconds
    int64_t wheel               # nanoseconds to which the delay is rounded up; 0: it is exact
    int64_t phase               # the time of one turn of the wheel
    int64_t call_time           # nanoseconds that the host takes for a report
    # State.
    WorkerState state
    Progress progress
    int64_t due                 # nanoseconds: when something happens by itself; INT64_MAX: never
    uint32_t zone
    int order
    int type
    int64_t budget
    uint64_t out[MOST_CAPACITY]         # leaves, in the order of their isolation
    int out_order[MOST_CAPACITY]
    uint32_t nr_out
    # Counts.
    uint64_t passes
    uint64_t refused            # blocks that the min watermark has kept
    uint64_t gates_closed       # zones that a pass has left out
    uint64_t recalled           # blocks that the recording uses while they are out here


cdef inline void schedule(Worker *w, int64_t now) noexcept nogil:
    """Have a pass begin after the delay."""
    cdef int64_t rest
    w.due = now + w.delay
    if w.wheel:
        rest = (w.phase - w.due) % w.wheel
        w.due += rest + (w.wheel if rest < 0 else 0)


cdef inline void request(Worker *w, int64_t now) noexcept nogil:
    """Somebody asks for a pass."""
    cdef WorkerState before = w.state
    w.state = WORKER_REQUESTED
    if before == WORKER_IDLE:
        schedule(w, now)


cdef inline bint isolate(Worker *w, FreeBlocks *b, uint32_t leaf) noexcept nogil:
    """Take a block off its list, unless the zone would fall to its min watermark."""
    cdef int order = b.order[leaf]
    cdef uint64_t pages = <uint64_t>1 << order, block
    if b.zone_free[w.zone] <= b.zones[w.zone].watermark_min + pages:
        w.refused += 1
        return False
    unlist_block(b, leaf)
    b.zone_free[w.zone] -= pages
    if order >= b.pageblock_order - 1:
        for block in range((<uint64_t>leaf << b.shift) >> b.pageblock_order,
                           (((<uint64_t>leaf << b.shift) + pages - 1) >> b.pageblock_order) + 1):
            if b.block_type[block] < NR_MERGEABLE:
                b.block_type[block] = MOVABLE
    w.out[w.nr_out], w.out_order[w.nr_out] = leaf, order
    w.nr_out += 1
    return True


cdef inline void put_back(Worker *w, FreeBlocks *b, uint32_t which, bint reported) noexcept nogil:
    """A block returns to the lists, and is flagged if it has not merged with another."""
    cdef uint64_t leaf = w.out[which]
    b.zone_free[b.zone[leaf]] += <uint64_t>1 << w.out_order[which]
    if free_block(b, &leaf, w.out_order[which], type_of_pages(b, leaf), True) == w.out_order[which]:
        b.reported[leaf] = reported


cdef inline void drain(Worker *w, FreeBlocks *b, ReportBuffer *r, int64_t now, uint32_t position) noexcept nogil:
    """The host has answered: everything that is out comes back, the last that was taken first."""
    while w.nr_out:
        w.nr_out -= 1
        note_report(r, now, position, w.out[w.nr_out] << b.shift, w.out_order[w.nr_out])
        put_back(w, b, w.nr_out, True)
    r.nr_calls += 1


cdef inline bint next_list(Worker *w, const FreeBlocks *b) noexcept nogil:
    """Go to the next list of this zone that is not empty. False if there is none."""
    cdef uint32_t head
    while True:
        w.type += 1
        if w.type == NR_TYPES:
            w.type = 0
            w.order += 1
        if w.order > b.max_order:
            return False
        head = head_of(b, w.zone, w.order, w.type)
        if w.type != b.isolate_type and b.next[head] != head:
            w.budget = (nr_free_of(b, w.zone, w.order)[0] + 16 * w.capacity - 1) // (16 * w.capacity)
            return True


cdef inline bint fill(Worker *w, FreeBlocks *b) noexcept nogil:
    """Take blocks off the current list. True if so many are out that they are to be reported."""
    cdef uint32_t head = head_of(b, w.zone, w.order, w.type), node = b.next[head], after
    while node != head:
        after = b.next[node]
        if not b.reported[node]:
            if w.budget < 0:
                w.state = WORKER_REQUESTED
                break
            if w.nr_out == w.capacity:
                rotate_to_front(b, head, node)
                w.budget -= 1
                return True
            if not isolate(w, b, node):
                break
        node = after
    rotate_to_front(b, head, node)
    return False


cdef inline bint enter_zone(Worker *w, FreeBlocks *b) noexcept nogil:
    """Whether the gate of the current zone is open: then the pass stands before its first list."""
    w.order, w.type = w.min_order, -1
    if b.zone_free[w.zone] > b.zones[w.zone].watermark_low + (<uint64_t>w.capacity << w.min_order):
        return True
    w.gates_closed += 1
    return False


cdef inline void end_pass(Worker *w, int64_t now) noexcept nogil:
    w.progress = PASS_NONE
    w.due = INT64_MAX
    if w.state == WORKER_REQUESTED:
        schedule(w, now)
    else:
        w.state = WORKER_IDLE


cdef inline void go_on(Worker *w, FreeBlocks *b, int64_t now) noexcept nogil:
    """Go on with the pass, until it waits for the host or ends."""
    while True:
        if w.progress == PASS_DRAINED:
            w.zone += 1
            while w.zone < b.nr_zones and not enter_zone(w, b):
                w.zone += 1
            if w.zone == b.nr_zones:
                end_pass(w, now)
                return
            w.progress = PASS_FILLING
        elif fill(w, b):
            w.progress = PASS_REPORTING
            w.due = now + w.call_time
            return
        if not next_list(w, b):
            w.progress = PASS_DRAINED
            if w.nr_out:
                w.progress = PASS_LEFTOVER
                w.due = now + w.call_time
                return


cdef inline void begin_pass(Worker *w, FreeBlocks *b, int64_t now) noexcept nogil:
    w.state = WORKER_ACTIVE
    w.passes += 1
    w.zone = <uint32_t>-1
    w.progress = PASS_DRAINED
    go_on(w, b, now)


cdef inline void step(Worker *w, FreeBlocks *b, ReportBuffer *r, int64_t now, uint32_t position) noexcept nogil:
    """What was due happens: a pass begins, or the host has answered."""
    if w.progress == PASS_NONE:
        begin_pass(w, b, now)
        return
    drain(w, b, r, now, position)
    w.progress = PASS_DRAINED if w.progress == PASS_LEFTOVER else PASS_FILLING
    go_on(w, b, now)


cdef inline void recall(Worker *w, FreeBlocks *b, uint64_t first, uint64_t end) noexcept nogil:
    """The recording uses some of these leaves: a block that is out here and has one comes back first, not reported."""
    cdef uint32_t i = 0
    while i < w.nr_out:
        if w.out[i] < end and first < w.out[i] + leaves_of(b, w.out_order[i]):
            put_back(w, b, i, False)
            w.nr_out -= 1
            w.out[i], w.out_order[i] = w.out[w.nr_out], w.out_order[w.nr_out]
            w.recalled += 1
        else:
            i += 1
