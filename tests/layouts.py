"""Machines for the state machines: small, so that every page matters, and awkward, so that every edge is met."""

from __future__ import annotations

from pagehint import ZoneSpec

MIB = 1 << 20

# With pages of 1 MiB a section (128 MiB) is 128 pages, so that hotplug happens in zones of a few hundred pages.
LAYOUTS = {
    "one zone": ([ZoneSpec("Normal", 0, 2048)], {"page_size": MIB}),
    "unaligned with holes": (
        [
            ZoneSpec("DMA", 1, 299),
            ZoneSpec("Normal", 333, 1777, holes=[(400, 30), (1000, 1), (1024, 128), (2100, 10)]),
        ],
        {"page_size": MIB, "max_page_order": 8, "min_order": 6},
    ),
    "two nodes": (
        [
            ZoneSpec("DMA", 1, 511),
            ZoneSpec("Normal", 1024, 640, node=0),
            ZoneSpec("Normal", 2000, 700, node=1, holes=[(2048, 64)]),
        ],
        {"page_size": MIB, "max_page_order": 7, "min_order": 5, "watermarks": (20, 40, 60)},
    ),
    "single pages": (
        [ZoneSpec("Normal", 7, 400, holes=[(9, 1)])],
        {"page_size": MIB, "max_page_order": 3, "min_order": 0},
    ),
    "small granules": ([ZoneSpec("Normal", 64, 700)], {"page_size": MIB, "max_page_order": 6, "min_order": 2}),
    "large granules": (
        [ZoneSpec("Normal", 512, 6000, holes=[(2048, 256)])],
        {"page_size": MIB, "max_page_order": 12, "min_order": 11},
    ),
    "orders 0 to 5": ([ZoneSpec("Normal", 100, 900)], {"page_size": MIB, "max_page_order": 5, "min_order": 4}),
}
