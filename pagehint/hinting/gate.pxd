"""The gate: a zone with less free memory than this reports nothing, as in Linux's free page reporting (5.7).

A batch takes memory out of circulation while it is reported. So a full one must be able to leave without the zone
falling under its low watermark.
"""
from libc.stdint cimport uint64_t
from pagehint.zone.watermark cimport WMARK_LOW
from pagehint.zone.zone cimport PageZone


cdef inline uint64_t report_gate(const PageZone *z, uint64_t max_pages) noexcept nogil:
    """Usable free pages that the zone needs: its low watermark, and a batch of `max_pages` granules."""
    return z.watermark[WMARK_LOW] + (max_pages << z.min_order)
