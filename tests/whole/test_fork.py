"""Fork: the child has a consistent allocator with hinting off, whatever the parent's threads were doing."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest
from allocators import real
from hosts import RecordingHost
from processes import in_child, run_code, survives

import pagehint as ph

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
    assert pages.stats().reporting_pages > 0

    def child():
        assert not pages.hinting_enabled
        stats = pages.stats()
        assert stats.reporting_pages == 0  # the batch that was out is back
        assert stats.hints_pending == 0
        pages.verify()
        assert len(pages.alloc_pages_bulk(64, 10)) == 64
        with pytest.raises(ph.OutOfMemoryError):
            pages.alloc_pages()
        pages.free_pages_bulk([pfn * 1024 for pfn in range(64)], 10)
        host = RecordingHost()
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
    pages.enable_hinting(RecordingHost().callbacks, delay=0.0)
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
    host = RecordingHost()
    host.answer = lambda blocks: (
        in_child(lambda: (pages.verify(), pages.alloc_pages_bulk(16, 10))) if len(host.batches) == 1 else None
    )
    with pages.hinting(host.callbacks):
        pages.flush_hinting()
    assert pages.last_error is None
    pages.verify()


def test_a_fork_does_not_deadlock_with_a_thread_that_tells_the_engine_something():
    """A fork waits for locks with the GIL held, so that a thread may not wait for the GIL while it has one of them."""
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
    assert run_code(code) == (0, "end\n", "")


@pytest.mark.parametrize("where", ["thread-local", "before", "after_in_child", "__del__"])
def test_a_fork_holding_the_zone_locks_while_python_code_runs(where):
    """Python code that runs in the middle of a fork, in the parent or the child, may use the allocator."""
    code = f"""
        import os, threading
        where, held, local, ready = {where!r}, [], threading.local(), threading.Event()
        def use():
            if where != "thread-local" and held:
                array, allocator = held
                held.clear()
                del array                               # frees its pages
                allocator.free_pages(allocator.alloc_pages())
                allocator.verify()
        class Late:
            def __del__(self):
                use()
        # Registered before pagehint: runs after its own hook before a fork, if it has any, and before it in the child.
        if where in ("before", "after_in_child"):
            os.register_at_fork(**{{where: use}})
        import pagehint as ph
        arena = ph.Arena("64MiB")
        def hold():
            local.array = arena.empty(1000)
            local.late = Late() if where == "__del__" else None
            ready.set()
            threading.Event().wait()
        threading.Thread(target=hold, daemon=True).start()
        ready.wait()
        held += arena.empty(10), arena.pages
        pid = os.fork()
        if pid == 0:
            arena.pages.verify()
            os.write(1, b"child\\n")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        arena.pages.verify()
        print("parent", flush=True)
        os._exit(0)
    """
    assert run_code(code) == (0, "child\nparent\n", "")


def test_an_interrupted_fork_leaving_hinting_on_in_the_child():
    """There is no moment in a fork at which Ctrl-C could keep the child from getting a stopped, tidy engine."""
    code = """
        import os, random, signal, sys
        import pagehint as ph
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        sys.unraisablehook = lambda _: None
        pages, others = ph.PageAllocator("64MiB"), [ph.PageAllocator("1MiB") for _ in range(30)]
        pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: None), delay=None)
        me, statuses = os.getpid(), []
        for _ in range(400):
            pid = None
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-4))
                pid = os.fork()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            if os.getpid() != me:
                os._exit(7 if pages.hinting_enabled else 0)
            while True:
                try:
                    statuses.append(os.waitpid(-1, 0)[1])
                except ChildProcessError:
                    break
        print(set(statuses))
    """
    assert run_code(code) == (0, "{0}\n", "")


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


def test_a_fork_while_zones_grow():
    stop = threading.Event()

    def grow():
        while not stop.is_set():
            pages = real("128MiB")
            known[:] = [*known[-2:], pages]
            for section in range(2, 20):
                pages.online(section * 32768, 32768)

    known = []
    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(50):
            in_child(lambda: [pages.verify() for pages in known])
    finally:
        stop.set()
        thread.join()


def test_a_fork_while_allocators_are_made_and_collected():
    stop = threading.Event()

    def make():
        while not stop.is_set():
            pages = ph.PageAllocator("64MiB")
            pages.free_pages(pages.alloc_pages())

    def child():
        pages = ph.PageAllocator("64MiB")
        with pages.hinting(RecordingHost().callbacks):
            pages.flush_hinting()
        pages.verify()

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            in_child(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("call", ["flush_hinting", "run_pending"])
@pytest.mark.parametrize("where", ["prepare", "hint_pages", "cleanup"])
def test_a_child_forked_by_a_callback_going_on(call, where):
    """The run was the parent's. The child, once out of the callback, does nothing of it any more."""
    pages = real("256MiB")
    me, calls = os.getpid(), []
    read, write = os.pipe()

    def callback(name, *_):
        if os.getpid() != me:
            calls.append(name)
        elif name == where and not calls:
            calls.append("forked")
            if os.fork() == 0:
                calls.clear()
                pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: None, 7), workqueue="manual")
                pages.flush_hinting()
                pages.disable_hinting()

    def go():
        outcome = pages.run_pending() if call == "run_pending" else pages.flush_hinting()
        return outcome or 0

    pages.enable_hinting(
        ph.PageHintingCallbacks(
            lambda blocks: callback("hint_pages"), 1, lambda: callback("prepare"), lambda: callback("cleanup")
        ),
        workqueue="manual",
    )
    try:
        outcome = go()
    except ph.HintingInactiveError:
        outcome = "inactive"
    if os.getpid() != me:
        try:
            assert outcome == ("inactive" if call == "flush_hinting" else 0)
            assert calls == []
            assert not pages.hinting_enabled
            stats = pages.stats()
            assert (stats.reporting_pages, stats.free_pages) == (0, 65536)
            pages.verify()
            os.write(write, b"fine")
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"fine"
    os.wait()
    assert outcome == (0 if call == "flush_hinting" else 1)
    pages.disable_hinting()
    pages.verify()


@pytest.mark.parametrize("pcp", [False, True])
def test_a_child_forked_by_the_worker_going_on(pcp):
    """The worker in the child leaves its callback, and ends; what it found, another engine may have taken over."""
    code = f"""
        import os
        import pagehint as ph
        pages, me = ph.PageAllocator("256MiB", pcp={pcp}), os.getpid()
        def hint_pages(blocks):
            if forked or os.getpid() != me:
                return
            forked.append(os.fork())
            if forked == [0]:
                pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: None, 7))
                pages.flush_hinting()
                pages.disable_hinting()
                pages.verify()
                assert pages.stats().reporting_pages == 0
                assert pages.stats().free_pages == 65536
        def cleanup():
            if os.getpid() != me:
                os.write(1, b"cleanup in the child\\n")
        forked = []
        pages.enable_hinting(ph.PageHintingCallbacks(hint_pages, 1, cleanup=cleanup))
        pages.flush_hinting()
        assert os.waitpid(forked[0], 0)[1] == 0
        pages.disable_hinting()
        assert pages.last_error is None
        pages.verify()
        print("end")
    """
    code, out, err = run_code(code)
    assert (code, out) == (0, "end\n")
    assert "Error" not in err


def test_a_child_forked_by_a_compiled_callback_going_on():
    """The run that it comes back into was the parent's."""
    survives("""
        import ctypes, os
        import pagehint as ph
        forked = []
        @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)
        def hint(blocks, n, failed, data):
            if not forked:
                forked.append(os.fork())
            return 0
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        name = b"int (const pagehint_block *, size_t, uint8_t *, void *)"
        pages = ph.PageAllocator("64MiB", pcp=False)
        capsule = new(ctypes.cast(hint, ctypes.c_void_p), name, None)
        pages.enable_hinting(ph.PageHintingCallbacks(capsule, 1), workqueue="manual", delay=None)
        try:
            pages.flush_hinting()
        except ph.HintingInactiveError:
            assert forked == [0]
        pages.verify()
        assert pages.stats().reporting_pages == 0
        assert pages.hinting_enabled == bool(forked[0])
        assert not forked[0] or os.waitpid(forked[0], 0)[1] == 0
    """)


def test_a_child_forked_by_the_clock_while_hinting_is_being_enabled():
    """That it is on is for the parent. The child is told, and may enable it itself."""
    survives("""
        import os
        import pagehint as ph
        forked = []
        def clock():
            if not forked:
                forked.append(os.fork())
            return 0.0
        pages, callbacks = ph.PageAllocator("64MiB"), ph.PageHintingCallbacks(lambda blocks: None)
        try:
            pages.enable_hinting(callbacks, workqueue="manual", clock=clock)
        except ph.HintingInactiveError as error:
            assert forked == [0]
            assert "interrupted by a fork" in str(error)
            assert not pages.hinting_enabled
            pages.enable_hinting(callbacks, workqueue="manual")
        pages.flush_hinting()
        pages.verify()
        assert not forked[0] or os.waitpid(forked[0], 0)[1] == 0
    """)


def test_a_fork_in_the_midst_of_a_bulk_call_lost_its_pages_in_the_child():
    """What another thread is about to free, or has just taken, is wholly the one or the other in the child."""
    survives("""
        import os, threading
        import pagehint as ph
        pages = ph.PageAllocator("256MiB")
        stop = threading.Event()
        def churn():
            while not stop.is_set():
                pages.free_pages_bulk(pages.alloc_pages_bulk(60000))
        thread = threading.Thread(target=churn)
        thread.start()
        for _ in range(40):
            child = os.fork()
            if not child:
                pages.drain_pcp()
                pages.verify()
                free = {pfn for zone in pages.zones for start, order in zone.free_blocks().tolist()
                        for pfn in range(start, start + (1 << order))}
                for pfn in set(range(65536)) - free:
                    pages.free_pages(pfn)
                pages.drain_pcp()
                pages.verify()
                os._exit(pages.stats().free_pages != 65536)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
    """)
