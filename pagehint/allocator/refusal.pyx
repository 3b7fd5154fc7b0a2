# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""The errors of refused calls, in words: each names the page, the order or number of pages, the zone, and why."""
from libc.stdint cimport uint64_t
from pagehint.allocator.memory cimport Memory
from pagehint.numbers cimport as_pfn
from pagehint.sync.lock cimport lock_acquire, lock_release
from pagehint.zone.buddy cimport NOT_FREE, free_block_around
from pagehint.zone.page_alloc cimport find_zone
from pagehint.zone.status cimport (E_ABSENT, E_ALIGN, E_BUSY, E_FREE, E_INSIDE, E_ISOLATE, E_NO_ZONE, E_SIZE, E_TWICE,
                                   E_WITHHELD)
from pagehint.zone.zone cimport PageZone

from pagehint import errors
from pagehint.sizes import shown

WHY = {
    E_NO_ZONE: "was outside every zone, before this one grew",
    E_ABSENT: "was absent, before it came online",
    E_ALIGN: "not aligned to the order",
    E_FREE: "already free (a double free?)",
    E_WITHHELD: "already free, and in a per-CPU page set or out for reporting; or twice in one call",
    E_SIZE: "allocated, but not as one block of this size (wrong order?)",
    E_INSIDE: "inside an allocated block, not its first page",
    E_BUSY: "not all free",
    E_ISOLATE: "in a pageblock of migratetype isolate",
    E_TWICE: "overlaps another run of the same call",
}


cdef object place(Memory memory, uint64_t pfn, object what):
    """A page and its zone in words; `what` is the order or the number of pages."""
    cdef PageZone *z = find_zone(&memory.m, pfn)
    if z == NULL:
        return f"PFN {pfn:#x} ({what}, outside every zone)"
    spec = memory.specs[z.index]
    return f"PFN {pfn:#x} ({what}, zone {spec.name}, node {spec.node})"


cdef object refusal(Memory memory, int rc, uint64_t pfn, object what, uint64_t nr_pages=1):
    """The error for a call about `nr_pages` pages from `pfn` on that returned `rc`, an `E_` code.

    The page may have changed since: then the words say what it was.
    """
    cdef PageZone *z = find_zone(&memory.m, pfn)
    cdef uint64_t head = 0
    cdef int order
    where = place(memory, pfn, what)
    if z == NULL:
        return errors.BadPageError(f"{where}; nothing was changed")
    why = memory.absence(pfn, nr_pages)
    if why is None:
        with nogil:
            lock_acquire(&z.lock, True)
            order = free_block_around(z, pfn - z.base_pfn, 0, &head)
            lock_release(&z.lock)
        why = WHY[E_FREE if rc == E_INSIDE and order != NOT_FREE else rc]
    return errors.BadPageError(f"{where}: {why}; nothing was changed")


cdef object order_refusal(Memory memory, object order, object pfn):
    """The error for an order that is out of range; `pfn` is the page that it was asked for, or None."""
    order = shown(order)
    if pfn is None:
        zones = ", ".join([f"{spec.name} (node {spec.node})" for spec in memory.specs])
        where = f"order {order} (zones {zones})"
    else:
        where = place(memory, as_pfn(pfn), f"order {order}")
    return errors.BadPageError(
        f"{where}: orders are from 0 to {memory.max_page_order} (max_page_order); nothing was changed"
    )
