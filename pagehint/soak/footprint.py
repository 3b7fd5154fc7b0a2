"""Memory, mappings, open files and threads of this process. Growth over the rounds is a leak."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from dataclasses import dataclass
from pathlib import Path

from pagehint.process_memory import rss_bytes

SLACK = {
    "rss": 16 << 20,  # what malloc and the interpreter may keep in one round and not in another
    "mappings": 16,  # and their mappings
    "files": 0,
    "threads": 0,
}
PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Footprint:
    """What this process has of the system's, at rest."""

    rss: int
    mappings: int
    files: int
    threads: int

    @classmethod
    def now(cls) -> Footprint:
        """Give back everything that can be given back, and measure."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        files = len(list(Path("/proc/self/fd").iterdir()))
        return cls(rss_bytes(), Path("/proc/self/maps").read_text().count("\n"), files, _threads())

    def leaks(self, before: Footprint) -> list[str]:
        """Return what has grown since."""
        return [
            f"{name} grew from {getattr(before, name):,} to {getattr(self, name):,}"
            for name, slack in SLACK.items()
            if getattr(self, name) > getattr(before, name) + slack
        ]

    def settled(self, before: Footprint) -> Footprint:
        """Return this, or if it has leaks, a later one without any, or the last one after some patience.

        A thread takes a moment to leave after it was joined, and a worker after its allocator was collected.
        """
        footprint = self
        patience = time.monotonic() + PATIENCE_SECONDS
        while footprint.leaks(before) and time.monotonic() < patience:
            time.sleep(0.1)
            footprint = Footprint.now()
        return footprint


def _threads() -> int:
    """Count the threads but for the one that populates ahead: it begins in any round, and is there to the end."""
    threads = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            threads += (task / "comm").read_text() != "pagehint-ahead\n"
    return threads
