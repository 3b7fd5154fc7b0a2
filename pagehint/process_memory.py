"""What the kernel says about memory: of this process, and of the whole machine."""

from __future__ import annotations

from pathlib import Path


def rss_bytes() -> int:
    """Return this process's resident memory, as the kernel counts it."""
    return _kibibytes(Path("/proc/self/smaps_rollup"), "Rss:") * 1024


def available_bytes() -> int:
    """Return how much memory the system could give to a process without swapping."""
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable:") * 1024


def _kibibytes(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(f"{path} has no {name}")
