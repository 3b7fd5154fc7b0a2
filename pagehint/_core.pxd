"""The C interface: compiled code allocates and frees without the GIL. `tests/whole/test_compiled.py` has an example.

1. Write ``from pagehint cimport PageAllocator, machine_alloc, machine_free, MT_MOVABLE, OK, WAIT``. Compile with the
   flags of pagehint's own setup.py and the include directories of NumPy and `pagehint.get_include()`, against the
   version of pagehint that will run.
2. Take ``cdef Machine *m = &pages.memory.m``. It is valid while there is a reference to ``pages`` or ``pages.memory``.
3. In ``nogil`` code call ``machine_alloc(m, m.default_zone, order, MT_MOVABLE, WAIT, &pfn)`` and ``machine_free(m, pfn,
   order, WAIT)``, or the bulk calls. They return OK, or an ``E_`` code of `pagehint/zone/status.pxd` and have changed
   nothing.
4. Keep orders, migratetypes and zones in range. Unlike the methods, these calls check only what is freed.
5. E_NOMEM may mean that the pages are in page sets or out with the host. `PageAllocator.alloc_pages` brings them back.
"""
from libc.stdint cimport int64_t, uint64_t
cimport numpy as cnp
from pagehint.allocator.memory cimport Memory
from pagehint.hinting.batch cimport pagehint_block
from pagehint.hinting.callbacks cimport PAGEHINT_HINT_SIGNATURE, PageHintingCallbacks, pagehint_hint_fn
from pagehint.hinting.engine cimport HintingEngine
from pagehint.zone.bulk cimport machine_alloc_bulk, machine_free_bulk
from pagehint.zone.page_alloc cimport How, Machine, WAIT, machine_alloc, machine_free
from pagehint.zone.status cimport E_ABSENT, E_ALIGN, E_FREE, E_INSIDE, E_NOMEM, E_NO_ZONE, E_SIZE, E_WITHHELD, OK
from pagehint.zone.zone cimport MT_MOVABLE, MT_RECLAIMABLE, MT_UNMOVABLE, PageZone

cdef class Zone:
    cdef Memory memory                  # keeps `z` alive
    cdef PageZone *z
    cdef object spec                    # its ZoneSpec

    cdef object reserve(self, int preferred)
    cdef object pageblock_types(self)

cdef class PageAllocator:
    cdef readonly Memory memory
    cdef HintingEngine engine
    cdef tuple zone_objects             # a Zone for each zone, by address
    cdef bint marked                    # what was free when hinting was last enabled has been hinted then

    cdef int zone_index(self, object zone) except -1
    cdef object regret(self)
    cdef int set_break_even(self, int64_t nanoseconds) except -1
    cdef int out_of_memory(self, object what) except -1
    cdef int check_runs(self, cnp.ndarray starts, cnp.ndarray counts, int order, object places) except -1
    cdef object refuse_run(self, int rc, cnp.ndarray starts, cnp.ndarray counts, uint64_t bad, int order, object places)
    cdef int refuse_op(self, int rc, uint64_t index, cnp.ndarray trace, cnp.ndarray table) except -1
