"""The gate: a zone with less free memory than this reports nothing, as in Linux's free page reporting (5.7).

A batch takes memory out of circulation while it is reported. So before one leaves, the zone must have as many granules
free, beside its low watermark, as the batch may have blocks. A batch of single granules leaves the watermark whole. One
of larger blocks may take the zone below it, until the blocks are back.

In a small zone a batch has fewer blocks, or the gate would be higher than the zone, and never open.
"""
from libc.stdint cimport uint64_t
from pagehint.hinting.hinted_zone cimport hints_of
from pagehint.hinting.queue cimport WorkQueue
from pagehint.sync.atomic cimport RELAXED, store_i32
from pagehint.zone.watermark cimport WMARK_LOW
from pagehint.zone.zone cimport PageZone, usable_free_pages


cdef inline uint64_t zone_batch(const PageZone *z, uint64_t max_pages) noexcept nogil:
    """Blocks of a batch of this zone: `max_pages`, but no more granules than an eighth of its memory, and at least one."""
    return min(max_pages, max(z.managed_pages >> (z.min_order + 3), <uint64_t>1))


cdef inline uint64_t report_gate(const PageZone *z, uint64_t max_pages) noexcept nogil:
    """Usable free pages that the zone needs: its low watermark, and a granule for each block of a batch.

    None if it can grow by so many: then memory is not short.
    """
    cdef uint64_t pages = z.watermark[WMARK_LOW] + (zone_batch(z, max_pages) << z.min_order)
    return pages if pages > z.growable_pages else 0


cdef inline bint gate_is_open(PageZone *z, const WorkQueue *q, uint64_t max_pages) noexcept nogil:
    """Whether a batch of so many blocks may go out. If not, the zone tells the queue when it may. Zone lock held."""
    cdef bint open = usable_free_pages(z) >= report_gate(z, max_pages)
    store_i32(&hints_of(z).at_gate, not open, RELAXED)
    if open:
        return True
    hints_of(z).counters.isolation_refused += 1
    # By the setting, not by `max_pages`, which may be older: a thread that changes it looks at this zone after that.
    z.notify_at = report_gate(z, q.max_pages)
    return False
