"""The engine: its settings, its worker, its flush, the allocations that wait for a batch, and its end."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
from allocators import real
from hosts import RecordingHost
from threads import native_threads
from waiting import wait_for

import pagehint as ph


def test_settings_are_checked():
    pages = real("16MiB")
    for name in ("max_pages", "threshold", "delay"):
        with pytest.raises(ph.HintingInactiveError):
            getattr(pages, name)
        with pytest.raises(ph.HintingInactiveError):
            setattr(pages, name, 1)
    with pages.hinting(RecordingHost().callbacks, workqueue="manual"):
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
        pages.enable_hinting(RecordingHost().callbacks, clock=time.monotonic)


def test_what_needs_hinting_says_so():
    pages = real("16MiB")
    for call in (pages.flush_hinting, pages.run_pending):
        with pytest.raises(ph.HintingInactiveError):
            call()
    pages.disable_hinting()  # nothing to do
    with pages.hinting(RecordingHost().callbacks), pytest.raises(ph.PageHintError, match="manual"):
        pages.run_pending()
    assert not pages.hinting_enabled


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
    pages = real("512MiB")  # an eighth of it in granules is 32 blocks; all but these are in use
    for pfn in range(32768, 131072, 1024):
        pages.alloc_pages_at(pfn, 10)
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
    host = RecordingHost()
    with pages.hinting(host.callbacks):
        pages.flush_hinting()
        host.take()
        pages.free_pages(pages.alloc_pages())
        pages.flush_hinting()
        assert len(host.take()) == 1
        assert pages.stats().hints_pending == 0


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
    host = RecordingHost(1)
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


def test_an_allocator_that_is_collected_stops_its_worker():
    pages = real("64MiB")
    host = RecordingHost()
    pages.enable_hinting(host.callbacks)
    pages.flush_hinting()
    memory = weakref.ref(pages.memory)
    assert native_threads("pagehint")
    del pages
    wait_for(lambda: memory() is None)
    wait_for(lambda: not native_threads("pagehint"))


@pytest.mark.parametrize("shape", ["in a cycle", "owner in a cycle", "manual"])
def test_the_worker_going_on_when_its_allocator_is_collected_in_a_cycle(shape):
    class Owner:
        pass

    pages = real("64MiB")
    host = RecordingHost()
    pages.enable_hinting(host.callbacks, workqueue="manual" if shape == "manual" else "thread")
    memory = weakref.ref(pages.memory)
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
    wait_for(lambda: memory() is None)
    wait_for(lambda: not native_threads("pagehint"))
