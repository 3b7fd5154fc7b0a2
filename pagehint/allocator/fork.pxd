"""The list of all memories of the process, which a fork stops: `fork.pyx`."""
from libc.stdint cimport uint64_t
from pagehint.hinting.batch cimport Batch
from pagehint.hinting.queue cimport WorkQueue
from pagehint.zone.page_alloc cimport Machine
from pagehint.zone.zone cimport PageZone

cdef struct ForkRecord:         # one `Memory`; the list is protected by a lock of its own
    Machine *m                  # the memory's, as the next two are
    WorkQueue *queue
    Batch *batch
    ForkRecord *prev
    ForkRecord *next

ctypedef void (*memory_fn)(Machine *m, WorkQueue *queue) noexcept nogil

cdef void fork_record_add(ForkRecord *r) noexcept nogil
cdef void fork_record_remove(ForkRecord *r) noexcept nogil
cdef uint64_t forks_so_far() noexcept nogil
cdef void zone_stop(PageZone *z, int nr_cpus) noexcept nogil
cdef void zone_resume(PageZone *z, int nr_cpus) noexcept nogil
cdef void each_memory(memory_fn visit) noexcept nogil
