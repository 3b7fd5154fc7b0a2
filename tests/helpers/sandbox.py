"""System calls that are refused, by a filter as sandboxes have (seccomp), in this process and its children to come."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

# By the machine: x86-64 and arm64.
NUMBERS = {
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone3": (435, 435),
    "close": (3, 57),
    "close_range": (436, 436),
    "eventfd2": (290, 19),
    "futex": (202, 98),
    "getcpu": (309, 168),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "mincore": (27, 232),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munlock": (150, 229),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "openat": (257, 56),
    "poll": (7, 73),  # arm64 has ppoll only
    "pread64": (17, 67),
    "process_vm_readv": (310, 270),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "read": (0, 63),
    "rseq": (334, 293),
    "rt_sigprocmask": (14, 135),
    "sched_getaffinity": (204, 123),
    "sched_setaffinity": (203, 122),
    "sched_yield": (24, 124),
    "set_robust_list": (273, 99),
    "sysinfo": (99, 179),
    "userfaultfd": (323, 282),
}
CLONE, SECCOMP = (56, 220), (317, 277)
CLONE_THREAD = 0x10000
# Some advices by themselves, since sandboxes tell them apart.
ADVICES = {
    "madvise(DONTNEED)": 4,
    "madvise(FREE)": 8,
    "madvise(HUGEPAGE)": 14,
    "madvise(POPULATE_WRITE)": 23,
}
THREADS = "clone(THREAD)"  # threads, and not forks

_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: ld abs, jeq, jset, ret
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NO_NEW_PRIVS, _MODE_FILTER, _ALL_THREADS = 38, 1, 1


def calls() -> list[str]:
    """Everything that `refuse` can refuse."""
    return [*NUMBERS, *ADVICES, THREADS]


def refuse(call: str, code: int) -> None:
    """Have a system call fail with an errno from now on, on every thread."""
    arm = platform.machine() == "aarch64"
    program = [(_LOAD, 0, 0, 0)]  # the call's number
    refusal = (_RETURN, 0, 0, _ERRNO | code)
    if call == THREADS:
        # What makes threads by clone3 has its flags in memory, where a filter cannot look.
        program += [(_EQUAL, 0, 1, NUMBERS["clone3"][arm]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
        program += [(_EQUAL, 0, 3, CLONE[arm]), (_LOAD, 0, 0, 16), (_SET, 0, 1, CLONE_THREAD), refusal]
    elif call in ADVICES:
        program += [(_EQUAL, 0, 3, NUMBERS["madvise"][arm]), (_LOAD, 0, 0, 32), (_EQUAL, 0, 1, ADVICES[call]), refusal]
    else:
        program += [(_EQUAL, 0, 1, NUMBERS[call][arm]), refusal]
    program.append((_RETURN, 0, 0, _ALLOW))
    code_of_filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code_of_filter)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(SECCOMP[arm], _MODE_FILTER, _ALL_THREADS, described):
        raise OSError(ctypes.get_errno(), "no filter of system calls")
