"""What programs and libraries have of their own: variables, and pages of their files that were written to."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from pagehint.memory.address_space import AddressSpace, Range
from pagehint.memory.contents import read_at
from pagehint.memory.part import Part
from pagehint.memory.vmas import Vma

NAME = "programs and libraries"
_MAGIC: Final = b"\x7fELF\x02"  # of 64 bits
_HEADERS: Final = 1024  # bytes of a file with the first of its headers
_SEGMENT: Final = struct.Struct("=IIQQQQQQ")
_LOADED: Final = 1  # PT_LOAD


def find(space: AddressSpace) -> Iterator[Part]:
    """Find mappings of files, and what a program's header says that follows them: variables that begin as zero."""
    ranges = [(vma.start, vma.end) for vma in space.vmas if vma.path.startswith("/") and vma.anonymous]
    files = [vma for vma in space.vmas if vma.path.startswith("/") and vma.offset == 0]
    ranges += [segment for vma in files for segment in _segments(vma)]
    yield Part(NAME, space.claim(ranges))


def _segments(vma: Vma) -> list[Range]:
    """Return the addresses of a program's or a library's segments, if this is the mapping of its header."""
    if not vma.permissions.startswith("r"):
        return []
    _, words = read_at(np.array([vma.start], np.uint64), _HEADERS)
    head = words.tobytes()
    if not head.startswith(_MAGIC):
        return []
    (at,) = struct.unpack_from("=Q", head, 32)
    (number,) = struct.unpack_from("=H", head, 56)
    number = min(number, max(len(head) - at, 0) // _SEGMENT.size)
    found = [_SEGMENT.unpack_from(head, at + i * _SEGMENT.size) for i in range(number)]
    loaded = [(address, length) for kind, _, _, address, _, _, length, _ in found if kind == _LOADED]
    if not loaded:
        return []
    page = mmap.PAGESIZE
    base = vma.start - loaded[0][0] // page * page
    return [(base + address // page * page, base + -(-(address + length) // page) * page) for address, length in loaded]
