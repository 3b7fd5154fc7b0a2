"""The texts of /proc: what they say, and what no kernel has written."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import DATA, SNAPSHOTS, ZONEINFO

import pagehint as ph
from pagehint.errors import SnapshotError
from pagehint.traces.snapshots.proc_files import read_buddyinfo, read_iomem, read_pagetypeinfo, read_zoneinfo

READERS = {
    "zoneinfo": read_zoneinfo,
    "buddyinfo": read_buddyinfo,
    "pagetypeinfo": read_pagetypeinfo,
    "iomem": lambda text: read_iomem(text, 4096),
}


def test_a_text_of_our_own_is_one_of_the_kernel_s():
    pages = ph.PageAllocator.x86_64("8GiB")
    for zone, read in zip(pages.zones, read_zoneinfo(pages.zoneinfo()), strict=True):
        assert (zone.name, zone.node, zone.start_pfn, zone.spanned_pages) == (
            read.name, read.node, read.start_pfn, read.spanned_pages,
        )  # fmt: skip
        assert (zone.free_pages, zone.watermarks) == (read.free_pages, read.watermarks)
    assert read_buddyinfo(pages.buddyinfo())[0, "Normal"][10] == pages.zones[-1].nr_free[10]
    assert sum(read_pagetypeinfo(pages.pagetypeinfo()).pageblocks[0, "DMA"].values()) == 8


def test_pages_sets_and_ranks():
    zones = read_zoneinfo((DATA / "frag-2g-smp2-thp/before/zoneinfo").read_text())
    assert [(zone.name, zone.rank, zone.pcp_pages) for zone in zones] == [("DMA", 0, 0), ("DMA32", 1, 1430 + 804)]
    assert zones[0].protection == (0, 1941, 1941, 1941, 1941)


def test_a_count_at_which_the_kernel_stopped():
    text = (DATA / "frag-2g-smp2-thp/before/pagetypeinfo").read_text().replace(" 449", " >100000")
    assert read_pagetypeinfo(text).free[0, "DMA32"]["Movable"][10] is None


def test_system_ram_of_whole_pages_only():
    text = "00000800-00002fff : System RAM\n00003000-00003ffe : System RAM\n  00004000-00004fff : System RAM (kmem)\n"
    assert read_iomem(text, 4096) == ((1, 3), (4, 5))
    assert read_iomem("00000000-00000000 : System RAM\n", 4096) == ()  # as users other than root see it


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("pages free     3", "pages free     x", "line 2: 'x' is no number"),
        ("spanned  4096", "spanned  99999999999999999999999", "is no number"),
        ("spanned  4096", "spanned  -4096", "is no number"),
        ("spanned  4096", "spanned  4095", "this cannot be"),
        ("managed  4096", "managed  5000", "this cannot be"),
        ("        managed  4096\n", "", "no managed"),
        ("        protection: (0, 0, 0)\n", "", "no protection"),
        ("protection: (0, 0, 0)", "protection: (0, zero)", "is no number"),
        ("low      20", "low      5", "not in order"),
        ("  start_pfn:           0\n", "", "no start_pfn"),
        ("start_pfn:           0", "start_pfn:           4503599627370496", "this cannot be"),
        ("Node 0, zone   Normal", "Node 0, zone", "no zone with memory"),
        ("Node 0, zone   Normal", "Node 9999999999999999999999, zone   Normal", "is no number"),
    ],
)
def test_a_zoneinfo_that_no_kernel_has_written(old, new, words):
    text = ZONEINFO.format(free=3, pages=4096)
    read_zoneinfo(text)
    assert old in text
    with pytest.raises(SnapshotError, match=words):
        read_zoneinfo(text.replace(old, new))


def test_a_zone_twice():
    text = ZONEINFO.format(free=3, pages=4096)
    with pytest.raises(SnapshotError, match="zone Normal of node 0 is there twice"):
        read_zoneinfo(text + text)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "text", ["", "\n\n", "hello", "Node 0, zone Normal", "{}", "\0" * 100, "Page block order: 9\n"]
)
def test_no_such_text(name, text):
    with pytest.raises(SnapshotError):
        READERS[name](text)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_text_that_is_cut_or_changed_anywhere(name, data):
    """An error of ours, or an answer; never another error, nor memory by what it says."""
    text = (DATA / SNAPSHOTS[0] / name).read_text()
    at = data.draw(st.integers(0, len(text)))
    text = text[:at] + data.draw(st.text(max_size=20)) + (text[at + 3 :] if data.draw(st.booleans()) else "")
    with suppress(SnapshotError):
        READERS[name](text)
