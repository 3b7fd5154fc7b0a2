# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=False
"""The built-in policies that need the free lists: Linux's, that of the 2019 series, pagehint's threshold.

Each is one pass over the operations, without the GIL. What it reported comes back as bytes of `REPORT_DTYPE`.
"""
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, int8_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import numpy as np

from pagehint.policies.free_blocks cimport (MOST_ORDERS, MOVABLE, NOT_LISTED, NR_TYPES, BlockZone, FreeBlocks,
                                            block_around, give_pages, head_of, leaves_of, list_block, nr_free_of, set_type,
                                            take_pages)
from pagehint.policies.linux_worker cimport (MOST_CAPACITY, PASS_NONE, Worker, begin_pass, recall, request, step)
from pagehint.policies.report_buffer cimport ReportBuffer
from pagehint.policies.series_2019 cimport MOST_BATCH, Series2019, freed
from pagehint.policies.threshold_engine cimport Threshold, delay_is_over, evaluate, forget_leaf, hint_leaf
from pagehint.traces.intervals.free_pages cimport bits_set, count_granules, is_block
from pagehint.traces.events cimport NO_TYPE
from pagehint.traces.operations cimport OPERATION_GIVE, OPERATION_SET_TYPE, OPERATION_TAKE, OperationRow

from pagehint.errors import BadPageError

cdef struct ListedBlock:        # as the dtype `BLOCK_DTYPE` of `recording.py`
    uint64_t pfn
    uint32_t order
    uint32_t migratetype

cdef enum Change:               # what an operation has done
    NOTHING
    TAKEN
    GIVEN


cdef class Lists:
    """The free lists of a recording, at its start: one simulation uses them up."""

    cdef FreeBlocks b
    cdef ReportBuffer reports
    cdef const BlockZone[::1] zones
    cdef const OperationRow[::1] table

    def __cinit__(self, table, free_words, blocks, zones, types, int order, int max_order, int pageblock_order,
                  int isolate_type):
        cdef FreeBlocks *b = &self.b
        cdef const uint64_t[::1] words = free_words
        cdef uint64_t nodes
        self.zones, self.table = zones, table
        if not 0 <= order <= max_order < order + MOST_ORDERS or not 0 < len(zones) < 256:
            raise ValueError(f"orders from {order} to {max_order} in {len(zones)} zones: out of range")
        if <uint64_t>self.table.shape[0] >= UINT32_MAX:
            raise ValueError(f"a table of {self.table.shape[0]} operations: at most 2**32 - 2 are read at once")
        b.shift, b.max_order, b.pageblock_order, b.isolate_type = order, max_order, pageblock_order, isolate_type
        b.free.nr_pages, b.free.granule_order = words.shape[0] << 6, order
        b.nr_leaves = b.free.nr_pages >> order
        b.nr_zones, b.zones = len(zones), &self.zones[0]
        nodes = b.nr_leaves + b.nr_zones * MOST_ORDERS * NR_TYPES
        if nodes >= UINT32_MAX:
            raise ValueError(f"{b.nr_leaves} granules of order {order} are too many")
        self.allocate(nodes)
        if words.shape[0]:
            memcpy(b.free.words, &words[0], words.shape[0] * 8)
        count_granules(&b.free)
        self.place(types)
        self.fill(blocks)

    cdef int allocate(self, uint64_t nodes) except -1:
        cdef FreeBlocks *b = &self.b
        b.free.words = <uint64_t *>malloc(b.free.nr_pages // 8 + 8)
        b.free.count = <uint32_t *>calloc(b.nr_leaves + 1, 4)
        b.zone_free = <uint64_t *>calloc(b.nr_zones, 8)
        b.nr_free = <uint64_t *>calloc(b.nr_zones * MOST_ORDERS, 8)
        b.next = <uint32_t *>calloc(nodes, 4)
        b.previous = <uint32_t *>calloc(nodes, 4)
        b.order = <int8_t *>malloc(b.nr_leaves + 1)
        b.type = <uint8_t *>calloc(b.nr_leaves + 1, 1)
        b.reported = <uint8_t *>calloc(b.nr_leaves + 1, 1)
        b.zone = <uint8_t *>calloc(b.nr_leaves + 1, 1)
        b.block_type = <uint8_t *>malloc((b.free.nr_pages >> b.pageblock_order) + 1)
        if (b.free.words == NULL or b.free.count == NULL or b.zone_free == NULL or b.nr_free == NULL or b.next == NULL or
                b.previous == NULL or b.order == NULL or b.type == NULL or b.reported == NULL or b.zone == NULL or
                b.block_type == NULL):
            raise MemoryError(f"no memory for the free lists of {b.nr_leaves} granules")
        return 0

    cdef int place(self, types) except -1:
        """Say which zone and type each leaf has, and begin with empty lists."""
        cdef FreeBlocks *b = &self.b
        cdef const uint8_t[::1] of_blocks = types
        cdef uint64_t leaf, block, pfn
        cdef uint32_t zone, node
        cdef uint64_t nr_blocks = (b.free.nr_pages >> b.pageblock_order) + 1
        memset(b.order, NOT_LISTED, b.nr_leaves + 1)
        for block in range(nr_blocks):
            b.block_type[block] = MOVABLE
            if block < <uint64_t>of_blocks.shape[0] and of_blocks[block] < NR_TYPES:
                b.block_type[block] = of_blocks[block]
        for node in range(b.nr_leaves, b.nr_leaves + b.nr_zones * MOST_ORDERS * NR_TYPES):
            b.next[node] = b.previous[node] = node
        for leaf in range(b.nr_leaves):
            pfn = ((leaf + 1) << b.shift) - 1
            for zone in range(b.nr_zones):      # those that end in a leaf have its first part
                if b.zones[zone].start <= pfn:
                    b.zone[leaf] = zone
            b.zone_free[b.zone[leaf]] += b.free.count[leaf]
        return 0

    cdef int fill(self, blocks) except -1:
        """List the blocks, each behind those of its list before it; all that is whole must be in one of them."""
        cdef FreeBlocks *b = &self.b
        cdef const ListedBlock[::1] rows = blocks
        cdef uint64_t i, leaf, whole = 0, listed = 0
        for i in range(<uint64_t>rows.shape[0]):
            leaf = rows[i].pfn >> b.shift
            if not (b.shift <= <int>rows[i].order <= b.max_order and rows[i].migratetype < NR_TYPES and
                    is_block(&b.free, rows[i].pfn, rows[i].order) and block_around(b, leaf) == b.nr_leaves and
                    bits_set(b.free.words, rows[i].pfn, rows[i].order) == <uint64_t>1 << rows[i].order):
                raise BadPageError(f"PFN {rows[i].pfn}, order {rows[i].order}, migratetype {rows[i].migratetype} is on a"
                                   " free list of the snapshot, but is no block of free pages that is on no other")
            list_block(b, leaf, rows[i].order, rows[i].migratetype, True)
            listed += leaves_of(b, rows[i].order)
        for leaf in range(b.nr_leaves):
            whole += b.free.count[leaf] == <uint32_t>1 << b.shift
        if whole != listed:
            raise BadPageError(f"{whole} granules of order {b.shift} are free, but the free lists have {listed} of them")
        return 0

    def __dealloc__(self):
        free(self.b.free.words)
        free(self.b.free.count)
        free(self.b.zone_free)
        free(self.b.nr_free)
        free(self.b.next)
        free(self.b.previous)
        free(self.b.order)
        free(self.b.type)
        free(self.b.reported)
        free(self.b.zone)
        free(self.b.block_type)
        free(self.reports.rows)

    cdef object noted(self):
        """The reports, as bytes of `REPORT_DTYPE`."""
        cdef uint64_t nr_bytes = self.reports.nr_rows * sizeof(self.reports.rows[0])
        cdef uint8_t[::1] copy
        if self.reports.full:
            raise MemoryError(f"no memory for more than {self.reports.nr_rows} reports")
        rows = np.empty(nr_bytes, np.uint8)
        if nr_bytes:
            copy = rows
            memcpy(&copy[0], self.reports.rows, nr_bytes)
        return rows

    def listed(self):
        """Return the blocks on the lists now: (zone, order, migratetype, position, PFN, reported), from each one's front."""
        cdef FreeBlocks *b = &self.b
        cdef uint32_t zone, node, head
        cdef int order, type
        found = []
        for zone in range(b.nr_zones):
            for order in range(b.shift, b.max_order + 1):
                for type in range(NR_TYPES):
                    head = head_of(b, zone, order, type)
                    node, position = b.next[head], 0
                    while node != head:
                        found.append((zone, order, type, position, <uint64_t>node << b.shift, b.reported[node]))
                        node, position = b.next[node], position + 1
        return found

    cdef inline Change follow(self, uint32_t position, uint64_t *leaf, int *order) noexcept nogil:
        """Do what an operation says. GIVEN: a block begins at `leaf` now, unless `order` is NOT_LISTED."""
        cdef const OperationRow *row = &self.table[position]
        cdef int migratetype = row.migratetype if row.migratetype < NR_TYPES else NO_TYPE     # the pages move all the same
        cdef uint64_t pfn
        if row.op == OPERATION_TAKE or row.op == OPERATION_GIVE or row.op == OPERATION_SET_TYPE:
            self.b.doubtful += migratetype != row.migratetype
            if not is_block(&self.b.free, row.pfn, row.order):
                self.b.doubtful += 1
            elif row.op == OPERATION_TAKE:
                take_pages(&self.b, row.pfn, row.order, migratetype)
                return TAKEN
            elif row.op == OPERATION_GIVE:
                pfn = row.pfn
                while pfn < row.pfn + (<uint64_t>1 << row.order):       # no list has more than the largest order
                    leaf[0] = give_pages(&self.b, pfn, min(<int>row.order, self.b.max_order), order, migratetype)
                    pfn += <uint64_t>1 << min(<int>row.order, self.b.max_order)
                return GIVEN
            elif migratetype >= 0:
                set_type(&self.b, row.pfn, row.order, migratetype)
        return NOTHING

    cdef void until(self, uint32_t position) noexcept nogil:
        """Follow the operations before the beginning."""
        cdef uint32_t i
        cdef uint64_t leaf = 0
        cdef int order = 0
        for i in range(position):
            self.follow(i, &leaf, &order)

    cdef double closed_pages(self, int min_order, uint32_t capacity) noexcept nogil:
        """How many pages are in blocks of an order and more, of zones whose gate for so many blocks is closed."""
        cdef FreeBlocks *b = &self.b
        cdef uint32_t zone
        cdef int order
        cdef uint64_t pages = 0
        for zone in range(b.nr_zones):
            if b.zone_free[zone] <= b.zones[zone].watermark_low + (<uint64_t>capacity << min_order):
                for order in range(min_order, b.max_order + 1):
                    pages += nr_free_of(b, zone, order)[0] << order
        return pages

    cdef void recall_for(self, Worker *w, const OperationRow *row) noexcept nogil:
        """What an operation changes must not be out."""
        cdef uint64_t leaf = row.pfn >> self.b.shift
        if (row.op == OPERATION_TAKE or row.op == OPERATION_GIVE) and is_block(&self.b.free, row.pfn, row.order):
            recall(w, &self.b, leaf, leaf + leaves_of(&self.b, max(<int>row.order, self.b.shift)))

    def linux(self, uint32_t begin, int64_t begin_time, *, int min_order, uint32_t capacity, int64_t delay, int64_t wheel,
              int64_t phase, int64_t call_time, const uint32_t[::1] steps, const uint8_t[::1] begins):
        """Linux's free page reporting. `steps`: positions at which its worker moves, instead of by the clock."""
        cdef Worker w
        cdef bint by_clock = steps is None
        cdef uint32_t position, n = self.table.shape[0], next_step = 0
        cdef uint64_t leaf = 0
        cdef int order = 0
        cdef int64_t now = begin_time, time
        cdef double closed = 0
        if not 1 <= capacity <= MOST_CAPACITY or call_time < 0 or delay < 0 or wheel < 0:
            raise ValueError(f"capacity must be from 1 to {MOST_CAPACITY}, not {capacity}, and no time negative")
        if not self.b.shift <= min_order <= self.b.max_order:
            raise ValueError(f"order {min_order} cannot be reported from lists of {self.b.shift} to {self.b.max_order}")
        memset(&w, 0, sizeof(w))
        w.min_order = min_order
        w.capacity, w.delay, w.wheel, w.phase, w.call_time, w.due = capacity, delay, wheel, phase, call_time, INT64_MAX
        with nogil:
            self.until(begin)
            request(&w, begin_time)
            for position in range(begin, n):
                time = self.table[position].time
                while by_clock and w.due < time:
                    step(&w, &self.b, &self.reports, w.due, position)
                while not by_clock and next_step < steps.shape[0] and steps[next_step] <= position:
                    if w.progress != PASS_NONE:
                        step(&w, &self.b, &self.reports, time, position)
                    if begins[next_step]:
                        begin_pass(&w, &self.b, time)
                    next_step += 1
                if time > now:
                    closed += (time - now) * self.closed_pages(min_order, capacity)
                    now = time
                if w.nr_out:
                    self.recall_for(&w, &self.table[position])
                if self.follow(position, &leaf, &order) == GIVEN and order >= min_order:
                    request(&w, time)
        return self.noted(), {"passes": w.passes, "refused": w.refused, "gates_closed": w.gates_closed,
                              "recalled": w.recalled, "doubtful": self.b.doubtful, "gate_closed_page_ns": closed}

    def series_2019(self, uint32_t begin, *, uint32_t max_pages):
        """The 2019 series, v10, switched on at a position."""
        cdef Series2019 s
        cdef uint32_t position
        cdef uint64_t leaf = 0
        cdef int order = 0
        if not 1 <= max_pages <= MOST_BATCH:
            raise ValueError(f"max_pages must be from 1 to {MOST_BATCH}, not {max_pages}")
        bits, counts = np.zeros(self.b.nr_leaves + 1, np.uint8), np.zeros(self.b.nr_zones, np.uint64)
        cdef uint8_t[::1] of_leaf = bits
        cdef uint64_t[::1] of_zone = counts
        memset(&s, 0, sizeof(s))
        s.max_pages, s.bits, s.nr_bits = max_pages, &of_leaf[0], &of_zone[0]
        with nogil:
            self.until(begin)
            for position in range(begin, <uint32_t>self.table.shape[0]):
                if self.follow(position, &leaf, &order) == GIVEN and order != NOT_LISTED:
                    freed(&s, &self.b, &self.reports, leaf, self.table[position].time, position + 1)
        return self.noted(), {"refused": s.refused, "doubtful": self.b.doubtful}

    def threshold(self, uint32_t begin, int64_t begin_time, int64_t end_time, *, uint32_t max_pages, uint64_t threshold,
                  int64_t delay):
        """pagehint's rule without an age, switched on at a position."""
        cdef Threshold t
        cdef uint32_t position, zone, n = self.table.shape[0]
        hinted, counts, gates = (np.zeros(self.b.nr_leaves + 1, np.uint8), np.zeros(self.b.nr_zones, np.uint64),
                                 np.zeros(self.b.nr_zones, np.uint8))
        cdef uint8_t[::1] of_leaf = hinted, at_gate = gates
        cdef uint64_t[::1] of_zone = counts
        cdef uint64_t leaf
        if not 1 <= max_pages <= 1 << 20 or threshold < 1 or delay < 0:
            raise ValueError(f"max_pages and threshold must be positive, not {max_pages} and {threshold}")
        memset(&t, 0, sizeof(t))
        t.max_pages, t.threshold, t.delay, t.due = max_pages, threshold, delay, INT64_MAX
        t.hinted, t.nr_hints, t.at_gate = &of_leaf[0], &of_zone[0], &at_gate[0]
        with nogil:
            self.until(begin)
            for leaf in range(self.b.nr_leaves):
                if self.b.free.count[leaf] == <uint32_t>1 << self.b.shift:
                    hint_leaf(&t, &self.b, leaf)
            for zone in range(self.b.nr_zones):
                evaluate(&t, &self.b, &self.reports, zone, begin_time, begin)
            for position in range(begin, n):
                while t.due < self.table[position].time:
                    delay_is_over(&t, &self.b, &self.reports, t.due, position)
                self.threshold_step(&t, position)
            if t.due <= end_time:
                delay_is_over(&t, &self.b, &self.reports, t.due, n)
        return self.noted(), {"gates_closed": t.gates_closed, "doubtful": self.b.doubtful}

    cdef inline void threshold_step(self, Threshold *t, uint32_t position) noexcept nogil:
        """Follow an operation, and hint or forget its granules."""
        cdef const OperationRow *row = &self.table[position]
        cdef uint64_t leaf = 0, i, first
        cdef int order = 0
        cdef Change change = self.follow(position, &leaf, &order)
        if change == NOTHING:
            return
        first = row.pfn >> self.b.shift
        for i in range(first, first + leaves_of(&self.b, max(<int>row.order, self.b.shift))):
            if change == TAKEN:
                forget_leaf(t, &self.b, i)
            elif self.b.free.count[i] == <uint32_t>1 << self.b.shift:
                hint_leaf(t, &self.b, i)
        if change == GIVEN:
            evaluate(t, &self.b, &self.reports, self.b.zone[first], row.time, position + 1)
