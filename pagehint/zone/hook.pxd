"""The hook: how a zone tells one watcher above it what happens to free memory, without knowing what the watcher does.

The hook is three function pointers in `PageZone`, called with the zone lock held:
* `freed`, when a freed block has become part of a free block of order `freed_from` or more;
* `broken`, when a block is taken for use from a free block of order `broken_from` or more;
Both are told the order of that free block. And
* `notify`, in place of releasing the lock, if at least `notify_at` usable pages are free; it releases the lock.

They are called out of line, so what they do takes no registers from the code around. With no watcher (both orders are
NO_ORDER, `notify_at` is INT64_MAX) each costs one branch that is never taken.

A zone with extents (`extents.pxd`) has the first two call its own functions for every block, which pass on what the
watcher wants. Runs tell the extents themselves, of all their pages at once, and then only the watcher (`tell_`).
"""
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from pagehint.sync.atomic cimport ctz64, unlikely
from pagehint.sync.lock cimport lock_release
from pagehint.zone.buddy cimport Taken
from pagehint.zone.zone cimport LEAF_SHIFT, PageZone, hook_fn, usable_free_pages


cdef inline void notice_freed(PageZone *z, uint64_t page, int order, int merged) noexcept nogil:
    """A block was freed and has become part of a free block of order `merged`. Zone lock held.

    The watcher is told of the freed block only, since the rest of the merged block was free before.
    """
    if merged >= z.freed_from:
        z.freed(z, page, order, merged)


cdef inline void notice_broken(PageZone *z, uint64_t page, int order, int source) noexcept nogil:
    """A block is being taken for use from a free block of order `source`. Zone lock held."""
    if source >= z.broken_from:
        z.broken(z, page, order, source)


cdef inline void tell_freed(PageZone *z, uint64_t page, int order, int merged) noexcept nogil:
    """As `notice_freed`, to the watcher only: the extents are told of the whole run. Zone lock held."""
    if z.extents == NULL:
        notice_freed(z, page, order, merged)
    elif merged >= z.extents.freed_from:
        z.extents.freed(z, page, order, merged)


cdef inline void tell_broken(PageZone *z, uint64_t page, int order, int source) noexcept nogil:
    """As `notice_broken`, to the watcher only: the extents are told of the whole run. Zone lock held."""
    if z.extents == NULL:
        notice_broken(z, page, order, source)
    elif source >= z.extents.broken_from:
        z.extents.broken(z, page, order, source)


cdef inline void watch_freed_by(PageZone *z, hook_fn freed, int order) noexcept nogil:
    """Have the watcher's function called from free blocks of this order on. Zone lock held, or the zone is new."""
    if z.extents == NULL:
        z.freed = freed
        z.freed_from = order
    else:
        z.extents.freed = freed
        z.extents.freed_from = order


cdef inline void watch_broken_by(PageZone *z, hook_fn broken, int order) noexcept nogil:
    """As `watch_freed_by`, for blocks that are taken for use."""
    if z.extents == NULL:
        z.broken = broken
        z.broken_from = order
    else:
        z.extents.broken = broken
        z.extents.broken_from = order


cdef inline int *watched_from(PageZone *z) noexcept nogil:
    """From which order on the watcher is told of frees; an arena that grows sets it aside, as its new pages get no hints."""
    return &z.freed_from if z.extents == NULL else &z.extents.freed_from


cdef inline void notice_broken_many(PageZone *z, const Taken *taken, int order) noexcept nogil:
    """As `notice_broken`, for what one step of a bulk allocation took. Zone lock held.

    Whole leaves are told as one block; so is the leaf that small blocks were taken from, if no granule is smaller and
    the zone has no extents.
    """
    cdef uint64_t page = taken.leaf << LEAF_SHIFT, starts = taken.starts
    if taken.source < z.broken_from:
        return
    if taken.nr_leaves > 1 or (z.min_order >= LEAF_SHIFT and z.extents == NULL):
        z.broken(z, page, LEAF_SHIFT + ctz64(taken.nr_leaves), taken.source)
        return
    while starts:
        z.broken(z, page | ctz64(starts), order, taken.source)
        starts &= starts - 1


cdef inline bint must_notify(const PageZone *z) noexcept nogil:
    """Whether `notify` is to be called now. Zone lock held."""
    return z.notify_at != INT64_MAX and <int64_t>usable_free_pages(z) >= z.notify_at


cdef inline void zone_unlock(PageZone *z) noexcept nogil:
    """Release the zone lock, by way of `notify` if that is to be called."""
    if unlikely(must_notify(z)):
        z.notify(z)
    else:
        lock_release(&z.lock)
