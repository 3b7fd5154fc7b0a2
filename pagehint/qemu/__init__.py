"""A real hypervisor to report to: QEMU, started and ended from here, with its guest's RAM as an arena.

Begin with `host.py`; under it are the arena (`guest_arena.py`), the guest's RAM (`ram.py`), QEMU as a process
(`process.py`) and its monitor (`monitor.py`). Uses `virtio`, `arena` and the rooms below them.
"""

from pagehint.qemu.guest_arena import GuestArena
from pagehint.qemu.host import Host
from pagehint.qemu.process import Discards

__all__ = ["Discards", "GuestArena", "Host"]
