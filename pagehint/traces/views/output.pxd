"""The operations as they come out: an array that grows, of blocks that are as large as their pages allow."""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc

from pagehint.traces.events cimport NO_TYPE
from pagehint.traces.operations cimport OperationRow
from pagehint.traces.views.places cimport Places, place_of

cdef struct Output:
    OperationRow *rows
    size_t nr_rows
    size_t nr_places            # for rows
    int64_t time                # of the latest row
    bint full                   # there was no memory for another one


cdef inline void emit(Output *out, uint32_t row, int op, uint64_t pfn, int order, int migratetype,
                      int flags) noexcept nogil:
    """Add an operation, at the time of the latest event."""
    cdef size_t nr_places
    cdef OperationRow *rows
    if out.nr_rows == out.nr_places:
        nr_places = 2 * out.nr_places + 4096
        rows = <OperationRow *>realloc(out.rows, nr_places * sizeof(OperationRow))
        if rows == NULL:
            out.full = True
            return
        out.rows = rows
        out.nr_places = nr_places
    out.rows[out.nr_rows] = OperationRow(out.time, pfn, row, <uint8_t>op, <int8_t>order, <int8_t>migratetype,
                                         <uint8_t>flags)
    out.nr_rows += 1


cdef inline void emit_parts(Output *out, const Places *places, uint32_t row, int op, uint64_t pfn, int order,
                            uint32_t set) noexcept nogil:
    """Add an operation for those of a block's pages whose place is one of these, in few blocks."""
    cdef uint64_t end = pfn + (<uint64_t>1 << order), first
    cdef int part
    while pfn < end:
        if not (set >> place_of(places, pfn)) & 1:
            pfn += 1
            continue
        first = pfn
        part = 0
        pfn += 1
        while part < order and not first & (<uint64_t>1 << part) and all_in(places, pfn, <uint64_t>1 << part, set):
            pfn += <uint64_t>1 << part
            part += 1
        emit(out, row, op, first, part, NO_TYPE, 0)


cdef inline bint all_in(const Places *places, uint64_t pfn, uint64_t nr_pages, uint32_t set) noexcept nogil:
    """Whether each of these pages has one of these places."""
    cdef uint64_t page
    for page in range(pfn, pfn + nr_pages):
        if not (set >> place_of(places, page)) & 1:
            return False
    return True
