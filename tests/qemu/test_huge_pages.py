"""A guest whose RAM is in huge pages: of the machine's pool, or transparent ones."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from disturbances import outlive_disturbances
from guests import MIB, filled, is_whole, need_huge_pages, open_files, without_qemu
from processes import run_code

import pagehint as ph
from pagehint.qemu.huge_pages import free_pages
from pagehint.qemu.ram import FREE

pytestmark = without_qemu
HUGE = 2 * MIB
HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture
def host():
    need_huge_pages("2MiB")
    with ph.qemu.Host("64MiB", hugepages=True) as made:
        yield made


def flush(arena, **options):
    with arena.hinting(delay=None, workqueue="manual", **options):
        arena.pages.flush_hinting()
        assert arena.pages.last_error is None
        return arena.pages.stats()


@pytest.mark.parametrize("kind", ["2MiB", "thp"])
def test_what_is_free_leaves_the_host_and_what_is_in_use_stays(kind):
    need_huge_pages(kind)
    with ph.qemu.Host("64MiB", hugepages=kind) as host:
        arena = host.arena()
        assert arena.hugepages
        kept, gone = filled(arena, 10 * MIB), filled(arena, 40 * MIB, 2)
        assert 50 * MIB <= host.resident_bytes <= 50 * MIB + 2 * HUGE
        del gone
        stats = flush(arena)
        assert stats.blocks_failed == 0
        assert host.resident_bytes <= 10 * MIB + FREE + HUGE
        assert is_whole(kept)
        assert is_whole(filled(arena, 40 * MIB, 3), 3)
        arena.pages.verify()


def test_memory_of_the_pool_goes_back_to_it_and_is_the_hosts_with_the_end_of_all():
    need_huge_pages("2MiB")
    before = free_pages()
    host = ph.qemu.Host("64MiB", hugepages="2MiB")
    assert free_pages() == before - 32, "all of it is promised"
    gone = filled(host.arena(), 40 * MIB)
    del gone
    flush(host.arena())
    assert free_pages() == before - 32 + 20
    host.restart()
    assert free_pages() == before - 32 + 20, "another QEMU has nothing promised anew"
    host.close()
    del host
    open_files()
    assert free_pages() == before


def test_transparent_huge_pages_are_what_the_guest_has():
    need_huge_pages("thp")
    with ph.qemu.Host("64MiB", hugepages="thp") as host:
        kept = filled(host.arena(), 40 * MIB)
        parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
        huge = [int(re.search(r"ShmemPmdMapped: +(\d+)", part)[1]) for part in parts if "pagehint-guest" in part]
        assert sum(huge) >= 20 * 1024, "kB, at least half of it: the kernel may be short of contiguous memory"
        assert is_whole(kept)


def test_memory_that_qemu_has_read_is_there_again_also_where_nobody_here_has_touched_it(host, tmp_path):
    arena = host.arena()
    filled(arena, 20 * MIB)
    flush(arena)
    free = FREE + 10 * HUGE
    assert host.ram.is_dropped(free, HUGE)
    host.qmp("pmemsave", val=free, size=3 * HUGE, filename=os.fspath(tmp_path / "dump"))
    at = np.arange(FREE, 64 * MIB, HUGE, dtype=np.uint64)
    there = np.flatnonzero(~host.ram.are_dropped(at, np.full(len(at), HUGE)))
    assert at[there].tolist() == [free, free + HUGE, free + 2 * HUGE]
    assert not host.ram.is_dropped(FREE, 62 * MIB)
    flush(arena)
    assert host.ram.is_dropped(FREE, 62 * MIB)
    assert host.resident_bytes <= FREE


def test_blocks_that_qemu_cannot_drop_are_failures_also_if_only_qemu_has_touched_them(host, tmp_path):
    """The kernel's word on our own page tables would have been that they are gone."""
    arena = host.arena()
    host.qmp("pmemsave", val=FREE, size=62 * MIB, filename=os.fspath(tmp_path / "dump"))
    fcntl.fcntl(host.ram.fd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE: no hole can be made any more
    with arena.hinting(delay=None, workqueue="manual"):
        arena.pages.flush_hinting()
        assert arena.pages.stats().blocks_failed > 0
        assert arena.pages.stats().pages_reported == 0


def asked(host, monkeypatch):
    """Return a list that grows with each report after which the kernel was asked for each page."""
    asked, real = [], host.ram.are_blocks_dropped

    def ask(blocks):
        asked.append(blocks)
        return real(blocks)

    monkeypatch.setattr(host.ram, "are_blocks_dropped", ask)
    return asked


def test_the_kernel_was_asked_for_each_page_of_a_report_where_one_look_at_the_file_is_enough(host, monkeypatch):
    arena = host.arena()
    pages = arena.pages
    blocks = [pages.alloc_pages(9) for _ in range(10)]
    for pfn in blocks:
        ctypes.memset(arena.address(pfn), 1, 1)
    calls, before = asked(host, monkeypatch), host.resident_bytes
    with arena.hinting(delay=None, workqueue="manual", mark_free=False, threshold=1):
        for pfn in blocks:
            pages.free_pages(pfn, 9)
        pages.run_pending()  # not a flush, which asks whether what was reported came back
        stats = pages.stats()
    assert (stats.pages_reported, before - host.resident_bytes) == (5120, 10 * HUGE)
    assert calls == []


@pytest.mark.parametrize("sealed", [False, True])
def test_pages_that_another_touches_during_a_report_hide_no_page_that_stays(host, monkeypatch, sealed):
    arena = host.arena()
    pages = arena.pages
    blocks = [pages.alloc_pages(9) for _ in range(10)]
    other = pages.alloc_pages(9)
    for pfn in blocks:
        ctypes.memset(arena.address(pfn), 1, 1)
    real = host.balloon.report

    def report(addresses, lengths):
        if sealed:
            fcntl.fcntl(host.ram.fd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE: no hole can be made any more
        ctypes.memset(arena.address(other), 1, 1)
        real(addresses, lengths)

    with arena.hinting(delay=None, workqueue="manual", mark_free=False, threshold=1000):
        for pfn in blocks:
            pages.free_pages(pfn, 9)
        monkeypatch.setattr(host.balloon, "report", report)
        calls = asked(host, monkeypatch)
        pages.flush_hinting()
        stats = pages.stats()
    assert len(calls) >= 1
    assert stats.pages_reported == (0 if sealed else 5120)
    assert bool(stats.blocks_failed) == sealed


@pytest.fixture
def drained(host):
    """Give the host's free memory back, and take it and all else from the pool; yields what gives it back."""
    filled(host.arena(), 60 * MIB)
    flush(host.arena())
    fd = os.memfd_create("drain", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    nr_bytes = free_pages() * HUGE
    os.ftruncate(fd, nr_bytes)
    drain = mmap.mmap(fd, nr_bytes)
    os.close(fd)
    yield drain.close
    drain.close()


def test_memory_that_others_have_taken_from_the_pool_is_an_error_and_no_sigbus(host, drained):
    arena = host.arena()
    with pytest.raises(ph.OutOfMemoryError, match=r"20 huge pages .* needed for 41943040 bytes .*, and \d+ are free"):
        arena.empty(40 * MIB, np.uint8)
    assert arena.pages.stats().allocated_pages == 0
    with pytest.raises(ph.OutOfMemoryError, match="are free; as root: echo"):
        host.ram.reserve(FREE, 40 * MIB)
    host.restart()
    drained()
    assert is_whole(filled(arena, 40 * MIB))


def test_parts_of_huge_pages_are_refused(host):
    for address, nr_bytes in ((FREE, 4096), (FREE + 4096, HUGE), (FREE, HUGE + 4096)):
        with pytest.raises(ValueError, match=f"{nr_bytes} bytes from {address:#x}: the host drops whole 2097152 bytes"):
            host.balloon.report([address], [nr_bytes])
        with pytest.raises(ValueError, match="not whole pages of 2097152 bytes"):
            host.ram.is_dropped(address, nr_bytes)
    with pytest.raises(ValueError, match="at 0x4000000 of a file"):
        host.ram.is_dropped(64 * MIB, HUGE)
    pages = host.arena().pages
    with pytest.raises(ValueError, match="max_report_order 8 is under min_order 9, the granule"):
        pages.enable_hinting(host.callbacks(), max_report_order=8)
    flush(host.arena(), max_report_order=9)


def test_pages_in_the_balloon_leave_the_host_if_a_huge_page_is_there_as_a_whole(host):
    """Half of them stayed: requests cut huge pages in two, of which QEMU then drops neither part."""
    arena = host.arena()
    filled(arena, 60 * MIB)
    kept = filled(arena, MIB // 2)
    before = host.resident_bytes
    host.balloon.inflate(20 * 512 + 400)
    assert host.resident_bytes <= before - 19 * HUGE
    assert is_whole(kept)
    host.balloon.deflate(20 * 512 + 400)
    assert is_whole(filled(arena, 50 * MIB, 2), 2)
    arena.pages.verify()


def test_a_poisoned_guest_in_huge_pages_reports_nothing():
    need_huge_pages("2MiB")
    with ph.qemu.Host("64MiB", hugepages=True, poison=True) as host:
        with pytest.raises(ph.HostError, match="poison=True"):
            host.arena().hinting()
        assert is_whole(filled(host.arena(), 40 * MIB))


def test_a_machine_without_enough_huge_pages_is_told_the_command_that_reserves_them():
    before, free = open_files(), free_pages()
    words = (
        rf"1048576 huge pages of 2 MiB are needed for a guest of 2 TiB, and {free} are free; as root: echo \d+ > /sys/"
    )
    with pytest.raises(ph.HostError, match=words):
        ph.qemu.Host("2TiB", hugepages=True)
    assert open_files() == before
    assert free_pages() == free


@pytest.mark.parametrize(
    ("kind", "call", "words"),
    [
        ("2MiB", "userfaultfd", "known by userfaultfd alone, .* which is refused: Operation not permitted"),
        ("thp", "madvise(HUGEPAGE)", "no transparent huge pages for a guest's RAM: Operation not permitted"),
    ],
)
def test_a_sandbox_that_refuses_what_huge_pages_take_is_named(kind, call, words):
    need_huge_pages(kind)
    status, _, said = run_code(
        "import pagehint as ph\nfrom sandbox import refuse\n"
        f"refuse({call!r}, 1)\nph.qemu.Host('64MiB')\nph.qemu.Host('64MiB', hugepages={kind!r})",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HELPERS, *sys.path)))},
    )
    assert status == 1
    assert re.search("pagehint.errors.HostError: .*" + words, said), said


@pytest.mark.parametrize("kind", ["1GiB", "2MB", 1, None, 2 << 20, b"thp", [True]])
def test_kinds_of_huge_pages_that_there_are_not(kind):
    with pytest.raises(ValueError, match="hugepages is True, False, '2MiB' or 'thp', not"):
        ph.qemu.Host("64MiB", hugepages=kind)


def test_canaries_in_huge_pages(tmp_path):
    """As in `test_qemu_canaries.py`; here, as no two tests at once have all of the pool."""
    need_huge_pages("2MiB")
    with ph.qemu.Host("96MiB", timeout=5, hugepages=True) as host:
        print(outlive_disturbances(host, tmp_path))
