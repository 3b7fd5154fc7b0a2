"""What /proc says about memory: that of this process, and that of the machine."""

from __future__ import annotations

from pathlib import Path


def rss_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    return _kibibytes(Path("/proc/self/smaps_rollup"), "Rss:") * 1024


def available_bytes() -> int:
    """Return the memory that the machine could give to a process without swapping, in bytes."""
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable:") * 1024


def _kibibytes(path: Path, name: str) -> int:
    """Return the number after `name` in a file of /proc."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(f"{path} has no {name}")
