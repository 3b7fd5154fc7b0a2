"""Migrations of a real QEMU to a file, and what another QEMU makes of it."""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager

from waiting import wait_for

import pagehint as ph
from pagehint.qemu.monitor import Monitor
from pagehint.qemu.process import QemuProcess, find_qemu
from pagehint.qemu.ram import GuestRam

SLOW, FAST = 1_000_000, 10**11  # bytes a second


def migrate(host, path, meanwhile=None):
    """Migrate to a file; call `meanwhile` until it returns something; returns that, and the figures."""
    host.qmp("migrate-set-parameters", max_bandwidth=SLOW if meanwhile else FAST)
    host.qmp("migrate", uri=f"exec:cat > {path}")
    result = []
    if meanwhile is not None:
        wait_for(lambda: result.append(meanwhile()) or result[-1], "what is done while it migrates")
        host.qmp("migrate-set-parameters", max_bandwidth=FAST)
    wait_for(lambda: host.qmp("query-migrate").get("status") in ("completed", "failed"), "the end of the migration")
    figures = host.qmp("query-migrate")
    assert figures["status"] == "completed", figures
    return result[-1] if result else None, figures["ram"]


def _fate(monitor):
    """Return how loading has ended, or nothing; a QEMU that cannot load ends itself."""
    try:
        status = monitor.execute("query-migrate", {}).get("status")
    except ph.HostError:
        return "gone"
    return status if status in ("completed", "failed") else None


@contextmanager
def restored(host, path, slot=2, quiet=True):
    """Give the RAM of a guest, from its address 0 on, that another QEMU has loaded from such a file.

    What it loads is of a machine whose balloon is in this slot. If that was not `quiet` it may find that the balloon's
    queues are not as its device was, since QEMU does not see what is written to them from here. The RAM comes first.
    """
    ram = GuestRam(host.ram.nr_bytes)
    options = [*host._options, "-set", f"device.balloon.addr={slot:#x}", "-incoming", f"exec:cat {path}"]
    process = QemuProcess(find_qemu(None), ram, host._reporting, options)
    monitor = None
    try:
        monitor = Monitor(process.qmp, 30)
        wait_for(lambda: _fate(monitor), "what is loaded")
        said = "" if _fate(monitor) == "completed" else process.last_words
        assert not said or (not quiet and "virtio" in said), said
        with mmap.mmap(ram.fd, os.fstat(ram.fd).st_size) as memory:
            yield memory
    finally:
        process.kill()
        if monitor is not None:
            monitor.close()
        process.close_sockets()
        ram.close()
