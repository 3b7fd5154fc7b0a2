"""A real migration: free page hinting spares it what is free, and what is in use arrives byte for byte."""

from __future__ import annotations

import pytest
from guests import MIB, filled, is_whole, without_qemu
from migrations import migrate, restored
from waiting import wait_for

import pagehint as ph
from pagehint.qemu.ram import FREE

pytestmark = without_qemu


@pytest.fixture
def host():
    with ph.qemu.Host("256MiB", timeout=5, free_page_hint=True) as made:
        yield made


def arrives(host, array, path):
    """Whether another QEMU, that loads the file, has the array where it was."""
    address = array.ctypes.data - host.arena().address(FREE // 4096) + FREE
    with restored(host, path) as memory:
        return memory[address : address + array.nbytes] == array.tobytes()


def test_a_migration_copies_what_is_in_use_alone_if_the_guest_hints(host, tmp_path):
    arena, path = host.arena(), tmp_path / "guest"
    kept = filled(arena, 40 * MIB)
    filled(arena, 160 * MIB, 2)  # and freed; it stays in memory, and would be copied
    assert host.hint_free_pages() == 0, "nobody has asked"
    hinted, figures = migrate(host, path, host.hint_free_pages)
    assert hinted == arena.pages.stats().free_pages * 4096
    assert figures["normal-bytes"] <= 44 * MIB
    assert path.stat().st_size <= 44 * MIB
    assert arrives(host, kept, path)
    assert host.resident_bytes >= 200 * MIB, "hinting gives nothing back"
    assert arena.status().given_back == 0
    assert host.hint_free_pages() == 0, "the host has been answered"
    host.qmp("cont")
    with arena.hinting(delay=None):
        arena.pages.flush_hinting()
        assert arena.pages.last_error is None
    assert host.resident_bytes <= 40 * MIB + FREE, "what was hinted is reported all the same"
    assert is_whole(kept)
    arena.pages.verify()


def test_without_hints_it_copies_what_is_free_too(host, tmp_path):
    arena, path = host.arena(), tmp_path / "guest"
    kept = filled(arena, 40 * MIB)
    filled(arena, 160 * MIB, 2)
    _, figures = migrate(host, path)
    assert figures["normal-bytes"] >= 200 * MIB
    assert arrives(host, kept, path)


def test_a_pass_needs_hinting_to_be_off_and_a_host_that_offers_it(host, tmp_path):
    arena = host.arena()

    def hint_beside_reports():
        with (
            arena.hinting(delay=None, workqueue="manual"),
            pytest.raises(ph.HintingActiveError, match="hinting is on: disable it"),
        ):
            host.hint_free_pages()
        return host.hint_free_pages()

    hinted, _ = migrate(host, tmp_path / "guest", hint_beside_reports)
    assert 0 < hinted <= arena.size, "QEMU may end the pass before all has been told"
    with ph.qemu.Host("64MiB") as other, pytest.raises(ph.HostError, match="free-page-hint=on"):
        other.hint_free_pages()
    with (
        ph.qemu.Host("64MiB", poison=True, free_page_hint=True) as other,
        pytest.raises(ph.HostError, match="poison=True: it must copy"),
    ):
        other.hint_free_pages()


def test_a_guest_that_stops_as_its_migration_ends_was_waited_for_until_the_time_out(host, tmp_path):
    arena = host.arena()
    kept = filled(arena, 40 * MIB)
    for step in (lambda: host.balloon.hint([host.ram.nr_bytes - 2 * MIB], [2 * MIB]), host.balloon.end_hints):
        host.qmp("migrate-set-parameters", max_bandwidth=1000)
        host.qmp("migrate", uri=f"exec:cat > {tmp_path / 'guest'}")
        while not host.balloon.begin_hints():
            assert host.qmp("query-migrate")["status"] not in ("completed", "failed")
        host.qmp("stop")  # as it does itself where it copies the last of it
        host.qmp("migrate-set-parameters", max_bandwidth=80 * MIB)
        assert not step()
        wait_for(lambda: host.qmp("query-migrate")["status"] == "completed", "the end of the migration")
        host.qmp("cont")
    with arena.hinting(delay=None):
        arena.pages.flush_hinting()
        assert arena.pages.last_error is None
    assert is_whole(kept)
    arena.pages.verify()


def test_a_migration_that_is_cancelled_or_a_reset_ends_the_pass_and_another_begins(host, tmp_path):
    arena = host.arena()
    kept = filled(arena, 40 * MIB)
    host.qmp("migrate-set-parameters", max_bandwidth=1000)
    for end in ("migrate_cancel", "system_reset"):
        host.qmp("migrate", uri="exec:cat > /dev/null")
        while not host.balloon.begin_hints():
            assert host.qmp("query-migrate")["status"] not in ("completed", "failed")
        assert host.balloon.hint([host.ram.nr_bytes - 2 * MIB], [2 * MIB])
        host.qmp(end)
        while host.balloon.hint([host.ram.nr_bytes - 2 * MIB], [2 * MIB]):
            pass
        host.qmp("migrate_cancel")
        while host.qmp("query-migrate")["status"] != "cancelled":
            pass
        host.balloon.end_hints()
    hinted, _ = migrate(host, tmp_path / "guest", host.hint_free_pages)
    assert hinted
    assert arrives(host, kept, tmp_path / "guest")
    arena.pages.verify()
