"""Watermarks: how many usable free pages an allocation must leave in a zone, namely the min watermark and the reserve.

The reserve (Linux: lowmem reserve) is what a zone keeps from requests that prefer another zone.
"""
from libc.stdint cimport uint64_t
from pagehint.sync.atomic cimport likely, peek64
from pagehint.zone.zone cimport PageZone, usable_free_pages

cdef enum:                      # indices of `PageZone.watermark`
    WMARK_MIN = 0
    WMARK_LOW = 1
    WMARK_HIGH = 2


cdef inline bint may_take(const PageZone *z, uint64_t pages, uint64_t reserve) noexcept nogil:
    """Whether `pages` may be taken. Exact with the zone lock held, else but for what other threads are changing."""
    cdef uint64_t least = pages + peek64(&z.watermark[WMARK_MIN]) + reserve
    return peek64(&z.free_pages) >= least and (likely(peek64(&z.isolate_pageblocks) == 0) or usable_free_pages(z) >= least)


cdef inline uint64_t spare_pages(const PageZone *z, uint64_t reserve) noexcept nogil:
    """How many pages may be taken, at most. Zone lock held."""
    cdef uint64_t usable = usable_free_pages(z), keep = z.watermark[WMARK_MIN] + reserve
    return usable - keep if usable > keep else 0
