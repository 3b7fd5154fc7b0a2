"""A real hypervisor to report to: QEMU, started and owned from here, its guest's RAM an arena of ours.

`Host` is what to use; under it are the guest's RAM (`ram`), QEMU as a process (`process`) and its monitor (`monitor`).
"""

from pagehint.qemu.host import GuestArena, Host
from pagehint.qemu.process import Discards

__all__ = ["Discards", "GuestArena", "Host"]
