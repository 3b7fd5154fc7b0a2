"""What the allocator promises (SPEC.md, A1 to A7), on the compiled one and on the reference."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from allocators import real
from hosts import RecordingHost
from processes import survives

import pagehint as ph
from pagehint import layout

MIB = 1 << 20


def exhaust(pages):
    for _ in range(10_000):
        pages.alloc_pages(10)


def free_set(pages):
    return [zone.free_blocks().tolist() for zone in pages.zones]


def test_a_fresh_machine_is_all_free_in_maximal_blocks(make):
    pages = make("16MiB")
    assert free_set(pages) == [[(0, 10), (1024, 10), (2048, 10), (3072, 10)]]
    pages = make([ph.ZoneSpec("DMA", 1, 4095)])
    assert free_set(pages) == [[(1 << k, k) for k in range(10)] + [(1024, 10), (2048, 10), (3072, 10)]]


def test_blocks_do_not_cross_holes_nor_zones(make):
    pages = make([ph.ZoneSpec("DMA", 0, 1000), ph.ZoneSpec("Normal", 1000, 1048, holes=[(1200, 100)])])
    for zone in pages.zones:
        for pfn, order in zone.free_blocks().tolist():
            assert pfn % (1 << order) == 0
            assert zone.start_pfn <= pfn
            assert pfn + (1 << order) <= zone.start_pfn + zone.spanned_pages
            assert pfn + (1 << order) <= 1200 or pfn >= 1300
    assert [zone.managed_pages for zone in pages.zones] == [1000, 948]


def test_all_pages_can_be_had_and_given_back(make):
    pages = make([ph.ZoneSpec("DMA", 1, 300), ph.ZoneSpec("Normal", 500, 777)])
    before = free_set(pages)
    pfns = [pages.alloc_pages() for _ in range(1077)]
    assert sorted(pfns) == [*range(1, 301), *range(500, 1277)]
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()
    for pfn in reversed(pfns):
        pages.free_pages(pfn)
    assert free_set(pages) == before
    pages.verify()


def test_requests_fall_back_to_lower_zones_and_never_to_higher(make):
    pages = make([ph.ZoneSpec("DMA", 0, 1024), ph.ZoneSpec("Normal", 1024, 1024)])
    assert pages.alloc_pages(10) >= 1024
    assert pages.alloc_pages(9) < 1024  # Normal is full
    pages = make([ph.ZoneSpec("DMA", 0, 1024), ph.ZoneSpec("Normal", 1024, 1024)])
    assert pages.alloc_pages(10, zone="DMA") == 0
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages(0, zone="DMA")


def test_requests_fall_back_to_other_nodes(make):
    pages = make([ph.ZoneSpec("Normal", 0, 1024, node=0), ph.ZoneSpec("Normal", 1024, 1024, node=1)])
    assert pages.alloc_pages(10) == 0
    assert pages.alloc_pages(10) == 1024


def test_watermarks_are_kept(make):
    pages = make("4MiB", watermarks=(100, 200, 300))
    assert len(pages.alloc_pages_bulk(924)) == 924
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages_exact(3)
    assert pages.stats().free_pages == 100


def test_linux_watermarks_and_reserve():
    pages = ph.PageAllocator.x86_64("16GiB", pcp=False)
    marks = [zone.watermarks for zone in pages.zones]
    managed = [zone.managed_pages for zone in pages.zones]
    # min_free_kbytes = 4 * sqrt(lowmem kbytes), shared out by size; low and high a quarter, or 1/1000, above.
    assert sum(mark.min for mark in marks) == pytest.approx(4 * (sum(managed) * 4) ** 0.5 / 4, rel=0.001)
    assert all(mark.high - mark.low == mark.low - mark.min for mark in marks)
    assert layout.lowmem_reserve([ph.ZoneSpec("DMA", 0, 10), ph.ZoneSpec("Normal", 10, 2560)], [10, 2560], 0, 1) == 10
    # DMA gives nothing to those who could have Normal memory, until it is asked for by name.
    zone = pages.zones[0]
    reserve = int(pages.zoneinfo().split("protection: (")[1].split(")")[0].split(", ")[2])
    assert reserve > zone.managed_pages
    with pytest.raises(ph.OutOfMemoryError):
        exhaust(pages)
    assert zone.free_pages == zone.managed_pages
    assert pages.alloc_pages(0, zone="DMA") < 4096


def test_exact_place(make):
    pages = make("16MiB")
    assert pages.alloc_pages_at(1234) == 1234
    assert pages.alloc_pages_at(2048, 10) == 2048
    for pfn, order in ((1234, 0), (1024, 9), (2048, 0), (2560, 9), (1235, 1)):
        with pytest.raises(ph.BadPageError):
            pages.alloc_pages_at(pfn, order)
    pages.free_pages(1234)
    pages.free_pages(2048, 10)
    assert pages.stats().free_pages == 4096
    pages.verify()


@pytest.mark.parametrize("nr_pages", [1, 2, 3, 5, 31, 33, 63, 64, 65, 100, 127, 513, 1000, 1023, 1024])
def test_exact_size(make, nr_pages):
    pages = make("16MiB")
    before = free_set(pages)
    pfn = pages.alloc_pages_exact(nr_pages)
    assert pages.stats().allocated_pages == nr_pages
    pages.verify()
    for wrong in {nr_pages - 1, nr_pages + 1, nr_pages * 2} - {0}:
        with pytest.raises(ph.BadPageError):
            pages.free_pages_exact(pfn, wrong)
    if nr_pages & (nr_pages - 1):
        with pytest.raises(ph.BadPageError):
            pages.free_pages(pfn, min(nr_pages.bit_length(), 10))
    pages.free_pages_exact(pfn, nr_pages)
    assert free_set(pages) == before
    pages.verify()


def test_exact_size_beyond_the_largest_block(make):
    """A run across blocks: more than any block has."""
    pages = make("16MiB")
    before = free_set(pages)
    pfn = pages.alloc_pages_exact(4000)
    assert pages.stats().free_pages == 96
    pages.verify()
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages_exact(97)
    with pytest.raises(ph.BadPageError):
        pages.free_pages_exact(pfn, 3999)
    pages.free_pages_exact(pfn, 4000)
    assert free_set(pages) == before
    pfn = pages.alloc_pages_exact(4096)
    pages.free_pages_exact(pfn, 4096)
    assert free_set(pages) == before
    pages.verify()


def refuse(pages, call, *args, error=ph.BadPageError):
    before, stats = free_set(pages), vars(pages.stats()).copy()
    with pytest.raises(error):
        call(*args)
    after = vars(pages.stats()).copy()
    for counts in (stats, after):
        counts.pop("lock_acquired", None)
    assert free_set(pages) == before
    assert after == stats
    pages.verify()


def test_mistakes_are_refused_and_change_nothing(make):
    pages = make([ph.ZoneSpec("Normal", 100, 4000, holes=[(1000, 24)])])
    block = pages.alloc_pages_at(1024, 3)
    large = pages.alloc_pages_at(2048, 8)
    exact = pages.alloc_pages_exact(100)
    single = pages.alloc_pages_at(1500)
    pages.free_pages(single)
    for pfn, order in (
        (single, 0),  # double free
        (block, 2),  # wrong orders
        (block, 4),
        (large, 7),
        (large, 9),
        (block + 1, 0),  # inside
        (large + 64, 0),
        (large + 64, 6),
        (exact, 6),
        (exact + 64, 0),
        (3000, 0),  # never allocated
        (0, 0),  # outside every zone
        (99, 0),
        (4100, 0),
        (1 << 40, 0),
        (1010, 0),  # in a hole
        (block, -1),  # no such order
        (block, 11),
    ):
        refuse(pages, pages.free_pages, pfn, order)
        refuse(pages, pages.free_pages_bulk, [block, pfn], [3, order] if order >= 0 else [3, 99])
    refuse(pages, pages.free_pages_bulk, [block, large, block], [3, 8, 3])  # twice
    refuse(pages, pages.alloc_pages, -1)
    refuse(pages, pages.alloc_pages, 11)
    refuse(pages, pages.alloc_pages_bulk, -1)
    refuse(pages, pages.alloc_pages_exact, 0)
    refuse(pages, pages.alloc_pages_exact, -5)
    refuse(pages, pages.free_pages_exact, exact, 99)
    refuse(pages, pages.free_pages_exact, exact + 64, 36)
    refuse(pages, pages.alloc_pages_at, 1010)
    refuse(pages, pages.alloc_pages_at, 4096 - 4, 3)
    refuse(pages, pages.alloc_pages_bulk, 10_000, error=ph.OutOfMemoryError)
    pages.free_pages(block, 3)
    pages.free_pages(large, 8)
    pages.free_pages_exact(exact, 100)
    assert pages.stats().allocated_pages == 0


def test_messages_name_the_page_the_order_and_the_zone():
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 100, 4000, node=2, holes=[(1000, 24)])])
    pfn = pages.alloc_pages_at(0x400, 3)
    for args, words in (
        ((0x400, 2), ("0x400", "order 2", "Normal", "node 2", "wrong order")),
        ((0x401, 0), ("0x401", "order 0", "inside an allocated block")),
        ((0x800, 0), ("already free", "double free")),
        ((1010, 0), ("in a hole",)),
        ((5, 0), ("outside every zone",)),
    ):
        with pytest.raises(ph.BadPageError) as error:
            pages.free_pages(*args)
        assert all(word in str(error.value) for word in words), error.value
    pages.free_pages(pfn, 3)
    with pytest.raises(ph.BadPageError, match="already free"):
        pages.free_pages(pfn, 3)
    with pytest.raises(ph.OutOfMemoryError, match=r"order 10.*Normal \(node 2\)"):
        exhaust(pages)


@pytest.mark.parametrize("value", [1.5, "1", None, np.float64(2)])
def test_arguments_of_the_wrong_type(value):
    pages = real("16MiB")
    for call in (
        pages.free_pages,
        pages.alloc_pages_at,
        pages.alloc_pages_exact,
        pages.alloc_pages_bulk,
        pages.alloc_pages,
    ):
        with pytest.raises(TypeError):
            call(value)
    with pytest.raises(TypeError):
        pages.free_pages_bulk([value])


def test_bulk_arguments():
    pages = real("16MiB")
    pfns = pages.alloc_pages_bulk(64, 2)
    assert pfns.dtype == np.uint64
    assert len(set(pfns.tolist())) == 64
    with pytest.raises(ValueError, match="one-dimensional"):
        pages.free_pages_bulk(pfns.reshape(8, 8), 2)
    with pytest.raises(ValueError, match="orders for"):
        pages.free_pages_bulk(pfns, [2, 2])
    with pytest.raises(ph.BadPageError, match="negative"):
        pages.free_pages_bulk(np.array([-1]))
    with pytest.raises(ph.BadPageError):
        pages.free_pages_bulk([1 << 70])
    with pytest.raises(ph.BadPageError):
        pages.free_pages_bulk(pfns, np.full(64, 2**33))
    reversed_view = pfns[::-1][::2]
    reversed_view.flags.writeable = False
    pages.free_pages_bulk(reversed_view, 2)
    pages.free_pages_bulk(pfns[::2].astype(np.int32).tolist(), [2] * 32)
    pages.free_pages_bulk([], 0)
    assert len(pages.alloc_pages_bulk(0)) == 0
    assert pages.stats().allocated_pages == 0


def test_a_bulk_request_that_cannot_be_met_takes_nothing_and_clears_no_hint(make, few_host):
    pages = make("16MiB")
    with pages.hinting(few_host.callbacks, workqueue="manual"):
        pages.flush_hinting()
        refuse(pages, pages.alloc_pages_bulk, 4097, error=ph.OutOfMemoryError)
        refuse(pages, pages.alloc_pages_bulk, 5, 10, error=ph.OutOfMemoryError)
        assert pages.stats().hints_pending == 0


def test_hotplug(make):
    pages = make("512MiB")
    before = free_set(pages)
    used = pages.alloc_pages_at(40000)
    refuse(pages, pages.offline, 32768, 32768)  # in use
    refuse(pages, pages.offline, 100, 32768)  # not whole sections
    refuse(pages, pages.offline, 0, 1 << 20)  # beyond the zone
    refuse(pages, pages.online, 65536, 32768)  # online
    pages.offline(65536, 32768)
    assert pages.zones[0].managed_pages == 131072 - 32768
    refuse(pages, pages.offline, 65536, 32768)
    refuse(pages, pages.alloc_pages_at, 65536)
    refuse(pages, pages.free_pages, 65536)
    assert all(not 65536 <= pfn < 98304 for pfn, _ in pages.zones[0].free_blocks().tolist())
    pages.online(65536, 32768)
    pages.free_pages(used)
    pages.offline(32768, 32768)
    pages.online(32768, 32768)
    assert free_set(pages) == before


def test_isolate_pageblocks_are_not_handed_out_and_do_not_merge(make):
    pages = make("4MiB")
    pages.set_migratetype(0, 512, "isolate")
    assert free_set(pages) == [[(0, 9), (512, 9)]]
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages(10)
    assert pages.alloc_pages(9) == 512
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()
    refuse(pages, pages.alloc_pages_at, 3)
    refuse(pages, pages.set_migratetype, 0, 100, "isolate")
    refuse(pages, pages.set_migratetype, 0, 2048, "isolate")
    with pytest.raises(ValueError, match="migratetype"):
        real("4MiB").set_migratetype(0, 512, "immovable")
    with pytest.raises(ValueError, match="migratetype"):
        real("4MiB").alloc_pages(0, "isolate")
    pages.free_pages(512, 9)
    pages.set_migratetype(0, 512, "movable")
    assert free_set(pages) == [[(0, 10)]]


def test_what_is_freed_into_an_isolate_pageblock_stays_there(make):
    pages = make("4MiB")
    used = pages.alloc_pages_at(5)
    pages.set_migratetype(0, 512, "isolate")
    pages.free_pages(used)
    assert free_set(pages) == [[(0, 9), (512, 9)]]


@pytest.mark.parametrize("way", ["block", "bulk", "run", "report", "online"])
def test_what_comes_back_with_one_isolate_pageblock_in_it_comes_back_in_parts(make, few_host, way):
    """However a block of two pageblocks gets free again: isolate never merges, so nobody is given its pages."""
    pages = make("256MiB")
    if way == "block":
        pages.alloc_pages_at(0, 10)
    elif way == "bulk":
        pages.alloc_pages_at(0, 10), pages.alloc_pages_at(1024, 10)
    elif way == "run":
        assert pages.alloc_pages_exact(1536) == 0
    elif way == "online":
        pages.offline(0, 32768)
    if way == "report":
        few_host.answer = lambda blocks: pages.set_migratetype(512, 512, "isolate")
        with pages.hinting(few_host.callbacks, workqueue="manual"):
            pages.flush_hinting()
    else:
        pages.set_migratetype(512, 512, "isolate")
    if way == "block":
        pages.free_pages(0, 10)
    elif way == "bulk":
        pages.free_pages_bulk([0, 1024], 10)
    elif way == "run":
        pages.free_pages_exact(0, 1536)
    elif way == "online":
        pages.online(0, 32768)
    assert pages.zones[0].free_blocks().tolist()[:3] == [(0, 9), (512, 9), (1024, 10)]
    pages.verify()
    assert 0 not in pages.alloc_pages_bulk(63, 10)
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages(10)


def test_stealing_claims_whole_pageblocks():
    """Unmovable pages gather in few pageblocks instead of being scattered over the movable ones."""
    pages = real("64MiB")
    pfns = [pages.alloc_pages(0, "unmovable") for _ in range(400)]
    assert len({pfn // 512 for pfn in pfns}) == 1
    movable = pages.alloc_pages_bulk(1000)
    assert not {pfn // 512 for pfn in pfns} & {int(pfn) // 512 for pfn in movable}
    blocks = next(line for line in pages.pagetypeinfo().splitlines()[::-1] if line.startswith("Node"))
    assert blocks.split()[4:] == ["1", "31", "0", "0"]
    pages.free_pages_bulk(pfns)
    pages.free_pages_bulk(movable)
    assert free_set(pages) == free_set(real("64MiB"))


def test_every_type_can_have_every_page():
    for migratetype in ("movable", "unmovable", "reclaimable"):
        pages = real("16MiB")
        half = pages.alloc_pages_bulk(2048, 0, "movable")
        assert len(pages.alloc_pages_bulk(2048, 0, migratetype)) == 2048
        pages.free_pages_bulk(half[::2])
        assert len(pages.alloc_pages_bulk(1024, 0, migratetype)) == 1024
        pages.verify()


def test_per_cpu_page_sets():
    pages = ph.PageAllocator("1GiB")
    pfn = pages.alloc_pages()
    stats = pages.stats()
    assert stats.pcp_pages == 255  # a cache line of leaves, of 64 pages each, is reserved for this CPU
    assert stats.allocated_pages == 1
    pages.free_pages(pfn)
    with pytest.raises(ph.BadPageError, match="already free"):
        pages.free_pages(pfn)  # it is in a set, not in the buddy
    assert pages.alloc_pages_at(pfn) == pfn  # free it is, though: the sets are emptied for it
    pages.free_pages(pfn)
    pages.verify()
    pages.drain_pcp()
    assert pages.stats().pcp_pages == 0
    assert pages.zones[0].nr_free[10] == 256
    pfns = [pages.alloc_pages(order) for order in (0, 1, 2, 3) * 200]
    pages.verify()
    for i, pfn in enumerate(pfns):
        pages.free_pages(pfn, (0, 1, 2, 3)[i % 4])
    assert pages.stats().allocated_pages == 0
    pages.verify()


def test_page_sets_are_emptied_before_memory_is_short():
    pages = ph.PageAllocator("1GiB")
    pages.free_pages(pages.alloc_pages())
    assert pages.stats().pcp_pages > 0
    assert len([pages.alloc_pages(10) for _ in range(256)]) == 256


def test_metadata_is_small_and_a_tebibyte_is_built_at_once():
    pages = ph.PageAllocator("1TiB")
    zone = pages.zones[0]
    assert zone.metadata_bytes <= 0.4 * zone.managed_pages + 4096 * (1 + (os.cpu_count() or 1))
    small = ph.PageAllocator([ph.ZoneSpec("DMA", 1, 100)])
    assert small.zones[0].metadata_bytes <= 0.5 * 100 + 4096 * (1 + (os.cpu_count() or 1))


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


def test_representations_read_well():
    pages = ph.PageAllocator("1GiB", pcp=False)
    pages.alloc_pages(9)
    assert repr(pages) == "<PageAllocator 1 GiB in Normal: 1022 MiB free, hinting off>"
    assert repr(pages.zones[0]) == "<Zone Normal, node 0: PFN 0x0 to 0x40000, 261632 of 262144 pages free>"
    assert "free_pages" in repr(pages.stats())
    assert "1022 MiB" in repr(pages.stats())
    assert "not tracked" in repr(pages.explain())
    for thing in (pages, pages.stats(), pages.explain()):
        assert "<table>" in thing._repr_html_()
    assert pages.stats().to_dict()["free_pages"] == 261632


@pytest.mark.parametrize("top", [0, 1, 5, 6, 7, 20])
def test_any_largest_order(make, top):
    pages = make([ph.ZoneSpec("Normal", 3, 5000)], max_page_order=top)
    before = free_set(pages)
    assert max(order for _, order in before[0]) == min(top, 11)
    pfn = pages.alloc_pages(min(top, 11))
    run = pages.alloc_pages_exact(200)
    pages.verify()
    pages.free_pages_exact(run, 200)
    pages.free_pages(pfn, min(top, 11))
    assert free_set(pages) == before
    pages.verify()


def test_a_range_that_wraps_around_grew_the_zone_over_everything():
    survives("""
        import pagehint as ph
        pages = ph.PageAllocator("1GiB")
        for call in (pages.online, pages.offline, lambda *run: pages.set_migratetype(*run, "isolate")):
            for start in (2**64 - 32768, 2**64 - 65536, 2**52 - 32768, 2**52, 2**63):
                for nr_pages in (32768, 65536, 2**51):
                    try:
                        call(start, nr_pages)
                    except ph.BadPageError as error:
                        assert hex(start) in str(error), error
                    else:
                        raise AssertionError
        pages.verify()
        assert pages.zones[0].spanned_pages == 1 << 18
    """)


@pytest.mark.parametrize("orders", [False, True])
def test_an_array_changed_while_it_is_freed_broke_the_zone(orders):
    """A bulk free goes over its arrays twice without the GIL, so they are its own."""
    pages = real("2GiB")
    array, scratch = np.zeros(500_000, np.uint64), np.zeros(500_000, np.uint32)
    good, stop = [0], threading.Event()

    def change():
        while not stop.is_set():
            array[-1], scratch[-1] = 7, 3
            array[-1], scratch[-1] = good[0], 0

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(60):
            pfns = pages.alloc_pages_bulk(500_000)
            array[:] = pfns
            good[0] = pfns[-1]
            try:
                pages.free_pages_bulk(array, scratch if orders else 0)
            except ph.BadPageError:
                pages.free_pages_bulk(pfns)
            pages.verify()
            assert pages.stats().allocated_pages == 0
    finally:
        stop.set()
        thread.join()


def test_a_list_of_numpys_and_pythons_integers_was_taken_for_floats():
    pages = real("16MiB")
    pages.free_pages_bulk([*pages.alloc_pages_bulk(2), pages.alloc_pages()])
    pages.free_pages_bulk([np.uint64(pages.alloc_pages(1)), pages.alloc_pages(2)], [np.uint64(1), 2])
    pages.free_pages_bulk(np.array([pages.alloc_pages()], object))
    assert pages.stats().allocated_pages == 0
    for bad in ([np.uint64(1), 2.0], [1.0], [np.float64(1)], np.array([1.0]), ["1"], [None]):
        with pytest.raises(TypeError, match="pfns"):
            pages.free_pages_bulk(bad)
    for bad, number in (([1, 2**63, -3], "-3"), ([np.uint64(1), -1], "-1"), ([1 << 70], str(1 << 70))):
        with pytest.raises(ph.BadPageError, match=number):
            pages.free_pages_bulk(bad)
    for bad in (np.zeros((2, 2), np.uint64), [[1]], 3, "abc"):
        with pytest.raises(ValueError, match="one-dimensional"):
            pages.free_pages_bulk(bad)


def test_asking_for_a_place_in_a_hole_emptied_the_page_sets():
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 0, 131072, holes=[(60000, 100)])])
    pages.offline(98304, 32768)
    pages.alloc_pages()
    held = pages.stats().pcp_pages
    assert held
    for pfn, order, words in (
        (60001, 0, "in a hole"),
        (59904, 8, "reaches into a hole at PFN 0xea60"),
        (100000, 3, "in an offline section"),
        (131072 - 1024, 10, "in an offline section"),
    ):
        with pytest.raises(ph.BadPageError, match=words):
            pages.alloc_pages_at(pfn, order)
        assert pages.stats().pcp_pages == held


def test_a_gap_left_by_growth_could_never_come_online(make):
    pages = make("256MiB")
    pages.online(10 * 32768, 32768)
    assert pages.zones[0].managed_pages == 3 * 32768
    with pytest.raises(ph.BadPageError):
        pages.alloc_pages_at(9 * 32768)
    refuse(pages, pages.online, 9 * 32768, 65536)  # one of the two is online
    pages.online(9 * 32768, 32768)
    assert pages.alloc_pages_at(9 * 32768, 3) == 9 * 32768
    refuse(pages, pages.online, 9 * 32768, 32768)
    pages.offline(3 * 32768, 32768)  # nothing there, and it can come online afterwards
    pages.online(2 * 32768, 65536)
    pages.free_pages(9 * 32768, 3)
    pages.verify()
    assert pages.zones[0].managed_pages == 6 * 32768
    pages.offline(9 * 32768, 65536)
    pages.online(4 * 32768, 7 * 32768)
    assert pages.stats().free_pages == pages.zones[0].managed_pages == 11 * 32768
    pages.verify()


def test_watermarks_follow_hotplug(make):
    """As in Linux, every zone's are set anew when managed pages change, and the lowmem reserve with them."""
    pages = make("1GiB", watermarks="linux")
    pages.online(8 * 32768, 8 * 32768)
    assert pages.zones[0].watermarks == make("2GiB", watermarks="linux").zones[0].watermarks
    pages.offline(8 * 32768, 8 * 32768)
    assert pages.zones[0].watermarks == make("1GiB", watermarks="linux").zones[0].watermarks
    pages.offline(0, 8 * 32768)
    assert pages.zones[0].watermarks == (0, 0, 0)
    pages = make("256MiB", watermarks=(1, 2, 3))
    pages.online(65536, 32768)
    assert pages.zones[0].watermarks == (1, 2, 3)


def test_the_lowmem_reserve_follows_hotplug():
    specs = [ph.ZoneSpec("DMA", 0, 32768), ph.ZoneSpec("Normal", 32768, 32768)]
    pages = real(specs, watermarks="linux")
    pages.online(65536, 32768)
    left = pages.zones[0].watermarks.min + 65536 // 256
    pages.alloc_pages_bulk(3 * 32768 - left - pages.zones[1].watermarks.min)
    assert pages.zones[0].free_pages == left
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()


def test_an_order_out_of_range_is_named_with_the_page_and_the_zone():
    pages = real([ph.ZoneSpec("DMA", 0, 1024), ph.ZoneSpec("Normal", 1024, 1024, node=3)])
    for call in (
        lambda: pages.free_pages(0x500, 11),
        lambda: pages.alloc_pages_at(0x500, 11),
        lambda: pages.free_pages_bulk([0x500], 11),
        lambda: pages.free_pages_bulk([0x400, 0x500, 0x600], [0, 11, 12]),
    ):
        with pytest.raises(ph.BadPageError, match=r"PFN 0x500 .*order 11.*Normal, node 3.*from 0 to 10"):
            call()
    with pytest.raises(ph.BadPageError, match=r"PFN 0x9999 .*order -1.*outside every zone"):
        pages.free_pages(0x9999, -1)
    for call in (lambda: pages.alloc_pages(11), lambda: pages.alloc_pages_bulk(3, 11)):
        with pytest.raises(ph.BadPageError, match=r"order 11.*DMA \(node 0\), Normal \(node 3\).*from 0 to 10"):
            call()


def test_a_count_that_overflows_is_out_of_memory():
    pages = real("1GiB", max_page_order=20)
    for count, order in ((2**44, 20), (2**51, 13), (2**51, 20)):
        with pytest.raises(ph.OutOfMemoryError, match=f"{count} blocks of order {order}"):
            pages.alloc_pages_bulk(count, order)


def test_a_description_of_the_wrong_type_is_refused_in_words():
    for bad, error, words in (
        (1.5, TypeError, "memory must be"),
        (None, TypeError, "memory must be"),
        ([1, 2], TypeError, "ZoneSpec"),
    ):
        with pytest.raises(error, match=words):
            ph.PageAllocator(bad)
    for bad, error in (((1, 2), ValueError), ("foo", ValueError), (5, TypeError), ((1, 2, 3.5), TypeError)):
        with pytest.raises(error, match="watermarks must be"):
            ph.PageAllocator("1MiB", watermarks=bad)
    assert ph.PageAllocator("1MiB", watermarks=np.array([1, 2, 3])).zones[0].watermarks == (1, 2, 3)
    for bad in (("a", 0.5, 100), ("a", 0, 10.0), ("a", 0, 10, 0.5), (5, 0, 100), ("a", 0, 10, 0, [(1.5, 3)])):
        with pytest.raises(TypeError, match=r"zone|ZoneSpec"):
            ph.ZoneSpec(*bad)
    with pytest.raises(ValueError, match="hole"):
        ph.ZoneSpec("a", 0, 10, holes=[(1, 2, 3)])
    assert ph.ZoneSpec("a", np.int64(3), np.uint8(100)).end_pfn == 103


def test_a_block_isolated_in_part_while_allocated_is_freed_in_parts(make, few_host):
    """A free block never lies across the border of isolation: what is isolated is neither reported nor allocated."""
    pages = make("16MiB")
    block = pages.alloc_pages_at(0, 10)
    pages.set_migratetype(512, 512, "isolate")
    pages.free_pages(block, 10)
    assert pages.zones[0].free_blocks()[:2].tolist() == [(0, 9), (512, 9)]
    pages.verify()
    pages.enable_hinting(few_host.callbacks, workqueue="manual")
    pages.flush_hinting()
    assert not any(pfn <= 512 < pfn + (1 << order) for pfn, order in few_host.blocks)
    pages.disable_hinting()


def test_a_block_isolated_in_part_while_it_is_out_is_put_back_in_parts():
    pages = real("16MiB")
    once = iter([True])

    def hint_pages(blocks):
        if blocks["pfn"][0] == 0 and next(once, False):
            pages.set_migratetype(512, 512, "isolate")

    with pages.hinting(ph.PageHintingCallbacks(hint_pages, 1), workqueue="manual"):
        pages.flush_hinting()
        assert pages.zones[0].free_blocks()[:2].tolist() == [(0, 9), (512, 9)]
        pages.verify()


def test_lowmem_reserve_holds_in_front_of_page_sets():
    """What lies in a lower zone's set is not for those who must leave that zone its reserve."""
    pages = ph.PageAllocator.x86_64("8GiB")
    for order in (10, 0):
        with contextlib.suppress(ph.OutOfMemoryError):
            while True:
                pages.alloc_pages(order)
    pages.free_pages(pages.alloc_pages(zone="DMA32"))
    assert pages.stats().pcp_pages > 0
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()


def trace(*ops):
    """Operations as (slot, order, op)."""
    return np.array(list(ops), ph.OP_DTYPE)


@pytest.mark.parametrize("pcp", [True, False])
@pytest.mark.parametrize("zones", [[ph.ZoneSpec("Normal", 0, 1 << 16)], [("DMA", 1, 4095), ("Normal", 4096, 60000)]])
def test_a_trace_does_what_its_operations_do_one_by_one(pcp, zones):
    zones = [zone if isinstance(zone, ph.ZoneSpec) else ph.ZoneSpec(*zone) for zone in zones]
    at_once, singly = (ph.PageAllocator(zones, pcp=pcp) for _ in range(2))
    rng = np.random.default_rng(5)
    pfns, live = np.zeros(300, np.uint64), {}
    mine = pfns.copy()
    for _ in range(20):
        ops = []
        for slot in rng.integers(0, 300, 500).tolist():
            order = live.pop(slot, None)
            if order is None:
                live[slot] = int(rng.integers(0, 8))
                ops.append((slot, live[slot], ph.OP_ALLOC))
                mine[slot] = singly.alloc_pages(live[slot])
            else:
                ops.append((slot, order, ph.OP_FREE))
                singly.free_pages(mine[slot], order)
        at_once.run_ops(trace(*ops), pfns)
        at_once.verify()
        assert at_once.stats().allocated_pages == singly.stats().allocated_pages == sum(1 << o for o in live.values())
        taken = [int(pfn) for slot in live for pfn in range(int(pfns[slot]), int(pfns[slot]) + (1 << live[slot]))]
        assert len(taken) == len(set(taken))
        if not pcp:
            assert np.array_equal(pfns[list(live)], mine[list(live)])


def test_a_trace_stops_at_the_first_refused_operation_and_says_where():
    pages = ph.PageAllocator("4MiB", pcp=False)
    pfns = np.zeros(4, np.uint64)
    with pytest.raises(ph.BadPageError, match=r"operation 2, order 1.*PFN|PFN .*operation 2, order 1") as refused:
        pages.run_ops(trace((0, 1, 0), (0, 1, 1), (0, 1, 1), (1, 0, 0)), pfns)
    assert refused.value.index == 2
    assert pages.stats().allocated_pages == 0
    with pytest.raises(ph.OutOfMemoryError, match="operation 1") as refused:
        pages.run_ops(trace((0, 10, 0), (1, 0, 0)), pfns)
    assert refused.value.index == 1
    assert pages.stats().allocated_pages == 1024
    for bad in ((4, 0, 0), (0, 11, 0), (0, 0, 2)):
        with pytest.raises(ph.BadPageError, match="out of range"):
            pages.run_ops(trace(bad), pfns)
    pages.run_ops(trace((0, 10, 1)), pfns)
    pages.verify()


def test_a_trace_gets_what_is_in_page_sets_and_out_for_reporting():
    pages = ph.PageAllocator("1GiB")
    pages.free_pages(pages.alloc_pages())
    pfns = np.zeros(256, np.uint64)
    pages.run_ops(trace(*[(slot, 10, ph.OP_ALLOC) for slot in range(256)]), pfns)
    assert pages.stats().free_pages == 0


@pytest.mark.parametrize(
    ("ops", "pfns"),
    [
        (np.zeros(2, np.uint64), np.zeros(2, np.uint64)),
        (np.zeros((2, 2), ph.OP_DTYPE), np.zeros(2, np.uint64)),
        (np.zeros(2, ph.OP_DTYPE), np.zeros(2)),
        (np.zeros(2, ph.OP_DTYPE), np.zeros(4, np.uint64)[::2]),
        (np.zeros(2, ph.OP_DTYPE), np.broadcast_to(np.uint64(0), 2)),
        (np.zeros(2, ph.OP_DTYPE), [0, 0]),
    ],
)
def test_a_trace_of_the_wrong_type_is_refused(ops, pfns):
    pages = ph.PageAllocator("4MiB")
    with pytest.raises(TypeError):
        pages.run_ops(ops, pfns)
    assert pages.stats().allocated_pages == 0


def test_how_long_locks_are_held_and_waited_for():
    pages = real("1GiB")
    assert pages.stats().locks is None
    with pages.hinting(RecordingHost().callbacks, workqueue="manual"):
        pages.flush_hinting()
    locks = pages.stats(locks=True).locks
    # Two rounds a batch, one to isolate and one to put back, and one that finds nothing more.
    assert sum(count for _, count in locks.holds) >= 2 * 16
    assert 0 < locks.longest_hold_ns < max(limit for limit, _ in locks.holds)
    assert "longest hold" in repr(locks)


@pytest.mark.parametrize("pcp", [True, False])
def test_a_bulk_free_of_two_zones_that_meet_within_a_leaf_was_refused(pcp):
    """Pages of one word of the metadata may be of two zones, each with a word of its own."""
    pages = ph.PageAllocator([ph.ZoneSpec("DMA", 0, 100), ph.ZoneSpec("Normal", 100, 1000)], pcp=pcp)
    for pair in ([99, 100], [100, 99], [99, 100, 98, 101]):
        for pfn in pair:
            pages.alloc_pages_at(pfn)
        pages.free_pages_bulk(pair)
    pages.verify()
    assert pages.stats().allocated_pages == 0
