"""Leaves that a page set owns (`owned_leaf.pxd`): pages allocated on one CPU, freed in every other way."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pagehint as ph

CPUS = sorted(os.sched_getaffinity(0))


def on_cpu(cpu: int, work: Callable[[], Any]) -> Any:
    """Do something on a thread of its own that stays on one CPU; return what came of it, or raise it."""
    results: list[Any] = []

    def run() -> None:
        os.sched_setaffinity(0, {cpu})
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def assert_all_free(pages: ph.PageAllocator) -> None:
    pages.verify()
    pages.drain_pcp()
    pages.verify()
    stats = pages.stats()
    assert stats.free_pages == stats.managed_pages
    assert stats.allocated_pages == 0
    assert all(block["order"] == pages.max_page_order for zone in pages.zones for block in zone.free_blocks())


@pytest.fixture
def pages() -> ph.PageAllocator:
    """The least memory with which a set owns leaves: a thousandth of it is a batch of 64 pages."""
    return ph.PageAllocator("256MiB")


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("where", [CPUS[0], CPUS[-1]])
def test_blocks_are_freed_on_any_cpu(pages: ph.PageAllocator, order: int, where: int) -> None:
    pfns = on_cpu(CPUS[0], lambda: [pages.alloc_pages(order) for _ in range(300)])
    assert len(set(pfns)) == 300
    pages.verify()
    on_cpu(where, lambda: [pages.free_pages(pfn, order) for pfn in pfns])
    assert_all_free(pages)


@pytest.mark.parametrize("where", [CPUS[0], CPUS[-1]])
def test_blocks_are_freed_in_bulk_and_by_a_trace(pages: ph.PageAllocator, where: int) -> None:
    pfns = np.array(on_cpu(CPUS[0], lambda: [pages.alloc_pages(o % 4) for o in range(400)]), np.uint64)
    orders = np.arange(400) % 4
    on_cpu(where, lambda: pages.free_pages_bulk(pfns[orders == 0]))
    on_cpu(where, lambda: pages.free_pages_bulk(pfns[orders == 1], 1))
    rest = orders == 2
    on_cpu(where, lambda: pages.free_pages_bulk(pfns[rest], orders[rest]))
    ops = np.zeros(100, ph.OP_DTYPE)
    ops["slot"], ops["order"], ops["op"] = np.arange(100), 3, ph.OP_FREE
    on_cpu(where, lambda: pages.run_ops(ops, pfns[orders == 3]))
    assert_all_free(pages)


@pytest.mark.parametrize("where", [CPUS[0], CPUS[-1]])
def test_wrong_frees_are_refused_wherever_they_come_from(pages: ph.PageAllocator, where: int) -> None:
    pfns = on_cpu(CPUS[0], lambda: [pages.alloc_pages(1) for _ in range(40)])
    on_cpu(CPUS[0], lambda: pages.free_pages(pfns[7], 1))
    before = pages.stats()
    live = pfns[6]
    for pfn, order in ((pfns[7], 1), (live, 0), (live, 2), (live, 3), (live + 1, 0), (live, 6), (live, 9)):
        for free in (
            lambda pfn=pfn, order=order: pages.free_pages(pfn, order),
            lambda pfn=pfn, order=order: pages.free_pages_bulk(np.array([pfn], np.uint64), order),
            lambda pfn=pfn, order=order: pages.free_pages_bulk(np.array([pfns[5], pfn], np.uint64), [1, order]),
        ):
            with pytest.raises(ph.BadPageError, match=f"PFN {pfn:#x}"):
                on_cpu(where, free)
    for nr_pages in (3, 5, 100):
        with pytest.raises(ph.BadPageError):
            on_cpu(where, lambda nr_pages=nr_pages: pages.free_pages_exact(pfns[6], nr_pages))
    with pytest.raises(ph.PageHintError):
        on_cpu(where, lambda: pages.alloc_pages_at(pfns[6], 1))
    pages.verify()
    after = pages.stats()
    assert after.allocated_pages == before.allocated_pages
    assert after.free_pages + after.pcp_pages == before.free_pages + before.pcp_pages
    on_cpu(where, lambda: [pages.free_pages(pfn, 1) for i, pfn in enumerate(pfns) if i != 7])
    assert_all_free(pages)


def test_a_pageblock_is_isolated_under_an_owned_leaf(pages: ph.PageAllocator) -> None:
    pfns = on_cpu(CPUS[0], lambda: [pages.alloc_pages() for _ in range(10)])
    pages.set_migratetype(pfns[0] // 512 * 512, 512, "isolate")
    on_cpu(CPUS[0], lambda: [pages.free_pages(pfn) for pfn in pfns])
    assert pages.stats().pcp_pages == 0
    pages.set_migratetype(pfns[0] // 512 * 512, 512, "movable")
    assert_all_free(pages)


def test_a_section_goes_offline_after_its_owned_leaves_are_empty() -> None:
    pages = ph.PageAllocator("256MiB")
    pfns = on_cpu(CPUS[0], lambda: [pages.alloc_pages() for _ in range(10)])
    section = pfns[0] // 32768 * 32768
    with pytest.raises(ph.PageHintError):
        pages.offline(section, 32768)
    on_cpu(CPUS[0], lambda: [pages.free_pages(pfn) for pfn in pfns])
    pages.offline(section, 32768)
    pages.verify()
    pages.online(section, 32768)
    assert_all_free(pages)


def test_the_last_resort_frees_into_owned_leaves() -> None:
    """A trace that runs out of memory goes on past the page sets, and frees what was allocated through them."""
    pages = ph.PageAllocator("256MiB")
    table = np.zeros(65536, np.uint64)
    ops = np.zeros(65536 + 1 + 10, ph.OP_DTYPE)
    ops["slot"][:65536] = np.arange(65536)
    ops[65536] = (0, 0, ph.OP_FREE)
    ops["slot"][65537:] = 0
    ops["op"][65537:] = [ph.OP_ALLOC, ph.OP_FREE] * 5
    pages.run_ops(ops, table)
    pages.verify()
    with pytest.raises(ph.OutOfMemoryError):
        pages.run_ops(np.array([(0, 0, ph.OP_ALLOC), (1, 1, ph.OP_ALLOC)], ph.OP_DTYPE), table)
    pages.free_pages_bulk(np.delete(table, 0))
    pages.free_pages(int(table[0]))
    assert_all_free(pages)


def test_a_forked_child_frees_what_its_parent_allocated(pages: ph.PageAllocator) -> None:
    pfns = [pages.alloc_pages() for _ in range(100)]
    child = os.fork()
    if child == 0:
        try:
            for pfn in pfns:
                pages.free_pages(pfn)
            assert_all_free(pages)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for pfn in pfns:
        pages.free_pages(pfn)
    assert_all_free(pages)


@pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")
def test_two_cpus_free_each_others_pages(pages: ph.PageAllocator) -> None:
    """Each of two threads, on a CPU of its own, frees what the other allocated, and what itself did, some in bulk."""
    owner = np.zeros(65536, np.int8)
    handed: tuple[deque[list[int]], deque[list[int]]] = (deque(), deque())
    clashes: list[str] = []
    barrier = threading.Barrier(2)

    def work(me: int) -> None:
        os.sched_setaffinity(0, {CPUS[me]})
        barrier.wait()
        for turn in range(3000):
            pfns = [pages.alloc_pages() for _ in range(1 + turn % 23)]
            if owner[pfns].any():
                clashes.append(f"turn {turn}: a page in two hands")
            owner[pfns] = me + 1
            handed[1 - me].append(pfns)
            try:
                # The other one may be slow to take what is handed to it.
                theirs = handed[me].popleft() if turn % 3 and len(handed[1 - me]) < 50 else handed[1 - me].pop()
            except IndexError:
                continue
            owner[theirs] = 0
            if turn % 5:
                for pfn in theirs:
                    pages.free_pages(pfn)
            else:
                pages.free_pages_bulk(np.array(theirs, np.uint64))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
    for pfns in [*handed[0], *handed[1]]:
        for pfn in pfns:
            pages.free_pages(pfn)
    assert_all_free(pages)
