"""Ctrl-C and signal handlers, in a wait and in the midst of switching hinting on or off."""

from __future__ import annotations

import textwrap

import pytest
from processes import run_code


@pytest.mark.parametrize("call", ["pages.flush_hinting()", "pages.disable_hinting()", "pages.alloc_pages(10)"])
def test_ctrl_c_ends_a_wait(call):
    code = f"""
        import threading
        import pagehint as ph
        pages = ph.PageAllocator("64MiB")
        begun, go_on = threading.Event(), threading.Event()
        def hint_pages(blocks):
            begun.set()
            go_on.wait()
        pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 16), delay=0.0)
        begun.wait()
        print("ready", flush=True)
        try:
            {call}
        except KeyboardInterrupt:
            print("interrupted")
        go_on.set()
        pages.disable_hinting()
        pages.verify()
        assert pages.stats().reporting_pages == 0
    """
    assert run_code(code, interrupt=True) == (0, "interrupted\n", "")


# What Ctrl-C inside Thread.start does, made certain: the thread starts, or has yet to, and the call raises.
INTERRUPTED_START = """
    import threading
    import pagehint as ph
    pages = ph.PageAllocator("64MiB")
    start, late = threading.Thread.start, []
    def interrupted(self):
        late.append(self) if {late} else start(self)
        raise KeyboardInterrupt
    threading.Thread.start = interrupted
    for _ in range(3):
        try:
            pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: None), delay=0.0)
        except KeyboardInterrupt:
            assert not pages.hinting_enabled
    threading.Thread.start = start
    workers = [thread for thread in threading.enumerate() if thread.name == "pagehint"]
"""


@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c_in_enable_leaving_a_worker_behind(late):
    code = textwrap.dedent(INTERRUPTED_START.format(late=late)) + textwrap.dedent(
        """
        import time
        live, after = set(), []
        def hint_pages(token):
            time.sleep(0.01)
            if token not in live:
                after.append(token)
        for token in range(20):
            live.add(token)
            callbacks = ph.PageHintingCallbacks(lambda blocks, token=token: hint_pages(token), 1)
            pages.enable_hinting(callbacks, delay=0.0)
            while late:
                start(late[0])
                workers.append(late.pop(0))
            pages.disable_hinting()
            live.discard(token)
        for worker in workers:
            worker.join()
        pages.verify()
        print("callbacks after disable_hinting had returned:", after)
        """
    )
    assert run_code(code) == (0, "callbacks after disable_hinting had returned: []\n", "")


def test_a_signal_handler_disabling_while_the_main_thread_disables():
    code = """
        import signal, threading
        import pagehint as ph
        pages = ph.PageAllocator("64MiB")
        begun, go_on = threading.Event(), threading.Event()
        def hint_pages(blocks):
            begun.set()
            go_on.wait()
        def stop(*_):
            go_on.set()
            pages.disable_hinting()
            assert not pages.hinting_enabled
            print("handler")
        signal.signal(signal.SIGALRM, stop)
        for workqueue in ("thread", "manual"):
            begun.clear(), go_on.clear()
            pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 1), workqueue=workqueue)
            if workqueue == "manual":
                other = threading.Thread(target=pages.run_pending)
                other.start()
            begun.wait()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            pages.disable_hinting()
            assert not pages.hinting_enabled
        other.join()
        pages.verify()
        print("end")
    """
    assert run_code(code) == (0, "handler\nhandler\nend\n", "")


def test_a_signal_handler_switching_while_the_main_thread_enables():
    """The first `enable_hinting` that comes through wins, and a thread does not wait for itself."""
    code = """
        import signal, threading
        import pagehint as ph
        pages = ph.PageAllocator("64MiB")
        callbacks = ph.PageHintingCallbacks(lambda blocks: None)
        start = threading.Thread.start
        def switch(*_):
            pages.disable_hinting()
            try:
                pages.enable_hinting(callbacks)
            except ph.HintingActiveError:
                print("handler")
        signal.signal(signal.SIGALRM, switch)
        def slow(self):
            signal.raise_signal(signal.SIGALRM)
            start(self)
        threading.Thread.start = slow
        pages.enable_hinting(callbacks)
        assert pages.hinting_enabled
        pages.flush_hinting()
        pages.disable_hinting()
        pages.verify()
        print("end")
    """
    assert run_code(code) == (0, "handler\nend\n", "")
