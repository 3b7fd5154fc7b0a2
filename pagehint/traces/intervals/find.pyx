# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=False
"""The one pass over operations that finds when granules become whole and are broken. `table.py` is its face."""
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

import numpy as np

from pagehint.traces.intervals.free_pages cimport FreePages, clear_bits, count_granules, is_block, set_bits
from pagehint.traces.operations cimport OPERATION_GIVE, OPERATION_TAKE, OperationRow

cdef struct Interval:           # as the dtype `INTERVAL_DTYPE`
    uint64_t pfn
    int64_t start
    int64_t end
    uint32_t start_position
    uint32_t end_position

cdef struct Finder:
    FreePages free
    Interval *intervals
    uint64_t nr_intervals, room
    uint32_t *current           # for each granule that is whole, its interval's index
    uint64_t doubtful           # pages that were not as an operation has them


cdef inline bint open_interval(Finder *f, uint64_t granule, int64_t time, uint32_t position) noexcept nogil:
    """A granule has become whole. False if there is no memory."""
    cdef Interval *i
    if f.nr_intervals == f.room:
        i = <Interval *>realloc(f.intervals, 2 * f.room * sizeof(Interval))
        if i == NULL:
            return False
        f.intervals, f.room = i, 2 * f.room
    i = f.intervals + f.nr_intervals
    i.pfn, i.start, i.start_position = granule << f.free.granule_order, time, position
    f.current[granule] = f.nr_intervals
    f.nr_intervals += 1
    return True


cdef inline bint change(Finder *f, const OperationRow *row, uint32_t position) noexcept nogil:
    """Follow one TAKE or GIVE, a granule at a time. False if there is no memory.

    Before the beginning `intervals` is NULL, and nothing is noted.
    """
    cdef int order = min(<int>row.order, f.free.granule_order)
    cdef uint64_t pfn = row.pfn, granule, n
    cdef uint32_t whole = <uint32_t>1 << f.free.granule_order
    cdef Interval *i
    while pfn < row.pfn + (<uint64_t>1 << row.order):
        granule = pfn >> f.free.granule_order
        if row.op == OPERATION_TAKE:
            n = clear_bits(f.free.words, pfn, order)
            if f.intervals != NULL and n and f.free.count[granule] == whole:
                i = f.intervals + f.current[granule]
                i.end, i.end_position = row.time, position
            f.free.count[granule] -= n
        else:
            n = set_bits(f.free.words, pfn, order)
            f.free.count[granule] += n
            if f.intervals != NULL and n and f.free.count[granule] == whole:
                if not open_interval(f, granule, row.time, position + 1):
                    return False
        f.doubtful += (<uint64_t>1 << order) - n
        pfn += <uint64_t>1 << order
    return True


cdef bint follow(Finder *f, const OperationRow *rows, uint32_t first, uint32_t end) noexcept nogil:
    """Follow some operations. False if there is no memory."""
    cdef uint32_t position
    for position in range(first, end):
        if rows[position].op != OPERATION_TAKE and rows[position].op != OPERATION_GIVE:
            continue
        if not is_block(&f.free, rows[position].pfn, rows[position].order):
            f.doubtful += 1
        elif not change(f, rows + position, position):
            return False
    return True


cdef bint begin_intervals(Finder *f, int64_t time, uint32_t position) noexcept nogil:
    """Open the intervals of what is whole at the beginning. False if there is no memory."""
    cdef uint64_t granule
    f.room = 4096
    f.intervals = <Interval *>malloc(f.room * sizeof(Interval))
    if f.intervals == NULL:
        return False
    for granule in range(f.free.nr_pages >> f.free.granule_order):
        if f.free.count[granule] == <uint32_t>1 << f.free.granule_order:
            if not open_interval(f, granule, time, position):
                return False
    return True


cdef void end_intervals(Finder *f, int64_t time) noexcept nogil:
    """What is whole at the end was so until the end."""
    cdef uint64_t granule
    cdef Interval *i
    for granule in range(f.free.nr_pages >> f.free.granule_order):
        if f.free.count[granule] == <uint32_t>1 << f.free.granule_order:
            i = f.intervals + f.current[granule]
            i.end, i.end_position = time, UINT32_MAX


def find_intervals(const OperationRow[::1] table, const uint64_t[::1] words, int granule_order, uint32_t position,
                   int64_t begin, int64_t end):
    """Return the intervals from an operation on, as bytes of `INTERVAL_DTYPE`, and how many pages were in doubt."""
    cdef Finder f
    cdef bint done = False
    cdef uint64_t nr_granules = (words.shape[0] << 6) >> granule_order
    cdef uint8_t[::1] copy
    if <uint64_t>table.shape[0] >= UINT32_MAX:
        raise ValueError(f"a table of {table.shape[0]} operations: at most 2**32 - 2 are read at once")
    memset(&f, 0, sizeof(f))
    f.free.nr_pages, f.free.granule_order = words.shape[0] << 6, granule_order
    f.free.words = <uint64_t *>malloc(words.shape[0] * 8 + 8)
    f.free.count = <uint32_t *>calloc(nr_granules + 1, 4)
    f.current = <uint32_t *>calloc(nr_granules + 1, 4)
    try:
        with nogil:
            if f.free.words != NULL and f.free.count != NULL and f.current != NULL:
                if words.shape[0]:
                    memcpy(f.free.words, &words[0], words.shape[0] * 8)
                count_granules(&f.free)
                done = follow(&f, &table[0] if table.shape[0] else NULL, 0, position) and begin_intervals(
                    &f, begin, position)
                done = done and follow(&f, &table[0] if table.shape[0] else NULL, position, table.shape[0])
                if done:
                    end_intervals(&f, end)
        if not done:
            raise MemoryError(f"no memory for the intervals of {nr_granules} granules")
        rows = np.empty(f.nr_intervals * sizeof(Interval), np.uint8)
        if f.nr_intervals:
            copy = rows
            memcpy(&copy[0], f.intervals, f.nr_intervals * sizeof(Interval))
        return rows, f.doubtful
    finally:
        free(f.free.words)
        free(f.free.count)
        free(f.current)
        free(f.intervals)
