"""The orders of events on which the protocol hangs, forced on the real code. Only a debug build has test points."""

from __future__ import annotations

import contextlib
import os
import time

import numpy as np
import pytest
from allocators import real
from hosts import RecordingHost
from processes import in_child

import pagehint as ph
from pagehint import _core

if not _core.DEBUG:
    pytest.skip("test points are in a debug build only", allow_module_level=True)

from points import Hold, Thread, compiled_points

# The orders cannot hang: a held thread goes on after twenty seconds, and one that waits gives up before that.
pytestmark = [
    pytest.mark.timeout(120, method="thread"),
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]

MERGED = (0,) * 10 + (4,)  # 16 MiB, all free
MANUAL = {"workqueue": "manual", "threshold": 1 << 20, "delay": None, "mark_free": False}
AT_ONCE = {"threshold": 1, "delay": None, "mark_free": False}


def bits(pages):
    """PFNs of the granules hinted in the first zone."""
    words = pages.zones[0].hint_bitmap
    return [int(i) << pages.min_order for i in np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))]


def wait_for(condition):
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def one_set(monkeypatch):
    """One page set for all threads, whichever CPU they are on."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


# ---- on and off


def test_nothing_is_published_before_it_is_initialised(few_host):
    pages = real("16MiB")
    early, late = pages.alloc_pages_at(0, 9), pages.alloc_pages_at(2048, 9)
    with Hold("at: before the hook") as unhooked, Hold("at: hook on, engine off") as hooked:
        enable = Thread(lambda: pages.enable_hinting(few_host.callbacks, threshold=1, delay=None))
        unhooked.wait()
        pages.free_pages(early, 9)
        assert bits(pages) == []
        unhooked.let_go()
        hooked.wait()
        assert bits(pages) == [pfn for pfn in range(0, 4096, 512) if pfn != late]
        pages.free_pages(late, 9)
        assert late in bits(pages)
        assert pages.stats().work_queued == 1
        assert not pages.hinting_enabled
        with pytest.raises(ph.HintingInactiveError):
            pages.flush_hinting()
        with pytest.raises(ph.HintingActiveError):
            pages.enable_hinting(RecordingHost().callbacks)
        time.sleep(0.05)  # for the worker, if it began too early
        assert few_host.calls == []
        hooked.let_go()
        enable.result()
    wait_for(
        lambda: pages.stats().hints_pending == pages.stats().reporting_pages == 0
    )  # what was queued is not forgotten
    assert sorted(few_host.blocks) == [(0, 10), (1024, 10), (2048, 10), (3072, 10)]
    pages.disable_hinting()
    pages.verify()


@pytest.mark.parametrize("then", ["off", "on again"])
def test_a_free_that_queues_work_while_hinting_is_switched_off(few_host, then):
    """It has set its bit, and has yet to tell the engine, when there is none any more, or another."""
    pages, other = real("16MiB"), RecordingHost(2)
    block = pages.alloc_pages_at(0, 9)
    pages.enable_hinting(few_host.callbacks, **AT_ONCE)
    with Hold("at: before the engine is told") as queued:
        free = Thread(pages.free_pages, block, 9)
        queued.wait()
        assert pages.stats().work_queued == 1
        pages.disable_hinting()
        if then == "on again":
            pages.enable_hinting(other.callbacks, **MANUAL)
        queued.let_go()
        free.result()
    if then == "on again":
        pages.run_pending()
        pages.disable_hinting()
    assert few_host.calls == other.calls == []
    assert bits(pages) == []
    assert pages.stats().hints_pending == pages.stats().reporting_pages == 0
    pages.verify()


def test_a_free_that_queues_work_while_disable_is_about_to_wait(few_host):
    pages = real("16MiB")
    block = pages.alloc_pages_at(0, 9)
    pages.enable_hinting(few_host.callbacks, **AT_ONCE)
    with Hold("at: before disable waits") as stopping:
        disable = Thread(pages.disable_hinting)
        stopping.wait()
        pages.free_pages(block, 9)
        with pytest.raises(ph.HintingInactiveError):
            pages.flush_hinting()
        with pytest.raises(ph.HintingActiveError):
            pages.enable_hinting(RecordingHost().callbacks)
        stopping.let_go()
        disable.result()
    assert few_host.calls == []
    assert bits(pages) == []
    pages.verify()


def test_disable_waits_for_the_batch_that_is_out(few_host):
    pages = real("16MiB")
    with Hold("at: before the report") as out, Hold("at: before disable waits") as stopping:
        pages.enable_hinting(few_host.callbacks, threshold=1, delay=None)
        out.wait()
        disable = Thread(pages.disable_hinting)
        stopping.wait()
        stopping.let_go()
        time.sleep(0.05)
        assert disable.is_alive()
        assert pages.hinting_enabled
        assert pages.stats().reporting_pages == 1024
        out.let_go()
        disable.result()
    assert few_host.calls == ["prepare", "hint_pages", "cleanup"]  # this batch, and no other
    assert pages.stats().reporting_pages == 0
    assert pages.zones[0].nr_free == MERGED
    pages.verify()


# ---- a run


@pytest.mark.parametrize("point", ["at: before the report", "at: end of a run"])
def test_a_free_during_a_run_is_reported_without_another(few_host, point):
    """Also when the scan has passed it, and when it has come to its end."""
    pages = real("16MiB")
    behind, ahead = pages.alloc_pages_at(0, 9), pages.alloc_pages_at(2048, 9)
    with pages.hinting(few_host.callbacks, **AT_ONCE), Hold(point) as running:
        pages.free_pages(ahead, 9)
        running.wait()
        pages.free_pages(behind, 9)
        running.let_go()
        wait_for(lambda: few_host.blocks == [(ahead, 9), (behind, 9)])
    pages.verify()


def test_a_neighbour_freed_while_a_block_is_out_merges_when_it_is_put_back(few_host):
    pages = real("16MiB")
    first, second = pages.alloc_pages_at(0, 9), pages.alloc_pages_at(512, 9)
    with pages.hinting(few_host.callbacks, **AT_ONCE), Hold("at: before the report") as out:
        pages.free_pages(first, 9)
        out.wait()
        assert pages.stats().reporting_pages == 512
        pages.free_pages(second, 9)
        assert pages.zones[0].nr_free == (*(0,) * 9, 1, 3)  # not with a block that nobody has
        pages.verify()
        out.let_go()
        wait_for(lambda: few_host.blocks == [(first, 9), (second, 9)])  # each once
    assert pages.zones[0].nr_free == MERGED
    pages.verify()


def test_an_allocation_waits_for_its_page_while_that_is_out():
    pages, host, turns = real("4MiB"), RecordingHost(1), []
    host.answer = lambda blocks: turns.append("reported")
    with Hold("at: before the report") as out, Hold("at: memory waited for") as waiting:
        pages.enable_hinting(host.callbacks, threshold=1, delay=None)
        out.wait()
        allocate = Thread(lambda: (pages.alloc_pages(10), turns.append("allocated")))
        waiting.wait()
        waiting.let_go()
        time.sleep(0.05)
        assert allocate.is_alive()
        out.let_go()
        assert allocate.result()[0] == 0
    assert turns == ["reported", "allocated"]
    pages.disable_hinting()
    pages.verify()


def test_a_flush_while_a_run_is_under_way_covers_what_the_run_has_passed(few_host):
    pages = real("16MiB")
    behind, ahead = pages.alloc_pages_at(0, 9), pages.alloc_pages_at(2048, 9)
    options = {**MANUAL, "workqueue": "thread"}
    with (
        pages.hinting(few_host.callbacks, **options),
        Hold("at: before the report") as out,
    ):
        pages.free_pages(ahead, 9)
        first = Thread(pages.flush_hinting)
        out.wait()
        pages.free_pages(behind, 9)
        with Hold("at: flush asked for") as asked:
            second = Thread(lambda: (pages.flush_hinting(), few_host.blocks)[1])
            asked.wait()
        out.let_go()
        first.result()
        assert second.result() == [(ahead, 9), (behind, 9)]
    pages.verify()


def test_a_failed_block_that_is_wanted_before_it_is_hinted_again(few_host):
    """It is hinted again before anybody can have it, so that the allocation finds the bit, and clears it."""
    pages = real("16MiB")
    block = pages.alloc_pages_at(0, 9)
    few_host.answer = False
    with pages.hinting(few_host.callbacks, **MANUAL):
        pages.free_pages(block, 9)
        with Hold("at: between put-back and re-hint") as back, Hold("at: sleep announced") as asleep:
            flush = Thread(pages.flush_hinting)
            back.wait()
            allocate = Thread(pages.alloc_pages_at, block)
            asleep.wait()
            asleep.let_go()
            back.let_go()
            assert allocate.result() == block
            flush.result()
        stats = pages.stats()
        assert (stats.blocks_failed, stats.hints_pending, stats.hints_cleared_by_alloc) == (1, 0, 1)
        assert bits(pages) == []
        few_host.answer = None
        few_host.take()
        pages.free_pages(block)
        pages.flush_hinting()
        assert few_host.take() == [(block, 9)]
    pages.verify()


def test_an_allocation_while_bits_are_taken_waits_for_the_lock(few_host):
    """Between the bit and the count of what is out nobody looks: neither the check nor an allocation."""
    pages = real("16MiB")
    with pages.hinting(few_host.callbacks, **{**MANUAL, "mark_free": True}):
        with Hold("at: bit taken") as taken, Hold("at: sleep announced") as asleep:
            flush = Thread(pages.flush_hinting)
            taken.wait()
            check = Thread(pages.verify)
            asleep.wait()
            asleep.let_go()
            taken.let_go()
            check.result()
            flush.result()
        assert pages.stats().hints_pending == 0
        assert len(few_host.blocks) == len(set(few_host.blocks)) == 4
    pages.verify()


def test_offline_waits_for_a_block_of_the_section_that_is_out():
    pages, host = real("256MiB"), RecordingHost(1)
    with Hold("at: before the report") as out, Hold("at: memory waited for") as waiting:
        pages.enable_hinting(host.callbacks, threshold=1, delay=None)
        out.wait()
        offline = Thread(pages.offline, 0, 32768)
        waiting.wait()
        assert pages.stats().managed_pages == 65536
        waiting.let_go()
        out.let_go()
        offline.result()
    assert pages.stats().managed_pages == 32768
    pages.flush_hinting()
    assert pages.stats().reporting_pages == 0
    assert all(pfn < 32768 for pfn in bits(pages)) or not bits(pages)
    assert not [block for block in host.blocks if host.blocks.count(block) > 1]
    pages.disable_hinting()
    pages.verify()
    pages.online(0, 32768)
    pages.verify()
    assert pages.stats().free_pages == 65536


# ---- locks


@pytest.mark.parametrize("point", ["at: sleep announced", "at: about to sleep"])
def test_a_lock_that_is_released_while_somebody_goes_to_sleep(few_host, point):
    """It sees that the lock is free, or the holder sees it and wakes it up. The holder does not take the lock again."""
    pages = real("16MiB")
    block = pages.alloc_pages_at(0, 9)
    few_host.answer = False
    with pages.hinting(few_host.callbacks, **MANUAL):
        pages.free_pages(block, 9)
        with Hold("at: between put-back and re-hint") as holder, Hold(point) as sleeper:
            flush = Thread(pages.flush_hinting)
            holder.wait()
            allocate = Thread(pages.alloc_pages_at, 2048)
            sleeper.wait()
            holder.let_go()
            flush.result()
            sleeper.let_go()
            assert allocate.result() == 2048
    pages.verify()


def test_a_former_owner_interrupted_between_its_two_looks_comes_in_with_another(one_set):
    pages = ph.PageAllocator("256MiB")
    others = pages.alloc_pages_bulk(1000).tolist()

    def own():
        pages.free_pages(pages.alloc_pages())
        with Hold("at: between two looks of the owner") as first_look:
            looks.append(first_look)
            return pages.alloc_pages()

    looks: list[Hold] = []
    owner = Thread(own)
    wait_for(lambda: looks)
    looks[0].wait()
    with Hold("at: set drained") as inside, Hold("at: owner waited for") as outside:
        other = Thread(lambda: [pages.free_pages(pfn) for pfn in others])
        inside.wait()  # in the set, which was the owner's at its first look
        looks[0].let_go()
        outside.wait()  # the owner sees that the set is not its own any more
        outside.let_go()
        inside.let_go()
        other.result()
    pages.free_pages(owner.result())
    pages.verify()
    assert pages.stats().allocated_pages == 0


def test_who_ends_a_bias_waits_for_the_owner_inside(one_set):
    pages = ph.PageAllocator("256MiB")
    blocks = pages.alloc_pages_bulk(1000).tolist()
    with Hold("at: set drained") as inside:
        owner = Thread(lambda: [pages.free_pages(pfn) for pfn in blocks])
        inside.wait()
        with Hold("at: owner waited for") as outside:
            drain = Thread(pages.drain_pcp)
            outside.wait()
        assert drain.is_alive()
        inside.let_go()
        owner.result()
        drain.result()
    pages.verify()


# ---- double frees


@pytest.mark.parametrize("way", ["free_pages", "free_pages_bulk"])
def test_a_double_free_racing_with_itself_after_the_first_has_marked_the_block(one_set, way):
    pages = ph.PageAllocator("16MiB")
    block = pages.alloc_pages()
    with Hold("at: withheld, not looked again") as first:
        free = Thread(getattr(pages, way), block if way == "free_pages" else [block])
        first.wait()
        with pytest.raises(ph.BadPageError, match="already free"):
            pages.free_pages_bulk([block])
        first.let_go()
        free.result()
    pages.drain_pcp()
    pages.verify()
    assert pages.stats().free_pages == 4096


@pytest.mark.parametrize("point", ["at: set drained", "at: before the withholding"])
def test_a_double_free_racing_with_itself_before_the_first_has_marked_the_block(one_set, point):
    """The free that marks the block second is refused, though it began first."""
    pages = ph.PageAllocator("256MiB")
    *blocks, twice, _neighbour = pages.alloc_pages_bulk(130).tolist()
    if point == "at: set drained":
        for pfn in blocks:
            pages.free_pages(pfn)
    with Hold(point) as first:
        free = Thread(pages.free_pages, twice)
        first.wait()
        pages.free_pages_bulk([twice])
        first.let_go()
        with pytest.raises(ph.BadPageError, match="already free"):
            free.result()
    pages.drain_pcp()
    pages.verify()


def test_a_double_free_that_comes_late_finds_another_block():
    """Its word looks as it did, but the block has come and gone: the mark is taken off, and the owner has it still."""
    pages = ph.PageAllocator("16MiB")
    block = pages.alloc_pages_at(512)
    pages.alloc_pages_at(513)
    with Hold("at: before the withholding") as late:
        free = Thread(pages.free_pages_bulk, [block])
        late.wait()
        pages.free_pages_bulk([512, 513])
        assert pages.alloc_pages_at(512, 1) == block
        late.let_go()
        with pytest.raises(ph.BadPageError, match="wrong order"):
            free.result()
    pages.free_pages(512, 1)
    pages.drain_pcp()
    pages.verify()
    assert pages.stats().free_pages == 4096


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_leaf_is_shared_after_it_has_refused_a_free():
    """Refused because a page set owns the leaf, which it no more does when asked why, it is not a double free."""
    here, elsewhere = sorted(os.sched_getaffinity(0))[:2]
    pages = ph.PageAllocator("256MiB")

    def on(cpu, function, *arguments):
        os.sched_setaffinity(0, {cpu})
        return function(*arguments)

    first, second = Thread(on, here, lambda: [pages.alloc_pages() for _ in range(2)]).result()
    with Hold("at: about to share a leaf") as sharing:
        share = Thread(on, elsewhere, pages.free_pages, first)
        sharing.wait()
        with Hold("at: refused by a leaf") as refused:
            free = Thread(on, elsewhere, pages.free_pages, second)
            refused.wait()
            sharing.let_go()
            time.sleep(0.2)  # for it to be shared; the other then waits for the zone's lock, which the refused one has
            refused.let_go()
            free.result()
        share.result()
    pages.drain_pcp()
    pages.verify()
    assert pages.stats().free_pages == 65536


# ---- fork


def flush(pages):
    pages.enable_hinting(RecordingHost(2).callbacks, workqueue="manual")
    pages.flush_hinting()


def fail(pages):
    host = RecordingHost(2)
    host.answer = False
    pages.enable_hinting(host.callbacks, workqueue="manual")
    pages.flush_hinting()


def enable_and_disable(pages):
    pages.enable_hinting(RecordingHost(2).callbacks)
    pages.disable_hinting()


def queue(pages):
    block = pages.alloc_pages(9)
    pages.enable_hinting(RecordingHost(2).callbacks, workqueue="manual", **AT_ONCE)
    pages.free_pages(block, 9)


def run_ops(pages, op, pfns):
    """Without the GIL, for which a fork does not wait."""
    ops = np.zeros(len(pfns), ph.OP_DTYPE)
    ops["slot"] = np.arange(len(pfns))
    ops["op"] = op
    pages.run_ops(ops, pfns)


def use(pages):
    for _ in range(2):
        pfns = np.zeros(1, np.uint64)
        run_ops(pages, ph.OP_ALLOC, pfns)
        run_ops(pages, ph.OP_FREE, pfns)


def use_a_granule(pages):
    """Past the page sets."""
    pages.free_pages(pages.alloc_pages(9), 9)


def fill_a_set(pages):
    run_ops(pages, ph.OP_FREE, pages.alloc_pages_bulk(200))


def ask_for_too_much(pages):
    page = pages.alloc_pages()
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages_bulk(4, 10)
    pages.free_pages(page)


# How a thread comes to a point; and whether it has locks there for which a fork waits: it then goes on when one begins.
WAYS = {
    "at: before the hook": (enable_and_disable, False),
    "at: hook on, engine off": (enable_and_disable, False),
    "at: before disable waits": (enable_and_disable, False),
    "at: before the engine is told": (queue, False),
    "at: flush asked for": (flush, False),
    "at: bit taken": (flush, True),
    "at: before the report": (flush, False),
    "at: between put-back and re-hint": (fail, True),
    "at: end of a run": (flush, False),
    "at: memory waited for": (ask_for_too_much, True),
    "at: between two looks of the owner": (use, False),
    "at: set drained": (fill_a_set, True),
    "at: before the withholding": (use, True),
    "at: withheld, not looked again": (use, True),
    "at: owner waited for": (use, True),
    "at: sleep announced": (use_a_granule, False),
    "at: about to sleep": (use_a_granule, False),
}
# Where one waits for another: how that comes to have what is waited for, and where.
HOLDERS = {
    "at: owner waited for": (fill_a_set, "at: set drained"),
    "at: sleep announced": (flush, "at: bit taken"),
    "at: about to sleep": (flush, "at: bit taken"),
}


def check_child(pages, nr_pages):
    """The child has the memory, all of it, and hinting off."""
    assert not pages.hinting_enabled
    pages.verify()
    stats = pages.stats()
    assert stats.reporting_pages == stats.hints_pending == 0
    pages.drain_pcp()
    free = {pfn + i for pfn, order in pages.zones[0].free_blocks().tolist() for i in range(1 << order)}
    lost = sorted(set(range(nr_pages)) - free)
    # What another thread was about to free, or had just got, is allocated, and can be freed.
    for pfn in lost:
        try:
            pages.free_pages(pfn)
        except ph.BadPageError:
            pages.free_pages(pfn, 9)
            break
    pages.drain_pcp()
    assert pages.stats().free_pages == nr_pages
    host = RecordingHost(2)
    with pages.hinting(host.callbacks):
        pages.flush_hinting()
    assert sum(1 << order for _, order in host.blocks) == nr_pages
    pages.verify()


def test_every_point_is_forked_at():
    # A zone of 16 MiB is too small for page sets to own leaves.
    assert {*WAYS, "at: fork", "at: refused by a leaf", "at: about to share a leaf"} == compiled_points()


@pytest.mark.parametrize("point", WAYS)
def test_a_fork_while_a_thread_is_at(point, one_set):
    way, locked = WAYS[point]
    pages = ph.PageAllocator("16MiB")
    with contextlib.ExitStack() as stack:
        threads = []
        if point in HOLDERS:
            holds_it, there = HOLDERS[point]
            holder = stack.enter_context(Hold(there, until="at: fork"))
            threads.append(Thread(holds_it, pages))
            holder.wait()
        held = stack.enter_context(Hold(point, until="at: fork" if locked else ""))
        threads.append(Thread(way, pages))
        held.wait()
        in_child(lambda: check_child(pages, 4096))
        held.let_go()
        for thread in threads:
            thread.result()
    pages.disable_hinting()
    pages.verify()
    pages.drain_pcp()
    assert pages.stats().free_pages == 4096
