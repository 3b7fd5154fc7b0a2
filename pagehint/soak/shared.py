"""What the threads of a round share: a model, an arena, and the record of who owns which page of the model."""

from __future__ import annotations

import random
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

import pagehint as ph
from pagehint.soak.finding import require

PAGE_SIZE = 64 << 10  # so that a section has 2048 pages
SECTION = (128 << 20) // PAGE_SIZE
ZONES = (
    ph.ZoneSpec("DMA", 1, 2 * SECTION - 1, holes=[(500, 100)]),
    ph.ZoneSpec("Normal", 2 * SECTION, 12 * SECTION),
    ph.ZoneSpec("Normal", 16 * SECTION + 100, 8 * SECTION, node=1),
)
MAX_PFN = 32 * SECTION  # above all PFNs, those that come online later included
MAX_PAGE_ORDER = 9
HOST, OFFLINE = -1, -2  # owners that are not threads; a thread's number is positive, and 0 is nobody


class Shared:
    """What the threads of a round share."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.findings: list[str] = []
        self.model = ph.PageAllocator(ZONES, page_size=PAGE_SIZE, max_page_order=MAX_PAGE_ORDER, min_order=6)
        self.arena = ph.Arena("256MiB")
        self.owner = np.zeros(MAX_PFN, np.int64)

    def claim(self, pfn: int, nr_pages: int, owner: int) -> None:
        """Record who owns these pages from now on. A finding if any of them has an owner."""
        pages = self.owner[pfn : pfn + nr_pages]
        require(not pages.any(), f"PFN {pfn:#x}, {nr_pages} pages: in two hands, {owner} and {pages.tolist()}")
        pages[:] = owner

    def release(self, pfn: int, nr_pages: int, owner: int) -> None:
        """Record that nobody owns these pages from now on. A finding unless this owner has all of them.

        It comes before the pages are freed in the model: after that another thread may claim them.
        """
        pages = self.owner[pfn : pfn + nr_pages]
        require((pages == owner).all(), f"PFN {pfn:#x}, {nr_pages} pages: taken from {owner} by {pages.tolist()}")
        pages[:] = 0

    def found(self, finding: BaseException) -> None:
        """Keep a finding, and end the round."""
        self.findings.append("".join(traceback.format_exception(finding)).rstrip())
        self.stop.set()


# What a thread does until `stop` is set. It gets a generator of its own and its number, and yields how many operations
# it has done since it last yielded.
Task: TypeAlias = Callable[[Shared, random.Random, int], Iterator[int]]
