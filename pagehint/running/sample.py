"""The resident memory of another process, over time, as the kernel shows it."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress


class Process:
    """A process that may end at any time, and its number be given to another.

    Attributes
    ----------
    pid : int
        Its number.
    peak, last : int or None
        Bytes: the most so far, which the kernel keeps itself, and what it was when looked at last. None if it had ended
        before the first look.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak: int | None = None
        self.last: int | None = None
        self._byte_seconds = self._seconds = 0.0
        self._time = 0.0
        self._folder: int | None = None
        with suppress(OSError):  # of this process for ever: of one that comes after it nothing can be read here
            self._folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sample(self, now: float) -> None:
        """Look at it, at this time in seconds."""
        if self._folder is None:
            return
        try:
            resident = int(self._read("statm").split()[1]) * mmap.PAGESIZE
            peak = [line for line in self._read("status").splitlines() if line.startswith("VmHWM:")]
        except (OSError, ValueError, LookupError):
            self._gone()
            return
        if not resident or not peak:  # a zombie has no memory
            self._gone()
            return
        if self.last is not None:
            self._byte_seconds += self.last * (now - self._time)
            self._seconds += now - self._time
        self._time, self.last = now, resident
        self.peak = max(self.peak or 0, int(peak[0].split()[1]) * 1024)

    @property
    def ended(self) -> bool:
        """Whether it had ended when it was looked at last."""
        return self._folder is None

    @property
    def mean(self) -> float | None:
        """Bytes, over the time between looks; None if there were fewer than two."""
        return self._byte_seconds / self._seconds if self._seconds else None

    def _gone(self) -> None:
        if self._folder is not None:
            os.close(self._folder)
        self._folder = None

    def _read(self, name: str) -> str:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            return os.read(file, 1 << 16).decode()
        finally:
            os.close(file)
