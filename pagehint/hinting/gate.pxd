"""The gate: how much memory must be free before any of it goes out for reporting."""
from libc.stdint cimport uint64_t
from pagehint.zone.watermark cimport WMARK_LOW
from pagehint.zone.zone cimport PageZone


cdef inline uint64_t report_gate(const PageZone *z, uint64_t max_pages) noexcept nogil:
    """Free pages below which nothing is reported: a full batch must be able to leave without anybody noticing."""
    return z.watermark[WMARK_LOW] + (max_pages << z.min_order)
