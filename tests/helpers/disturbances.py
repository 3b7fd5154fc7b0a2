"""What befalls a QEMU while reports to it are under way, and canaries in the guest's RAM that outlive all of it."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
from guests import MIB, filled, is_whole
from migrations import migrate, restored
from threads import in_threads, keeper_of_canaries
from waiting import wait_for

import pagehint as ph
from pagehint.qemu.ram import FREE

EJECT = 0xAE08  # a port of the PC: its ACPI tables have the guest write there to let go of a slot


class Disturbances:
    """One after the other, at random, against a host whose arena holds an array that nobody writes to."""

    def __init__(self, host, array, folder):
        self.host, self.array, self.folder = host, array, folder
        self.counts = Counter()
        self.address = array.ctypes.data - host.arena().address(FREE // 4096) + FREE
        self.slot = host.balloon._transport._function >> 11 & 31

    def begin(self, stop, rng):
        """Do them until the time is over, each at least once."""
        kinds = [self.kill, self.reset, self.plug, self.migrate, self.dump, self.balloon]
        waiting = []
        while waiting or not stop.is_set():
            waiting = waiting or rng.sample(kinds, len(kinds))
            kind = waiting.pop()
            stop.wait(rng.random() * 0.02)
            kind(rng)
            self.counts[kind.__name__] += 1

    def kill(self, rng):
        os.kill(self.host.process.pid, signal.SIGKILL)
        wait_for(lambda: not self.host.running, "its end")
        self.host.restart()
        self.slot = self.host.balloon._transport._function >> 11 & 31

    def reset(self, rng):
        for _ in range(rng.randrange(1, 10)):
            self.host.qmp("system_reset")

    def plug(self, rng):
        self.host.events()
        self.host.qmp("device_del", id="balloon")
        self.host.balloon._transport._wire.write_port(EJECT, 4, 1 << self.slot)
        seen = set()
        wait_for(
            lambda: seen.update(e["event"] for e in self.host.events()) or "DEVICE_DELETED" in seen, "an empty slot"
        )
        self.slot = rng.randrange(8, 20)
        self.host.qmp(
            "device_add", driver="virtio-balloon-pci", id="balloon", addr=hex(self.slot), disable_legacy="on",
            free_page_reporting=True,
        )  # fmt: skip

    def migrate(self, rng):
        path = self.folder / "guest"
        migrate(self.host, path)
        self.host.qmp("cont")
        with restored(self.host, path, self.slot, quiet=False) as memory:
            assert memory[self.address : self.address + self.array.nbytes] == self.array.tobytes(), "lost by migrating"
        path.unlink()

    def dump(self, rng):
        path = self.folder / "dump"
        self.host.qmp("pmemsave", val=0, size=self.host.ram.nr_bytes, filename=os.fspath(path))
        with path.open("rb") as file:
            file.seek(self.address)
            assert file.read(self.array.nbytes) == self.array.tobytes(), "lost in a dump"
        path.unlink()

    def balloon(self, rng):
        try:
            self.host.balloon.inflate(rng.randrange(1, 4000))
            self.host.balloon.deflate(self.host.balloon.actual)
        except (ph.OutOfMemoryError, ph.HostError):
            pass  # a reset comes when QEMU likes; what is in the balloon stays there until the next time


def outlive_disturbances(host, folder):
    """Have canaries and reports for the time of a test, and all of it disturbed; returns what happened, by name."""
    arena = host.arena()
    kept, checked = filled(arena, 20 * MIB), []
    disturbances = Disturbances(host, kept, folder)

    def reports(stop, rng):
        while not stop.wait(0.001):
            arena.pages.flush_hinting()

    with arena.hinting(delay=0.001, threshold=1):
        keepers = [keeper_of_canaries(arena, 4, checked) for _ in range(2)]
        in_threads([*keepers, reports, disturbances.begin])
        assert is_whole(kept)
        wait_for(lambda: arena.pages.flush_hinting() or not arena.pages.stats().hints_pending, "the last report")
    stats = arena.pages.stats()
    assert stats.allocated_pages == 20 * 256 + host.balloon.actual
    assert stats.reporting_pages == 0
    assert stats.blocks_reported > 0
    assert sum(checked) > 0
    arena.pages.verify()
    assert is_whole(kept)
    if not all(disturbances.counts[kind] for kind in ("kill", "reset", "plug", "migrate", "dump", "balloon")):
        pytest.fail(f"not everything has happened: {disturbances.counts}")
    return disturbances.counts | Counter(
        reported=stats.blocks_reported, failed=stats.blocks_failed, canaries=len(checked), MiB=sum(checked) >> 17
    )
