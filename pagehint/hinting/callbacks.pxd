"""The callbacks of a session: Python callables, or a compiled function with the C signature in `pagehint.h`."""
from libc.stdint cimport uint8_t, uint64_t
from pagehint.hinting.batch cimport pagehint_block

cdef extern from "pagehint.h":
    ctypedef int (*pagehint_hint_fn)(const pagehint_block *blocks, size_t n, uint8_t *failed, void *user_data) noexcept nogil
    const char *PAGEHINT_HINT_SIGNATURE

cdef class PageHintingCallbacks:
    # Set when it is made, and not changed.
    cdef readonly object hint_pages     # as given: a callable, a capsule, or a LowLevelCallable
    cdef readonly object prepare        # a callable, or None
    cdef readonly object cleanup        # a callable, or None
    cdef readonly object is_dropped     # a callable, or None
    cdef uint64_t most                  # blocks in a batch, at most: `max_pages`
    cdef pagehint_hint_fn compiled      # what the capsule holds; NULL for a Python callable
    cdef void *user_data                # the capsule's context, passed on to `compiled`
    cdef bint of_system                 # `compiled` asks the kernel, which may refuse for good: that is said once

    cdef const char *capsule_name(self, object capsule) except NULL
