"""The zones of a machine, as compiled code may use them: allocate and free without the GIL on ``memory.m``."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint64_t
from pagehint.allocator.fork cimport ForkRecord
from pagehint.hinting.batch cimport Batch
from pagehint.hinting.queue cimport WorkQueue
from pagehint.zone.page_alloc cimport Machine
from pagehint.zone.zone cimport PageZone

cdef struct Absent:                     # of a zone, lists of (start, end), or NULL for none; counted once
    PyObject *offline
    PyObject *grown

cdef class Memory:
    cdef Machine m
    cdef WorkQueue queue                # the engine's
    cdef readonly tuple specs
    cdef readonly int page_size
    cdef readonly int max_page_order
    cdef readonly int min_order
    cdef readonly tuple watermarks
    cdef bint linux_watermarks
    cdef bint of_arena                  # there is nothing behind its last page
    cdef Absent *absent
    cdef object hotplug_lock
    cdef uint64_t hotplug_forks         # forks before the lock was made
    cdef Batch batch                    # the engine's; out of these zones
    cdef ForkRecord fork_record
    cdef object __weakref__

    cdef int set_watermarks(self) except -1
    cdef add_page_sets(self, int i)
    cdef int settle(self) except -1
    cdef void begin_last_resort(self) noexcept nogil
    cdef void end_last_resort(self) noexcept nogil
    cdef tuple page_range(self, object pfn, object nr_pages)
    cdef tuple section_range(self, object pfn, object nr_pages)
    cdef bint try_offline(self, object pfn, object nr_pages, bint settled) except -1
    cdef list ranges(self, PyObject *known)
    cdef runs(self, PageZone *z, start, end, grown)
    cdef appear(self, PageZone *z, start, end)
    cdef PageZone *grow(self, uint64_t start, uint64_t end) except NULL
    cdef object hotplug(self)
