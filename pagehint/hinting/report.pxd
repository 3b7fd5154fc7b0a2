"""The calls that a pass makes to the callbacks, with no lock held: `report.pyx`."""
from libc.stdint cimport uint64_t
from pagehint.hinting.batch cimport Batch
from pagehint.hinting.callbacks cimport PageHintingCallbacks
from pagehint.hinting.queue cimport WorkQueue
from pagehint.zone.zone cimport PageZone

cdef class Reporter:
    # Protected by the GIL, where not said otherwise.
    cdef PageHintingCallbacks callbacks     # None while hinting is off; changed while no pass is on
    cdef object clock                       # what time is read from, or None for the monotonic clock
    cdef WorkQueue *queue                   # the memory's, as the next two are
    cdef Batch *batch                       # what is being reported
    cdef tuple specs                        # of the zones, for their names in messages
    cdef object last_error                  # of a callback or the injected clock, in this session; or None
    cdef dict interrupts                    # by thread: a KeyboardInterrupt, say, that its pass is to raise at its end
    cdef bint interrupted                   # the pass that is on is cut short by one; read without the GIL
    cdef bint burst_logged                  # a failure has been logged, and no pass has been clean since
    cdef bint no_prepare                    # there is no such callback, so the GIL need not be taken
    cdef bint no_cleanup
    cdef bint cannot_say                    # there is no `is_dropped`

    cdef void set_callbacks(self, PageHintingCallbacks callbacks)
    cdef bint prepare(self) noexcept nogil
    cdef bint report(self, uint64_t n, uint64_t session) noexcept nogil
    cdef void call_hint_pages(self, uint64_t n, uint64_t session) noexcept
    cdef void refused_blocks(self, uint64_t n, uint64_t lost, int rc) noexcept
    cdef void cleanup(self) noexcept nogil
    cdef bint ask(self, PageZone *z, uint64_t session) noexcept nogil
    cdef uint64_t call_is_dropped(self, PageZone *z, uint64_t first, uint64_t *back, uint64_t n, uint64_t session,
                                  bint *known) noexcept
    cdef void failure(self, object error, str what=*) noexcept
