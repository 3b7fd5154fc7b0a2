"""What an allocator that is built from a snapshot has of the snapshot beside what is free."""
cimport numpy as cnp
from pagehint.allocator.memory cimport Memory

cdef int restore_migratetypes(Memory memory, cnp.ndarray migratetypes) except -1
cdef int restore_watermarks(Memory memory, tuple watermarks, cnp.ndarray reserves) except -1
