"""Ctrl-C and signal handlers, in a wait and in the midst of switching hinting on or off."""

from __future__ import annotations

import pytest
from processes import run_code


@pytest.mark.parametrize("call", ["pages.flush_hinting()", "pages.disable_hinting()", "more_than_is_not_out()"])
def test_ctrl_c_ends_a_wait(call):
    code = f"""
        import threading
        import pagehint as ph
        pages = ph.PageAllocator("64MiB")
        begun, go_on = threading.Event(), threading.Event()
        def hint_pages(blocks):
            begun.set()
            go_on.wait()
        def more_than_is_not_out():
            for _ in range(16):
                pages.alloc_pages(10)
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


def test_ctrl_c_in_enable_leaving_a_worker_behind():
    """Wherever it strikes, hinting is on or off, no worker is left over, and no callback of it is called."""
    code = """
        import signal, time
        from pathlib import Path
        import pagehint as ph
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        pages = ph.PageAllocator("64MiB")
        live, after = set(), []
        def hint_pages(token):
            if token not in live:
                after.append(token)
        def workers():
            names = []
            for task in Path("/proc/self/task").iterdir():
                try:
                    names.append((task / "comm").read_text())
                except OSError:
                    pass  # it has ended meanwhile
            return names.count("pagehint\\n")
        for token in range(1000):
            live.add(token)
            callbacks = ph.PageHintingCallbacks(lambda blocks, token=token: hint_pages(token), 1)
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + token % 200))
                    pages.enable_hinting(callbacks, delay=0.0)
                    while True:
                        time.sleep(1e-3)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
            pages.disable_hinting()
            live.discard(token)
            while workers():  # one that was joined is in /proc for another moment; one that is left over, for ever
                time.sleep(1e-3)
        pages.verify()
        print("callbacks after disable_hinting had returned:", after)
    """
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
        import signal
        import pagehint as ph
        pages = ph.PageAllocator("64MiB")
        callbacks = ph.PageHintingCallbacks(lambda blocks: None)
        def switch(*_):
            pages.disable_hinting()
            try:
                pages.enable_hinting(callbacks)
            except ph.HintingActiveError:
                print("handler")
        signal.signal(signal.SIGALRM, switch)
        def clock():
            if not pages.hinting_enabled:
                signal.raise_signal(signal.SIGALRM)
            return 0.0
        pages.enable_hinting(callbacks, workqueue="manual", clock=clock)
        assert pages.hinting_enabled
        pages.flush_hinting()
        pages.disable_hinting()
        pages.verify()
        print("end")
    """
    assert run_code(code) == (0, "handler\nend\n", "")
