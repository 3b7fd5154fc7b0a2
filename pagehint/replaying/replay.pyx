# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""A replay: the operations of a recording carried out at their PFNs, with hinting by the recording's clock.

The clock of the engine stands at the time of the operation that is carried out. A pass is run before the first operation
whose time is not before the one at which it is due, and on this thread. So the outcome does not depend on how fast the
replay is, and is that of the same calls one by one.

A report may take time, by a model of the host. Then the replay goes on inside the report: the batch stays out, and
operations are carried out, until the first one at which the host would be done. What is taken meanwhile from the blocks
that are out waits for the end of the report. As the recording's times are what they are, it is taken at once, and the
wait is counted.
"""
import numpy as np

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint64_t
from pagehint.allocator.arguments cimport as_duration
from pagehint.allocator.memory cimport Memory
from pagehint.allocator.refusal cimport refusal
from pagehint.hinting.batch cimport Batch, put_back
from pagehint.hinting.bitmap cimport granules_of
from pagehint.hinting.engine cimport HintingEngine
from pagehint.hinting.hinted_zone cimport hints_of
from pagehint.hinting.queue cimport WorkQueue, queue_now, queue_set_time
from pagehint.hinting.timed cimport drive, due_at, run_due
from pagehint.hinting.watch cimport evaluate
from pagehint.sync.atomic cimport likely, unlikely
from pagehint.sync.clock cimport NEVER, SECOND
from pagehint.sync.lock cimport thread_id
from pagehint.traces.operations cimport (NR_OPERATIONS, OPERATION_GIVE, OPERATION_ISOLATE, OPERATION_LOST,
                                         OPERATION_MARK, OPERATION_SET_TYPE, OPERATION_TAKE, OperationRow)
from pagehint.zone.hook cimport must_notify
from pagehint.zone.migratetype cimport granule_pageblocks, retype
from pagehint.zone.page_alloc cimport Machine, zone_take_at
from pagehint.zone.status cimport (E_ABSENT, E_ALIGN, E_BUSY, E_FREE, E_INSIDE, E_ISOLATE, E_NO_ZONE, E_SIZE, E_SLOT,
                                   OK)
from pagehint.zone.trace cimport Round, free_pages_in, op_prefetch, round_at, round_end, round_use, zone_give
from pagehint.zone.zone cimport MT_ISOLATE, MT_RECLAIMABLE, MT_UNMOVABLE, PAGEBLOCK_ORDER, PageZone

from pagehint import errors
from pagehint.sizes import parse_size

cnp.import_array()

cdef int64_t MOST_TIME = 4000000000 * <int64_t>SECOND       # with delays and ages on top it must have 63 bits

cdef enum:
    AHEAD = 8                   # how many operations ahead to prefetch
    CHUNK = 4096                # operations after which the queue is looked at in any case: others may free, too
    LOOK_UP = 1 << 17           # operations after which progress is told and signals are looked for: some milliseconds
    CLOCK_ERROR = 1000          # nanoseconds by which a clock in seconds may be later than the first operation

cdef enum:                      # a cause beside the `E_` codes
    TIME_FALLS = 15             # the time is before that of the operation before; it is carried out all the same

WHY = {
    E_NO_ZONE: "outside every zone",
    E_ABSENT: "of pages without memory",
    E_ALIGN: "not aligned to the order",
    E_FREE: "of what is free",
    E_BUSY: "of what is in use",
    E_ISOLATE: "in a pageblock of type isolate",
    E_SIZE: "of a part of a run",
    E_SLOT: "of an order out of range",
}
WHY_NONE = {E_SLOT: "unknown operation", TIME_FALLS: "time falls"}      # where the kind does not matter


cdef object replay(Memory memory, HintingEngine engine, object operations, bint strict, object host_latency,
                   object host_rate, object progress):
    """As `PageAllocator.replay`."""
    from pagehint.replaying.progress import progress_bar
    cdef Replay self = Replay.__new__(Replay)
    cdef cnp.ndarray table = as_table(operations)
    if progress is not None and progress is not True and not callable(progress):
        raise TypeError(f"progress must be callable, True or None, not {type(progress).__name__}")
    if host_latency is None:
        raise TypeError("host_latency must be a number of seconds, not None")
    self.memory, self.engine = memory, engine
    self.host_latency = as_duration(host_latency, "host_latency")
    self.host_rate = 0 if host_rate is None else min(parse_size(host_rate), 1 << 62)
    self.rows, self.n = <const OperationRow *> table.data, <uint64_t>table.shape[0]
    self.strict = strict
    if progress is not True:
        self.progress = progress
        return self.run()
    with progress_bar() as self.progress:
        return self.run()


cdef cnp.ndarray as_table(object operations):
    """The rows of operations, contiguous and aligned. They are not copied: each is, before it is looked at."""
    from pagehint.traces.operations import OPERATION_DTYPE
    table = np.asanyarray(getattr(operations, "table", operations))
    if table.dtype != OPERATION_DTYPE or table.ndim != 1:
        raise TypeError(
            "operations must be a pagehint.traces.Operations, or a one-dimensional array of OPERATION_DTYPE,"
            f" not {table.dtype} of shape {table.shape}"
        )
    table = np.ascontiguousarray(table)
    return table if table.ctypes.data % sizeof(uint64_t) == 0 else table.copy()


cdef class Replay:
    """One replay, on one thread."""

    cdef object run(self):
        """Carry out all operations; raise what stops it, with `index`: how many had been carried out."""
        self.begin()
        try:
            self.go()
            if self.error is not None:
                raise self.error
        except BaseException as error:
            error.index = self.at
            error.add_note(f"replay: {self.at} of {self.n} operations were carried out")
            raise
        finally:
            self.end()
        if self.refused != OK:
            error = self.refused_operation()
            error.index = self.at
            raise error
        if self.progress is not None:
            self.progress(self.n, self.n)
        return self.replayed()

    cdef int begin(self) except -1:
        """Refuse what cannot be replayed on; have the engine go by the operations' times if hinting is on."""
        cdef Machine *m = &self.memory.m
        cdef int i
        for i in range(m.nr_zones):
            if m.zones[i].pcp != NULL:
                raise errors.PageHintError(
                    "a replay says itself where each page is, so there must be no page sets: PageAllocator(pcp=False)"
                )
            if m.zones[i].extents != NULL:
                raise errors.PageHintError("a replay frees what others have allocated, so it is not for an arena's pages")
        self.near = m.zones[0]
        self.thread = thread_id()
        self.now = self.rows[0].time if self.n else INT64_MIN
        self.back_at = NEVER
        if not self.engine.queue.enabled:
            return 0
        words = np.cumsum([0] + [m.zones[i].nr_granules // 64 + 1 for i in range(m.nr_zones)]).astype(np.uint64)
        self.bitmap, self.words = np.zeros(words[m.nr_zones], np.uint64), words
        self.reported = <uint64_t *> (<cnp.ndarray> self.bitmap).data
        self.first_word = <const uint64_t *> (<cnp.ndarray> self.words).data
        if self.engine.reporter.clock is not None:
            raise errors.PageHintError("replay sets the time: enable hinting with clock=<seconds>, and not with a callable")
        drive(self.engine, "replay")
        self.session = self.engine.queue.session
        self.passes = self.engine.queue.work_runs
        self.driving = True
        if self.n and self.now + CLOCK_ERROR < queue_now(self.engine.queue):
            self.end()
            raise ValueError(
                f"the operations begin at {self.now / <double>SECOND} s, and it is"
                f" {queue_now(self.engine.queue) / <double>SECOND} s already by the clock that hinting was enabled with"
            )
        self.now = min(self.now, queue_now(self.engine.queue))
        self.engine.host_owner = <void *> self
        self.engine.host = host_works
        return 0

    cdef void end(self):
        """Let go of the engine."""
        if self.driving:
            self.engine.host = NULL
            self.engine.queue.driven = False
            self.passes = self.engine.queue.work_runs - self.passes

    # -- the operations

    cdef int go(self) except -1:
        """Carry out operations and run passes by turns, up to the end, or a reason to stop."""
        cdef uint64_t at
        while self.at < self.n and not self.stopped:
            at = self.at
            if self.driving:
                run_due(self.engine, self.next_time())
            if self.at == at:       # else it went on inside a report, and something else may be due first
                with nogil:
                    self.to_next_pass()
        if self.driving and not self.stopped:
            run_due(self.engine, self.now)
        return 0

    cdef int64_t next_time(self) noexcept nogil:
        """At which time the next operation is carried out. Time neither falls nor runs over."""
        return min(max(self.rows[self.at].time, self.now), MOST_TIME)

    cdef void to_next_pass(self) noexcept nogil:
        """Carry out operations, one or more, until a pass is due, to the end, or to a reason to stop."""
        cdef int64_t stop = due_at(self.engine.queue) if self.driving else INT64_MAX
        while True:
            self.carry_out(stop)
            if self.at - self.told >= LOOK_UP:
                self.look_up()
            if self.at == self.n or self.stopped:
                break
            if self.driving:
                stop = due_at(self.engine.queue)
                if self.next_time() >= stop:
                    break

    cdef void carry_out(self, int64_t stop) noexcept nogil:
        """Carry out operations, one or more and at most CHUNK, up to the first one at the time `stop` or later.

        Also up to one that is refused, if that is to stop the replay, or after which a zone has something to tell the
        queue. But while a batch is out nothing else is to be looked for.
        """
        cdef const OperationRow *rows = self.rows
        cdef uint64_t i = self.at, end = min(self.n, i + CHUNK)
        cdef OperationRow op
        cdef Round r
        cdef int rc
        r.zone = NULL
        r.left = 0
        while True:
            op = rows[i]
            if i + AHEAD < self.n:
                op_prefetch(self.near, rows[i + AHEAD].pfn)
            if unlikely(op.time < self.now):
                self.refuse(&op, i, TIME_FALLS)
                if self.stopped:
                    break
            elif op.time > self.now:
                self.now = min(op.time, MOST_TIME)
                if self.driving:
                    queue_set_time(self.engine.queue, self.now)
            if op.op == OPERATION_TAKE and 0 <= op.order <= self.memory.max_page_order:
                rc = self.take(&r, &op)
            elif op.op == OPERATION_GIVE and 0 <= op.order <= self.memory.max_page_order:
                rc = self.give(&r, &op)
            else:
                rc = self.seldom(&r, &op)
            if likely(rc == OK):
                self.done[op.op] += 1
            else:
                self.refuse(&op, i, rc)
                if self.stopped:
                    break
            i += 1
            if i == end or max(rows[i].time, self.now) >= stop:
                break
            if r.zone != NULL and unlikely(must_notify(r.zone)):
                round_end(&r)
                if self.back_at == NEVER:
                    break
        round_end(&r)
        self.at = i

    cdef int take(self, Round *r, const OperationRow *op) noexcept nogil:
        """A block leaves the free lists."""
        cdef int rc = round_at(&self.memory.m, r, &self.near, op.pfn, <uint64_t>1 << op.order)
        cdef uint64_t page
        if unlikely(rc != OK):
            return rc
        page = op.pfn - self.near.base_pfn
        rc = zone_take_at(self.near, page, op.order)
        if unlikely(rc == E_BUSY) and self.back_at != NEVER:
            rc = self.take_from_batch(self.near, page, op.order)
        if rc == OK and self.driving:
            self.mark(self.near, page, op.order, False)
        return rc

    cdef int take_from_batch(self, PageZone *z, uint64_t page, int order) noexcept nogil:
        """As `take`, if all that is missing is out with the host: blocks of it are put back early, and the wait counted.

        Zone lock held. O(blocks of the batch * max_page_order).
        """
        cdef Batch *batch = self.engine.batch
        cdef uint64_t end = page + (<uint64_t>1 << order), i = 0, first
        cdef int64_t wait = self.back_at - self.now
        if free_pages_in(z, page, end) + self.pages_out(z, page, end) != end - page:
            return E_BUSY
        while i < batch.n:
            first = batch.blocks[i].pfn - z.base_pfn
            if first < end and page < first + (<uint64_t>1 << batch.blocks[i].order):
                put_back(z, &batch.blocks[i], 1, &batch.failed[i])
                batch.n -= 1
                batch.blocks[i], batch.failed[i] = batch.blocks[batch.n], batch.failed[batch.n]
            else:
                i += 1
        self.waits += 1
        self.waited += wait
        self.longest_wait = max(self.longest_wait, wait)
        return zone_take_at(z, page, order)

    cdef int give(self, Round *r, const OperationRow *op) noexcept nogil:
        """Pages come to the free lists."""
        cdef int rc = round_at(&self.memory.m, r, &self.near, op.pfn, <uint64_t>1 << op.order)
        cdef uint64_t page, end
        if unlikely(rc != OK):
            return rc
        page = op.pfn - self.near.base_pfn
        rc = zone_give(self.near, page, op.order)
        if unlikely(rc != OK and rc != E_ALIGN):
            # What kept them from being free need not be the first page, by which `zone_give` says why.
            end = page + (<uint64_t>1 << op.order)
            if free_pages_in(self.near, page, end) + self.pages_out(self.near, page, end):
                return E_FREE
            return E_SIZE if rc == E_SIZE or rc == E_INSIDE else E_ABSENT
        return rc

    cdef int seldom(self, Round *r, const OperationRow *op) noexcept nogil:
        """An operation of another kind, or one that is none."""
        if op.op == OPERATION_MARK or op.op == OPERATION_LOST:
            return OK
        if op.op < OPERATION_TAKE or op.op >= NR_OPERATIONS:
            return E_SLOT
        if not 0 <= op.order <= self.memory.max_page_order:
            return E_SLOT
        if op.op == OPERATION_SET_TYPE:
            return self.set_type(r, op)
        return self.compare(r, op) if op.op == OPERATION_ISOLATE else OK

    cdef int set_type(self, Round *r, const OperationRow *op) noexcept nogil:
        """Pageblocks get another migratetype; those of a granule together, as its bit stands for all of it."""
        cdef int rc = round_at(&self.memory.m, r, &self.near, op.pfn, 1)
        cdef PageZone *z = self.near
        cdef uint64_t unit, block, end, nr_blocks
        cdef bint was_isolate
        if rc != OK:
            return rc
        if not MT_UNMOVABLE <= op.migratetype <= MT_RECLAIMABLE:
            self.unmodelled += 1
            return OK
        unit = granule_pageblocks(z)
        nr_blocks = (z.end_pfn - z.base_pfn + (1 << PAGEBLOCK_ORDER) - 1) >> PAGEBLOCK_ORDER
        block = (op.pfn - z.base_pfn) >> PAGEBLOCK_ORDER
        end = (op.pfn + (<uint64_t>1 << op.order) - 1 - z.base_pfn) >> PAGEBLOCK_ORDER
        block, end = block // unit * unit, min((end // unit + 1) * unit, nr_blocks)
        while block < end:
            round_use(r, z)
            was_isolate = z.types[block] == MT_ISOLATE
            retype(z, block, op.migratetype)
            if was_isolate:             # what was in it may be reported now
                hints_of(z).look_at = 0
                evaluate(z)
            block += 1
        return OK

    cdef int compare(self, Round *r, const OperationRow *op) noexcept nogil:
        """The kernel's own reporting has taken a block: it was free there, so it must be free here."""
        cdef uint64_t page, end, in_use
        cdef int rc = round_at(&self.memory.m, r, &self.near, op.pfn, <uint64_t>1 << op.order)
        if rc != OK:
            return rc
        page = op.pfn - self.near.base_pfn
        end = page + (<uint64_t>1 << op.order)
        in_use = end - page - free_pages_in(self.near, page, end) - self.pages_out(self.near, page, end)
        self.wrong_pages += in_use
        return E_BUSY if in_use else OK

    cdef void refuse(self, const OperationRow *op, uint64_t index, int rc) noexcept nogil:
        """Count an operation that contradicts what is here, or stop at it."""
        cdef int kind = op.op if op.op < NR_OPERATIONS and rc != TIME_FALLS else 0
        cdef Cause *cause = &self.causes[kind][rc]
        if cause.count < EXAMPLES:
            cause.first[cause.count] = index
        cause.count += 1
        if self.strict:
            self.refused = rc
            self.stopped = True

    # -- the host

    cdef uint64_t pages_out(self, const PageZone *z, uint64_t page, uint64_t end) noexcept nogil:
        """Pages from `page` to `end` that are out with the host. Zone lock held. O(blocks of the batch)."""
        cdef const Batch *batch = self.engine.batch
        cdef uint64_t n = 0, i, first, last
        if self.back_at == NEVER or batch.zone != z:
            return 0
        for i in range(batch.n):
            first = max(batch.blocks[i].pfn - z.base_pfn, page)
            last = min(batch.blocks[i].pfn - z.base_pfn + (<uint64_t>1 << batch.blocks[i].order), end)
            n += last - first if last > first else 0
        return n

    cdef void wait_for_host(self) noexcept nogil:
        """A batch has been reported: carry out the operations up to the time at which the host is done with it.

        At the end of the operations, or if there is a reason to stop, it comes back at once.
        """
        cdef WorkQueue *q = self.engine.queue
        cdef double nr_bytes = <double>(self.note_report() * <uint64_t>self.memory.page_size)
        cdef int64_t takes = self.host_latency
        if self.host_rate:
            takes += <int64_t>(nr_bytes * SECOND / self.host_rate)
        if takes == 0:
            return
        self.back_at = queue_now(q) + takes
        while self.at < self.n and not self.stopped and not q.stopping and self.next_time() < self.back_at:
            self.carry_out(self.back_at)
            if self.at - self.told >= LOOK_UP:
                self.look_up()
        if self.at < self.n and not self.stopped:
            queue_set_time(q, self.back_at)
            self.now = max(self.now, self.back_at)
        self.back_at = NEVER

    cdef uint64_t note_report(self) noexcept nogil:
        """Count the report of the batch that is out; returns its pages."""
        cdef const Batch *batch = self.engine.batch
        cdef uint64_t i, pages = 0, nr_pages
        self.reports += 1
        for i in range(batch.n):
            nr_pages = <uint64_t>1 << batch.blocks[i].order
            pages += nr_pages
            if batch.failed[i]:
                self.blocks_failed += 1
                continue
            self.blocks_reported += 1
            self.pages_reported += nr_pages
            self.pages_again += self.mark(batch.zone, batch.blocks[i].pfn - batch.zone.base_pfn, batch.blocks[i].order,
                                          True) << batch.zone.min_order
        return pages

    cdef uint64_t mark(self, const PageZone *z, uint64_t page, int order, bint value) noexcept nogil:
        """Note of a block's granules whether they have been reported and not used since; return how many had been."""
        cdef uint64_t *words = self.reported + self.first_word[z.index]
        cdef uint64_t granule = page >> z.min_order, end = granule + granules_of(z, order), n = 0, bit
        # A zone may have grown since the replay began.
        end = min(end, (self.first_word[z.index + 1] - self.first_word[z.index]) << 6)
        while granule < end:
            bit = <uint64_t>1 << (granule & 63)
            n += words[granule >> 6] & bit != 0
            words[granule >> 6] = words[granule >> 6] | bit if value else words[granule >> 6] & ~bit
            granule += 1
        return n

    # -- what others hear of it

    cdef void look_up(self) noexcept nogil:
        """Tell progress, and look for signals. What is raised stops the replay; so does a fork, in the child."""
        self.told = self.at
        with gil:
            try:
                PyErr_CheckSignals()
                if self.progress is not None:
                    self.progress(self.at, self.n)
                if self.driving and self.engine.queue.session != self.session:
                    raise errors.HintingInactiveError("replay: hinting was disabled, or this is a forked child")
            except BaseException as error:
                self.error = error
                self.stopped = True

    cdef object refused_operation(self):
        """The error of the operation that has stopped a strict replay."""
        cdef OperationRow op = self.rows[self.at]
        what = f"operation {self.at}, row {op.row}, {op.time / <double>SECOND:.6f} s, order {op.order}"
        if self.refused in (TIME_FALLS, E_SLOT, E_SIZE) or (self.refused == E_BUSY and op.op == OPERATION_ISOLATE):
            why = self.cause(op.op, self.refused)
            return errors.BadPageError(f"PFN {op.pfn:#x} ({what}): {why}; nothing was changed")
        return refusal(self.memory, self.refused, op.pfn, what, <uint64_t>1 << op.order)

    cdef str cause(self, int kind, int rc):
        """A cause in words."""
        from pagehint.traces.operations import Operation
        if rc == TIME_FALLS or not OPERATION_TAKE <= kind < NR_OPERATIONS:
            return WHY_NONE[rc]
        return f"{Operation(kind).name.lower()} {WHY[rc]}"

    cdef object replayed(self):
        """What has come of it."""
        from pagehint.replaying.replayed import Replayed
        from pagehint.traces.operations import Contradiction, Operation
        cdef int kind, rc
        cdef uint64_t i
        cdef OperationRow op
        contradictions, examples = {}, {}
        for kind in range(NR_OPERATIONS):
            for rc in range(NR_CAUSES):
                if self.causes[kind][rc].count == 0:
                    continue
                cause = self.cause(kind, rc)
                contradictions[cause] = self.causes[kind][rc].count
                first = []
                for i in range(min(self.causes[kind][rc].count, <uint64_t>EXAMPLES)):
                    op = self.rows[self.causes[kind][rc].first[i]]
                    first.append(Contradiction(op.row, op.time, op.pfn, op.order))
                examples[cause] = tuple(first)
        page = self.memory.page_size
        return Replayed(
            operations=self.n, counts={each.name.lower(): self.done[each] for each in Operation},
            contradictions=contradictions, examples=examples, wrong_pages_at_reports=self.wrong_pages,
            unmodelled_types=self.unmodelled, passes=self.passes, reports=self.reports,
            blocks_reported=self.blocks_reported, bytes_reported=self.pages_reported * page,
            bytes_again=self.pages_again * page, blocks_failed=self.blocks_failed, waits=self.waits,
            wait_seconds=self.waited / <double>SECOND, longest_wait_seconds=self.longest_wait / <double>SECOND,
        )


cdef void host_works(void *owner) noexcept nogil:
    """`HintingEngine.host`: a report takes its time if it is this replay's. A flush of another thread's does not."""
    if thread_id() == (<Replay> owner).thread:
        (<Replay> owner).wait_for_host()
