"""A machine is built from its description, and what describes none is refused."""

from __future__ import annotations

import os

import pytest

import pagehint as ph


def test_building():
    assert ph.PageAllocator(1 << 30).zones[0].managed_pages == 1 << 18
    assert ph.PageAllocator("1.5 GiB").zones[0].managed_pages == 3 << 17
    for bad in ("", "1 potato", "-5GiB", "0", 0, -1, "0.3B", "nan", "99999999EiB"):
        with pytest.raises(ValueError, match=r".+"):
            ph.PageAllocator(bad)
    for options in (
        {"page_size": 1000},
        {"page_size": 0},
        {"max_page_order": 33},
        {"max_page_order": -1},
        {"min_order": 11},
        {"min_order": -1},
        {"watermarks": (3, 2, 1)},
        {"watermarks": "windows"},
    ):
        with pytest.raises((ValueError, TypeError)):
            ph.PageAllocator("1GiB", **options)
    spec = ph.ZoneSpec("Normal", 0, 100)
    for zones in ([], [spec, ph.ZoneSpec("High", 99, 10)], [spec, ph.ZoneSpec("Normal", 100, 10)]):
        with pytest.raises(ValueError, match=r".+"):
            ph.PageAllocator(zones)
    for bad in ((-1, 10), (0, 0), (1 << 52, 1)):
        with pytest.raises(ValueError, match=r".+"):
            ph.ZoneSpec("Normal", *bad)
    for holes in ([(90, 20)], [(10, 0)], [(10, 5), (12, 5)], [(0, 100)]):
        with pytest.raises(ValueError, match="hole"):
            ph.ZoneSpec("Normal", 0, 100, holes=holes)


def test_metadata_is_small_and_a_tebibyte_is_built_at_once():
    pages = ph.PageAllocator("1TiB")
    zone = pages.zones[0]
    assert zone.metadata_bytes <= 0.4 * zone.managed_pages + 4096 * (1 + (os.cpu_count() or 1))
    small = ph.PageAllocator([ph.ZoneSpec("DMA", 1, 100)])
    assert small.zones[0].metadata_bytes <= 0.5 * 100 + 4096 * (1 + (os.cpu_count() or 1))


def test_less_than_a_page_and_pages_that_no_pc_has():
    with pytest.raises(ValueError, match="less than a page of 4096 bytes"):
        ph.PageAllocator("100B")
    with pytest.raises(ValueError, match="a PC has pages of 4096 bytes"):
        ph.PageAllocator.x86_64("1GiB", page_size=16384)
