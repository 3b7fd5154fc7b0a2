"""The interpreter's exit, whatever the worker, a callback or another thread is doing."""

from __future__ import annotations

import gc
import weakref

import pytest
from processes import run_code

import pagehint as ph


def test_exit_with_work_in_flight():
    """The worker is stopped at exit, whatever it is doing, and nothing is said about it."""
    code = """
        import time
        import pagehint as ph
        pages = ph.PageAllocator("1GiB")
        pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: time.sleep(0.01), 1), delay=0.0)
        arena = ph.Arena("64MiB")
        arena.enable_hinting(delay=0.0)
        array = arena.empty(1000)
        time.sleep(0.05)
        print("end")
    """
    for _ in range(5):
        assert run_code(code) == (0, "end\n", "")


@pytest.mark.parametrize(("leave", "status"), [("sys.exit(3)", 3), ("os._exit(4)", 4)])
def test_exit_from_a_callback_on_the_callers_thread(leave, status):
    code = f"""
        import logging, os, sys
        import pagehint as ph
        logging.disable()
        pages = ph.PageAllocator("64MiB")
        pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: {leave}, 1), workqueue="manual")
        pages.flush_hinting()
        print("not reached")
    """
    assert run_code(code) == (status, "", "")


def test_exit_from_a_callback_on_the_worker_ends_neither():
    code = """
        import logging, sys
        import pagehint as ph
        logging.disable()
        pages = ph.PageAllocator("64MiB")
        pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: sys.exit(3), 1), delay=0.0)
        pages.flush_hinting()
        assert isinstance(pages.last_error, SystemExit)
        pages.flush_hinting()
        print("end")
    """
    assert run_code(code) == (0, "end\n", "")


def test_exit_with_daemon_threads():
    code = """
        import threading
        import pagehint as ph
        pages = ph.PageAllocator("64MiB")
        def churn():
            while True:
                pages.free_pages(pages.alloc_pages(9), 9)
        for _ in range(2):
            threading.Thread(target=churn, daemon=True).start()
        pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: None, 1), delay=0.0)
        pages.flush_hinting()
        print("end")
    """
    assert run_code(code) == (0, "end\n", "")


def test_an_allocator_whose_clock_is_its_own_method_is_collected():
    """The engine cannot be cleared by the collector, so what it calls is not held by it."""

    class Timed(ph.PageAllocator):
        def now(self):
            return 0.0

    pages = Timed("64MiB", pcp=False)
    pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: None), workqueue="manual", clock=pages.now)
    gone = weakref.ref(pages)
    del pages
    gc.collect()
    assert gone() is None


def test_an_engine_without_a_machine_is_refused():
    """Its methods would read from nowhere."""
    from pagehint.hinting.engine import HintingEngine

    for make in (HintingEngine, lambda: HintingEngine.__new__(HintingEngine)):
        with pytest.raises(TypeError, match="engines come with a PageAllocator"):
            make()
