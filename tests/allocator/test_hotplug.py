"""Sections go offline and online, zones grow, at any time."""

from __future__ import annotations

import pytest
from allocators import free_set, refuse
from processes import run_code, survives

import pagehint as ph


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


def test_a_partly_present_section_made_pages_that_never_existed(make):
    """What lies between the memory a section was made with and the next section is no memory, off and on again."""
    pages = make([ph.ZoneSpec("Normal", 0, 100)])
    pages.online(32768, 32768)
    assert pages.zones[0].managed_pages == 100 + 32768
    pages.offline(0, 32768)
    assert pages.zones[0].managed_pages == 32768
    pages.online(0, 32768)
    assert pages.zones[0].managed_pages == 100 + 32768
    refuse(pages, pages.alloc_pages_at, 100)
    assert pages.alloc_pages_at(99) == 99
    pages.verify()
    # A section that is a hole as a whole may have memory: the ones before it stay as they are.
    pages.online(3 * 32768, 32768)
    pages.free_pages(99)
    pages.offline(0, 65536)
    pages.online(0, 3 * 32768)
    assert pages.zones[0].managed_pages == 100 + 3 * 32768
    pages.verify()


def test_offline_sections_counted_as_large_as_their_span():
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 0, 65536 + 100, holes=[(1000, 500), (33000, 7)])])
    pages.online(3 * 32768, 32768)
    pages.offline(0, 65536)
    assert pages.explain()["offline"].pages == 65536 - 507
    pages.offline(65536, 32768)
    assert pages.explain()["offline"].pages == 65536 - 507 + 100
    pages.online(32768, 65536)
    assert pages.explain()["offline"].pages == 32768 - 500
    pages.verify()


def test_offline_holding_the_hotplug_lock_while_it_waits_for_a_batch():
    code = """
        import threading, time
        import pagehint as ph
        pages = ph.PageAllocator("1GiB", pcp=False)
        begun, waiting = threading.Event(), threading.Event()
        def hint_pages(blocks):
            begun.set()
            waiting.wait()
            time.sleep(0.3)
            pages.verify()
            pages.set_migratetype(0, 512, "movable")
        pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 64), delay=0.0)
        begun.wait()
        assert pages.stats().reporting_pages > 32768
        waiting.set()
        pages.offline(0, 32768)
        pages.disable_hinting()
        assert pages.last_error is None
        pages.verify()
        print("end")
    """
    assert run_code(code) == (0, "end\n", "")
