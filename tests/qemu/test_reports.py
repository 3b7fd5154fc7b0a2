"""Reports to a real QEMU: what is free leaves the host, what is in use stays, and what fails is hinted again."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from guests import MIB, filled, is_whole, small_host, without_qemu
from waiting import wait_for

import pagehint as ph
from pagehint.qemu.ram import FREE, HIGH, PCI_HOLE
from pagehint.virtio.balloon import PAGE_POISON

pytestmark = without_qemu
host = pytest.fixture(small_host)


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


def test_a_host_that_does_not_count_its_discards_traces_none_and_drops_as_ever():
    with ph.qemu.Host("64MiB", count_discards=False) as host:
        arena = host.arena()
        kept, gone = filled(arena, 10 * MIB), filled(arena, 40 * MIB, 2)
        del gone
        with arena.hinting(delay=None, workqueue="manual"):
            arena.pages.flush_hinting()
            assert arena.pages.last_error is None
        assert host.resident_bytes <= 10 * MIB + 2 * FREE
        assert is_whole(kept)
        with pytest.raises(ph.HostError, match="count_discards=False: its QEMU does not trace them"):
            _ = host.discards
        assert "ram_block_discard_range" not in Path(f"/proc/{host.process.pid}/cmdline").read_text()
        fcntl.fcntl(host.ram.fd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE: no hole can be made any more
        filled(arena, 40 * MIB)
        with arena.hinting(delay=None, workqueue="manual"):
            arena.pages.flush_hinting()
            assert arena.pages.stats().blocks_failed > 0
        wait_for(lambda: "Failed" in host.process.said, "QEMU's word for it, which is no trace")


def test_reported_memory_comes_back_zeroed_from_the_host(host):
    arena = host.arena()
    with arena.hinting(delay=None):
        array = filled(arena, 2 * MIB)
        del array
        arena.pages.flush_hinting()
    assert not arena.empty(2 * MIB, np.uint8).any()


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
    with arena.hinting(max_pages=max_pages, delay=None):
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


def test_the_monitor_refuses_with_its_own_words(host):
    with pytest.raises(ph.HostError, match="no-such-command"):
        host.qmp("no-such-command")


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


def test_a_block_outside_the_guests_ram_is_named(host):
    out = ph.PageAllocator([ph.ZoneSpec("Normal", 256 * 256, 512)], pcp=False)
    with out.hinting(host.callbacks(1), workqueue="manual", delay=None):
        out.flush_hinting()
        assert out.stats().pages_reported == 0
        assert "PFN 0x10000, order 9, of zone 0: a block of another allocator" in str(out.last_error)
    assert host.discards.calls == 0
