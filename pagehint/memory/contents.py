"""What is in this process's own memory: which pages are resident, and the first bytes at many addresses.

Other threads may unmap anything at any moment. So nothing is read through a pointer: the kernel copies
(process_vm_readv), and says so where there is no memory any more.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

_PAGES_AT_ONCE: Final = 1 << 18
_READS_AT_ONCE: Final = 1024  # IOV_MAX

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def resident_before(start: int, cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many pages are resident from `start` to each of the `cuts`, addresses in ascending order.

    Where the kernel does not say it (mincore), all are taken for resident. O(pages).
    """
    counts = np.zeros(len(cuts), np.int64)
    end = int(cuts[-1])
    before, at = 0, start
    while at < end:
        pages = min((end - at) // mmap.PAGESIZE, _PAGES_AT_ONCE)
        try:
            present = _present(at, pages)
        except OSError:
            present = np.ones(pages, bool)
        so_far = np.append(0, np.cumsum(present, dtype=np.int64)) + before
        stop = at + pages * mmap.PAGESIZE
        here = (cuts > at) & (cuts <= stop)
        counts[here] = so_far[(cuts[here] - at) // mmap.PAGESIZE]
        before, at = int(so_far[-1]), stop
    return counts


def resident_pages(start: int, end: int) -> NDArray[np.uint64]:
    """Return the addresses of the resident pages between two addresses; OSError if the kernel refuses. O(pages)."""
    found = []
    for at in range(start, end, _PAGES_AT_ONCE * mmap.PAGESIZE):
        pages = min((end - at) // mmap.PAGESIZE, _PAGES_AT_ONCE)
        found.append(np.flatnonzero(_present(at, pages)).astype(np.uint64) * np.uint64(mmap.PAGESIZE) + np.uint64(at))
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def _present(start: int, pages: int) -> NDArray[np.bool_]:
    """Return which pages are resident: none of them, if some are not mapped any more; OSError if the kernel refuses."""
    present = np.zeros(pages, np.uint8)
    if _libc.mincore(start, pages * mmap.PAGESIZE, present.ctypes.data):
        code = ctypes.get_errno()
        if code != errno.ENOMEM:
            raise OSError(code, f"mincore: {os.strerror(code)}")
        present[:] = 0
    return (present & 1).astype(bool)


def read_at(addresses: NDArray[np.uint64], nr_bytes: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return those addresses where there is memory, and the 64-bit words there, a row for each.

    Parameters
    ----------
    addresses : ndarray of uint64
        Where.
    nr_bytes : int
        How much to read at each, a multiple of 8.

    Raises
    ------
    OSError
        If the kernel copies in no way: it may refuse process_vm_readv in a container, and then /proc/self/mem is read.
    """
    words, there = _read_all(addresses, nr_bytes)
    return addresses[there], words[there]


def _read_all(addresses: NDArray[np.uint64], nr_bytes: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the words at each address, and whether there is memory."""
    words = np.zeros((len(addresses), nr_bytes // 8), np.uint64)
    there = np.zeros(len(addresses), bool)
    pieces = np.empty((len(addresses), 2), np.uint64)  # each an iovec: address, length
    pieces[:, 0], pieces[:, 1] = addresses, nr_bytes
    done = 0
    while done < len(addresses):
        n = min(len(addresses) - done, _READS_AT_ONCE)
        try:
            got = _copy(words[done:], pieces[done : done + n])
        except OSError:
            return _read_one_by_one(addresses, nr_bytes)
        there[done : done + got] = True
        done += got + (got < n)  # the one after a short copy has no memory
    return words, there


def _read_one_by_one(addresses: NDArray[np.uint64], nr_bytes: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    words = np.zeros((len(addresses), nr_bytes // 8), np.uint64)
    there = np.zeros(len(addresses), bool)
    memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for row, address in enumerate(addresses.tolist()):
            try:
                read = os.pread(memory, nr_bytes, address)
            except OSError:  # no memory
                continue
            if len(read) == nr_bytes:
                words[row], there[row] = np.frombuffer(read, np.uint64), True
    finally:
        os.close(memory)
    return words, there


def _copy(into: NDArray[np.uint64], pieces: NDArray[np.uint64]) -> int:
    """Copy pieces, one behind the other, up to the first that has no memory; return how many."""
    target = np.array([into.ctypes.data, int(pieces[:, 1].sum())], np.uint64)
    copied = _libc.process_vm_readv(
        os.getpid(),
        ctypes.c_void_p(target.ctypes.data),
        ctypes.c_ulong(1),
        ctypes.c_void_p(pieces.ctypes.data),
        ctypes.c_ulong(len(pieces)),
        ctypes.c_ulong(0),
    )
    if copied < 0:
        code = ctypes.get_errno()
        if code != errno.EFAULT:
            raise OSError(code, f"process_vm_readv: {os.strerror(code)}")
        return 0
    return int(copied) // int(pieces[0, 1])
