"""QEMU killed, reset, unplugged, migrated and dumped during reports: what was written to the guest's RAM stays."""

from __future__ import annotations

from disturbances import outlive_disturbances
from guests import without_qemu

import pagehint as ph

pytestmark = without_qemu


def test_canaries(tmp_path):
    with ph.qemu.Host("96MiB", timeout=5) as host:
        print(outlive_disturbances(host, tmp_path))
