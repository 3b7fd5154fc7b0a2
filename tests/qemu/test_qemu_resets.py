"""Resets of the whole machine by QEMU's user, and its balloon unplugged and plugged in again."""

from __future__ import annotations

import threading

import pytest
from guests import MIB, filled, is_whole, small_host, without_qemu
from waiting import wait_for

from pagehint.qemu.ram import FREE

pytestmark = without_qemu
host = pytest.fixture(small_host)

EJECT = 0xAE08  # a port of the PC: its ACPI tables have the guest write there to let go of a slot


def events(host, name, seen=None):
    """Return a function that says whether an event has come."""
    seen = set() if seen is None else seen

    def came():
        seen.update(event["event"] for event in host.events())
        return name in seen

    return came


def reset(host):
    host.events()
    host.qmp("system_reset")
    wait_for(events(host, "RESET"), "the reset")


def unplug(host):
    host.events()
    host.qmp("device_del", id="balloon")
    slot = host.balloon._transport._function >> 11 & 31
    host.balloon._transport._wire.write_port(EJECT, 4, 1 << slot)
    wait_for(events(host, "DEVICE_DELETED"), "the end of the device")


def plug(host, slot):
    host.qmp(
        "device_add", driver="virtio-balloon-pci", id="balloon", addr=slot, disable_legacy="on",
        free_page_reporting=True,
    )  # fmt: skip


def test_a_reset_of_the_guest_was_the_end_of_qemu(host):
    arena = host.arena()
    kept = filled(arena, 40 * MIB)
    filled(arena, 100 * MIB, 2)
    host.qmp("balloon", value=192 * MIB)
    host.balloon.follow()
    pid = host.process.pid
    reset(host)
    assert host.balloon.target == 64 * 256
    assert host.balloon.follow() == 0
    with arena.hinting(delay=None):
        arena.pages.flush_hinting()
        assert arena.pages.last_error is None
    stats = arena.pages.stats()
    assert (stats.hints_pending, host.balloon.actual) == (0, 64 * 256)
    assert host.resident_bytes <= 40 * MIB + FREE
    assert host.qmp("query-balloon") == {"actual": 192 * MIB}
    assert is_whole(kept)
    assert host.process.pid == pid
    assert host.running
    host.qmp("balloon", value=256 * MIB)
    assert host.balloon.follow() == -64 * 256
    arena.pages.verify()


def test_resets_at_any_moment_of_reports_and_inflating_tear_nothing(host):
    arena = host.arena()
    kept = filled(arena, 40 * MIB)
    stop = threading.Event()

    def resetting():
        while not stop.wait(0.01):
            host.qmp("system_reset")

    thread = threading.Thread(target=resetting)
    thread.start()
    failed = 0
    try:
        with arena.hinting(delay=None, workqueue="manual"):
            for turn in range(25):
                filled(arena, 20 * MIB, turn)
                arena.pages.flush_hinting()
                for request, count in ((host.balloon.inflate, 3000), (host.balloon.deflate, 1000)):
                    try:
                        request(min(count, host.balloon.actual) if request == host.balloon.deflate else count)
                    except OSError:
                        failed += 1
                if host.balloon.actual > 20000:
                    stop.set()
                    thread.join()
                    host.balloon.deflate(host.balloon.actual)
            stop.set()
            thread.join()
            wait_for(lambda: arena.pages.flush_hinting() or not arena.pages.stats().hints_pending, "the last report")
            assert host.running
            assert failed
    finally:
        stop.set()
        thread.join()
    assert is_whole(kept)
    assert arena.pages.stats().allocated_pages == 40 * 256 + host.balloon.actual
    arena.pages.verify()


def test_a_balloon_that_is_unplugged_and_plugged_in_elsewhere_goes_on(host):
    arena = host.arena()
    kept = filled(arena, 40 * MIB)
    host.balloon.inflate(5000)
    unplug(host)
    with arena.hinting(delay=None, workqueue="manual"):
        arena.pages.flush_hinting()
        assert "no virtio device 5" in str(arena.pages.last_error)
        assert arena.pages.stats().pages_reported == 0
        with pytest.raises(OSError, match="no virtio device 5"):
            host.balloon.deflate(1)
        assert host.balloon.actual == 5000
        plug(host, "0x9")
        arena.pages.flush_hinting()
        assert arena.pages.stats().hints_pending == 0
    assert host.running
    assert host.resident_bytes <= 40 * MIB + FREE
    assert host.qmp("query-balloon") == {"actual": 256 * MIB - 5000 * 4096}
    assert host.balloon.follow() == -5000
    assert is_whole(kept)
    arena.pages.verify()
