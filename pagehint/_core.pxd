"""What compiled code may use of pagehint: allocate and free without the GIL. See `tests/whole/test_compiled.py`.

1. ``from pagehint cimport PageAllocator, machine_alloc, machine_free, MT_MOVABLE, OK, WAIT``; compile with the flags
   of pagehint's own setup.py, NumPy's and `pagehint.get_include()`'s directories, against the version that will run.
2. ``cdef Machine *m = &pages.memory.m``, valid as long as something refers to ``pages``, or to ``pages.memory``.
3. In ``nogil`` code: ``machine_alloc(m, m.default_zone, order, MT_MOVABLE, WAIT, &pfn)`` and ``machine_free(m, pfn,
order,
   WAIT)``, or the bulk calls. They return OK, or an ``E_`` code of `pagehint/zone/status.pxd` having changed nothing.
4. Unlike the methods they check no argument but what is freed: orders, types and zones must be in range.
5. E_NOMEM may mean that pages are in page sets or out for reporting; `PageAllocator.alloc_pages` then collects them.
"""
from libc.stdint cimport uint64_t
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
    cdef Memory memory
    cdef PageZone *z
    cdef object spec

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
