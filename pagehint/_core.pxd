"""What compiled code may use of pagehint.

Allocate and free without the GIL on ``memory.m`` with the functions of `pagehint._machine` and `pagehint._bulk`.
"""
from libc.stdint cimport uint64_t
cimport numpy as cnp
from pagehint._callbacks cimport PAGEHINT_HINT_SIGNATURE, PageHintingCallbacks, pagehint_hint_fn
from pagehint._engine cimport Engine
from pagehint._hinting cimport HintingEngine
from pagehint._isolate cimport pagehint_block
from pagehint._machine cimport Machine
from pagehint._memory cimport Memory
from pagehint._zone cimport PageZone

cdef class Zone:
    cdef Memory memory
    cdef PageZone *z
    cdef object spec

    @staticmethod
    cdef Zone of(Memory memory, int index)
    cdef object reserve(self, int preferred)
    cdef object pageblock_types(self)

cdef class PageAllocator:
    cdef readonly Memory memory
    cdef HintingEngine engine
    cdef tuple zone_objects
    cdef bint marked                    # everything free was hinted when hinting was last enabled

    cdef int zone_index(self, object zone) except -1
    cdef int out_of_memory(self, object what) except -1
    cdef int refuse_op(self, int rc, uint64_t index, cnp.ndarray trace, cnp.ndarray table) except -1
