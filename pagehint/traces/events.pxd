"""One row of a recording, as `events.py` has it. `tests/traces/test_events.py` compares the two."""
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t

cdef enum:
    NO_ORDER = -1
    NO_TYPE = -1
    NO_PID = -1
    NO_CPU = 0xFFFF

cdef extern from *:
    """
    #define PH_NO_PFN UINT64_MAX
    """
    const uint64_t NO_PFN "PH_NO_PFN"

cdef enum:                      # the column `event`
    EVENT_ALLOC = 1
    EVENT_ALLOC_FAILED = 2
    EVENT_FREE = 3
    EVENT_FREE_BATCHED = 4
    EVENT_ZONE_LOCKED = 5
    EVENT_PCPU_DRAIN = 6
    EVENT_EXTFRAG = 7
    EVENT_BULK_ALLOC = 8
    EVENT_FREE_DIRECT = 9
    EVENT_ISOLATE = 10
    EVENT_ISOLATE_RET = 11
    EVENT_PUTBACK = 12
    EVENT_STEAL = 13
    EVENT_MOVE_BLOCK = 14
    EVENT_REPORT_NOTIFY = 15
    EVENT_REPORT_PASS = 16
    EVENT_REPORT_PASS_END = 17
    EVENT_REPORT_CALL = 18
    EVENT_REPORT_CALL_END = 19
    EVENT_MARK = 20
    EVENT_LOST = 21
    NR_EVENTS = 22              # one more than the last

cdef enum:                      # bits of the column `flags`
    FLAG_PERCPU_REFILL = 1
    FLAG_CHANGE_OWNERSHIP = 2
    FLAG_FRAGMENTING = 4
    FLAG_WHOLE_BLOCK = 8
    FLAG_BY_REPORTING = 16
    FLAG_BY_COMPACTION = 32
    FLAG_BY_OTHER = 64

cdef struct EventRow:           # as the dtype `EVENT_DTYPE`
    int64_t time                # nanoseconds
    uint64_t pfn
    int32_t pid
    int32_t value
    uint16_t cpu
    uint8_t event
    uint8_t flags
    int8_t order
    int8_t migratetype
    int8_t fallback_order
    int8_t fallback_migratetype
