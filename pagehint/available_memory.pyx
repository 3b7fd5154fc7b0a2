# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""How much memory this process may have, as Python sees it; how it is found out is in `available_memory.pxd`."""
import os
import resource
from typing import NamedTuple

from pagehint.process_memory import machine_bytes


class CgroupMemory(NamedTuple):
    """What a cgroup and those above it allow.

    Attributes
    ----------
    limit : int or None
        Bytes: the least limit; None if there is none.
    left : int or None
        Bytes until a limit is reached.
    known : bool
        Whether every level that should be visible was found and could be read.
    """

    limit: int | None
    left: int | None
    known: bool


cdef class Look:
    """Looks at the cgroup of this process, whichever it is at the time; `root` is the folder that stands for "/"."""

    cdef Cgroup cgroup
    cdef bytes root         # which `cgroup` points into

    def __cinit__(self, root=""):
        self.root = os.fsencode(root)
        cgroup_init(&self.cgroup, self.root)

    def cgroup_memory(self):
        """What the cgroup and those above it allow now."""
        cdef Allowance a
        with nogil:
            cgroup_look(&self.cgroup, &a)
        return CgroupMemory(None if a.limit == UNLIMITED else a.limit, None if a.left == UNLIMITED else a.left, a.known)

    def memory_left(self):
        """Bytes until a limit is reached or the machine has no more; 0 if that cannot be known."""
        cdef uint64_t nr_bytes
        with nogil:
            nr_bytes = memory_left(&self.cgroup)
        return nr_bytes


def most_memory(root=""):
    """The most memory that this process can come to have, in bytes, with half of the addresses left for its other parts.

    The least of the machine's memory, the limits of the cgroup and those above it, and half of what RLIMIT_AS and
    RLIMIT_DATA leave at this moment.
    """
    most = machine_bytes()
    limit = Look(root).cgroup_memory().limit
    if limit is not None:
        most = min(most, limit)
    for kind, name in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        try:
            limit = resource.getrlimit(kind)[0]
        except OSError:     # a sandbox refuses
            limit = resource.RLIM_INFINITY
        if limit != resource.RLIM_INFINITY:
            most = min(most, max(limit - _mapped(root, name), 0) // 2)
    return most


def _mapped(root, name):
    """Bytes of this process's mappings, as its status has them; 0 where there is no /proc."""
    try:
        with open(os.fsdecode(root) + "/proc/self/status") as status:
            return sum(int(line.split()[1]) << 10 for line in status if line.startswith(name))
    except OSError:
        return 0
