"""Fork, interpreter exit, Ctrl-C: what happens around the work."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from conftest import Host, real

import pagehint as ph


def in_child(function):
    """Run in a forked child; its assertion errors fail the test here."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # ends it if it hangs
        try:
            function()
            os.write(write, b"fine")
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said == b"fine", said


pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


@pytest.mark.parametrize("pcp", [True, False])
def test_after_fork_the_child_has_a_usable_allocator_with_hinting_off(pcp):
    pages = ph.PageAllocator("256MiB", pcp=pcp)
    reporting, go_on = threading.Event(), threading.Event()

    def hint_pages(blocks):
        reporting.set()
        assert go_on.wait(60)

    pages.enable_hinting(ph.PageHintingCallbacks(hint_pages), delay=0.0)
    assert reporting.wait(60)
    assert pages.stats().isolated_pages > 0

    def child():
        assert not pages.hinting_enabled
        stats = pages.stats()
        assert stats.isolated_pages == 0  # the batch that was out is back
        assert stats.hints_pending == 0
        pages.verify()
        assert len(pages.alloc_pages_bulk(64, 10)) == 64
        with pytest.raises(ph.OutOfMemoryError):
            pages.alloc_pages()
        pages.free_pages_bulk([pfn * 1024 for pfn in range(64)], 10)
        host = Host()
        with pages.hinting(host.callbacks, delay=0.0):
            pages.flush_hinting()
            assert sum(1 << order for _, order in host.blocks) == 65536
        pages.verify()

    in_child(child)
    assert pages.hinting_enabled  # the parent is undisturbed
    go_on.set()
    pages.flush_hinting()
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()
    pages.verify()


def test_fork_while_threads_work():
    pages = ph.PageAllocator("256MiB")
    pages.enable_hinting(Host().callbacks, delay=0.0)
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            pages.free_pages(pages.alloc_pages())
            pages.free_pages(pages.alloc_pages(9), 9)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()

    def child():
        for _ in range(100):
            pages.free_pages(pages.alloc_pages())
        pages.verify()

    try:
        for _ in range(30):
            in_child(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    pages.disable_hinting()
    pages.verify()


def test_fork_from_inside_a_callback():
    pages = real("64MiB")
    host = Host()
    host.answer = lambda blocks: (
        in_child(lambda: (pages.verify(), pages.alloc_pages_bulk(16, 10))) if len(host.batches) == 1 else None
    )
    with pages.hinting(host.callbacks):
        pages.flush_hinting()
    assert pages.last_error is None
    pages.verify()


def run(code, *, interrupt=False, **options):
    process = subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # CI may have started us with it ignored
        start_new_session=True,
        **options,
    )
    if interrupt:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        if process.returncode is None:  # it hangs, perhaps with children
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def test_exit_with_work_in_flight():
    """The worker is stopped at exit, whatever it is doing, and nothing is said about it."""
    code = """
        import time
        import pagehint as ph
        pages = ph.PageAllocator("1GiB")
        pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: time.sleep(0.01), 1), delay=0.0)
        arena = ph.Arena("64MiB")
        arena.hinting(delay=0.0).__enter__()
        array = arena.empty(1000)
        time.sleep(0.05)
        print("end")
    """
    for _ in range(5):
        assert run(code) == (0, "end\n", "")


def test_exit_from_a_callback_and_with_daemon_threads():
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
    assert run(code) == (0, "end\n", "")


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
        assert pages.stats().isolated_pages == 0
    """
    assert run(code, interrupt=True) == (0, "interrupted\n", "")


def test_a_fork_does_not_deadlock_with_a_thread_that_tells_the_engine_something():
    """A fork stops everything with the GIL held; nobody who has what it waits for may be waiting for the GIL."""
    code = """
        import os, threading
        import pagehint as ph
        pages = ph.PageAllocator("64MiB")
        callbacks = ph.PageHintingCallbacks(lambda blocks: None)
        stop = threading.Event()
        def switch():
            while not stop.is_set():
                pages.enable_hinting(callbacks, workqueue="manual", delay=0.0)
                pages.free_pages(pages.alloc_pages(9), 9)
                pages.run_pending()
                pages.disable_hinting()
        other = threading.Thread(target=switch)
        other.start()
        for _ in range(200):
            pid = os.fork()
            if pid == 0:
                pages.verify()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        other.join()
        pages.verify()
        print("end")
    """
    assert run(code) == (0, "end\n", "")


def test_a_fork_during_hotplug():
    """The child sees a range online or offline, its zone and what is known about it alike."""
    pages = real("4GiB")
    stop = threading.Event()

    def plug():
        while not stop.is_set():
            pages.offline(0, 8 * 32768)
            pages.online(0, 8 * 32768)

    def child():
        pages.verify()
        with contextlib.suppress(ph.BadPageError):
            pages.offline(0, 8 * 32768)
        pages.verify()
        pages.online(0, 8 * 32768)
        pages.verify()
        assert pages.stats().free_pages == 1 << 20

    thread = threading.Thread(target=plug)
    thread.start()
    try:
        for _ in range(100):
            in_child(child)
    finally:
        stop.set()
        thread.join()
    pages.verify()


def test_offline_holding_the_hotplug_lock_while_it_waits_for_a_batch():
    code = """
        import threading, time
        import pagehint as ph
        pages = ph.PageAllocator("256MiB", pcp=False)
        begun, waiting = threading.Event(), threading.Event()
        def hint_pages(blocks):
            begun.set()
            waiting.wait()
            time.sleep(0.3)
            pages.verify()
            pages.set_migratetype(0, 512, "movable")
        pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 64), delay=0.0)
        begun.wait()
        assert pages.stats().isolated_pages > 32768
        waiting.set()
        pages.offline(0, 32768)
        pages.disable_hinting()
        assert pages.last_error is None
        pages.verify()
        print("end")
    """
    assert run(code) == (0, "end\n", "")
