"""Zones that interleave: one has memory where another has a hole, as the nodes of a machine do."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from allocators import free_set, real, refuse
from hypothesis import given
from hypothesis import strategies as st
from processes import survives

import pagehint as ph
from pagehint import layout
from pagehint.testing.oracle import OracleAllocator

SECTION = 32768


def carved(*pieces: tuple[int, int], nodes: int = 2) -> list[ph.ZoneSpec]:
    """A zone on each node, of pieces as (pages, node): one after the other, from PFN 0 on; node -1 has none of them."""
    starts = np.cumsum([0, *(nr_pages for nr_pages, _ in pieces)]).tolist()
    zones = []
    for node in range(nodes):
        own = [(start, end) for (start, end), (_, owner) in zip(pairwise(starts), pieces, strict=True) if owner == node]
        holes = [(end, start - end) for (_, end), (start, _) in pairwise(own) if start > end]
        zones.append(ph.ZoneSpec("Normal", own[0][0], own[-1][1] - own[0][0], node, holes))
    return zones


STRIPES = carved(*[(2 * SECTION, 0), (2 * SECTION, 1)] * 3)
SHARED = carved((1000, 0), (SECTION - 1000, 1), (SECTION + 5000, 0), (SECTION - 5000, 1), (SECTION, 0))


def named(pfn: int) -> str:
    return rf"PFN {pfn:#x}\b.*\(node 0\).*\(node 1\)"


def test_nodes_that_interleave_were_refused_as_overlapping(make):
    pages = make(STRIPES)
    assert [(z.start_pfn, z.spanned_pages, z.managed_pages) for z in pages.zones] == [
        (0, 10 * SECTION, 6 * SECTION),
        (2 * SECTION, 10 * SECTION, 6 * SECTION),
    ]
    before = free_set(pages)
    for node, zone in enumerate(pages.zones):
        pfns = pages.alloc_pages_bulk(10, 10, zone=zone)
        assert set((pfns // SECTION // 2 % 2).tolist()) == {node}
        assert zone.free_pages == 6 * SECTION - (10 << 10)
        pages.free_pages_bulk(pfns, 10)
    assert free_set(pages) == before
    pages.verify()


@pytest.mark.parametrize("pcp", [False, True])
def test_pages_of_all_zones_are_freed_in_one_call_in_any_order(pcp):
    pages = real(SHARED, pcp=pcp)
    before = free_set(pages)
    rng = np.random.default_rng(1)
    for order in (0, 3, 7):
        pfns = np.concatenate([pages.alloc_pages_bulk(40000 >> order, order, zone=zone) for zone in pages.zones])
        rng.shuffle(pfns)
        # One that is allocated twice, and one in nobody's memory, are found wherever they stand.
        for wrong in (pfns[7], 5 * SECTION):
            refuse(pages, pages.free_pages_bulk, np.append(pfns, np.uint64(wrong)), order)
        pages.free_pages_bulk(pfns, order)
        pages.drain_pcp()
        assert free_set(pages) == before
    pages.verify()


def test_a_trace_with_the_blocks_of_two_zones():
    pages = real(SHARED)
    before = free_set(pages)
    table = np.array([pages.alloc_pages(i % 5, zone=pages.zones[i // 5 % 2]) for i in range(100)], np.uint64)
    ops = np.zeros(100, ph.OP_DTYPE)
    ops["slot"], ops["order"], ops["op"] = np.arange(100), np.arange(100) % 5, ph.OP_FREE
    pages.run_ops(ops, table)
    assert free_set(pages) == before


def test_a_block_merges_with_no_page_of_another_zone(make):
    pages = make(carved(*[(1, 0), (1, 1)] * 600))
    assert [len(blocks) for blocks in free_set(pages)] == [600, 600]
    pfns = [pages.alloc_pages_at(pfn) for pfn in range(1200)]
    for pfn in pfns:
        pages.free_pages(pfn)
    assert all(order == 0 for blocks in free_set(pages) for _, order in blocks)
    refuse(pages, pages.alloc_pages_at, 0, 1)
    refuse(pages, pages.free_pages, 0, 1)
    pages.verify()


def test_a_page_in_two_zones_is_refused_by_its_number():
    zones = [ph.ZoneSpec("DMA", 0, 100, 0, [(10, 80)]), ph.ZoneSpec("Normal", 10, 200, 1, [(89, 10)])]
    for order in (zones, zones[::-1]):
        with pytest.raises(ValueError, match=r"DMA \(node 0\) and Normal \(node 1\) overlap at PFN 0x63\b"):
            ph.PageAllocator(order)


@given(st.lists(st.tuples(st.integers(0, 30), st.sets(st.integers(0, 30), min_size=1)), min_size=1, max_size=4))
def test_what_is_in_two_zones_is_found_in_any_machine(zones):
    specs, seen, twice = [], set(), set()
    for node, (start, pages) in enumerate(zones):
        memory = {start + page for page in pages}
        twice |= memory & seen
        seen |= memory
        holes = [(pfn, 1) for pfn in range(min(memory), max(memory)) if pfn not in memory]
        specs.append(ph.ZoneSpec("Normal", min(memory), max(memory) + 1 - min(memory), node, holes))
    if not twice:
        layout.check_zones(specs)
    else:
        with pytest.raises(ValueError, match=rf"overlap at PFN {min(twice):#x}\b"):
            layout.check_zones(specs)


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(-1, 3)), min_size=1, max_size=20), st.integers(0, 7))
def test_every_page_is_found_in_its_zone_in_any_machine(pieces, top):
    owners = [owner for nr_pages, owner in pieces for _ in range(nr_pages)]
    present = sorted(set(owners) - {-1})
    if not present:
        return
    specs = carved(*[(n, present.index(owner) if owner >= 0 else -1) for n, owner in pieces], nodes=len(present))
    pages = real(specs, max_page_order=top)
    by_node = {zone.node: zone for zone in pages.zones}
    for pfn, owner in enumerate([*owners, -1]):
        free = [zone.free_pages for zone in pages.zones]
        if owner < 0:
            with pytest.raises(ph.BadPageError, match=r"in a hole|outside every zone"):
                pages.alloc_pages_at(pfn)
            continue
        pages.alloc_pages_at(pfn)
        zone = by_node[present.index(owner)]
        assert zone.free_pages == free[zone.index] - 1
        assert sum(z.free_pages for z in pages.zones) == sum(free) - 1
        if pfn % 3:
            pages.free_pages(pfn)
    pages.free_pages_bulk(np.array([pfn for pfn, owner in enumerate(owners) if owner >= 0 and pfn % 3 == 0], np.uint64))
    assert free_set(pages) == free_set(OracleAllocator(specs, max_page_order=top))
    pages.verify()


# ---- hotplug


def test_a_section_that_two_zones_share_goes_offline_zone_by_zone(make):
    pages = make(SHARED)
    before = free_set(pages)
    low, high = pages.zones
    for call in (pages.offline, pages.online):
        refuse(pages, call, 0, SECTION)  # of both
        refuse(pages, call, 0, 999)  # not all that the zone has there
    pages.offline(0, 1000)
    pages.offline(1000, SECTION - 1000)
    pages.offline(2 * SECTION + 5000, SECTION - 5000)
    assert (low.managed_pages, high.managed_pages) == (2 * SECTION + 5000, 0)
    refuse(pages, pages.alloc_pages_at, 999)
    refuse(pages, pages.alloc_pages_at, 1000)
    if isinstance(pages, ph.PageAllocator):
        assert pages.explain()["offline"].pages == 2 * SECTION - 5000
    pages.online(2 * SECTION + 5000, SECTION - 5000)
    pages.online(1000, SECTION - 1000)
    refuse(pages, pages.online, 1000, SECTION - 1000)
    pages.online(0, 1000)
    assert free_set(pages) == before
    pages.verify()


def test_the_words_for_two_zones_name_the_page_and_both():
    pages = real(SHARED)
    for call in (pages.offline, pages.online):
        with pytest.raises(ph.BadPageError, match=named(0) + ".*nothing was changed"):
            call(0, SECTION)
    with pytest.raises(ph.BadPageError, match=named(0)):
        pages.set_migratetype(0, 1024, "isolate")
    with pytest.raises(ph.BadPageError, match=r"PFN 0x3e0 .*node 0\): reaches into .*\(node 1\) at PFN 0x3e8"):
        pages.alloc_pages_at(992, 4)
    assert "interleaved" in repr(pages.zones[0])


def test_a_zone_among_others_grows_at_its_end_alone(make):
    pages = make(STRIPES)
    pages.online(12 * SECTION, 3 * SECTION)  # beyond all of them
    assert pages.zones[1].managed_pages == 9 * SECTION
    assert pages.alloc_pages_at(14 * SECTION, 10) == 14 * SECTION
    pages.free_pages(14 * SECTION, 10)
    pages.online(17 * SECTION, SECTION)
    refuse(pages, pages.alloc_pages_at, 16 * SECTION)  # the gap
    pages.offline(8 * SECTION, 2 * SECTION)
    pages.offline(11 * SECTION, 2 * SECTION)  # both old and new
    assert [zone.managed_pages for zone in pages.zones] == [4 * SECTION, 8 * SECTION]
    pages.online(8 * SECTION, 2 * SECTION)
    pages.online(11 * SECTION, 2 * SECTION)
    pages.verify()


def test_of_zones_that_end_together_one_grows(make):
    """The first has a hole at its end, where the second has its last memory."""
    zones = [
        ph.ZoneSpec("Normal", 0, 4 * SECTION, 0, [(SECTION, SECTION), (3 * SECTION, SECTION)]),
        ph.ZoneSpec("Normal", SECTION, 3 * SECTION, 1, [(2 * SECTION, SECTION)]),
    ]
    pages = make(zones)
    pages.online(4 * SECTION, SECTION)
    assert sorted(zone.managed_pages for zone in pages.zones) == [2 * SECTION, 3 * SECTION]
    for section in range(5):
        assert pages.alloc_pages_at(section * SECTION) == section * SECTION
        pages.free_pages(section * SECTION)
    pages.verify()


def test_growing_over_the_memory_of_another_zone_is_refused_by_its_number():
    pages = real([ph.ZoneSpec("DMA", 0, SECTION, 0), ph.ZoneSpec("Normal", 4 * SECTION, SECTION, 1)])
    with pytest.raises(ph.BadPageError, match=named(4 * SECTION) + ".*nothing was changed"):
        pages.online(3 * SECTION, 2 * SECTION)
    refuse(pages, pages.online, 3 * SECTION, 2 * SECTION)
    pages.online(3 * SECTION, SECTION)
    pages.verify()


def test_a_pageblock_that_zones_share_has_a_type_in_each(make):
    pages = make(carved((700, 0), (1000, 1), (3000, 0)))
    refuse(pages, pages.set_migratetype, 512, 512, "isolate")
    pages.set_migratetype(512, 700 - 512, "isolate")
    free = [zone.free_pages for zone in pages.zones]
    refuse(pages, pages.alloc_pages_at, 699)
    assert pages.alloc_pages_at(700) == 700
    pages.free_pages(700)
    refuse(pages, pages.set_migratetype, 600, 100, "movable")  # not all that the zone has of it
    pages.set_migratetype(512, 700 - 512, "movable")
    assert pages.alloc_pages_at(699) == 699
    pages.free_pages(699)
    assert free == [zone.free_pages for zone in pages.zones]
    pages.verify()


def test_a_pageblock_that_a_zone_has_at_both_ends_is_not_set_by_halves(make):
    pages = make(carved((100, 0), (100, 1), (3000, 0)))
    refuse(pages, pages.set_migratetype, 0, 100, "isolate")
    refuse(pages, pages.set_migratetype, 200, 312, "isolate")
    pages.set_migratetype(100, 100, "isolate")
    assert pages.alloc_pages_at(99) == 99
    refuse(pages, pages.alloc_pages_at, 100)


# ---- with hinting


def test_what_zones_that_interleave_report_is_their_own():
    pages = real(STRIPES)
    told = np.zeros(12 * SECTION, int)

    def hint_pages(blocks):
        for pfn, order, zone in blocks.tolist():
            told[pfn : pfn + (1 << order)] += 1
            assert pfn // SECTION // 2 % 2 == zone

    with pages.hinting(ph.PageHintingCallbacks(hint_pages), workqueue="manual"):
        pages.flush_hinting()
        assert pages.last_error is None
        assert (told == 1).all()
        # What is used and freed again in one zone is told of, and nothing of the others.
        pages.free_pages(pages.alloc_pages_at(5 * SECTION, 9), 9)
        pages.flush_hinting()
        assert np.flatnonzero(told == 2).tolist() == list(range(5 * SECTION, 5 * SECTION + 512))


# ---- what is only needed once


def test_ranks_were_worked_out_again_at_every_hotplug_call(monkeypatch):
    pages = ph.PageAllocator.x86_64("8GiB", nodes=2)

    def again(zones):
        raise AssertionError("they never change")

    monkeypatch.setattr(layout, "zone_ranks", again)
    start = pages.zones[-1].start_pfn
    pages.offline(start, SECTION)
    pages.online(start, SECTION)


def test_a_hole_had_types_for_its_pageblocks():
    """Where nodes interleave each zone spans all memory: a thousand of them had a byte for each pageblock of it."""
    survives("""
        import re
        from pathlib import Path
        import pagehint as ph

        def resident():
            return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

        ph.PageAllocator("1GiB", pcp=False)
        before = resident()
        pages = ph.PageAllocator([ph.ZoneSpec("Normal", 0, 1 << 32, holes=[(1024, (1 << 32) - 2048)])], pcp=False)
        assert resident() - before < 1 << 20, resident() - before
        pages.alloc_pages_at((1 << 32) - 1)
        pages.free_pages((1 << 32) - 1)
        assert pages.pagetypeinfo().count("Movable")
    """)
