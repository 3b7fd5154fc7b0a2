"""What compiled code may use of pagehint.

Allocate and free without the GIL on ``memory.m`` with the functions of `pagehint._machine` and `pagehint._bulk`.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from pagehint._engine cimport Engine
from pagehint._isolate cimport pagehint_block
from pagehint._machine cimport Machine
from pagehint._zone cimport PageZone

cdef extern from "pagehint.h":
    ctypedef int (*pagehint_hint_fn)(const pagehint_block *blocks, size_t n, uint8_t *failed, void *user_data) noexcept nogil
    const char *PAGEHINT_HINT_SIGNATURE

cdef class PageHintingCallbacks:
    cdef readonly object hint_pages
    cdef readonly object prepare
    cdef readonly object cleanup
    cdef uint64_t most
    cdef pagehint_hint_fn compiled
    cdef void *user_data

    cdef const char *capsule_name(self, object capsule) except NULL

cdef class Memory:
    cdef Machine m
    cdef readonly tuple specs
    cdef readonly int page_size
    cdef readonly int max_page_order
    cdef readonly int min_order
    cdef readonly tuple watermarks
    cdef readonly list offline          # for each zone its offline (start, end), sorted and disjoint
    cdef list grown                     # for each zone the holes that growing has left
    cdef object hotplug_lock
    # The engine's Python side.
    cdef object enable_lock
    cdef PageHintingCallbacks callbacks
    cdef object clock
    cdef object thread
    cdef readonly object last_error
    cdef bint burst_logged
    cdef object interrupt               # raised by a callback on a caller's thread, to be raised again there
    # The batch that is out; in the structure so that a forked child can put it back.
    cdef pagehint_block *blocks
    cdef uint8_t *failed
    cdef uint64_t room
    cdef uint64_t batch
    cdef PageZone *batch_zone
    cdef object __weakref__

    cdef bint interrupted
    cdef bint abandoned
    cdef bint no_prepare
    cdef bint no_cleanup
    cdef int64_t clock_read

    cdef add_page_sets(self, int i)
    cdef object refusal(self, int rc, uint64_t pfn, object what)
    cdef int settle(self) except -1
    cdef tuple section_range(self, object pfn, object nr_pages)
    cdef PageZone *grow(self, uint64_t start, uint64_t end) except NULL
    cdef void lock_zone(self, PageZone *z) noexcept nogil
    cdef void unlock_zone(self, PageZone *z) noexcept nogil
    cdef uint64_t grow_batch(self, uint64_t most) noexcept nogil
    cdef void run(self, bint everything) noexcept nogil
    cdef bint run_zone(self, PageZone *z, bint *prepared) noexcept nogil
    cdef bint gate(self, PageZone *z, uint64_t most) noexcept nogil
    cdef bint report(self, uint64_t n) noexcept nogil
    cdef void refused_blocks(self, uint64_t n, uint64_t lost, int rc) noexcept
    cdef void call_hint_pages(self, uint64_t n) noexcept
    cdef bint call_prepare(self) noexcept nogil
    cdef void call_cleanup(self) noexcept nogil
    cdef void failure(self, object error) noexcept
    cdef int64_t now(self) noexcept nogil
    cdef int64_t read_clock(self) noexcept
    cdef void stamp(self) noexcept
    cdef void work(self) noexcept nogil
    cdef bint overdue(self, int64_t now) noexcept nogil
    cdef bint reporting(self) noexcept nogil
    cdef int refuse_callback(self, str what) except -1
    cdef int claim(self) except -1
    cdef int await_worker(self) except -1
    cdef int run_manually(self, bint everything) except -1
    cdef void hook_zone(self, PageZone *z, bint mark_free) noexcept nogil
    cdef void request_stop(self) noexcept nogil
    cdef void unhook_zone(self, PageZone *z) noexcept nogil
    cdef void stop_the_world(self) noexcept nogil
    cdef void resume_the_world(self) noexcept nogil

cdef class Zone:
    cdef Memory memory
    cdef PageZone *z
    cdef object spec

    @staticmethod
    cdef Zone of(Memory memory, int index)
    cdef object reserve(self, int preferred)
    cdef object pageblock_types(self)

cdef class PageAllocator:
    cdef readonly Memory memory
    cdef tuple zone_objects

    cdef int preferred(self, object zone) except -1
    cdef int out_of_memory(self, object what) except -1
