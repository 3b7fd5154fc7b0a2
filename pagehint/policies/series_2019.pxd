"""The page hinting series of 2019, v10, with the faults of its design that a recording can show.

A bitmap has a bit for each 2 MiB. Its rules, from the published patches:

- A free whose merged block has the granule's order or more sets the bit of that block's *first* granule. With
  `max_pages` bits in a zone, and at every further free then, the work is queued; it runs at once.
- The scan walks the bits by address. If the block there begins with that granule, all of it is isolated, else the bit
  goes for nothing; `max_pages` blocks at a time are reported and put back, with no hint.

So these are here: what is free when hinting begins is never reported; nor is the remainder below the threshold; an
allocation leaves its bit set, so the count is of what may be free; a split loses the hint of the other half; one page
freed reports the whole block of 4 MiB again; a refused isolation eats the hint.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pagehint.policies.free_blocks cimport (NOT_LISTED, BlockZone, FreeBlocks, end_of_zone, free_block, next_marked,
                                            type_of_pages, unlist_block)
from pagehint.policies.report_buffer cimport ReportBuffer, note_report

cdef enum:
    MOST_BATCH = 1024

cdef struct Series2019:
    uint32_t max_pages          # blocks of a report, and bits of a zone that start the work
    uint8_t *bits               # by leaf
    uint64_t *nr_bits           # by zone
    uint64_t out[MOST_BATCH]
    int out_order[MOST_BATCH]
    uint32_t nr_out
    uint64_t refused


cdef inline void report_batch(Series2019 *s, FreeBlocks *b, ReportBuffer *r, int64_t now, uint32_t position) noexcept nogil:
    """The host is told of what is out, and it comes back with no hint."""
    cdef uint64_t leaf
    cdef uint32_t i
    for i in range(s.nr_out):
        leaf = s.out[i]
        note_report(r, now, position, leaf << b.shift, s.out_order[i])
        b.zone_free[b.zone[leaf]] += <uint64_t>1 << s.out_order[i]
        free_block(b, &leaf, s.out_order[i], type_of_pages(b, leaf), False)
    r.nr_calls += s.nr_out > 0
    s.nr_out = 0


cdef inline void try_to_isolate(Series2019 *s, FreeBlocks *b, uint64_t leaf) noexcept nogil:
    """Take the block that begins at a leaf, if one does, and the zone does not fall to its min watermark."""
    cdef const BlockZone *zone = b.zones + b.zone[leaf]
    cdef uint64_t pages
    if b.order[leaf] == NOT_LISTED or type_of_pages(b, leaf) == b.isolate_type:
        return
    pages = <uint64_t>1 << b.order[leaf]
    if b.zone_free[b.zone[leaf]] <= zone.watermark_min + pages:
        s.refused += 1
        return
    s.out[s.nr_out], s.out_order[s.nr_out] = leaf, b.order[leaf]
    s.nr_out += 1
    b.zone_free[b.zone[leaf]] -= pages
    unlist_block(b, leaf)


cdef inline void scan(Series2019 *s, FreeBlocks *b, ReportBuffer *r, uint32_t zone, int64_t now,
                      uint32_t position) noexcept nogil:
    """Report the blocks that begin at set bits of a zone, and clear all of them."""
    cdef uint64_t end = end_of_zone(b, zone), leaf = next_marked(s.bits, b.zones[zone].start >> b.shift, end)
    while leaf < end:
        if b.zone[leaf] == zone:
            s.bits[leaf] = False
            s.nr_bits[zone] -= 1
            try_to_isolate(s, b, leaf)
            if s.nr_out == s.max_pages:
                report_batch(s, b, r, now, position)
        leaf = next_marked(s.bits, leaf + 1, end)
    report_batch(s, b, r, now, position)


cdef inline void freed(Series2019 *s, FreeBlocks *b, ReportBuffer *r, uint64_t leaf, int64_t now,
                       uint32_t position) noexcept nogil:
    """A block that a free left begins at this leaf."""
    cdef uint32_t zone = b.zone[leaf]
    s.nr_bits[zone] += not s.bits[leaf]
    s.bits[leaf] = True
    if s.nr_bits[zone] >= s.max_pages:
        scan(s, b, r, zone, now, position)
