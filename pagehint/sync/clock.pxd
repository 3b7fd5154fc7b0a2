"""The clock of delays, back-off and waits, in nanoseconds."""
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef enum:
    SECOND = 1000000000
    NEVER = -1                  # as a moment, or a time to wait


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return ts.tv_sec * <int64_t>SECOND + ts.tv_nsec
