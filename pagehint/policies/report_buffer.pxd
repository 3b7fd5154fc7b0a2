"""Reports, as a compiled policy writes them down: an array that grows."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport realloc

from pagehint.policies.reports cimport ReportRow

cdef struct ReportBuffer:
    ReportRow *rows
    uint64_t nr_rows, room
    uint32_t nr_calls           # to the host
    bint full                   # there was no memory for another row


cdef inline void note_report(ReportBuffer *r, int64_t time, uint32_t position, uint64_t pfn, int order) noexcept nogil:
    """A block has been reported in the call that is counted next."""
    cdef ReportRow *row
    if r.nr_rows == r.room:
        row = <ReportRow *>realloc(r.rows, (2 * r.room + 1024) * sizeof(ReportRow))
        if row == NULL:
            r.full = True
            return
        r.rows, r.room = row, 2 * r.room + 1024
    row = r.rows + r.nr_rows
    row.time, row.pfn, row.position, row.call, row.order = time, pfn, position, r.nr_calls, order
    r.nr_rows += 1
