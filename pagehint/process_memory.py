"""What /proc says about memory: that of this process, and that of the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_UNKNOWN: Final = 64 << 30  # of what is not known how much there is
_MOST: Final = 16 << 40  # more is no machine's memory, or more than an arena can have


def rss_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    return kibibytes(Path("/proc/self/smaps_rollup"), "Rss:") * 1024


def machine_bytes() -> int:
    """Return the memory of the machine, in bytes; 64 GiB where the kernel does not say."""
    try:
        return kibibytes(Path("/proc/meminfo"), "MemTotal:") * 1024
    except (OSError, LookupError, ValueError):
        # glibc does not look whether sysinfo(2), which it asks, was refused: it may be any number.
        nr_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
        return nr_bytes if 0 < nr_bytes < _MOST else _UNKNOWN


def available_bytes() -> int:
    """Return the memory that the machine could give to a process without swapping, in bytes."""
    return kibibytes(Path("/proc/meminfo"), "MemAvailable:") * 1024


def kibibytes(path: Path, name: str) -> int:
    """Return the number after `name` in a file of /proc; OSError if there is none."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(f"{path} has no {name}")
