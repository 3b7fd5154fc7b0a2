"""Watermarks: how far requests may go."""
from libc.stdint cimport uint64_t
from pagehint.sync.atomic cimport likely, peek64
from pagehint.zone.zone cimport PageZone, usable_free_pages

cdef enum:
    WMARK_MIN = 0
    WMARK_LOW = 1
    WMARK_HIGH = 2


cdef inline bint may_take(const PageZone *z, uint64_t pages, uint64_t reserve) noexcept nogil:
    """Whether `pages` may be taken and min, with the lowmem reserve, still be kept. Zone lock held, or about right."""
    cdef uint64_t least = pages + peek64(&z.watermark[WMARK_MIN]) + reserve
    return peek64(&z.free_pages) >= least and (likely(peek64(&z.isolate_pageblocks) == 0) or usable_free_pages(z) >= least)


cdef inline uint64_t spare_pages(const PageZone *z, uint64_t reserve) noexcept nogil:
    """How many pages may be taken. Zone lock held."""
    cdef uint64_t usable = usable_free_pages(z), keep = z.watermark[WMARK_MIN] + reserve
    return usable - keep if usable > keep else 0
