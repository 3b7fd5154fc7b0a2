"""What must hold between two operations: the allocator and its oracle agree, and memory in use keeps its contents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from pagehint.testing.layouts import ZoneLayout
from pagehint.testing.operations import Operations
from pagehint.testing.page_marks import PageMarks, pages_of


class Checker(Operations):
    """An allocator, its oracle, and the memory in between, of which nothing may be lost.

    Parameters
    ----------
    layout : ZoneLayout
        The machine.
    callbacks : callable
        Returns the callbacks under test; called for every enable.
    pcp : bool
        Whether there are per-CPU page sets.
    """

    def __init__(
        self, layout: ZoneLayout, callbacks: Callable[[], ph.PageHintingCallbacks], *, pcp: bool = False
    ) -> None:
        super().__init__(layout, pcp=pcp)
        self.new_callbacks = callbacks
        self.marks = PageMarks(self.room)
        self.broken: list[object] = []  # findings of callbacks, which must not raise

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The memory of the machine: row ``pfn`` are 4096 bytes, aligned, that stand for that page."""
        return self.marks.memory

    def capped(self, callbacks: ph.PageHintingCallbacks, most: int) -> int:
        """Return the most blocks at once that the operation and these callbacks allow."""
        self.limit = callbacks.max_pages
        return min(most, self.limit)

    @staticmethod
    def pages_of(blocks: Any) -> NDArray[np.int64]:
        """Return the PFN of every page in the blocks that `hint_pages` got."""
        return pages_of(blocks)

    def expect(self, truth: object, what: str) -> None:
        """Note a finding, unless it is true. For callbacks, which must not raise: that would be a failed report."""
        if not truth:
            self.broken.append(what)

    # -- the pages, by PFN, as the oracle has them

    def of_zones(self, name: str, outside: bool = False) -> NDArray[np.bool_]:
        """Return one of the zones' arrays as one array of all pages; `outside` is for those in no zone's memory."""
        pages = np.full(self.room, outside)
        for zone in self.oracle.zones:
            memory = np.flatnonzero(~zone.hole)  # where there is none, another zone may have some
            pages[zone.base + memory] = getattr(zone, name)[memory]
        return pages

    def used_pages(self) -> NDArray[np.bool_]:
        return ~(self.of_zones("free") | self.of_zones("absent", outside=True))

    def release(self) -> None:
        """Take the marks off what is no longer in use by the oracle. They must all be there still."""
        self.marks.release(np.flatnonzero(self.marks.owned & ~self.used_pages()))

    def claim(self) -> None:
        """Mark what is in use by the oracle, as its owner would write to it."""
        self.marks.claim(np.flatnonzero(self.used_pages() & ~self.marks.owned))

    def check(self) -> None:
        """Check what must hold between two operations.

        Raises
        ------
        AssertionError, PageHintError
            If it does not.
        """
        assert not self.broken, self.broken
        self.pages.verify()
        self.marks.check()

    def close(self) -> None:
        """Switch hinting off, and check once more."""
        self.disable()
        self.marks.release(np.flatnonzero(self.marks.owned))
        self.check()
