"""What hotplug does to one zone, under its lock, and to the lists that say where a zone has no memory."""
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport uint64_t
from pagehint.hinting.hinted_zone cimport hints_of
from pagehint.hinting.limit cimport zone_excess
from pagehint.hinting.watch cimport evaluate
from pagehint.sync.lock cimport lock_acquire
from pagehint.zone.extents cimport extents_rebuild
from pagehint.zone.hook cimport zone_unlock
from pagehint.zone.migratetype cimport granule_pageblocks, retype
from pagehint.zone.page_sets.page_set cimport sets_hold, sets_let_go
from pagehint.zone.run cimport first_not_free, run_appear, run_vanish
from pagehint.zone.status cimport E_BUSY, OK
from pagehint.zone.zone cimport PageZone


# A list of ranges changes together with its zone, under the zone lock, so that a fork finds both changed or neither. No
# GIL is held there, so the change is a swap of two pointers, which changes no reference count. Readers have the GIL,
# and find the one list or the other.
cdef struct Change:
    PyObject **place            # of the list in use
    PyObject *other             # the new list; after the swap, the old one


cdef inline Change change(PyObject **place, list new):
    """Prepare a change; `swap` and `finish` follow."""
    cdef Change c
    Py_INCREF(new)
    c.place = place
    c.other = <PyObject *> new
    return c


cdef inline void swap(Change *c) noexcept nogil:
    """Make the change. Zone lock held."""
    c.place[0], c.other = c.other, c.place[0]


cdef inline void finish(Change *c):
    """Release the list that is not in use."""
    Py_XDECREF(c.other)


cdef inline int zone_offline(PageZone *z, int nr_cpus, bint settled, const uint64_t *ranges, size_t n, Change *offline,
                             uint64_t *busy) noexcept nogil:
    """Make `n` runs absent, all or none; if none, E_BUSY, and `busy` is a page that is not free. O(pages / 64).

    `ranges` are pairs of pages relative to the zone's base. If `settled`, the page sets are emptied and locked, so that
    none is filled from these runs meanwhile.
    """
    cdef size_t k
    cdef int rc = OK
    if settled:
        sets_hold(z, nr_cpus, True)
    lock_acquire(&z.lock, True)
    for k in range(n):
        busy[0] = first_not_free(z, ranges[2 * k], ranges[2 * k + 1])
        if busy[0] != ranges[2 * k + 1]:
            rc = E_BUSY
            break
    else:
        for k in range(n):
            run_vanish(z, ranges[2 * k], ranges[2 * k + 1])
        zone_excess(z)          # the hook said it when the pages were taken, and not yet absent
        swap(offline)
    zone_unlock(z)
    if settled:
        sets_let_go(z, nr_cpus)
    return rc


cdef inline void zone_online(PageZone *z, const uint64_t *ranges, size_t n, Change *offline,
                             Change *grown) noexcept nogil:
    """Make `n` runs present and free, the last one first, so that the free lists begin with low addresses."""
    cdef size_t k
    lock_acquire(&z.lock, True)
    for k in range(n, 0, -1):
        run_appear(z, ranges[2 * k - 2], ranges[2 * k - 1])
    zone_excess(z)
    swap(offline)
    swap(grown)
    zone_unlock(z)


cdef inline void zone_retype(PageZone *z, uint64_t block, uint64_t end, int mt) noexcept nogil:
    """Give the pageblocks from `block` to `end` a migratetype, 64 or a granule's in a lock round.

    A granule changes as a whole, since its bit stands for all of it.
    """
    cdef uint64_t chunk, step = max(<uint64_t>64, granule_pageblocks(z))
    while block < end:
        chunk = min((block // step + 1) * step, end)
        lock_acquire(&z.lock, True)
        while block < chunk:
            retype(z, block, mt)
            block += 1
        if z.extents != NULL:
            extents_rebuild(z)
        # What was in isolate pageblocks may be reported now.
        hints_of(z).look_at = 0
        evaluate(z)
        zone_unlock(z)
