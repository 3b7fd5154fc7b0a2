"""Marks in the pages: the owner of an allocated page writes its mark there, and must find it when it frees the page."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAME_BYTES = 4096


def pages_of(blocks: Any) -> NDArray[np.int64]:
    """Return the PFN of every page in a structured array of blocks."""
    runs = [np.arange(block["pfn"], block["pfn"] + (1 << int(block["order"])), dtype=np.int64) for block in blocks]
    return np.concatenate([*runs, np.empty(0, np.int64)])


class PageMarks:
    """A frame of real memory for each page, of 4096 bytes whatever the size of the modelled page, and its owner's mark.

    Parameters
    ----------
    room : int
        PageMarks; one that is never written to costs nothing.
    """

    def __init__(self, room: int) -> None:
        mapping = mmap.mmap(-1, room * FRAME_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory = np.frombuffer(mapping, np.uint8).reshape(room, FRAME_BYTES)
        self._words = self.memory.view(np.uint64)
        self._marks = np.zeros(room, np.uint64)  # 0: no owner, so that anything may stand there
        self._next = 1

    @property
    def owned(self) -> NDArray[np.bool_]:
        """Which pages have an owner."""
        owned: NDArray[np.bool_] = self._marks != 0
        return owned

    def claim(self, pages: NDArray[np.int64]) -> None:
        """Write a new mark all over each of these pages."""
        self._marks[pages] = np.arange(self._next, self._next + len(pages), dtype=np.uint64) * 0x9E3779B97F4A7C15
        self._next += len(pages)
        self._words[pages] = self._marks[pages, None]

    def release(self, pages: NDArray[np.int64]) -> None:
        """Check all of these pages; from now on they have no owner."""
        self._compare(pages, self._words[pages])
        self._marks[pages] = 0

    def check(self) -> None:
        """Check both ends of every page that has an owner."""
        pages = np.flatnonzero(self._marks)
        self._compare(pages, self._words[pages][:, [0, -1]] if len(pages) < 64 else self._words[:, [0, -1]][pages])

    def _compare(self, pages: NDArray[np.int64], found: NDArray[np.uint64]) -> None:
        changed = pages[(found != self._marks[pages, None]).any(axis=1)]
        assert not len(changed), f"somebody has written to pages in use, the first is PFN {changed[0]:#x}"
