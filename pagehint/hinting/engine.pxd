"""The hinting engine of a machine: it runs passes, on a worker thread or on callers: `engine.pyx`."""
from libc.stdint cimport int64_t, uint64_t
from pagehint.hinting.age cimport Ripe
from pagehint.hinting.batch cimport Batch
from pagehint.hinting.callbacks cimport PageHintingCallbacks
from pagehint.hinting.queue cimport Setting, Settings, WorkQueue
from pagehint.hinting.report cimport Reporter
from pagehint.zone.page_alloc cimport Machine
from pagehint.zone.zone cimport PageZone

ctypedef void (*host_fn)(void *owner) noexcept nogil
ctypedef void (*beside_fn)() noexcept nogil

# Called with each worker that is started, a forked child's above all, with its queue's mutex held; or NULL.
cdef beside_fn beside_workers

cdef class HintingEngine:
    cdef readonly object memory         # keeps the zones alive while the worker uses them
    cdef Machine *m                     # the memory's, as the next two are
    cdef WorkQueue *queue
    cdef Batch *batch
    cdef Reporter reporter              # makes the calls of a pass
    # While a replay drives this engine: called after each report with the batch out, until the modelled host is done with
    # it; may put blocks of the batch back earlier. NULL, or set while no pass is on.
    cdef host_fn host
    cdef void *host_owner               # what it is called with
    # Protected by the queue's mutex.
    cdef bint abandoned                 # the allocator is gone, so the worker lets go of the engine as it ends
    cdef object __weakref__

    cdef int enable(self, PageHintingCallbacks callbacks, const Settings *settings, bint mark_free, object clock) except -1
    cdef uint64_t begin_session(self) except 0
    cdef int start_worker(self) except -1
    cdef void publish(self, const Settings *settings, bint mark_free) noexcept nogil
    cdef void hook_zone(self, PageZone *z, bint mark_free) noexcept nogil
    cdef int change(self, Setting setting, int64_t value) except -1
    cdef void after_change(self) noexcept nogil
    cdef int tick(self) except -1
    cdef int64_t now(self) except? -1
    cdef int64_t now_in_pass(self) noexcept nogil
    cdef void work(self) noexcept nogil
    cdef int refuse_callback(self, str what) except -1
    cdef int pass_manually(self, bint flush) except -1
    cdef int claim_pass(self, bint flush, int64_t now, bint *everything) noexcept nogil
    cdef bint run_pass(self, bint everything, bint flush) noexcept nogil
    cdef bint goes_on(self, uint64_t session) noexcept nogil
    cdef bint look_at_zone(self, PageZone *z, uint64_t session, bint flush, bint *prepared) noexcept nogil
    cdef bint report_batch(self, PageZone *z, uint64_t session, uint64_t *cursor, Ripe *ripe, bint *open) noexcept nogil
    cdef uint64_t isolate(self, PageZone *z, uint64_t *cursor, uint64_t most, Ripe *ripe) noexcept nogil
    cdef void switch_off(self) noexcept nogil

cdef HintingEngine hinting_engine(object memory, Machine *m, WorkQueue *queue, Batch *batch)
cdef int start_worker(void *engine) noexcept nogil
