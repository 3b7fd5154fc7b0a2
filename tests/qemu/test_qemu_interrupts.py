"""Interrupts at any moment, against a real QEMU: no page has two owners, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import random
import time
from pathlib import Path

import pytest
from guests import MIB, ended, filled, is_whole, open_files, small_host, without_qemu
from storm import Storm
from threads import SECONDS
from waiting import wait_for

import pagehint as ph
from pagehint.qemu.ram import FREE

pytestmark = without_qemu
host = pytest.fixture(small_host)


def test_interrupts_tear_nothing(host):
    """However they fall, no page has two owners, and the device has nothing when a call is left."""
    arena, balloon = host.arena(), host.balloon
    kept = filled(arena, 30 * MIB)
    rng = random.Random(1)
    in_use = arena.pages.stats().allocated_pages
    end = time.monotonic() + SECONDS
    with Storm(2) as storm, arena.hinting(max_pages=8, threshold=1, delay=None, workqueue="manual"):
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


def test_ctrl_c_in_a_terminal_is_not_for_qemu(host):
    assert os.getsid(host.process.pid) != os.getsid(0)
    assert os.getpgid(host.process.pid) == host.process.pid


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
    transport.notify(host.balloon._queues["reporting"][0])
    host.qmp("query-status")
    assert is_whole(array)
    host.balloon.report([FREE], [240 * MIB])
    assert not array.any()
