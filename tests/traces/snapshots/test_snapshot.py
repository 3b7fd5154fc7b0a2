"""Snapshots of real kernels, and allocators built from them: to the page and to the block what the kernel had."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import DATA, SNAPSHOTS, change_npz, change_text, copy_of, free_lists_of, made_by_hand

import pagehint as ph
from pagehint.errors import SnapshotError
from pagehint.traces import Snapshot, check_snapshot, read_snapshot
from pagehint.traces.snapshots.proc_files import SnapshotZone
from pagehint.traces.snapshots.snapshot import NO_MEMORY, PAGE_FREE, PAGE_OFFLINE, PAGE_PCP, PAGE_RESERVED, PAGE_USED

BUDDY, NOPAGE, OFFLINE, RESERVED = 1 << 10, 1 << 20, 1 << 23, 1 << 32


def blocks_of(pages):
    return [block for zone in pages.zones for block in zone.free_blocks().tolist()]


@pytest.mark.parametrize("name", SNAPSHOTS)
@pytest.mark.parametrize("pcp", [False, True])
def test_the_free_set_is_the_kernel_s_to_the_page_and_to_the_block(name, pcp):
    snapshot = read_snapshot(DATA / name)
    pages = ph.PageAllocator.from_snapshot(snapshot, pcp=pcp)
    pages.verify()
    assert np.array_equal(pages.free_bitmap(), snapshot.free_bitmap())
    assert blocks_of(pages) == free_lists_of(name)
    assert [block for zone in snapshot.zones for block in snapshot.free_blocks(zone).tolist()] == free_lists_of(name)


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_page_flags_alone_give_the_same_free_set(name, tmp_path):
    place = copy_of(name, tmp_path)
    (place.parent / f"buddy_{place.name}.npz").unlink()
    snapshot = read_snapshot(place)
    pages = ph.PageAllocator.from_snapshot(snapshot)
    pages.verify()
    assert blocks_of(pages) == free_lists_of(name)
    assert any("all are movable" in sentence for sentence in snapshot.unrepresented())
    assert any("which are not told from others" in sentence for sentence in snapshot.unrepresented())


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_zones_and_watermarks_and_pageblocks_are_the_kernel_s(name):
    snapshot = read_snapshot(DATA / name)
    pages = ph.PageAllocator.from_snapshot(snapshot)
    for zone, shown in zip(pages.zones, snapshot.zones, strict=True):
        assert (zone.name, zone.node, zone.start_pfn) == (shown.name, shown.node, shown.start_pfn)
        assert (zone.spanned_pages, zone.managed_pages) == (shown.spanned_pages, shown.managed_pages)
        assert (zone.free_pages, zone.watermarks) == (shown.free_pages, shown.watermarks)
    dma = pages.zones[0].figures()["protection"]
    assert dma == [snapshot.zones[0].protection[zone.rank] for zone in snapshot.zones]
    assert dma[1] > 0
    # Of pageblocks that have memory: the kernel also counts those that are reserved as a whole.
    managed = np.zeros(len(snapshot.pageblocks) * 512, bool)
    managed[: len(snapshot.pages)] = snapshot.pages >= PAGE_USED
    has_memory = managed.reshape(-1, 512).any(axis=1)
    counts = pages.pagetypeinfo().split("Number of blocks type")[1].splitlines()[1:]
    for zone, line in zip(snapshot.zones, counts, strict=True):
        blocks = slice(zone.start_pfn // 512, -(-zone.end_pfn // 512))
        expected = np.bincount(snapshot.pageblocks[blocks][has_memory[blocks]], minlength=3)
        assert line.split()[4:7] == [str(count) for count in expected]


def test_a_page_in_use_can_be_freed_alone_or_with_others():
    snapshot = read_snapshot(DATA / SNAPSHOTS[0])
    pages = ph.PageAllocator.from_snapshot(snapshot)
    managed = np.zeros(len(snapshot.pages), bool)
    for zone in snapshot.zones:
        managed[zone.start_pfn : zone.end_pfn] = snapshot.span(zone) >= PAGE_USED
    used = np.flatnonzero(managed & (snapshot.pages != PAGE_FREE))
    pages.free_pages(used[0])
    pages.free_pages_bulk(used[1:])
    pages.verify()
    assert pages.stats().free_pages == managed.sum() == pages.stats().managed_pages


def test_ordinary_requests_leave_the_kernel_s_watermarks():
    pages = ph.PageAllocator.from_snapshot(read_snapshot(DATA / "tmpfs-512m-smp1/before"))
    dma, dma32 = pages.zones
    room = dma32.free_pages - dma32.watermarks.min
    # What zone DMA keeps from requests that prefer DMA32.
    room += max(dma.free_pages - dma.watermarks.min - dma.figures()["protection"][1], 0)
    pages.alloc_pages_bulk(room)
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()
    assert dma32.free_pages == dma32.watermarks.min
    assert dma.free_pages == dma.watermarks.min + dma.figures()["protection"][1]
    pages.verify()


def test_hinting_reports_what_the_kernel_had_free(host):
    pages = ph.PageAllocator.from_snapshot(read_snapshot(DATA / SNAPSHOTS[0]))
    before = blocks_of(pages)
    with pages.hinting(host.callbacks, workqueue="manual"):
        pages.flush_hinting()
    reported = pages.stats().pages_reported
    assert reported == sum(1 << order for _, order in before if order >= pages.min_order)
    assert blocks_of(pages) == before


# ---- what contradicts


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_the_recordings_agree_with_themselves(name):
    said = check_snapshot(read_snapshot(DATA / name))
    # The texts of this one were read while the second CPU still ran.
    known = "zone DMA32 (node 0): 7053 pages are in per-CPU lists page by page, 7052 by zoneinfo"
    assert said == ((known,) if name == "frag-2g-smp2-thp/after" else ())


def one_page_less(array):
    array[np.flatnonzero(array == 1)[-1]] = 0
    return array


def shifted_block(lists):
    lists[0, 4] += 1
    return lists


def retyped(blocks):
    blocks[20] = 2 if blocks[20] != 2 else 1
    return blocks


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"pfn_state": one_page_less},
            ["kpageflags and buddy.npz do not agree on which pages are free: 1", "by zoneinfo"],
        ),
        (
            {"lists": shifted_block},
            [
                "not aligned to their order: 1",
                "in free lists twice: 1",
                "in no list",
                "6 listed free blocks are not the 6",
            ],
        ),
        ({"lists": lambda lists: np.append(lists, lists[:1], 0)}, ["in free lists twice: 64"]),
        ({"lists": lambda lists: lists[1:]}, ["in no list that are in free lists page by page: 64"]),
        ({"pcp": lambda pcp: pcp[1:]}, ["in no list that are in per-CPU lists page by page: 1"]),
        ({"pageblock_mt": retyped}, ["by pagetypeinfo"]),
    ],
)
def test_a_wrong_look_into_the_kernel_s_memory_is_named(tmp_path, change, words):
    place = copy_of("frag-2g-smp2-thp/before", tmp_path)
    change_npz(place.parent / "buddy_before.npz", **change)
    said = "\n".join(check_snapshot(read_snapshot(place)))
    for each in words:
        assert each in said


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (
            "zoneinfo",
            "pages free     460718",
            "pages free     460719",
            "460718 pages are free by buddyinfo, 460719 by zoneinfo",
        ),
        ("zoneinfo", "managed  499692", "managed  499691", "499692 pages are managed page by page, 499691 by zoneinfo"),
        ("buddyinfo", " 449", " 448", "449 free blocks of order 10 page by page, 448 by buddyinfo"),
        ("pagetypeinfo", " 449", " 447", "447 free blocks of order 10 by pagetypeinfo, 449 by buddyinfo"),
        (
            "pagetypeinfo",
            "933            6",
            "932            7",
            "933 pageblocks are Movable one by one, 932 by pagetypeinfo",
        ),
        ("iomem", "00100000-7ffd9fff", "00100000-3fffffff", "free pages are not in System RAM by iomem"),
        ("zoneinfo", "start_pfn:           4096", "start_pfn:           4095", "overlap at PFN 0xfff"),
    ],
)
def test_a_text_that_contradicts_is_named(tmp_path, file, old, new, words):
    place = copy_of("frag-2g-smp2-thp/before", tmp_path)
    change_text(place / file, old, new)
    assert words in "\n".join(check_snapshot(read_snapshot(place)))


def test_zones_that_overlap_are_not_built_since_nothing_says_which_page_is_whose(tmp_path):
    place = copy_of("frag-2g-smp2-thp/before", tmp_path)
    change_text(place / "zoneinfo", "start_pfn:           4096", "start_pfn:           4095")
    with pytest.raises(SnapshotError, match=r"zone DMA \(node 0\) and zone DMA32 \(node 0\) overlap at PFN 0xfff"):
        ph.PageAllocator.from_snapshot(read_snapshot(place))


def test_free_pages_outside_every_zone_are_named_and_left_out(tmp_path):
    flags = np.full(4096, BUDDY, np.uint64)
    place = made_by_hand(tmp_path / "proc", flags)
    change_text(place / "zoneinfo", "start_pfn:           0", "start_pfn:           1024")
    for figure in ("spanned", "present", "managed"):
        change_text(place / "zoneinfo", f"{figure}  4096", f"{figure}  2048")
    snapshot = read_snapshot(place)
    assert "free pages are outside every zone: 2048, the first at PFN 0x0" in check_snapshot(snapshot)
    assert any(sentence.startswith("2048 free pages outside every zone") for sentence in snapshot.unrepresented())
    pages = ph.PageAllocator.from_snapshot(snapshot)
    assert blocks_of(pages) == [(1024, 10), (2048, 10)]


# ---- what is in no recording


def zone(pages, **figures):
    marks = figures.pop("watermarks", ph.Watermarks(0, 0, 0))
    return SnapshotZone(**{"node": 0, "name": "Normal", "rank": 0, "start_pfn": 0, "spanned_pages": pages,
                           "present_pages": pages, "managed_pages": pages, "free_pages": pages, "watermarks": marks,
                           "protection": (0,), "pcp_pages": 0, **figures})  # fmt: skip


def test_pages_in_a_balloon_are_in_use_and_can_come_back(tmp_path):
    flags = np.full(4096, BUDDY, np.uint64)
    flags[1024:1100], flags[2000], flags[3000:3010] = OFFLINE, RESERVED, 0
    snapshot = read_snapshot(made_by_hand(tmp_path / "proc", flags))
    assert (snapshot.pages[1024], snapshot.pages[2000], snapshot.pages[3000]) == (
        PAGE_OFFLINE,
        PAGE_RESERVED,
        PAGE_USED,
    )
    pages = ph.PageAllocator.from_snapshot(snapshot)
    pages.verify()
    assert pages.zones[0].managed_pages == 4095
    assert pages.zones[0].free_pages == 4096 - 76 - 1 - 10
    pages.free_pages_bulk(range(1024, 1100))
    assert any(sentence.startswith("76 offline pages") for sentence in snapshot.unrepresented())


def test_isolate_pageblocks_keep_apart_and_are_not_reported(few_host):
    types = np.full(8, 1, np.uint8)
    types[3] = 4
    names = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate")
    pages = np.full(4096, PAGE_FREE, np.uint8)
    pages[1600] = PAGE_USED  # in the isolate pageblock
    snapshot = Snapshot((zone(4096),), 10, pages=pages, migratetype_names=names, pageblocks=types)
    allocator = ph.PageAllocator.from_snapshot(snapshot)
    allocator.verify()
    assert blocks_of(allocator) == snapshot.free_blocks(snapshot.zones[0]).tolist()
    assert allocator.free_block_at(1024) == (1024, 9)  # not merged with what is isolate
    with allocator.hinting(few_host.callbacks, workqueue="manual"):
        allocator.flush_hinting()
    assert allocator.stats().pages_reported == 4096 - 512
    with pytest.raises(ValueError, match="min_order 10: a granule of several pageblocks"):
        ph.PageAllocator.from_snapshot(snapshot, min_order=10)


@pytest.mark.parametrize(("order", "blocks"), [(9, 8), (8, 16), (10, 4)])
def test_pageblocks_of_another_size(order, blocks):
    types = np.ones(blocks, np.uint8)
    types[-1] = 0
    snapshot = Snapshot(
        (zone(4096),), 10, pages=np.full(4096, PAGE_FREE, np.uint8), pageblock_order=order,
        migratetype_names=("Unmovable", "Movable"), pageblocks=types,
    )  # fmt: skip
    allocator = ph.PageAllocator.from_snapshot(snapshot)
    unmovable = allocator.pagetypeinfo().splitlines()[-1].split()[4]
    assert unmovable == {8: "0", 9: "1", 10: "2"}[order]
    assert any("pageblock has order 8" in sentence for sentence in snapshot.unrepresented()) == (order == 8)


def test_types_that_are_not_modelled_are_said():
    names, types = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate"), np.ones(8, np.uint8)
    types[0], types[1], types[7] = 3, 4, NO_MEMORY
    snapshot = Snapshot(
        (zone(4096),), 10, pages=np.full(4096, PAGE_FREE, np.uint8), migratetype_names=names, pageblocks=types
    )
    said = snapshot.unrepresented()
    assert "1 pageblocks of type HighAtomic are unmovable, and merge with others" in said
    assert "1 pageblocks of type CMA are movable, and merge with others" in said
    assert snapshot.free_blocks(snapshot.zones[0]).tolist()[:3] == [(0, 9), (512, 9), (1024, 10)]


def test_pages_in_per_cpu_lists_are_in_use():
    snapshot = read_snapshot(DATA / "mixed-1g-smp2-k612/before")
    pages = ph.PageAllocator.from_snapshot(snapshot)
    held = np.flatnonzero(snapshot.pages == PAGE_PCP)
    assert len(held) == 3683 == (1 << snapshot.pcp_lists["order"].astype(int)).sum()
    assert pages.free_block_at(held[0]) is None
    pages.free_pages_bulk(held)


def test_without_page_flags_there_are_counts_and_no_allocator(tmp_path):
    place = copy_of("tmpfs-512m-smp1/before", tmp_path)
    for name in ("buddy", "kpageflags"):
        (place.parent / f"{name}_before.npz").unlink()
    snapshot = read_snapshot(place)
    assert check_snapshot(snapshot) == ()
    assert snapshot.zones[1].free_pages == 92867
    for call in (snapshot.machine_state, snapshot.free_bitmap, snapshot.unrepresented):
        with pytest.raises(SnapshotError, match="does not say which pages are free"):
            call()
    with pytest.raises(SnapshotError):
        ph.PageAllocator.from_snapshot(snapshot)


def test_two_nodes():
    pages = np.full(8192, PAGE_FREE, np.uint8)
    pages[4096:5000] = PAGE_USED
    zones = (zone(4096, protection=(0, 7)), zone(4096, start_pfn=4096, node=1, watermarks=ph.Watermarks(1, 2, 3)))
    allocator = ph.PageAllocator.from_snapshot(Snapshot(zones, 10, pages=pages))
    assert [each.node for each in allocator.zones] == [0, 1]
    assert allocator.zones[1].watermarks == (1, 2, 3)
    assert allocator.zones[1].free_pages == 8192 - 5000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zones": ()}, "0 zones"),
        ({"max_page_order": 21}, "max_page_order 21"),
        ({"pages": np.zeros(4095, np.uint8)}, "the file is cut"),
        ({"pages": np.full(4096, 6, np.uint8)}, "state 6 is none"),
        ({"pages": np.zeros(4096, np.int64)}, "dimensions of uint8"),
        ({"pageblocks": np.zeros(7, np.uint8)}, "7 pageblocks"),
        ({"pageblocks": np.full(8, 2, np.uint8)}, "migratetype 2 of 2"),
        ({"buddyinfo": np.zeros((1, 10), np.int64)}, r"shape \(1, 10\)"),
        ({"resident": np.zeros(5, np.uint8)}, "residency is known of 5 pages"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, words):
    parts = {"zones": (zone(4096),), "max_page_order": 10, "pages": np.full(4096, PAGE_FREE, np.uint8),
             "migratetype_names": ("Unmovable", "Movable")}  # fmt: skip
    Snapshot(**parts)
    with pytest.raises(SnapshotError, match=words):
        Snapshot(**{**parts, **changes})


def test_a_zone_without_a_managed_page_is_named():
    with pytest.raises(SnapshotError, match="no page is managed"):
        Snapshot((zone(4096),), 10, pages=np.zeros(4096, np.uint8)).machine_state()
