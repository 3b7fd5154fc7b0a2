"""The balloon's driver against a real QEMU: inflating, statistics, fencing, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from guests import MIB, filled, is_whole, small_host, without_qemu
from waiting import wait_for

import pagehint as ph
from pagehint.qemu.ram import FREE
from pagehint.virtio import Balloon, VirtioPci
from pagehint.virtio.balloon import DEVICE_ID

pytestmark = without_qemu
host = pytest.fixture(small_host)


def test_the_balloon_follows_the_hosts_target(host):
    arena = host.arena()
    kept = filled(arena, 40 * MIB)
    filled(arena, 150 * MIB, 2)
    host.qmp("balloon", value=128 * MIB)
    assert host.balloon.target == 128 * 256
    assert host.balloon.follow() == 128 * 256
    assert host.qmp("query-balloon") == {"actual": 128 * MIB}
    assert arena.pages.stats().allocated_pages == 10 * 1024 + 128 * 256
    assert host.resident_bytes <= 128 * MIB
    assert is_whole(kept)
    host.qmp("balloon", value=256 * MIB)
    assert host.balloon.follow() == -128 * 256
    assert host.balloon.actual == 0
    assert host.qmp("query-balloon") == {"actual": 256 * MIB}
    assert arena.pages.stats().allocated_pages == 10 * 1024
    assert "BALLOON_CHANGE" in {event["event"] for event in host.events()}
    arena.pages.verify()


def test_a_balloon_cannot_take_more_than_there_is_nor_give_more_than_it_has(host):
    free = host.arena().pages.stats().free_pages
    with pytest.raises(ph.OutOfMemoryError):
        host.balloon.inflate(free + 1)
    with pytest.raises(ValueError, match="1 pages from a balloon of 0"):
        host.balloon.deflate(1)
    with pytest.raises(ValueError, match="-1"):
        host.balloon.inflate(-1)
    assert host.arena().pages.stats().free_pages == free


def test_a_target_over_what_is_free_is_followed_as_far_as_can_be(host):
    kept = filled(host.arena(), 40 * MIB)
    host.qmp("balloon", value=1 * MIB)
    assert host.balloon.target == 255 * 256
    assert host.balloon.follow() == (254 - 40) * 256
    assert host.qmp("query-balloon") == {"actual": 42 * MIB}
    assert is_whole(kept)
    del kept
    assert host.balloon.follow() == 40 * 256
    host.balloon.deflate(host.balloon.actual)


def test_a_balloon_whose_host_dies_keeps_count(host):
    pages = host.arena().pages
    host.balloon.inflate(3000)
    os.kill(host.process.pid, signal.SIGKILL)
    with pytest.raises(ph.HostError, match="inflating failed"):
        host.balloon.inflate(5000)
    assert (host.balloon.actual, pages.stats().allocated_pages) == (3000, 3000)
    host.restart()
    assert (host.balloon.actual, pages.stats().allocated_pages) == (0, 0)
    pages.verify()


def test_statistics_go_to_the_host_when_it_asks(host):
    def sent():
        return host.qmp("qom-get", path="/machine/peripheral/balloon", property="guest-stats")["stats"]

    wait_for(lambda: sent()["stat-total-memory"] == 254 * MIB, "the figures, without a request")
    assert not host.balloon.send_statistics(), "it has not asked anew"
    kept = filled(host.arena(), 54 * MIB)
    host.qmp("qom-set", path="/machine/peripheral/balloon", property="guest-stats-polling-interval", value=1)
    wait_for(host.balloon.send_statistics, "its question")
    wait_for(lambda: sent()["stat-free-memory"] == 200 * MIB, "the new figures")
    assert is_whole(kept)


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
    assert not host.balloon.send_statistics(), "the new one has them from its start"


@pytest.mark.parametrize(("address", "nr_bytes"), [(-4096, 4096), (FREE, 0), (FREE, -1), ((1 << 64) - 4096, 8192)])
def test_a_range_that_is_none_is_refused_and_the_device_goes_on(host, address, nr_bytes):
    host.balloon.inflate(1)
    queues = host.balloon._queues
    with pytest.raises(ValueError, match="no range of guest-physical addresses"):
        host.balloon.report([FREE, address], [4096, nr_bytes])
    assert host.balloon._queues is queues, "it has been reset"


def test_a_number_that_is_none_resets_nothing(host):
    host.balloon.inflate(10)
    queues = host.balloon._queues
    for call in (host.balloon.inflate, host.balloon.deflate):
        with pytest.raises(TypeError):
            call(1.5)
    assert host.balloon._queues is queues


def test_an_allocator_whose_pages_a_balloon_cannot_name_is_refused(host):
    small = ph.PageAllocator([ph.ZoneSpec("Normal", 0, 4096)], page_size=16384)
    high = ph.PageAllocator([ph.ZoneSpec("Normal", (1 << 32) - 4096, 8192)])
    for pages, words in ((small, "pages of 4096 bytes, not 16384"), (high, "beyond the 2\\*\\*32 pages")):
        with pytest.raises(ValueError, match=words):
            Balloon(host.balloon._transport, bytearray(1 << 20), 1 << 20, fence=host.process.kill, pages=pages)
    assert host.balloon.target == 0


class NeverReset:
    """A machine whose device never comes out of a reset; all else is QEMU's."""

    def __init__(self, machine):
        self._machine = machine

    def __getattr__(self, name):
        return getattr(self._machine, name)

    def read(self, address, nr_bytes):
        return self._machine.read(address, nr_bytes) or nr_bytes == 1


def test_a_reset_that_does_not_end_is_a_time_out(host):
    transport = VirtioPci(NeverReset(host.balloon._transport._wire), DEVICE_ID, timeout=0.1)
    with pytest.raises(ph.HostTimeoutError, match=r"the device was not reset in 0\.1 s"):
        transport.reset()


def test_a_balloon_by_itself_fences_a_device_that_it_cannot_reset(host, monkeypatch):
    fenced = []
    balloon = Balloon(
        host.balloon._transport, host.ram.driver_memory, 1 << 20, fence=lambda: fenced.append(host.process.kill())
    )
    os.kill(host.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(balloon._transport._wire, "_connection", host.process.qtest)
    host.process.qtest.settimeout(0.2)
    with pytest.raises(ph.HostTimeoutError, match="the host is gone"):
        balloon.report([FREE], [FREE])
    assert fenced == [None]
    with pytest.raises(ph.HostError, match="the host is gone"):
        balloon.report([FREE], [FREE])
    assert fenced == [None]


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


def test_what_was_in_the_balloon_is_free_when_its_host_is_closed():
    with ph.qemu.Host("64MiB") as host:
        host.balloon.inflate(1000)
        pages = host.arena().pages
    assert pages.stats().allocated_pages == 0


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
