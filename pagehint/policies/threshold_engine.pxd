"""pagehint's own rule without an age: enough hints in a zone, or a delay after the first, and all of them go.

A granule that becomes whole is hinted, and loses the hint when it is used. At `threshold` hints the zone's are reported
at once. Below it, the first hint starts the delay, at whose end all zones report what they have. A zone with less free
memory than its gate, `zone_batch` granules above the low watermark, waits until it has as much. At the beginning
everything that is whole is hinted.

Batches are filled by address; a block is what of a maximal free block is hinted, as large as alignment allows.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t

from pagehint.policies.free_blocks cimport FreeBlocks, block_around, end_of_zone, leaves_of, next_marked
from pagehint.policies.report_buffer cimport ReportBuffer, note_report

cdef struct Threshold:
    uint32_t max_pages          # blocks of a batch
    uint64_t threshold          # hints of a zone
    int64_t delay               # nanoseconds; INT64_MAX: never
    int64_t due                 # when the delay is over; INT64_MAX: it does not run
    uint8_t *hinted             # by leaf
    uint64_t *nr_hints          # by zone
    uint8_t *at_gate            # by zone: it waits for its gate to open
    uint64_t gates_closed


cdef inline bint gate_is_open(const Threshold *t, const FreeBlocks *b, uint32_t zone) noexcept nogil:
    cdef uint64_t batch = min(<uint64_t>t.max_pages, max(b.zones[zone].managed >> (b.shift + 3), <uint64_t>1))
    return b.zone_free[zone] >= b.zones[zone].watermark_low + (batch << b.shift)


cdef inline int hinted_order(const Threshold *t, const FreeBlocks *b, uint64_t leaf) noexcept nogil:
    """The order of the largest hinted block of one free block that begins at a hinted leaf."""
    cdef uint64_t i, first = block_around(b, leaf)
    cdef int order = b.shift
    while first < b.nr_leaves and order < b.order[first] and not leaf & leaves_of(b, order):
        for i in range(leaf + leaves_of(b, order), leaf + leaves_of(b, order + 1)):
            if not t.hinted[i]:
                return order
        order += 1
    return order


cdef inline void report_zone(Threshold *t, const FreeBlocks *b, ReportBuffer *r, uint32_t zone, int64_t now,
                             uint32_t position) noexcept nogil:
    """Report all hints of a zone, if its gate is open."""
    cdef uint64_t end = end_of_zone(b, zone), leaf = next_marked(t.hinted, b.zones[zone].start >> b.shift, end), i
    cdef uint32_t in_batch = 0
    cdef int order
    t.at_gate[zone] = t.nr_hints[zone] > 0 and not gate_is_open(t, b, zone)
    t.gates_closed += t.at_gate[zone]
    if t.at_gate[zone]:
        return
    while leaf < end:
        if b.zone[leaf] != zone:
            leaf = next_marked(t.hinted, leaf + 1, end)
            continue
        order = hinted_order(t, b, leaf)
        note_report(r, now, position, leaf << b.shift, order)
        in_batch += 1
        if in_batch == t.max_pages:
            r.nr_calls += 1
            in_batch = 0
        for i in range(leaves_of(b, order)):
            t.hinted[leaf + i] = False
        t.nr_hints[zone] -= leaves_of(b, order)
        leaf = next_marked(t.hinted, leaf + leaves_of(b, order), end)
    r.nr_calls += in_batch > 0


cdef inline void evaluate(Threshold *t, const FreeBlocks *b, ReportBuffer *r, uint32_t zone, int64_t now,
                          uint32_t position) noexcept nogil:
    """A zone has more hints, or more free memory, than before."""
    if t.at_gate[zone] and not gate_is_open(t, b, zone) or t.nr_hints[zone] == 0:
        return
    if t.nr_hints[zone] >= t.threshold:
        report_zone(t, b, r, zone, now, position)
    elif t.due == INT64_MAX and t.delay != INT64_MAX:
        t.due = now + t.delay


cdef inline void hint_leaf(Threshold *t, const FreeBlocks *b, uint64_t leaf) noexcept nogil:
    t.nr_hints[b.zone[leaf]] += not t.hinted[leaf]
    t.hinted[leaf] = True


cdef inline void forget_leaf(Threshold *t, const FreeBlocks *b, uint64_t leaf) noexcept nogil:
    t.nr_hints[b.zone[leaf]] -= t.hinted[leaf]
    t.hinted[leaf] = False


cdef inline void delay_is_over(Threshold *t, const FreeBlocks *b, ReportBuffer *r, int64_t now,
                               uint32_t position) noexcept nogil:
    cdef uint32_t zone
    t.due = INT64_MAX
    for zone in range(b.nr_zones):
        report_zone(t, b, r, zone, now, position)
