"""Allocators to test, and what a call that is refused must leave as it was."""

from __future__ import annotations

import pytest

import pagehint as ph


def real(memory, **options):
    """The compiled allocator without page sets, which places blocks as the oracle does."""
    return ph.PageAllocator(memory, **{"pcp": False, **options})


def free_set(pages):
    """The free blocks of every zone."""
    return [zone.free_blocks().tolist() for zone in pages.zones]


def exhaust(pages):
    """Allocate until there is no more."""
    for _ in range(10_000):
        pages.alloc_pages(10)


def refuse(pages, call, *args, error=ph.BadPageError):
    """The call is refused, and changes nothing."""
    before, stats = free_set(pages), vars(pages.stats()).copy()
    with pytest.raises(error):
        call(*args)
    after = vars(pages.stats()).copy()
    for counts in (stats, after):
        counts.pop("lock_acquired", None)
    assert free_set(pages) == before
    assert after == stats
    pages.verify()
