"""The causes of contradictions, as `contradictions.py` has them; tests compare the two."""
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    CAUSE_OUTSIDE = 0
    CAUSE_NOT_A_BLOCK = 1
    CAUSE_RESERVED = 2
    CAUSE_TAKE_NOT_FREE = 3
    CAUSE_TAKE_REPORTING = 4
    CAUSE_GIVE_FREE = 5
    CAUSE_GIVE_IN_USE = 6
    CAUSE_ALLOC_FREE = 7
    CAUSE_ALLOC_IN_USE = 8
    CAUSE_FREE_FREE = 9
    CAUSE_FREE_TWICE = 10
    CAUSE_ISOLATE_NOT_FREE = 11
    CAUSE_ISOLATE_HALF = 12
    CAUSE_PUTBACK_NOT_OUT = 13
    CAUSE_ORDER_MISMATCH = 14
    NR_CAUSES = 15              # one more than the last
    MOST_EXAMPLES = 5

cdef struct Example:
    uint64_t pfn
    uint32_t row
    int order

cdef struct Contradictions:
    uint64_t counts[NR_CAUSES]
    uint64_t nr_at_start        # of pages that had not moved since the start
    Example examples[NR_CAUSES][MOST_EXAMPLES]


cdef inline void contradict(Contradictions *found, int cause, uint32_t row, uint64_t pfn, int order) noexcept nogil:
    """Count a contradiction, and keep it if it is one of the first of its cause."""
    cdef uint64_t number = found.counts[cause]
    if number < MOST_EXAMPLES:
        found.examples[cause][number] = Example(pfn, row, order)
    found.counts[cause] = number + 1
