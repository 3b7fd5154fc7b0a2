"""Against a real QEMU. `.ci/run` installs it; elsewhere these are skipped where it is missing."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from guests import MIB, ended, filled, is_whole, open_files, without_qemu
from processes import in_child
from threads import in_threads, keeper_of_canaries
from waiting import wait_for

import pagehint as ph
from pagehint.qemu.ram import FREE, HIGH, PCI_HOLE
from pagehint.virtio.balloon import PAGE_POISON, REPORTING, STATS_VQ, queue_numbers

pytestmark = without_qemu


@pytest.fixture
def host():
    with ph.qemu.Host("256MiB", timeout=5) as made:
        yield made


# ---- what it is for


def test_what_is_free_leaves_the_host_and_what_is_in_use_stays_byte_for_byte(host):
    arena = host.arena()
    kept, gone = filled(arena, 64 * MIB), filled(arena, 100 * MIB, 2)
    assert host.resident_bytes >= 164 * MIB
    with arena.hinting(delay=None):
        del gone
        arena.pages.flush_hinting()
        assert arena.pages.last_error is None
        stats = arena.pages.stats()
        assert stats.pages_reported == stats.free_pages
        assert stats.allocated_pages * 4096 <= host.resident_bytes <= stats.allocated_pages * 4096 + FREE
        seen = host.discards
        wait_for(lambda: host.discards.nr_bytes >= stats.pages_reported * 4096, "QEMU's word for it")
        assert host.discards.nr_bytes == stats.pages_reported * 4096
        assert seen.failed == 0
        assert is_whole(kept)
        again = filled(arena, 100 * MIB, 3)
        assert is_whole(again, 3)
    arena.pages.verify()


def test_reported_memory_comes_back_zeroed_from_the_host(host):
    arena = host.arena()
    with arena.hinting(delay=None):
        array = filled(arena, 2 * MIB)
        del array
        arena.pages.flush_hinting()
    assert not arena.empty(2 * MIB, np.uint8).any()


def test_guest_physical_addresses_are_those_of_qemu_below_and_above_the_hole():
    """What QEMU reads at a guest-physical address is what we wrote there."""
    with ph.qemu.Host("3200MiB") as host:
        arena = host.arena()
        assert [(z.name, z.start_pfn * 4096) for z in arena.pages.zones] == [("DMA32", FREE), ("Normal", HIGH)]
        assert arena.pages.zones[0].spanned_pages * 4096 + FREE == PCI_HOLE
        high = arena.empty(100 * MIB, np.uint8)
        low = arena.empty(100 * MIB, np.uint8)  # there are only 128 MiB above
        for array, zone in ((high, 1), (low, 0)):
            array[-8:] = np.arange(1, 9)
            pfn = (array.ctypes.data - arena.address(FREE // 4096)) // 4096 + FREE // 4096
            assert arena.pages.zones[zone].start_pfn <= pfn
            assert arena.address(pfn) == array.ctypes.data
            assert host.balloon._transport._machine.read(pfn * 4096 + 100 * MIB - 8, 8) == 0x0807060504030201
        for pfn in (0, 511, PCI_HOLE // 4096, HIGH // 4096 - 1, HIGH // 4096 + (128 << 8), -1):
            with pytest.raises(ValueError, match="is not RAM of this guest"):
                arena.address(pfn)
        before = host.resident_bytes
        del high, low
        with arena.hinting(delay=None):
            arena.pages.flush_hinting()
        assert host.resident_bytes <= min(before, FREE)


@pytest.mark.parametrize("max_pages", [1, 7, 32, 128])
def test_batches_smaller_and_larger_than_the_queue(max_pages):
    host = ph.qemu.Host("1GiB")  # where so many blocks may be out at once
    arena = host.arena()
    blocks = [arena.pages.alloc_pages(9) for _ in range(120)]
    for pfn in blocks:
        ctypes.memset(arena.address(pfn), 1, 4096)
    before = host.resident_bytes
    for pfn in blocks[::2]:  # no two are neighbours
        arena.pages.free_pages(pfn, 9)
    with arena.hinting(max_pages, delay=None):
        arena.pages.flush_hinting()
        stats = arena.pages.stats()
    assert stats.blocks_failed == 0
    assert host.resident_bytes == before - 60 * 4096
    assert stats.reports >= 60 / max_pages
    host.close()


def test_the_worker_reports_without_being_asked(host):
    arena = host.arena()
    with arena.hinting(delay=0.01):
        array = filled(arena, 50 * MIB)
        del array
        wait_for(lambda: host.resident_bytes <= FREE, "the report")


# ---- the host fails


def flush(arena, errors):
    try:
        arena.pages.flush_hinting()
    except BaseException as error:
        errors.append(error)


def stopped_in_a_report(host, arena):
    """Hold QEMU still while it has a report; returns the thread that waits for it."""
    os.kill(host.process.pid, signal.SIGSTOP)
    errors = []
    thread = threading.Thread(target=flush, args=(arena, errors))
    thread.start()
    wait_for(lambda: arena.pages.stats().reporting_pages, "a batch")
    return thread, errors


def test_qemu_killed_in_the_middle_of_a_report(host):
    arena = host.arena()
    kept = filled(arena, 30 * MIB)
    filled(arena, 100 * MIB, 2)  # and freed
    with arena.hinting(delay=None):
        free = arena.pages.stats().free_pages
        thread, errors = stopped_in_a_report(host, arena)
        os.kill(host.process.pid, signal.SIGKILL)
        thread.join(60)
        assert not thread.is_alive()
        assert not errors
        error = arena.pages.last_error
        assert isinstance(error, ph.HostError)
        assert "QEMU has gone" in str(error)
        assert "the host is gone" in str(error)
        stats = arena.pages.stats()
        assert (stats.reporting_pages, stats.free_pages) == (0, free)
        assert stats.hints_pending > 0
        arena.pages.verify()
        assert not host.running
        assert "QEMU gone" in repr(host)
        with pytest.raises(ph.HostError, match="QEMU has gone"):
            host.qmp("query-balloon")
        host.restart()
        assert host.qmp("query-status")["running"]
        arena.pages.flush_hinting()
        stats = arena.pages.stats()
        assert stats.hints_pending == 0
        assert host.resident_bytes <= stats.allocated_pages * 4096 + FREE
        assert is_whole(kept)
    arena.pages.verify()


def test_a_host_that_hangs_is_kept_from_the_memory_before_it_is_put_back():
    with ph.qemu.Host("64MiB", timeout=0.3) as host:
        arena = host.arena()
        filled(arena, 40 * MIB)
        with arena.hinting(delay=None):
            thread, errors = stopped_in_a_report(host, arena)
            thread.join(60)
            assert not thread.is_alive()
            assert not errors
            assert isinstance(arena.pages.last_error, (ph.HostTimeoutError, ph.HostError))
            assert not host.running, "it was not there to be reset, so it must have been killed"
            assert arena.pages.stats().reporting_pages == 0
            arena.pages.verify()


def test_a_lost_notification_is_a_time_out_and_a_reset(monkeypatch):
    with ph.qemu.Host("64MiB", timeout=0.3) as host:
        arena = host.arena()
        filled(arena, 40 * MIB)
        with arena.hinting(delay=None, workqueue="manual"):
            with monkeypatch.context() as patch:
                patch.setattr(host.balloon._transport, "notify", lambda number: None)
                arena.pages.flush_hinting()
            error = arena.pages.last_error
            assert isinstance(error, ph.HostTimeoutError)
            assert "did not answer in 0.3 s; the device has been reset" in str(error)
            assert host.running
            assert host.resident_bytes >= 40 * MIB
            arena.pages.verify()
            arena.pages.flush_hinting()
            assert host.resident_bytes <= FREE
            assert arena.pages.stats().hints_pending == 0


def test_an_interrupted_report_is_not_with_the_host_any_more(host, monkeypatch):
    """Else the host could drop the blocks when they are in use again."""
    arena = host.arena()
    array = filled(arena, 40 * MIB)
    transport = host.balloon._transport

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transport, "notify", lambda number: None)
        patch.setattr(transport, "interrupt_status", interrupted)
        pfn = FREE // 4096
        with pytest.raises(KeyboardInterrupt):
            host.balloon.report([pfn * 4096], [240 * MIB])
    transport.notify(queue_numbers(host.balloon.features)["reporting"])
    host.qmp("query-status")
    assert is_whole(array)
    host.balloon.report([FREE], [240 * MIB])
    assert not array.any()


def test_a_report_that_the_device_chokes_on_is_an_error_and_not_the_end(host):
    with pytest.raises(ph.HostError, match="gave up on what was in the reporting queue; the device has been reset"):
        host.balloon.report([PCI_HOLE], [2 * MIB])  # no RAM there
    filled(host.arena(), 40 * MIB)
    with host.arena().hinting(delay=None):
        host.arena().pages.flush_hinting()
    assert host.resident_bytes <= FREE


def test_blocks_that_the_kernel_does_not_let_go_of_are_failures():
    with ph.qemu.Host("64MiB") as host:
        arena = host.arena()
        filled(arena, 40 * MIB)
        fcntl.fcntl(host.ram.fd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE: no hole can be made any more
        with arena.hinting(delay=None, workqueue="manual"):
            arena.pages.flush_hinting()
            stats = arena.pages.stats()
            assert stats.blocks_failed > 0
            assert stats.hints_pending > 0
            assert host.resident_bytes >= 40 * MIB
            wait_for(lambda: host.discards.failed, "QEMU's word for it")
            assert isinstance(arena.pages.last_error, ph.PageHintError)
            arena.pages.verify()


def test_a_poisoned_host_is_refused_and_would_ignore_reports():
    with ph.qemu.Host("64MiB", poison=True) as host:
        assert host.balloon.features & PAGE_POISON
        with pytest.raises(ph.HostError, match="poison=True: QEMU ignores reports"):
            host.callbacks()
        with pytest.raises(ph.HostError, match="poison"):
            host.arena().hinting()
        with pytest.raises(ph.HostError, match="poison value 0xaaaaaaaa"):
            host.balloon.report([FREE], [2 * MIB])
        array = filled(host.arena(), 40 * MIB)
        host.balloon._send("reporting", [(FREE, 60 * MIB)])  # and indeed:
        assert is_whole(array)
        assert host.discards.calls == 0


def test_a_host_without_reporting():
    with ph.qemu.Host("64MiB", reporting=False) as host:
        with pytest.raises(ph.HostError, match="reporting=False"):
            host.callbacks()
        with pytest.raises(ph.HostError, match="free-page-reporting=on"):
            host.balloon.report([FREE], [2 * MIB])
        host.balloon.inflate(100)
        host.balloon.deflate(100)


# ---- the rest of the balloon


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

    assert host.balloon.send_statistics()
    wait_for(lambda: sent()["stat-total-memory"] == 254 * MIB, "the figures")
    assert not host.balloon.send_statistics(), "it has not asked anew"
    kept = filled(host.arena(), 54 * MIB)
    host.qmp("qom-set", path="/machine/peripheral/balloon", property="guest-stats-polling-interval", value=1)
    wait_for(host.balloon.send_statistics, "its question")
    wait_for(lambda: sent()["stat-free-memory"] == 200 * MIB, "the new figures")
    assert is_whole(kept)


def test_queues_are_numbered_by_what_the_device_has():
    hint = 1 << 3
    assert queue_numbers(STATS_VQ | REPORTING) == {"inflate": 0, "deflate": 1, "statistics": 2, "reporting": 3}
    assert queue_numbers(REPORTING) == {"inflate": 0, "deflate": 1, "reporting": 2}
    assert queue_numbers(STATS_VQ | hint | REPORTING)["reporting"] == 4
    assert queue_numbers(0) == {"inflate": 0, "deflate": 1}


# ---- its life


def test_a_closed_arena_leaves_the_host_and_its_memory_alone(host):
    arena = host.arena()
    array = filled(arena, 4 * MIB)
    with pytest.raises(ph.PageHintError, match="1 array in the arena"):
        arena.close()
    del array
    arena.close()
    assert arena.closed
    for call in (lambda: arena.empty(1), lambda: arena.resident_bytes, lambda: arena.address(1024), arena.hinting):
        with pytest.raises(ValueError, match="the arena is closed"):
            call()
    assert host.running


def test_arrays_outlive_the_host_and_a_closed_host_says_so():
    with ph.qemu.Host("64MiB") as host:
        arena = host.arena()
        array = filled(arena, 20 * MIB)
        pid = host.process.pid
        arena.hinting().__enter__()
    assert ended(pid)
    assert is_whole(array)
    assert not arena.pages.hinting_enabled
    host.close()
    assert repr(host) == "<Host, closed>"
    for call in (host.restart, host.events, lambda: host.resident_bytes, lambda: host.qmp("query-status")):
        with pytest.raises(ValueError, match="the host is closed"):
            call()


def test_qemu_ends_with_a_host_that_is_forgotten_and_leaves_no_file_open():
    before = open_files()
    host = ph.qemu.Host("64MiB")
    pid = host.process.pid
    host.close()
    del host
    assert open_files() == before
    host = ph.qemu.Host("64MiB")
    pid = host.process.pid
    del host
    gc.collect()
    wait_for(lambda: ended(pid), "its end")


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit", "os._exit(0)"])
def test_qemu_ends_with_the_process_that_started_it(how):
    code = f"""
        import os, signal, sys
        import pagehint as ph
        host = ph.qemu.Host("64MiB")
        host.arena().hinting().__enter__()
        print(host.process.pid, flush=True)
        {how}
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    wait_for(lambda: ended(int(done.stdout)), "its end")


def test_a_forked_child_reads_and_does_not_allocate_and_leaves_qemu_alone(host):
    arena = host.arena()
    array = filled(arena, 4 * MIB)

    def child():
        assert is_whole(array)
        with pytest.raises(ph.PageHintError, match="belong to the process that this one was forked from"):
            arena.empty(10)
        with pytest.raises(ph.PageHintError, match="belong to the process that this one was forked from"):
            host.qmp("query-status")
        host.close()

    with arena.hinting():
        in_child(child)
        assert host.running
        assert is_whole(array)
        arena.pages.flush_hinting()
        assert arena.pages.last_error is None


def test_without_qemu_the_package_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ph.HostError, match="apt install qemu-system-x86"):
        ph.qemu.Host("64MiB")
    with pytest.raises(ph.HostError, match="qemu-of-mine is not here"):
        ph.qemu.Host("64MiB", qemu="qemu-of-mine")


def test_what_is_not_qemu_is_an_error_that_says_what_it_said(tmp_path):
    fake = tmp_path / "qemu"
    fake.write_text("#!/bin/sh\necho I am no QEMU >&2\nexit 1\n")
    fake.chmod(0o755)
    before = open_files()
    with pytest.raises(ph.HostError, match="QEMU did not start: I am no QEMU"):
        ph.qemu.Host("64MiB", qemu=fake)
    assert open_files() == before


@pytest.mark.parametrize(
    ("memory", "words"),
    [("5MiB", "multiple of 2 MiB"), ("2MiB", "at least 8 MiB"), (0, "positive"), ("x", "not a memory")],
)
def test_sizes_that_no_guest_has(memory, words):
    with pytest.raises(ValueError, match=words):
        ph.qemu.Host(memory)


def test_the_monitor_refuses_with_its_own_words(host):
    with pytest.raises(ph.HostError, match="no-such-command"):
        host.qmp("no-such-command")


# ---- threads


def test_canaries_in_the_guests_ram(host):
    """What a thread has written is there when it looks again, while all the rest goes to the host and comes back."""
    arena = host.arena()
    checked = []

    def balloon(stop, rng):
        while not stop.wait(0.02):
            try:
                host.balloon.inflate(rng.randrange(2000))
            except ph.OutOfMemoryError:
                continue
            host.balloon.deflate(rng.randrange(host.balloon.actual + 1))
            host.balloon.send_statistics()

    def on_and_off(stop, rng):
        while not stop.is_set():
            with arena.hinting(rng.choice([1, 8, 32, 64]), threshold=1, delay=0.0):
                stop.wait(rng.random() / 5)
                arena.pages.flush_hinting()

    in_threads([keeper_of_canaries(arena, 12, checked)] * 3 + [balloon, on_and_off])
    assert arena.pages.last_error is None
    stats = arena.pages.stats()
    assert stats.blocks_failed == 0
    assert stats.pages_reported > 0
    assert checked
    host.balloon.deflate(host.balloon.actual)
    arena.pages.verify()
    assert host.discards.calls > 0
