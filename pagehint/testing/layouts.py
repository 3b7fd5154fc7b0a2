"""Machines to test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pagehint as ph


@dataclass(frozen=True)
class ZoneLayout:
    """A machine to be: its zones, and how its allocator is set up."""

    zones: Sequence[ph.ZoneSpec]
    page_size: int = 1 << 20
    max_page_order: int = 10
    min_order: int | None = None
    watermarks: Any = None

    @property
    def options(self) -> dict[str, Any]:
        """Return the keywords for `PageAllocator`."""
        return {
            "page_size": self.page_size,
            "max_page_order": self.max_page_order,
            "min_order": self.min_order,
            "watermarks": self.watermarks,
        }


# With pages of 1 MiB a section (128 MiB) is 128 pages, so that hotplug happens in zones of a few hundred pages.
LAYOUTS: Mapping[str, ZoneLayout] = {
    "one zone": ZoneLayout([ph.ZoneSpec("Normal", 0, 2048)]),
    "unaligned with holes": ZoneLayout(
        [
            ph.ZoneSpec("DMA", 1, 299),
            ph.ZoneSpec("Normal", 333, 1777, holes=[(400, 30), (1000, 1), (1024, 128), (2100, 10)]),
        ],
        max_page_order=8,
        min_order=6,
    ),
    "two nodes": ZoneLayout(
        [
            ph.ZoneSpec("DMA", 1, 511),
            ph.ZoneSpec("Normal", 1024, 640, node=0),
            ph.ZoneSpec("Normal", 2000, 700, node=1, holes=[(2048, 64)]),
        ],
        max_page_order=7,
        min_order=5,
        watermarks=(20, 40, 60),
    ),
    "interleaving nodes": ZoneLayout(
        [
            ph.ZoneSpec("Normal", 0, 1500, node=0, holes=[(300, 212), (700, 68), (1100, 200)]),
            ph.ZoneSpec("Normal", 300, 900, node=1, holes=[(512, 188), (768, 332)]),
        ],
        max_page_order=7,
        min_order=5,
        watermarks="linux",
    ),
    "single pages": ZoneLayout([ph.ZoneSpec("Normal", 7, 400, holes=[(9, 1)])], max_page_order=3, min_order=0),
    "small granules": ZoneLayout([ph.ZoneSpec("Normal", 64, 700)], max_page_order=6, min_order=2),
    "large granules": ZoneLayout(
        [ph.ZoneSpec("Normal", 512, 6000, holes=[(2048, 256)])], max_page_order=12, min_order=11
    ),
    "orders 0 to 5": ZoneLayout([ph.ZoneSpec("Normal", 100, 900)], max_page_order=5, min_order=4),
}
"""Small machines, so that every page matters, and awkward ones, so that every edge is met."""
