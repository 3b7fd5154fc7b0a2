"""The engine (SPEC.md, H1 to H15) beyond the faults of the original: triggers, limits, failures, settings."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref

import numpy as np
import pytest
from conftest import Host, real
from waiting import wait_for

import pagehint as ph


def test_the_hook_sets_exactly_the_granules_that_became_free(make, host):
    pages = make("64MiB")
    taken = [pages.alloc_pages_at(pfn, 3) for pfn in range(1024, 2048, 8)]
    with pages.hinting(host.callbacks, workqueue="manual", mark_free=False, delay=None):
        for pfn in taken[:63]:
            pages.free_pages(pfn, 3)
        assert pages.stats().hints_pending == 0
        pages.free_pages(taken[63], 3)
        assert pages.stats().hints_pending == 1
        for pfn in taken[64:]:
            pages.free_pages(pfn, 3)
        assert pages.stats().hints_pending == 2
        pages.alloc_pages_at(1030)
        stats = pages.stats()
        assert (stats.hints_pending, stats.hints_set, stats.hints_cleared_by_alloc) == (1, 2, 1)


def test_a_free_of_many_granules_hints_them_all(make, few_host):
    pages = make("64MiB")
    block, run = pages.alloc_pages(10), pages.alloc_pages_exact(5 * 512 + 7)
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, delay=None, threshold=100):
        pages.free_pages(block, 10)
        assert pages.stats().hints_pending == 2
        pages.free_pages_exact(run, 5 * 512 + 7)
        assert pages.stats().hints_pending == 2 + 6


def test_work_is_queued_once_at_the_threshold(make, few_host):
    pages = make("64MiB")
    blocks = [pages.alloc_pages(9) for _ in range(20)]
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, threshold=5, delay=None):
        for i, block in enumerate(blocks[:10]):
            assert pages.stats().work_queued == (i >= 5)
            pages.free_pages(block, 9)
        assert few_host.blocks == []
        assert pages.run_pending() == 1
        assert pages.stats().hints_pending == 0
        assert pages.run_pending() == 0
        for block in blocks[10:]:
            pages.free_pages(block, 9)
        assert pages.stats().work_queued == 2


def test_a_free_during_a_run_makes_it_run_again(few_host):
    pages = real("64MiB")
    extra = [pages.alloc_pages_at(pfn, 9) for pfn in (0, 512)]
    last = pages.alloc_pages_at(8192, 9)
    few_host.answer = lambda blocks: pages.free_pages(extra.pop(), 9) if extra else None
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, threshold=1, delay=None):
        pages.free_pages(last, 9)
        assert pages.run_pending() > 1  # the callback freed behind the cursor
        assert sorted(few_host.blocks) == [(0, 9), (512, 9), (8192, 9)]


@pytest.mark.parametrize("most", [1, 3, 16, 60])
def test_never_more_than_max_pages_are_out(make, most):
    pages = make("256MiB")
    host = Host(most)
    out = []
    host.answer = lambda blocks: out.append((len(blocks), pages.stats().reporting_pages))
    with pages.hinting(host.callbacks, workqueue="manual"):
        pages.flush_hinting()
        if make is real:
            assert pages.stats().reporting_pages == 0
    assert max(n for n, _ in out) == most
    assert all(isolated == n << 10 for n, isolated in out)


@pytest.mark.parametrize(("order", "expected"), [(None, 10), (9, 9), (10, 10), (13, 13)])
def test_blocks_are_as_large_as_allowed(make, host, order, expected):
    pages = make("256MiB", max_page_order=14, min_order=9)
    with pages.hinting(host.callbacks, workqueue="manual", max_report_order=order):
        pages.flush_hinting()
    assert {order for _, order in host.blocks} == {expected}
    assert len(set(host.blocks)) == 65536 >> expected


def test_isolated_blocks_belong_to_nobody(make, few_host):
    pages = make("16MiB", watermarks=(0, 0, 0))
    seen = []

    def check(blocks):
        for block in blocks:
            pfn, order = int(block["pfn"]), int(block["order"])
            assert all(not pfn <= free < pfn + (1 << order) for free, _ in pages.zones[0].free_blocks().tolist())
            for call in (pages.free_pages, pages.alloc_pages_at):
                with pytest.raises(ph.BadPageError):
                    call(pfn, order)
            seen.append(pfn)

    few_host.answer = check
    with pages.hinting(few_host.callbacks, workqueue="manual"):
        pages.flush_hinting()
    assert seen
    assert pages.last_error is None


def test_blocks_are_a_read_only_array_of_the_callee(few_host):
    pages = real("16MiB")
    kept = []
    with pages.hinting(ph.PageHintingCallbacks(kept.append, 2), workqueue="manual"):
        pages.flush_hinting()
    assert all(blocks.dtype == ph.BLOCK_DTYPE for blocks in kept)
    assert np.concatenate(kept).tolist() == [(0, 10, 0), (1024, 10, 0), (2048, 10, 0), (3072, 10, 0)]
    with pytest.raises(ValueError, match="read-only"):
        kept[0]["pfn"] = 7


def test_reporting_thread_does_not_wait_on_itself(few_host):
    """Inside a callback an allocation that only the batch itself could satisfy fails; it does not hang."""
    pages = real("8MiB")
    outcome = []

    def allocate(blocks):
        try:
            while True:
                outcome.append(pages.alloc_pages(9))
        except ph.OutOfMemoryError:
            outcome.append("out of memory")

    few_host.answer = allocate
    with pages.hinting(few_host.callbacks, workqueue="manual"):
        pages.flush_hinting()
    assert outcome[-1] == "out of memory"
    assert pages.stats().reporting_pages == 0
    pages.verify()


@pytest.mark.parametrize("call", ["alloc_pages", "alloc_pages_bulk", "alloc_pages_exact", "alloc_pages_at", "offline"])
def test_no_false_out_of_memory_while_blocks_are_out(call):
    """Whoever needs memory that is out for reporting waits for it."""
    pages = real("128MiB")
    reporting, go_on = threading.Event(), threading.Event()

    def hint_pages(blocks):
        reporting.set()
        assert go_on.wait(60)

    pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 32), delay=0.0)
    assert reporting.wait(60)
    assert pages.stats().reporting_pages == 32768
    arguments = {
        "alloc_pages": (10,),
        "alloc_pages_bulk": (32, 10),
        "alloc_pages_exact": (32000,),
        "alloc_pages_at": (1024, 10),
        "offline": (0, 32768),
    }[call]
    result = []
    waiter = threading.Thread(target=lambda: result.append(getattr(pages, call)(*arguments)))
    waiter.start()
    time.sleep(0.1)
    assert result == []
    go_on.set()
    waiter.join(60)
    assert len(result) == 1
    pages.disable_hinting()
    pages.verify()


def test_really_out_of_memory_is_said_although_reporting_goes_on():
    pages = real("64MiB")
    with pages.hinting(ph.PageHintingCallbacks(lambda blocks: time.sleep(0.001), 1), delay=0.0, threshold=1):
        for _ in range(20):
            with pytest.raises(ph.OutOfMemoryError):
                pages.alloc_pages_bulk(17, 10)


def test_wrong_answers_are_failures(few_host):
    pages = real("16MiB")
    pages.enable_hinting(few_host.callbacks, workqueue="manual")
    for answer, kind in (
        ([True], TypeError),
        (np.ones(3, bool), TypeError),
        (np.ones(2, int), TypeError),
        ("yes", TypeError),
        (object(), TypeError),
        (False, ph.PageHintError),
        ([True, False], ph.PageHintError),
        (KeyError("x"), KeyError),
    ):
        few_host.answer = answer
        before = pages.stats()
        pages.flush_hinting()
        after = pages.stats()
        assert isinstance(pages.last_error, kind)
        assert after.report_errors > before.report_errors
        assert after.hints_pending > 0
        pages.verify()
    few_host.answer = True
    pages.flush_hinting()
    few_host.answer = [True, True]
    pages.alloc_pages_at(0, 10), pages.alloc_pages_at(1024, 10)
    pages.free_pages(0, 10), pages.free_pages(1024, 10)
    pages.flush_hinting()
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_cleanup_runs_after_every_successful_prepare(make, few_host):
    pages = make("16MiB")
    pages.enable_hinting(few_host.callbacks, workqueue="manual")
    few_host.answer = RuntimeError("broken")
    pages.flush_hinting()
    assert few_host.calls == ["prepare", "hint_pages", "hint_pages", "cleanup"]
    few_host.take()
    few_host.prepare_answer = -5
    pages.flush_hinting()
    assert few_host.calls == ["prepare"]
    few_host.take()
    few_host.prepare_answer = few_host.answer = None
    pages.flush_hinting()
    assert few_host.calls == ["prepare", "hint_pages", "hint_pages", "cleanup"]
    few_host.take()
    pages.flush_hinting()
    assert few_host.calls == []  # nothing to report, nobody called
    pages.disable_hinting()


def test_a_burst_of_failures_is_logged_once(few_host, caplog):
    pages = real("16MiB")
    few_host.answer = OSError("the host is gone")
    with caplog.at_level(logging.WARNING, "pagehint"), pages.hinting(few_host.callbacks, workqueue="manual"):
        for _ in range(5):
            pages.flush_hinting()
        assert len(caplog.records) == 1
        assert "the host is gone" in caplog.text
        few_host.answer = None
        pages.flush_hinting()
        few_host.answer = OSError("gone again")
        pages.free_pages(pages.alloc_pages(10), 10)
        pages.flush_hinting()
        assert len(caplog.records) == 2


def test_back_off_is_exponential(make, few_host, clock):
    pages = make("16MiB")
    few_host.answer = OSError("no")
    pages.enable_hinting(few_host.callbacks, workqueue="manual", clock=clock, delay=None)
    assert pages.run_pending() == 1
    for pause in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0):
        clock.sleep(pause - 0.01)
        assert pages.run_pending() == 0
        clock.sleep(0.02)
        assert pages.run_pending() == 1
    few_host.answer = None
    clock.sleep(31)
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_settings_change_while_it_runs(make, few_host, clock):
    pages = make("128MiB")
    few_host.answer = lambda blocks: setattr(pages, "max_pages", 7)
    pages.enable_hinting(few_host.callbacks, workqueue="manual", clock=clock)
    assert (pages.max_pages, pages.threshold, pages.delay) == (2, 2, 2.0)
    pages.flush_hinting()
    assert [len(batch) for batch in few_host.batches][:3] == [2, 7, 7]
    pages.run_pending()
    few_host.take()
    assert pages.threshold == 7  # follows max_pages unless set
    pages.threshold, pages.delay = 50, None
    blocks = pages.alloc_pages_bulk(20, 9)
    pages.free_pages_bulk(blocks, 9)
    clock.sleep(1000)
    assert pages.run_pending() == 0
    pages.threshold = 10
    assert pages.run_pending() == 1
    pages.threshold, pages.delay = None, 5.0
    assert pages.threshold == 7
    pages.free_pages(pages.alloc_pages(9), 9)
    clock.sleep(5.1)
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_settings_are_checked():
    pages = real("16MiB")
    for name in ("max_pages", "threshold", "delay"):
        with pytest.raises(ph.HintingInactiveError):
            getattr(pages, name)
        with pytest.raises(ph.HintingInactiveError):
            setattr(pages, name, 1)
    with pages.hinting(Host().callbacks, workqueue="manual"):
        for name, value in (
            ("max_pages", 0),
            ("threshold", -1),
            ("delay", -1.0),
            ("delay", float("nan")),
            ("delay", 1e99),
        ):
            with pytest.raises(ValueError, match=r".+"):
                setattr(pages, name, value)
    for bad in ({"max_pages": 0}, {"max_pages": 1 << 40}):
        with pytest.raises(ValueError, match="max_pages"):
            ph.PageHintingCallbacks(print, **bad)
    for bad in ({"hint_pages": 3}, {"hint_pages": print, "prepare": 3}, {"hint_pages": print, "cleanup": "x"}):
        with pytest.raises(TypeError):
            ph.PageHintingCallbacks(**bad)
    with pytest.raises(TypeError):
        pages.enable_hinting(print)
    with pytest.raises(ValueError, match="clock"):
        pages.enable_hinting(Host().callbacks, clock=time.monotonic)


def test_what_needs_hinting_says_so():
    pages = real("16MiB")
    for call in (pages.flush_hinting, pages.run_pending):
        with pytest.raises(ph.HintingInactiveError):
            call()
    pages.disable_hinting()  # nothing to do
    with pages.hinting(Host().callbacks), pytest.raises(ph.PageHintError, match="manual"):
        pages.run_pending()
    assert not pages.hinting_enabled


@pytest.mark.parametrize("workqueue", ["thread", "manual"])
def test_from_inside_a_callback_nothing_waits_for_itself(workqueue):
    pages = real("64MiB")
    errors = []

    def hint_pages(blocks):
        for call in (
            pages.disable_hinting,
            pages.flush_hinting,
            lambda: pages.enable_hinting(Host().callbacks),
            *([pages.run_pending] if workqueue == "manual" else []),
        ):
            try:
                call()
            except ph.HintingActiveError as error:
                errors.append(error)

    with pages.hinting(ph.PageHintingCallbacks(hint_pages, 16), workqueue=workqueue):
        pages.flush_hinting()
    assert len(errors) == (4 if workqueue == "manual" else 3)
    assert pages.last_error is None


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError])
def test_the_worker_survives_what_a_callback_raises(kind):
    pages = real("64MiB")
    answers = [kind("stop")]

    def hint_pages(blocks):
        if answers:
            raise answers.pop()

    with pages.hinting(ph.PageHintingCallbacks(hint_pages)):
        pages.flush_hinting()
        assert isinstance(pages.last_error, kind)
        pages.flush_hinting()
        assert pages.stats().hints_pending == 0
    pages.verify()


def test_an_interrupt_on_the_callers_thread_reaches_the_caller(few_host):
    pages = real("64MiB")
    few_host.answer = KeyboardInterrupt()
    with pages.hinting(few_host.callbacks, workqueue="manual"):
        with pytest.raises(KeyboardInterrupt):
            pages.flush_hinting()
        assert few_host.calls == ["prepare", "hint_pages", "cleanup"]
        assert pages.stats().reporting_pages == 0
        assert pages.stats().hints_pending == 32
        few_host.answer = None
        pages.flush_hinting()
        assert pages.stats().hints_pending == 0
    pages.verify()


def test_the_worker_reports_at_the_threshold_without_being_asked(few_host):
    pages = real("64MiB")
    blocks = pages.alloc_pages_bulk(8, 9)
    with pages.hinting(few_host.callbacks, mark_free=False, delay=None):
        pages.free_pages_bulk(blocks, 9)
        wait_for(lambda: pages.stats().hints_pending < 2)


def test_the_worker_retries_what_failed_without_being_asked(few_host):
    pages = real("64MiB")
    few_host.answer = OSError("no")
    with pages.hinting(few_host.callbacks, delay=None):
        wait_for(lambda: len(few_host.batches) > 2)
        few_host.answer = None
        wait_for(lambda: pages.stats().hints_pending == 0)


def test_flush_reports_what_is_in_page_sets():
    pages = ph.PageAllocator("64MiB")
    host = Host()
    with pages.hinting(host.callbacks):
        pages.flush_hinting()
        host.take()
        pages.free_pages(pages.alloc_pages())
        pages.flush_hinting()
        assert len(host.take()) == 1
        assert pages.stats().hints_pending == 0


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
        pages.free_pages(pages.alloc_pages(10), 10)
        assert pages.explain()["under the watermark gate"].pages == 1024


def test_a_zone_under_the_gate_wakes_when_hotplug_lowers_its_watermarks(host):
    """Linux's watermarks are shares of one reserve: memory that comes online elsewhere lowers everybody else's."""
    specs = [ph.ZoneSpec("DMA", 0, 32768), ph.ZoneSpec("Normal", 32768, 32768)]
    pages = real(specs, watermarks="linux")
    dma = pages.zones[0]
    gate = dma.watermarks.low + (16 << 9)
    pages.alloc_pages_at(0, 10)
    for pfn in range(1, (32768 - gate) // 1024):
        pages.alloc_pages_at(pfn * 1024, 10)
    pages.alloc_pages_bulk(dma.free_pages - gate + 1, zone="DMA")
    with pages.hinting(host.callbacks, workqueue="manual", delay=None):
        pages.run_pending()
        assert all(pfn >= 32768 for pfn, _ in host.take())
        pages.online(65536, 32768)
        assert dma.free_pages >= dma.watermarks.low + (16 << 9)
        pages.run_pending()
        assert any(pfn < 32768 for pfn, _ in host.take())


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


def test_every_free_queueing_a_run_under_the_gate(few_host):
    """While a zone is gated, only memory coming back wakes the engine; and then it does."""
    pages = real("64MiB", watermarks=(0, 8192, 8192))
    taken = pages.alloc_pages_bulk(24, 9)
    pages.enable_hinting(few_host.callbacks, workqueue="manual", delay=None, threshold=1)
    pages.run_pending()
    before = pages.stats()
    for _ in range(100):
        pages.free_pages(pages.alloc_pages(9), 9)
        pages.run_pending()
    after = pages.stats()
    assert (after.work_queued, after.work_runs) == (before.work_queued, before.work_runs)
    assert few_host.blocks == []
    pages.free_pages_bulk(taken, 9)
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_a_smaller_batch_opens_the_gate(few_host):
    """The gate moves with `max_pages`, also for a zone that waits at it."""
    pages = real("64MiB")
    few_host.answer = True
    pages.enable_hinting(few_host.callbacks, workqueue="manual", delay=None, threshold=1)
    pages.max_pages = 100
    assert pages.run_pending() == 1
    assert few_host.blocks == []
    pages.max_pages = 2
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


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


@pytest.mark.parametrize("workqueue", ["thread", "manual"])
def test_flush_returning_although_disable_cut_it_short(workqueue):
    """A flush that returns has reported everything; else it raises."""
    for _ in range(30):
        pages = real("256MiB")
        reported, outcome, begun = [], [], threading.Event()

        def hint_pages(blocks, begun=begun, reported=reported):
            begun.set()
            time.sleep(0.002)
            reported.extend(blocks.tolist())

        def flush(pages=pages, outcome=outcome):
            try:
                pages.flush_hinting()
                outcome.append("returned")
            except ph.HintingInactiveError:
                outcome.append("raised")

        pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 2), workqueue=workqueue, delay=None, threshold=1 << 20)
        thread = threading.Thread(target=flush)
        thread.start()
        assert begun.wait(60)
        pages.disable_hinting()
        thread.join(60)
        assert outcome == ["raised"] or len(reported) == 64


def test_ctrl_c_in_the_clock_vanishing(clock):
    """What ends the program comes out of the call that asked the clock, and out of no run; and no run is cut short."""
    pages = real([ph.ZoneSpec("low", 0, 1 << 14), ph.ZoneSpec("high", 1 << 14, 1 << 14)])
    host = Host(1)
    broken = []

    def read():
        if broken:
            raise broken.pop()
        return clock()

    blocks = [pages.alloc_pages(9, zone=zone) for zone in ("low", "low", "low", "high", "high", "high")]
    broken.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pages.enable_hinting(host.callbacks, workqueue="manual", clock=read)
    assert not pages.hinting_enabled
    pages.enable_hinting(host.callbacks, workqueue="manual", threshold=2, delay=1.0, clock=read, mark_free=False)
    broken.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pages.free_pages(blocks[0], 9)
    assert pages.last_error is None
    for block in blocks:
        pages.free_pages(block, 9)  # the first, too: the clock is asked before anything happens
    broken.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pages.run_pending()
    assert host.blocks == []
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    broken.append(RuntimeError("no clock"))
    assert pages.run_pending() == 0
    assert isinstance(pages.last_error, RuntimeError)  # a clock that fails stands still, as ever
    pages.disable_hinting()
    pages.verify()


def test_ctrl_c_in_the_clock_at_the_end_of_a_run(few_host, clock):
    pages = real("64MiB")
    broken = set()

    def read():
        if broken:
            raise broken.pop()
        return clock()

    pages.enable_hinting(few_host.callbacks, workqueue="manual", clock=read)
    few_host.answer = lambda blocks: bool(broken.add(KeyboardInterrupt))  # refused, so the run asks when to try again
    with pytest.raises(KeyboardInterrupt):
        pages.flush_hinting()
    few_host.answer = None
    pages.flush_hinting()
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_the_bitmap_is_a_view(few_host):
    pages = real("64MiB")
    view = pages.zones[0].hint_bitmap
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    pages.enable_hinting(few_host.callbacks, workqueue="manual")
    assert view[0] == (1 << 32) - 1
    pages.disable_hinting()
    assert view[0] == 0
    del pages
    gc.collect()
    assert view[0] == 0  # the view keeps what it looks at


def test_an_allocator_that_is_collected_stops_its_worker():
    pages = real("64MiB")
    host = Host()
    pages.enable_hinting(host.callbacks)
    pages.flush_hinting()
    memory = weakref.ref(pages.memory)
    [worker] = [thread for thread in threading.enumerate() if thread.name == "pagehint"]
    del pages
    gc.collect()
    worker.join(60)
    assert not worker.is_alive()
    del worker
    gc.collect()
    assert memory() is None


@pytest.mark.parametrize("shape", ["in a cycle", "owner in a cycle", "manual"])
def test_the_worker_going_on_when_its_allocator_is_collected_in_a_cycle(shape):
    class Owner:
        pass

    pages = real("64MiB")
    host = Host()
    pages.enable_hinting(host.callbacks, workqueue="manual" if shape == "manual" else "thread")
    memory = weakref.ref(pages.memory)
    workers = [thread for thread in threading.enumerate() if thread.name == "pagehint"]
    if shape == "owner in a cycle":
        owner = Owner()
        owner.pages, owner.me = pages, owner
        del owner
    else:
        cycle = [pages]
        cycle.append(cycle)
        del cycle
    del pages
    gc.collect()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    workers.clear()
    worker = None
    gc.collect()
    assert memory() is None
