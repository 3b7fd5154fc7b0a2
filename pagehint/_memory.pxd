"""The zones of a machine, as compiled code may use them: allocate and free without the GIL on ``memory.m``."""
from libc.stdint cimport uint64_t
from pagehint._machine cimport Machine
from pagehint._zone cimport PageZone

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
    cdef object __weakref__

    cdef add_page_sets(self, int i)
    cdef object refusal(self, int rc, uint64_t pfn, object what)
    cdef int settle(self) except -1
    cdef tuple section_range(self, object pfn, object nr_pages)
    cdef bint try_offline(self, object pfn, object nr_pages, bint settled) except -1
    cdef PageZone *grow(self, uint64_t start, uint64_t end) except NULL
    cdef void lock_zone(self, PageZone *z) noexcept nogil
    cdef void unlock_zone(self, PageZone *z) noexcept nogil
    cdef void stop_the_world(self) noexcept nogil
    cdef void resume_the_world(self) noexcept nogil
