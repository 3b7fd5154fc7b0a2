"""The texts of the /proc files, in Linux's own formats."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pagehint as ph


def test_texts_have_the_formats_of_proc():
    pages = ph.PageAllocator.x86_64("8GiB", pcp=False)
    pages.alloc_pages(zone="DMA32")
    lines = pages.buddyinfo().splitlines()
    assert len(lines) == 3
    for line in lines:
        head, counts = line.split("zone")
        assert head == "Node 0, "
        assert len(counts.split()) == 12
        assert sum(int(n) << order for order, n in enumerate(counts.split()[1:])) in {z.free_pages for z in pages.zones}
    text = pages.pagetypeinfo()
    assert text.startswith("Page block order: 9\nPages per block:  512\n")
    assert "Number of blocks type" in text
    assert text.count(", type ") == 12
    assert "Free pages count per migrate type at order       0      1      2 " in text
    assert "\nNumber of blocks type     Unmovable      Movable " in text
    text = pages.zoneinfo()
    assert text.count("pages free") == 3
    assert text.count("protection: (") == 3
    for zone in pages.zones:
        assert f"start_pfn:           {zone.start_pfn}" in text


def shape_of(line):
    """A line of a /proc file with its numbers taken out: what stays is where they stand and what they are called."""
    return re.sub(r" *[0-9]+", " 0", line)


def test_every_line_of_zoneinfo_is_one_of_linuxs():
    """Of this machine's, if it runs Linux 6.7 or later; a tool that reads the one can read the other."""
    linux = {shape_of(line) for line in Path("/proc/zoneinfo").read_text().splitlines()}
    if not any("high_min" in line for line in linux):
        pytest.skip("an older kernel has fewer lines")
    ours = {shape_of(line) for line in ph.PageAllocator.x86_64("8GiB").zoneinfo().splitlines()}
    names = {line for line in ours if "protection" in line or line.startswith("Node")}
    assert ours - linux <= names


def test_zoneinfo_has_one_protection_a_zone_type_and_the_statistics_once_a_node():
    pages = ph.PageAllocator.x86_64("64GiB", 2)
    text = pages.zoneinfo()
    protections = re.findall(r"protection: \((.*)\)", text)
    assert [len(each.split(", ")) for each in protections] == [3, 3, 3, 3]
    assert protections[0].startswith("0, ")
    assert protections[2:] == ["0, 0, 0"] * 2
    assert text.count("per-node stats") == 2
    marks = pages.zones[0].watermarks
    assert f"high     {marks.high}\n        promo    {2 * marks.high - marks.low}\n" in text
