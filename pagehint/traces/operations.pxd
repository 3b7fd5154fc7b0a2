"""What happened to the free lists, one row an operation, as `operations.py` has it; tests compare the two."""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:                      # the column `op`
    OPERATION_TAKE = 1
    OPERATION_GIVE = 2
    OPERATION_SET_TYPE = 3
    OPERATION_ISOLATE = 4
    OPERATION_PUTBACK = 5
    OPERATION_MARK = 6
    OPERATION_LOST = 7
    NR_OPERATIONS = 8           # one more than the last

cdef enum:                      # bits of the column `flags`
    OPERATION_REPORTED = 1      # of a PUTBACK

cdef struct OperationRow:       # as the dtype `OPERATION_DTYPE`
    int64_t time                # nanoseconds
    uint64_t pfn
    uint32_t row
    uint8_t op
    int8_t order
    int8_t migratetype
    uint8_t flags
