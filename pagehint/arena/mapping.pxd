"""A mapping: `arena/mapping.pyx`."""
from libc.stdint cimport uint64_t
from pagehint.allocator.memory cimport Memory
from pagehint.arena.huge_pages cimport HugePages
from pagehint.arena.madvise cimport Returned
from pagehint.arena.opening cimport Opening
from pagehint.arena.populate cimport Populator

cdef class Mapping:
    cdef object __weakref__
    cdef char *base
    cdef readonly size_t nr_bytes
    cdef readonly size_t page_size
    cdef readonly bint hugepages
    cdef readonly size_t live_arrays
    cdef readonly bint open         # arrays may be made; it changes, as their number does, only with the GIL
    cdef bint discarded
    cdef bint of_file
    cdef Opening opening            # what of it is open
    cdef HugePages huge_pages       # which granules get them
    cdef bint placed                # it is in none of the kernel's places
    cdef Memory memory              # its zone knows which granules are zero; or None
    cdef Populator *populator       # the process's, or NULL if this is not populated ahead
    cdef uint64_t populated         # bytes
    cdef Returned returned          # what the reporting function has given back

    cdef int open_first(self) except -1
    cdef char *place(self)
    cdef size_t lengths_bytes(self)
