"""What a policy reported, one row a block, as `reports.py` has it."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef struct ReportRow:          # as the dtype `REPORT_DTYPE`
    int64_t time                # nanoseconds
    uint64_t pfn
    uint32_t position           # so many operations had happened before
    uint32_t call
    int64_t order
