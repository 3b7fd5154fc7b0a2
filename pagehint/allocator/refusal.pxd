"""The errors of refused calls: `refusal.pyx`."""
from libc.stdint cimport uint64_t
from pagehint.allocator.memory cimport Memory

cdef object refusal(Memory memory, int rc, uint64_t pfn, object what, uint64_t nr_pages=*)
cdef object order_refusal(Memory memory, object order, object pfn)
