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
    cdef bint linux_watermarks
    cdef readonly list offline          # for each zone its offline (start, end), sorted and disjoint
    cdef list grown                     # for each zone the holes that growing has left
    cdef object hotplug_lock
    cdef object __weakref__

    cdef int set_watermarks(self) except -1
    cdef add_page_sets(self, int i)
    cdef object place(self, uint64_t pfn, object what)
    cdef object refusal(self, int rc, uint64_t pfn, object what, uint64_t nr_pages=*)
    cdef object order_refusal(self, object order, object pfn)
    cdef int settle(self) except -1
    cdef tuple page_range(self, object pfn, object nr_pages)
    cdef tuple section_range(self, object pfn, object nr_pages)
    cdef PageZone *grow(self, uint64_t start, uint64_t end) except NULL
    cdef void lock_zone(self, PageZone *z) noexcept nogil
    cdef void unlock_zone(self, PageZone *z) noexcept nogil
    cdef void stop_the_world(self) noexcept nogil
    cdef void resume_the_world(self) noexcept nogil
