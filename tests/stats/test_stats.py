"""`Stats`: how it reads, how long locks were held, what it costs the others."""

from __future__ import annotations

from allocators import real
from hosts import RecordingHost

import pagehint as ph


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


def test_stats_holding_the_zone_lock_for_a_scan_of_the_bitmap(few_host):
    """An isolate pageblock makes `stats` look at every bit; the lock is taken for the figures only."""
    pages = real("64MiB")
    pages.enable_hinting(few_host.callbacks, workqueue="manual", delay=None)
    pages.stats()

    def locked():
        before = pages.stats().lock_acquired
        return pages.stats().lock_acquired - before

    assert locked() == 1
    pages.set_migratetype(1024, 512, "isolate")
    assert locked() == 1
    assert pages.explain()["isolate"].pages == 512
    pages.disable_hinting()
