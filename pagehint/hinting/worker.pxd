"""The hinting engine of a memory: its callbacks, its worker, and the batch that is out."""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from pagehint.allocator.memory cimport Memory
from pagehint.hinting.age cimport Ripe
from pagehint.hinting.batch cimport Batch
from pagehint.hinting.callbacks cimport PageHintingCallbacks
from pagehint.zone.page_alloc cimport Machine
from pagehint.zone.zone cimport PageZone

cdef class HintingEngine:
    cdef readonly Memory memory         # keeps the zones while the worker is in them
    cdef Machine *m                     # the memory's
    cdef PageHintingCallbacks callbacks
    cdef object clock
    cdef object thread
    cdef readonly object last_error
    cdef dict interrupts                # by thread, what a callback has raised on a caller's, to be raised again there
    cdef bint interrupted               # the run that is on, by such
    cdef bint burst_logged
    cdef bint abandoned
    cdef bint no_prepare
    cdef bint no_cleanup
    cdef Batch *batch                   # the memory's, too
    cdef object __weakref__

    cdef void hook_zone(self, PageZone *z, bint mark_free) noexcept nogil
    cdef int tick(self) except -1
    cdef int64_t now(self) except? -1
    cdef int64_t now_in_run(self) noexcept nogil
    cdef void work(self, uint64_t session) noexcept nogil
    cdef bint overdue(self, int64_t now) noexcept nogil
    cdef bint reporting(self) noexcept nogil
    cdef int refuse_callback(self, str what) except -1
    cdef int run_manually(self, bint flush) except -1
    cdef bint run(self, bint everything, bint flush) noexcept nogil
    cdef bint goes_on(self, uint64_t session) noexcept nogil
    cdef bint run_zone(self, PageZone *z, uint64_t session, bint flush, bint *prepared) noexcept nogil
    cdef uint64_t isolate(self, PageZone *z, uint64_t *cursor, uint64_t most, Ripe *ripe) noexcept nogil
    cdef void looked(self, PageZone *z, int64_t now, int64_t oldest, bint whole) noexcept nogil
    cdef void look_later(self, PageZone *z) noexcept nogil
    cdef void rest(self, PageZone *z) noexcept nogil
    cdef bint gate(self, PageZone *z, uint64_t most) noexcept nogil
    cdef uint64_t grow_batch(self, uint64_t most) noexcept nogil
    cdef bint call_prepare(self) noexcept nogil
    cdef bint report(self, uint64_t n, uint64_t session) noexcept nogil
    cdef void call_hint_pages(self, uint64_t n, uint64_t session) noexcept
    cdef void refused_blocks(self, uint64_t n, uint64_t lost, int rc) noexcept
    cdef void call_cleanup(self) noexcept nogil
    cdef void failure(self, object error) noexcept
    cdef void switch_off(self) noexcept nogil
