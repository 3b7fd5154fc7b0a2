"""The worker's thread, in processes that do with threads, signals and address space what ours do not."""

from __future__ import annotations

import gc
import os
import signal
import threading

import pytest
from allocators import real
from hosts import RecordingHost
from processes import run_code, survives
from threads import native_threads
from waiting import wait_for

import pagehint as ph


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_a_worker_made_a_greenlet_by_patched_threading(library):
    """It never ran, and `install` waited for it for ever."""
    patch = {
        "gevent": "from gevent import monkey; monkey.patch_all()",
        "eventlet": "import eventlet; eventlet.monkey_patch()",
    }
    code = f"""
        import warnings
        warnings.simplefilter("ignore")
        {patch[library]}
        import numpy as np
        import pagehint as ph
        arena = ph.numpy.install()
        array = np.ones(8 << 20)
        del array
        arena.pages.flush_hinting()
        assert arena.resident_bytes < 4 << 20, arena.resident_bytes
        pages = ph.PageAllocator("64MiB")
        said = []
        with pages.hinting(ph.PageHintingCallbacks(lambda blocks: said.append(len(blocks)))):
            pages.flush_hinting()
        assert sum(said) == 16
        print("done")
    """
    assert run_code(code)[:2] == (0, "done\n")


def test_a_signal_that_is_blocked_later_going_to_the_worker():
    """The worker had the signal mask of its time: what the main thread then waited for ended the process.

    NumPy's own threads, those of OpenBLAS, would still take it: here it has none.
    """
    code = """
        import os, signal, time
        import pagehint as ph
        import numpy as np
        arena = ph.numpy.install(min_age=0.0, reserve_age=0.0)
        for each in (signal.SIGUSR1, signal.SIGTERM, signal.SIGRTMIN):
            signal.pthread_sigmask(signal.SIG_BLOCK, [each])
            for _ in range(200):
                np.ones(1 << 18)
                os.kill(os.getpid(), each)
                got = signal.sigtimedwait([each], 10)
                assert got.si_signo == each, got
        print("done")
    """
    assert run_code(code, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}) == (0, "done\n", "")


def test_every_signal_is_blocked_in_a_thread_that_a_debugger_shows_by_name():
    pages = real("64MiB")
    with pages.hinting(RecordingHost().callbacks):
        wait_for(lambda: native_threads("pagehint"))
        [task] = native_threads("pagehint")
        [mask] = [line.split()[1] for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk")]
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            assert int(mask, 16) >> (number - 1) & 1, number
    assert not native_threads("pagehint")


def test_a_callback_has_room_for_python_where_threads_have_small_stacks():
    """With musl a thread has 128 KiB unless it asks for more; with glibc, what the limit of the main thread's says."""
    code = """
        import os, resource, sys
        limit, most = resource.getrlimit(resource.RLIMIT_STACK)
        if limit != 128 << 10:
            resource.setrlimit(resource.RLIMIT_STACK, (128 << 10, most))
            os.execv(sys.executable, sys.orig_argv)
        import pagehint as ph

        class Nest:
            def __init__(self, depth):
                self.depth = depth
            def __repr__(self):
                return repr(Nest(self.depth - 1)) if self.depth else "the bottom"

        said = []
        pages = ph.PageAllocator("64MiB")
        with pages.hinting(ph.PageHintingCallbacks(lambda blocks: said.append(repr(Nest(300))))):
            pages.flush_hinting()
        print(said[0])
    """
    assert run_code(code) == (0, "the bottom\n", "")


def test_python_knows_of_the_worker_in_callbacks_only():
    """A compiled callback needs no Python state: no thread state, no trace or profile function, no dummy thread."""
    code = """
        import sys, threading, time
        import numpy as np
        import pagehint as ph
        called = []
        threading.setprofile(lambda *args: called.append(args))
        threading.settrace(lambda *args: called.append(args))
        arena = ph.numpy.install(min_age=0.0, reserve_age=0.0)
        for _ in range(20):
            np.ones(1 << 20)
            time.sleep(0.005)
        assert arena.pages.stats().blocks_reported
        assert threading.enumerate() == [threading.main_thread()]
        assert len(sys._current_frames()) == 1
        assert called == []
    """
    assert run_code(code) == (0, "", "")


def test_no_thread_for_the_worker():
    """Enabling fails as a whole, with what the kernel said; later it works."""
    code = """
        import resource
        import pagehint as ph
        from pathlib import Path
        pages = ph.PageAllocator("64MiB")
        callbacks = ph.PageHintingCallbacks(lambda blocks: None)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
        try:
            pages.enable_hinting(callbacks)
        except ph.PageHintError as error:
            print(error)
        assert not pages.hinting_enabled
        assert pages.stats().hints_pending == 0
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        pages.enable_hinting(callbacks)
        pages.flush_hinting()
        pages.disable_hinting()
    """
    said = run_code(code)
    assert said == (0, "no thread for the hinting worker: Resource temporarily unavailable\n", "")


def test_a_callback_that_drops_its_allocator():
    """The worker runs on an engine that nothing else refers to, and lets go of it at its end."""
    kept = [real("64MiB")]
    dropped = []

    def hint_pages(blocks):
        dropped.append(kept.pop()) if kept else None
        dropped.clear()

    kept[0].enable_hinting(ph.PageHintingCallbacks(hint_pages, 1), delay=0.0)
    wait_for(lambda: not kept)
    wait_for(lambda: not native_threads("pagehint"))
    gc.collect()


def test_the_end_of_the_interpreter_during_a_python_callback():
    code = """
        import threading, time
        import pagehint as ph
        pages = ph.PageAllocator("64MiB")
        begun = threading.Event()
        def hint_pages(blocks):
            begun.set()
            time.sleep(0.2)
        pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 1), delay=0.0)
        begun.wait()
    """
    assert run_code(code) == (0, "", "")


def test_a_worker_in_a_report_while_its_allocator_is_collected_in_a_cycle():
    """What the worker still used, callbacks and all, was in the cycle as well, and was cleared under it."""
    survives("""
        import gc
        import pagehint as ph
        for _ in range(300):
            pages = ph.PageAllocator("64MiB")
            pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: None, 1), threshold=1)
            cycle = [pages]
            cycle.append(cycle)
            del cycle, pages
            gc.collect()
    """)


def test_each_batch_of_a_pass_had_a_thread_state_of_its_own():
    """What a callback had kept for its thread was gone with the next batch, and its stack was mapped anew."""
    here = threading.local()
    seen = []

    def hint_pages(blocks):
        here.batches = getattr(here, "batches", 0) + 1
        seen.append(here.batches)

    pages = real("256MiB")
    pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 4), delay=None)
    pages.flush_hinting()
    pages.disable_hinting()
    assert len(seen) > 3
    assert seen == list(range(1, len(seen) + 1))
