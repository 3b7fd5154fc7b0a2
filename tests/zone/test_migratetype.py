"""Types of pageblocks: what is isolated is not handed out and does not merge; stealing; blocks isolated in part."""

from __future__ import annotations

import pytest
from allocators import free_set, real, refuse

import pagehint as ph


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


RAGGED = [ph.ZoneSpec("DMA", 100, 1000), ph.ZoneSpec("Normal", 2048, 700)]


@pytest.mark.parametrize("run", [(0, 512), (100, 412)], ids=["the pageblock", "its part"])
def test_the_pageblock_that_a_zone_begins_inside_was_refused(make, run):
    """Whoever went by pageblocks could not set the first. Its part is, as Linux goes by a zone's part of one."""
    pages = make(RAGGED)
    pages.set_migratetype(*run, "isolate")
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages_bulk(1000 - 412 + 1, zone="DMA")
    assert (pages.alloc_pages_bulk(1000 - 412, zone="DMA") >= 512).all()
    pages.set_migratetype(*run, "movable")
    assert (pages.alloc_pages_bulk(412, zone="DMA") < 512).all()
    pages.verify()


@pytest.mark.parametrize("run", [(1024, 512), (1024, 76)], ids=["the pageblock", "its part"])
def test_the_pageblock_that_a_zone_ends_inside_was_refused(make, run):
    pages = make(RAGGED)
    pages.set_migratetype(*run, "isolate")
    refuse(pages, pages.alloc_pages_at, 1024)
    assert (pages.alloc_pages_bulk(1000 - 76, zone="DMA") < 1024).all()
    pages.set_migratetype(*run, "movable")
    assert pages.alloc_pages_at(1099) == 1099
    pages.set_migratetype(0, 1536, "isolate")  # all of it, at once
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages(zone="DMA")
    pages.verify()


def test_a_run_over_a_zones_edge_by_more_than_its_pageblock_is_refused(make):
    pages = make(RAGGED)
    for run in (
        (0, 2048),
        (1, 511),
        (99, 413),
        (101, 411),
        (1024, 75),
        (1024, 77),
        (1024, 1024),
        (1536, 1536),
        (0, 4096),
    ):
        refuse(pages, pages.set_migratetype, *run, "isolate")


def test_a_pageblock_of_two_zones_is_set_by_each_ones_part(make):
    pages = make([ph.ZoneSpec("DMA", 0, 700), ph.ZoneSpec("Normal", 700, 900)])
    refuse(pages, pages.set_migratetype, 512, 512, "isolate")
    pages.set_migratetype(512, 188, "isolate")
    assert (pages.alloc_pages_bulk(900 + 512) < 512).sum() == 512
    pages.set_migratetype(700, 324, "isolate")
    pages.verify()


def test_a_zone_that_grows_over_a_pageblock_that_it_ended_inside(make):
    """The pages that come are of the type that the pageblock has."""
    pages = make([ph.ZoneSpec("Normal", 0, 32768 + 100)])
    pages.set_migratetype(32768, 512, "isolate")
    pages.online(65536, 32768)
    refuse(pages, pages.alloc_pages_at, 32768)
    pages.set_migratetype(32768, 512, "movable")
    assert pages.alloc_pages_at(32768) == 32768
    pages.verify()


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
