"""The calls that a pass makes, no lock held: `report.pyx`."""
from libc.stdint cimport uint64_t
from pagehint.hinting.batch cimport Batch
from pagehint.hinting.callbacks cimport PageHintingCallbacks
from pagehint.hinting.queue cimport WorkQueue

cdef class Reporter:
    cdef PageHintingCallbacks callbacks     # None while hinting is off
    cdef WorkQueue *queue
    cdef Batch *batch
    cdef tuple specs                        # of the zones, for their names
    cdef object last_error
    cdef dict interrupts                    # by thread: what a callback raised on a caller's, to be raised there again
    cdef bint interrupted                   # the pass that is on, by such
    cdef bint burst_logged
    cdef bint no_prepare                    # so that the GIL is not taken for nothing
    cdef bint no_cleanup

    cdef void set_callbacks(self, PageHintingCallbacks callbacks)
    cdef bint prepare(self) noexcept nogil
    cdef bint report(self, uint64_t n, uint64_t session) noexcept nogil
    cdef void call_hint_pages(self, uint64_t n, uint64_t session) noexcept
    cdef void refused_blocks(self, uint64_t n, uint64_t lost, int rc) noexcept
    cdef void cleanup(self) noexcept nogil
    cdef void failure(self, object error) noexcept
