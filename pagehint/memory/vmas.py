"""The mappings of this process, and how much anonymous memory the kernel counts in each (/proc/self/smaps)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from pagehint.errors import PageHintError
from pagehint.process_memory import kibibytes

_SMAPS: Final = Path("/proc/self/smaps")
_ROLLUP: Final = Path("/proc/self/smaps_rollup")  # Linux 4.14
_HEAD: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)")


class Vma(NamedTuple):
    """A mapping: addresses, what may be done there, the place in a file, and bytes of anonymous memory in it."""

    start: int
    end: int
    permissions: str
    offset: int
    path: str
    anonymous: int

    @property
    def plain(self) -> bool:
        """Whether it is private memory of no file, that can be written to: what allocators map."""
        return self.permissions.startswith("rw") and self.permissions[3] == "p" and not self.path.startswith("/")


def read_vmas() -> list[Vma]:
    """Return the mappings, by address; PageHintError if they cannot be read."""
    vmas = []
    head = None
    try:
        lines = _SMAPS.read_bytes().splitlines()
    except OSError as error:
        raise PageHintError(f"{_SMAPS} cannot be read, which says what memory this process has: {error}") from error
    for line in lines:
        if line.startswith(b"Anonymous:") and head is not None:
            start, end, permissions, offset, path = head.groups()
            anonymous = int(line.split()[1]) << 10
            vmas.append(
                Vma(
                    int(start, 16),
                    int(end, 16),
                    permissions.decode(),
                    int(offset, 16),
                    path.decode(errors="replace"),
                    anonymous,
                )
            )
        else:
            head = _HEAD.fullmatch(line) or head
    if not vmas:
        raise PageHintError(f"{_SMAPS} does not say which memory of this process is anonymous")
    return vmas


def anonymous_rss() -> int:
    """Return this process's anonymous memory, in bytes, as the kernel counts it at this moment.

    Raises
    ------
    PageHintError
        If neither /proc/self/smaps_rollup nor /proc/self/smaps can be read.
    """
    try:
        return kibibytes(_ROLLUP, "Anonymous:") << 10
    except OSError:
        return sum(vma.anonymous for vma in read_vmas())
