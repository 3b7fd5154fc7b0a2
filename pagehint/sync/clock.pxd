"""The clock by which delays, back-off and waits are measured: the monotonic one, in nanoseconds."""
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef enum:
    SECOND = 1000000000
    NEVER = -1                  # as a moment or a timeout: there is none


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return ts.tv_sec * <int64_t>SECOND + ts.tv_nsec
