"""What the engine calls: Python callables, or a compiled function of the C signature in `pagehint.h`."""
from libc.stdint cimport uint8_t, uint64_t
from pagehint.hinting.batch cimport pagehint_block

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
