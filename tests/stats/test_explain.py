"""`explain`: where every free page is, and why it is not with the host."""

from __future__ import annotations

import pytest
from allocators import real

import pagehint as ph


def test_explain_accounts_for_every_free_page(few_host):
    pages = ph.PageAllocator("512MiB", watermarks=(0, 0, 0))
    for _ in range(2):
        pages.alloc_pages()
    pages.offline(98304, 32768)
    pages.set_migratetype(2048, 512, "isolate")
    pages.alloc_pages()  # fills a page set

    def total(explanation):
        return sum(reason.pages for reason in explanation if reason.name != "offline")

    def free():
        stats = pages.stats()
        return stats.free_pages + stats.pcp_pages

    assert pages.explain()["not tracked"].pages > 0
    assert total(pages.explain()) == free()
    with pages.hinting(few_host.callbacks, workqueue="manual", threshold=1000):
        explanation = pages.explain()
        assert explanation["below threshold"].pages > 0
        assert explanation["isolate"].pages == 512
        assert explanation["offline"].pages == 32768
        assert explanation["offline"].bytes == 128 << 20
        assert explanation["in pcp"].pages > 0
        assert explanation["fragmented"].pages > 0
        assert total(explanation) == free()
        pages.threshold = 10
        assert pages.explain()["pending"].pages > 0
        pages.flush_hinting()
        explanation = pages.explain()
        assert explanation["pending"].pages == 0
        assert explanation["reported"].pages > 90000
        assert total(explanation) == free()
        pages.max_pages = 1 << 20
        while pages.stats().free_pages >= pages.zones[0].managed_pages // 8:
            pfn = pages.alloc_pages(10)
        pages.free_pages(pfn, 10)
        while pages.stats().free_pages >= pages.zones[0].managed_pages // 8:
            pages.alloc_pages()
        assert pages.explain()["under the watermark gate"].pages == 1024


def test_memory_that_was_never_reported_is_not_said_to_be_with_the_host(few_host):
    pages = real("64MiB")
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False):
        explanation = pages.explain()
        assert explanation["reported"].pages == 0
        assert explanation["reported or unmarked"].pages == 16384
        assert "mark_free=False" in explanation["reported or unmarked"].why
        assert "reported or unmarked" in repr(explanation)
    with pages.hinting(few_host.callbacks, workqueue="manual"):
        pages.flush_hinting()
        assert pages.explain()["reported"].pages == 16384
        assert "unmarked" not in repr(pages.explain())


def test_explain_says_what_is_too_young(few_host, clock):
    pages = real("64MiB")
    pages.alloc_pages_at(0, 9)
    with pages.hinting(few_host.callbacks, workqueue="manual", delay=None, threshold=1, min_age=1.0, clock=clock):
        clock.sleep(1)
        pages.free_pages(0, 9)
        pages.set_migratetype(0, 512, "isolate")
        pages.free_pages(pages.alloc_pages_at(1024, 10), 10)
        explanation = pages.explain()
        assert explanation["too young"].pages == 1024
        assert explanation["isolate"].pages == 512
        assert explanation["pending"].pages == 16384 - 1024 - 512
        assert "min_age" in explanation["too young"].why
        pages.flush_hinting()
        assert pages.explain()["too young"].pages == 0
        assert "too young" not in repr(pages.explain())


def test_warm_is_what_is_entirely_free_and_not_with_the_host(few_host, clock):
    """Of any age, and whether it is due or not; free pages beside others in use are fragmented, and not warm."""
    pages = real("64MiB")
    assert pages.explain().warm.pages == 16384  # nobody tells the host
    pages.alloc_pages_at(0, 0)
    assert pages.explain().warm.pages == 16384 - 512
    with pages.hinting(few_host.callbacks, workqueue="manual", delay=None, threshold=100, min_age=1.0, clock=clock):
        clock.sleep(1)
        pages.free_pages(pages.alloc_pages_at(1024, 10), 10)
        explanation = pages.explain()
        assert explanation["too young"].pages == 1024
        assert explanation["below threshold"].pages == 16384 - 512 - 1024
        assert explanation.warm.pages == 16384 - 512
        assert explanation["warm"] == explanation.warm
        assert explanation.warm not in list(explanation)
        assert "warm" in repr(explanation)
        pages.flush_hinting()
        assert pages.explain()["fragmented"].pages == 511
        assert pages.explain().warm.pages == 0
        assert "warm" not in repr(pages.explain())


def test_a_state_that_there_is_not_was_a_stop_iteration():
    """That would have ended a generator, in silence."""
    with pytest.raises(KeyError, match=r"'nope'.*reported, .*pending, .*fragmented, .*offline"):
        ph.PageAllocator("16MiB").explain()["nope"]
