"""A replay, and the door to it: `replay.pyx`."""
from libc.stdint cimport int64_t, uint64_t
from pagehint.allocator.memory cimport Memory
from pagehint.hinting.engine cimport HintingEngine
from pagehint.traces.operations cimport NR_OPERATIONS, OperationRow
from pagehint.zone.trace cimport Round
from pagehint.zone.zone cimport PageZone

cdef enum:
    NR_CAUSES = 16              # `E_` codes, and TIME_FALLS
    EXAMPLES = 3                # operations that are kept of each cause

cdef struct Cause:              # why operations of one kind were refused
    uint64_t count
    uint64_t[EXAMPLES] first    # indices of the first of them

cdef class Replay:
    cdef Memory memory
    cdef HintingEngine engine
    cdef const OperationRow *rows
    cdef uint64_t n
    cdef uint64_t at            # operations that have been carried out, or refused
    cdef uint64_t told          # as `at`, when progress was told and signals were looked for last
    cdef PageZone *near         # the zone that is tried first
    cdef bint strict
    cdef bint driving           # the engine goes by the times of the operations
    cdef uint64_t thread        # that replays
    cdef uint64_t session       # of the engine
    cdef int64_t now            # nanoseconds: the time of the last operation
    cdef int64_t back_at        # nanoseconds: when the batch that is out comes back; NEVER: none is out
    cdef int64_t host_latency   # nanoseconds that a report takes, and
    cdef double host_rate       # bytes a second on top; 0: in no time
    # Why it stops before the end of the operations.
    cdef bint stopped
    cdef int refused            # the code of the operation `at`, if `strict`; else OK
    cdef object error           # what a signal handler or `progress` has raised
    cdef object progress        # a callable, or None
    # Which granules the host has been told of, and nobody has used since: a bit each, the zones one after the other.
    cdef object bitmap
    cdef uint64_t *reported
    cdef object words
    cdef const uint64_t *first_word     # of each zone; one more at the end
    # Counts.
    cdef uint64_t[NR_OPERATIONS] done
    cdef Cause[NR_OPERATIONS][NR_CAUSES] causes
    cdef uint64_t wrong_pages
    cdef uint64_t unmodelled
    cdef uint64_t passes
    cdef uint64_t reports
    cdef uint64_t blocks_reported
    cdef uint64_t pages_reported
    cdef uint64_t pages_again
    cdef uint64_t blocks_failed
    cdef uint64_t waits
    cdef int64_t waited         # nanoseconds
    cdef int64_t longest_wait

    cdef object run(self)
    cdef int begin(self) except -1
    cdef void end(self)
    cdef int go(self) except -1
    cdef int64_t next_time(self) noexcept nogil
    cdef void to_next_pass(self) noexcept nogil
    cdef void carry_out(self, int64_t stop) noexcept nogil
    cdef int take(self, Round *r, const OperationRow *op) noexcept nogil
    cdef int take_from_batch(self, PageZone *z, uint64_t page, int order) noexcept nogil
    cdef int give(self, Round *r, const OperationRow *op) noexcept nogil
    cdef int seldom(self, Round *r, const OperationRow *op) noexcept nogil
    cdef int set_type(self, Round *r, const OperationRow *op) noexcept nogil
    cdef int compare(self, Round *r, const OperationRow *op) noexcept nogil
    cdef void refuse(self, const OperationRow *op, uint64_t index, int rc) noexcept nogil
    cdef uint64_t pages_out(self, const PageZone *z, uint64_t page, uint64_t end) noexcept nogil
    cdef void wait_for_host(self) noexcept nogil
    cdef uint64_t note_report(self) noexcept nogil
    cdef uint64_t mark(self, const PageZone *z, uint64_t page, int order, bint value) noexcept nogil
    cdef void look_up(self) noexcept nogil
    cdef object refused_operation(self)
    cdef str cause(self, int kind, int rc)
    cdef object replayed(self)

cdef object replay(Memory memory, HintingEngine engine, object operations, bint strict, object host_latency,
                   object host_rate, object progress)
