"""Memory that a real QEMU has dropped, and has again because somebody read it: a dump, a migration, another process."""

from __future__ import annotations

import time

import pytest
from guests import MIB, filled, is_whole, without_qemu

import pagehint as ph
from pagehint.qemu.ram import FREE

pytestmark = without_qemu

GUEST, KEPT = 512 * MIB, 30 * MIB


@pytest.fixture
def host():
    with ph.qemu.Host(GUEST, timeout=30) as made:
        yield made


@pytest.fixture
def reported(host):
    """The arena of a guest whose free memory has been reported: what is in use, 2 MiB of the driver's, is in memory."""
    arena = host.arena()
    kept, gone = filled(arena, KEPT), filled(arena, 300 * MIB, 2)
    with arena.hinting(delay=None) as pages:
        del gone
        pages.flush_hinting()
        assert host.resident_bytes <= KEPT + FREE
        yield arena
        assert is_whole(kept)
        pages.verify()


def dump(host, tmp_path):
    host.qmp("pmemsave", val=0, size=GUEST, filename=str(tmp_path / "dump"))


def migrate(host, tmp_path):
    host.qmp("migrate", uri=f"exec:cat > {tmp_path / 'state'}")
    until = time.monotonic() + 60
    while host.qmp("query-migrate").get("status") != "completed":
        assert time.monotonic() < until
        time.sleep(0.05)


def read_through_the_file(host, tmp_path):
    """What another process does that maps the file: each page that it reads gets memory."""
    import mmap

    with mmap.mmap(host.ram.fd, GUEST, prot=mmap.PROT_READ) as memory:
        assert len({memory[at] for at in range(0, GUEST, mmap.PAGESIZE)})


@pytest.mark.parametrize("read", [dump, migrate, read_through_the_file])
@pytest.mark.parametrize("give_back", ["flush", "trim"])
def test_dropped_memory_that_a_reader_made_resident_is_never_reported_again(host, reported, tmp_path, read, give_back):
    read(host, tmp_path)
    assert host.resident_bytes > GUEST - 4 * MIB  # else there is nothing to show
    if give_back == "flush":
        reported.pages.flush_hinting()
    else:
        assert reported.trim() >= GUEST - KEPT - 2 * FREE
    assert reported.pages.last_error is None
    assert host.resident_bytes <= KEPT + FREE
