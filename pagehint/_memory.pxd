"""The zones of a machine, as compiled code may use them: allocate and free without the GIL on ``memory.m``."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint64_t
from pagehint._machine cimport Machine
from pagehint._zone cimport PageZone

cdef struct Absent:                     # of a zone, lists of (start, end), or NULL for none; counted once
    PyObject *offline
    PyObject *grown

cdef class Memory:
    cdef Machine m
    cdef readonly tuple specs
    cdef readonly int page_size
    cdef readonly int max_page_order
    cdef readonly int min_order
    cdef readonly tuple watermarks
    cdef Absent *absent
    cdef object hotplug_lock
    cdef object __weakref__

    cdef add_page_sets(self, int i)
    cdef object refusal(self, int rc, uint64_t pfn, object what)
    cdef int settle(self) except -1
    cdef tuple section_range(self, object pfn, object nr_pages)
    cdef bint try_offline(self, object pfn, object nr_pages, bint settled) except -1
    cdef list ranges(self, PyObject *known)
    cdef runs(self, PageZone *z, start, end)
    cdef appear(self, PageZone *z, start, end, list left)
    cdef PageZone *grow(self, uint64_t start, uint64_t end) except NULL
    cdef void lock_zone(self, PageZone *z) noexcept nogil
    cdef void unlock_zone(self, PageZone *z) noexcept nogil
    cdef void stop_the_world(self) noexcept nogil
    cdef void resume_the_world(self) noexcept nogil
