"""Against a real QEMU: what interrupts, forks, collections and closing at the wrong moment must not do."""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
from guests import MIB, ended, filled, is_whole, open_files, without_qemu
from hypothesis import given
from processes import in_child
from threads import SECONDS
from waiting import wait_for

import pagehint as ph
from pagehint.qemu.ram import FREE, HIGH
from pagehint.virtio import Balloon, Qtest, VirtioPci
from pagehint.virtio.balloon import DEVICE_ID, chains
from pagehint.virtio.undisturbed import interrupted, undisturbed

pytestmark = without_qemu
GIB = 1 << 30


@pytest.fixture
def host():
    with ph.qemu.Host("256MiB", timeout=5) as made:
        yield made


# ---- interrupts


class Storm:
    """Interrupts of the main thread, one to three in a row, at moments that nobody chose."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.left = 0
        self.felt = 0
        self.first = (1e-6, 0.0005)  # seconds until the first
        self.wanted = queue.SimpleQueue()
        self.done = threading.Semaphore(0)
        self.thread = threading.Thread(target=self.strike, daemon=True)

    def __enter__(self):
        self.before = signal.signal(signal.SIGUSR1, self.struck)
        self.thread.start()
        return self

    def __exit__(self, *exc_info):
        self.wanted.put(None)
        self.thread.join()
        signal.signal(signal.SIGUSR1, self.before)

    def strike(self):
        while (order := self.wanted.get()) is not None:
            delay, times = order
            time.sleep(delay)
            for _ in range(times):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
                time.sleep(2e-5)
            self.done.release()

    def struck(self, signum, frame):
        if self.left:
            self.left -= 1
            raise KeyboardInterrupt

    def goes_on(self, end, least):
        """Until then; on a busy machine, until so many have been felt."""
        late = time.monotonic() - end
        return late < 0 or (late < 120 and self.felt <= least)

    def over(self, work):
        """Call it in the storm; what it raises of its own goes on."""
        self.left = self.rng.randrange(1, 4)
        self.wanted.put((self.rng.uniform(*self.first), self.left))
        try:
            try:
                work()
            except KeyboardInterrupt:
                self.felt += 1
                raise
            finally:
                self.left = 0
        except KeyboardInterrupt:
            self.left = 0
        self.done.acquire()


def test_interrupts_tear_nothing(host):
    """However they fall, no page has two owners, and the device has nothing when a call is left."""
    arena, balloon = host.arena(), host.balloon
    kept = filled(arena, 30 * MIB)
    rng = random.Random(1)
    in_use = arena.pages.stats().allocated_pages
    end = time.monotonic() + SECONDS
    with Storm(2) as storm, arena.hinting(8, threshold=1, delay=None, workqueue="manual"):
        while storm.goes_on(end, 20):
            what = rng.randrange(5)
            if what == 0:
                storm.over(lambda: balloon.inflate(rng.randrange(4000)))
            elif what == 1:
                storm.over(lambda: balloon.deflate(rng.randrange(balloon.actual + 1)))
            elif what == 2:
                gone = filled(arena, 8 * MIB, 3)
                del gone
                storm.over(arena.pages.flush_hinting)
            elif what == 3:
                storm.over(lambda: balloon.target)
            else:
                pfns = [arena.pages.alloc_pages(9) for _ in range(10)]
                storm.over(lambda pfns=pfns: balloon.report([pfn * 4096 for pfn in pfns], [FREE] * 10))
                for pfn in pfns:
                    arena.pages.free_pages(pfn, 9)
            for name, (_, queue) in balloon._queues.items():
                assert queue.nr_free == queue.size or name == "statistics", f"the device has something of {name}"
            assert not balloon._lock.locked()
            assert arena.pages.stats().allocated_pages == in_use + balloon.actual
            assert arena.pages.stats().reporting_pages == 0
            assert host.running
        arena.pages.verify()
    assert storm.felt > 20
    assert is_whole(kept)
    assert host.qmp("query-balloon")["actual"] == 256 * MIB - balloon.actual * 4096


def test_interrupts_at_start_and_end_leave_no_qemu_and_no_file_behind():
    def start_and_end():
        with ph.qemu.Host("64MiB") as host:
            host.restart()

    start_and_end()
    before, others = open_files(), children()
    with Storm(3) as storm:
        storm.first = (0, 0.4)
        end = time.monotonic() + 2 * SECONDS
        while storm.goes_on(end, 3):
            storm.over(start_and_end)
            gc.collect()
    assert storm.felt > 3
    wait_for(lambda: children() <= others, "the end of every QEMU")
    wait_for(lambda: open_files() == before, "the end of every connection")


def children():
    """Processes that any thread of this one has started, and which run."""
    files = Path("/proc/self/task").glob("*/children")
    return {pid for file in files for pid in file.read_text().split() if not ended(pid)}


def test_an_interrupt_ends_the_wait_for_a_device_that_does_not_answer(monkeypatch):
    with ph.qemu.Host("64MiB", timeout=1000) as host:
        monkeypatch.setattr(host.balloon._transport, "notify", lambda number: None)
        with Storm(4) as storm:
            storm.first = (0.2, 0.3)
            storm.over(lambda: host.balloon.report([FREE], [FREE]))
        assert host.running
        assert host.balloon._queues["reporting"][1].nr_free == 32


def test_work_that_is_waited_for_ends_before_its_interrupt_is_raised():
    steps = []

    def work():
        steps.append("begun")
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(interrupted, "the interrupt")
        steps.append("ended")

    with Storm(5) as storm:
        storm.left = 3
        with pytest.raises(KeyboardInterrupt):
            undisturbed(work)
    assert steps == ["begun", "ended"]
    assert not interrupted()
    assert undisturbed(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        undisturbed(divmod, 7, 0)


# ---- forks


def test_a_forked_child_cannot_have_its_parents_memory_dropped(host):
    arena = host.arena()
    array = filled(arena, 40 * MIB)
    callbacks = host.callbacks()
    balloon = host.balloon
    balloon.inflate(10)

    def child():
        assert "resident" in repr(host)
        for call in (
            arena.hinting,
            host.callbacks,
            host.restart,
            lambda: balloon.report([FREE], [252 * MIB]),
            lambda: balloon.inflate(1),
            lambda: balloon.deflate(1),
            lambda: balloon.follow(),
            lambda: balloon.target,
            balloon.send_statistics,
        ):
            with pytest.raises(ph.PageHintError, match="forked"):
                call()
        with arena.pages.hinting(callbacks, workqueue="manual", delay=None):
            arena.pages.flush_hinting()
            assert "forked" in str(arena.pages.last_error)

    in_child(child)
    assert is_whole(array)
    balloon.deflate(10)
    assert host.running


def test_a_forked_child_can_close_a_host_whose_lock_a_thread_had(host):
    with host._lock:
        in_child(host.close)
    assert host.running


# ---- locks


def test_a_balloon_waits_for_pages_without_keeping_the_worker_from_bringing_them_back(host):
    pages = host.arena().pages
    out, go_on = threading.Event(), threading.Event()

    def slow(blocks):
        out.set()
        assert go_on.wait(60)
        return host._report(blocks)

    callbacks = ph.PageHintingCallbacks(slow, max_pages=100)
    with pages.hinting(callbacks, threshold=1, delay=0.0):
        assert out.wait(60)
        nr_pages = pages.stats().free_pages + 1000  # more than there is, without what is out
        inflating = threading.Thread(target=host.balloon.inflate, args=(nr_pages,), daemon=True)
        inflating.start()
        inflating.join(0.2)
        assert inflating.is_alive(), "it did not wait"
        go_on.set()
        inflating.join(60)
        assert not inflating.is_alive(), "it has the lock that the worker waits for"
    host.balloon.deflate(host.balloon.actual)
    pages.verify()


def test_a_host_can_be_restarted_by_what_close_waits_for(host):
    arena = host.arena()
    begun, go_on = threading.Event(), threading.Event()

    def prepare():
        begun.set()
        assert go_on.wait(60)
        host.restart()

    callbacks = ph.PageHintingCallbacks(host._report, prepare=prepare)
    arena.pages.enable_hinting(callbacks, threshold=1, delay=0.0)
    assert begun.wait(60)
    closing = threading.Thread(target=host.close, daemon=True)
    closing.start()
    closing.join(0.2)  # it waits for the worker by then
    go_on.set()
    closing.join(60)
    assert not closing.is_alive()
    assert not host.running


def test_a_host_is_not_closed_from_inside_a_callback(host):
    arena = host.arena()
    refused = []

    def report(blocks):
        try:
            host.close()
        except ph.HintingActiveError as error:
            refused.append(error)
        return host._report(blocks)

    with arena.pages.hinting(ph.PageHintingCallbacks(report), workqueue="manual", delay=None):
        arena.pages.flush_hinting()
        assert arena.pages.last_error is None
    assert refused
    assert host.running


# ---- after the end


def test_the_balloon_of_before_a_restart_is_of_no_use(host):
    before = host.balloon
    host.restart()
    array = filled(host.arena(), 40 * MIB)
    for call in (
        lambda: before.report([FREE], [250 * MIB]),
        lambda: before.inflate(1),
        lambda: before.deflate(0),
        lambda: before.target,
        before.send_statistics,
    ):
        with pytest.raises(ph.HostError, match=r"the host is gone: forget\(\) was called"):
            call()
    assert is_whole(array)
    assert host.arena().pages.stats().allocated_pages == 40 * 256
    assert host.balloon.send_statistics()


def test_a_closed_host_takes_no_reports_and_claims_nothing():
    with ph.qemu.Host("64MiB") as host:
        arena = host.arena()
        callbacks = host.callbacks(4)
        monitor = host._monitor
    for call in (host.callbacks, arena.hinting):
        with pytest.raises(ValueError, match="the host is closed"):
            call()
    with pytest.raises(OSError, match="Bad file descriptor"):
        host.ram.is_dropped(FREE, FREE)
    with pytest.raises(ph.HostError, match="monitor is closed"):
        monitor.execute("query-status", {})
    with arena.pages.hinting(callbacks, workqueue="manual", delay=None):
        arena.pages.flush_hinting()
        assert "the host is closed" in str(arena.pages.last_error)
        assert arena.pages.stats().pages_reported == 0
    assert "arrays" in repr(arena)


def test_a_host_is_collected_with_hinting_on_and_leaves_nothing():
    before = open_files()
    host = ph.qemu.Host("64MiB")
    arena, pid = host.arena(), host.process.pid
    pages = arena.pages
    arena.hinting(workqueue="manual", delay=None).__enter__()
    del host
    gc.collect()
    wait_for(lambda: ended(pid), "its end")
    pages.flush_hinting()
    assert "it has been collected" in str(pages.last_error)
    pages.verify()
    pages.disable_hinting()
    del arena, pages
    wait_for(lambda: open_files() == before, "the end of every connection")


def test_a_host_may_be_collected_on_its_own_threads():
    host = ph.qemu.Host("64MiB")
    pid, thread = host.process.pid, host._monitor._thread
    last = [host]
    loop = host._monitor._loop
    del host
    loop.call_soon_threadsafe(last.clear)
    wait_for(lambda: ended(pid) and not thread.is_alive(), "its end")


def test_without_the_extra_a_host_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    with pytest.raises(ImportError, match=r"pip install 'pagehint\[qemu\]'"):
        ph.qemu.Host("64MiB")


def test_a_host_that_cannot_be_leaves_no_file_open():
    before = open_files()
    with pytest.raises((ValueError, MemoryError, OSError, ph.HostError)):
        ph.qemu.Host("128TiB")
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout must be a positive number of seconds"):
            ph.qemu.Host("64MiB", timeout=timeout)
    assert open_files() == before


# ---- the wire and what goes over it


def test_blocks_of_four_gigabytes_and_more():
    """The length of a descriptor has 32 bits, and so has that of a chain."""
    with ph.qemu.Host("17GiB") as host:
        arena = host.arena()
        pages = arena.pages
        pfns = [HIGH // 4096, HIGH // 4096 + (5 << 18), HIGH // 4096 + (14 << 18) - 512]
        arrays = [pages.alloc_pages_at(pfn) for pfn in pfns]
        for pfn in arrays:
            ctypes.memset(arena.address(pfn), 1, 4096)
            pages.free_pages(pfn)
        assert pages.zones[1].free_blocks()["order"].max() >= 20
        before = host.resident_bytes
        with arena.hinting(delay=None, workqueue="manual", max_report_order=pages.max_page_order):
            pages.flush_hinting()
            assert pages.last_error is None
            assert pages.stats().blocks_failed == 0
        assert host.resident_bytes == before - 3 * 4096


@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 52), st.integers(1, 20 << 18)).map(lambda r: (r[0] * 4096, r[1] * 4096)),
        max_size=20,
    ),
    st.sampled_from([1, 2, 32]),
)
def test_chains_are_what_was_asked_for_and_none_is_too_long(ranges, most):
    cut = list(chains(ranges, most))
    for chain in cut:
        assert 0 < len(chain) <= most
        assert sum(nr_bytes for _, nr_bytes in chain) < 1 << 32
        assert all(address % 4096 == nr_bytes % 4096 == 0 for address, nr_bytes in chain)
    pieces = [piece for chain in cut for piece in chain]
    for address, nr_bytes in ranges:
        while nr_bytes:
            at, length = pieces.pop(0)
            assert at == address
            address, nr_bytes = address + length, nr_bytes - length
    assert not pieces


@pytest.mark.parametrize(("address", "nr_bytes"), [(-4096, 4096), (FREE, 0), (FREE, -1), ((1 << 64) - 4096, 8192)])
def test_a_range_that_is_none_is_refused_and_the_device_goes_on(host, address, nr_bytes):
    host.balloon.inflate(1)
    queues = host.balloon._queues
    with pytest.raises(ValueError, match="no range of guest-physical addresses"):
        host.balloon.report([FREE, address], [4096, nr_bytes])
    assert host.balloon._queues is queues, "it has been reset"


def test_a_command_that_timed_out_does_not_answer_for_the_next():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Qtest(ours, 0.05)
        with pytest.raises(ph.HostTimeoutError):
            wire.read(0, 4)
        theirs.sendall(b"OK 0x1\nOK 0x2\nOK nonsense\nOK \xff\n")
        assert wire.read(0, 4) == 2
        with pytest.raises(ph.HostError, match="'nonsense', which is no number"):
            wire.read(0, 4)
        with pytest.raises(ph.HostError, match="which is no number"):
            wire.read(0, 4)


class NeverReset:
    """A machine whose device never comes out of a reset; all else is QEMU's."""

    def __init__(self, machine):
        self._machine = machine

    def __getattr__(self, name):
        return getattr(self._machine, name)

    def read(self, address, nr_bytes):
        return self._machine.read(address, nr_bytes) or nr_bytes == 1


def test_a_reset_that_does_not_end_is_a_time_out(host):
    transport = VirtioPci(NeverReset(host.balloon._transport._machine), DEVICE_ID, timeout=0.1)
    with pytest.raises(ph.HostTimeoutError, match=r"the device was not reset in 0\.1 s"):
        transport.reset()


def test_a_balloon_by_itself_fences_a_device_that_it_cannot_reset(host, monkeypatch):
    fenced = []
    balloon = Balloon(
        host.balloon._transport, host.ram.driver_memory, 1 << 20, fence=lambda: fenced.append(host.process.kill())
    )
    os.kill(host.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(balloon._transport._machine, "_connection", host.process.qtest)
    host.process.qtest.settimeout(0.2)
    with pytest.raises(ph.HostTimeoutError, match="the host is gone"):
        balloon.report([FREE], [FREE])
    assert fenced == [None]
    with pytest.raises(ph.HostError, match="the host is gone"):
        balloon.report([FREE], [FREE])
    assert fenced == [None]


def test_hosts_at_exit_do_not_keep_each_other_from_it():
    code = """
        import pagehint as ph
        hosts = [ph.qemu.Host("64MiB") for _ in range(2)]
        for host in hosts:
            print(host.process.pid)
        hosts[0].process.kill()
        hosts[1].arena().hinting(threshold=1, delay=0.0).__enter__()
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    wait_for(lambda: all(ended(int(pid)) for pid in done.stdout.split()), "their end")


# ---- what a second review found


def test_ctrl_c_in_a_terminal_is_not_for_qemu(host):
    assert os.getsid(host.process.pid) != os.getsid(0)
    assert os.getpgid(host.process.pid) == host.process.pid


def test_qemu_behind_a_wrapper_ends_with_it(tmp_path):
    wrapper = tmp_path / "qemu"
    wrapper.write_text('#!/bin/sh\nqemu-system-x86_64 "$@" 2>/dev/null\n')
    wrapper.chmod(0o755)
    with ph.qemu.Host("64MiB", qemu=wrapper, timeout=0.3) as host:
        arena = host.arena()
        filled(arena, 40 * MIB)
        shell = host.process.pid
        qemu = int(Path(f"/proc/{shell}/task/{shell}/children").read_text())
        os.kill(qemu, signal.SIGSTOP)
        with pytest.raises(ph.HostError, match="the host is gone"):
            host.balloon.report([FREE], [40 * MIB])
        assert ended(qemu), "it could drop memory when it goes on"


def test_what_a_fence_cannot_keep_from_the_memory_is_not_given_back(host, monkeypatch):
    tries = []

    def fence():
        tries.append(host.arena().pages.stats().allocated_pages)
        if len(tries) < 3:
            raise PermissionError("not yours")
        host.process.kill()

    monkeypatch.setattr("pagehint.virtio.balloon._FENCE_AGAIN", 0.01)
    monkeypatch.setattr(host.balloon, "_fence", fence)
    host.process.qtest.settimeout(0.2)
    os.kill(host.process.pid, signal.SIGSTOP)
    with pytest.raises(ph.HostError, match="the host is gone"):
        host.balloon.inflate(1000)
    assert tries == [1000] * 3
    assert host.arena().pages.stats().allocated_pages == 0


def test_reports_of_another_allocators_blocks_are_refused(host):
    array = filled(host.arena(), 40 * MIB)
    other = ph.PageAllocator([ph.ZoneSpec("Normal", FREE // 4096, 16384)], pcp=False)
    with other.hinting(host.callbacks(4), workqueue="manual", delay=None):
        other.flush_hinting()
        assert "of another allocator than this host's arena" in str(other.last_error)
        assert other.stats().pages_reported == 0
    with pytest.raises(ValueError, match="the driver's own memory"):
        host.balloon.report([0], [4 * MIB])
    assert is_whole(array)


def test_an_allocator_whose_pages_a_balloon_cannot_name_is_refused(host):
    small = ph.PageAllocator([ph.ZoneSpec("Normal", 0, 4096)], page_size=16384)
    high = ph.PageAllocator([ph.ZoneSpec("Normal", (1 << 32) - 4096, 8192)])
    for pages, words in ((small, "pages of 4096 bytes, not 16384"), (high, "beyond the 2\\*\\*32 pages")):
        with pytest.raises(ValueError, match=words):
            Balloon(host.balloon._transport, bytearray(1 << 20), 1 << 20, fence=host.process.kill, pages=pages)
    assert host.balloon.target == 0


def test_a_forked_child_gets_at_no_pages_of_the_guest(host):
    arena = host.arena()

    def child():
        assert "of another process" in repr(host)
        assert host.running
        assert host.discards.calls == 0
        for call in (lambda: arena.address(FREE // 4096), host.balloon.forget):
            with pytest.raises(ph.PageHintError, match="forked"):
                call()

    with host.balloon._lock:
        in_child(child)


def test_a_balloon_in_a_callback_does_not_wait_for_what_is_out(host):
    """On the main thread, and with more wanted than there is without it."""
    pages = host.arena().pages
    refused = []

    def report(blocks):
        try:
            host.balloon.inflate(pages.stats().free_pages + 1)
        except ph.OutOfMemoryError as error:
            refused.append(error)

    with pages.hinting(ph.PageHintingCallbacks(report, max_pages=8), workqueue="manual", delay=None):
        pages.flush_hinting()
    assert refused
    assert host.balloon.actual == 0


def test_a_number_that_is_none_resets_nothing(host):
    host.balloon.inflate(10)
    queues = host.balloon._queues
    for call in (host.balloon.inflate, host.balloon.deflate):
        with pytest.raises(TypeError):
            call(1.5)
    assert host.balloon._queues is queues


def test_what_was_in_the_balloon_is_free_when_its_host_is_closed():
    with ph.qemu.Host("64MiB") as host:
        host.balloon.inflate(1000)
        pages = host.arena().pages
    assert pages.stats().allocated_pages == 0


def test_a_child_forked_as_qemu_starts_does_not_hold_up_its_end(host):
    """It may have a copy of the pipe that QEMU's last words come through."""
    with subprocess.Popen(["sleep", "60"], stderr=host.process._process.stderr.fileno()) as child:
        host.close()
        assert child.poll() is None, "it was waited for"
        child.kill()


def test_a_balloon_used_as_the_interpreter_ends_is_no_hang():
    code = """
        import pagehint as ph
        class Late:
            def __init__(self): self.host = ph.qemu.Host("64MiB")
            def __del__(self):
                try:
                    self.host.balloon.target
                except ph.HostError:
                    print("gone", flush=True)
        late = Late()
        late.itself = late
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""


def test_standard_files_that_are_closed_do_not_matter():
    code = """
        import os
        for fd in (0, 1, 2): os.close(fd)
        import pagehint as ph
        try:
            with ph.qemu.Host("64MiB") as host:
                host.balloon.report([4 << 20], [2 << 20])
            os._exit(7)
        except BaseException:
            os._exit(1)
    """
    done = subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(code)], timeout=60, check=False)
    assert done.returncode == 7
