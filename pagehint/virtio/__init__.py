"""A virtio driver in user space: the guest's half of a device that a real hypervisor has.

Begin with `balloon.py`, the driver; under it are the virtqueue in shared memory (`split_queue.pyx`), the transport
(`pci.py`) and the wire to QEMU (`qtest.py`). Each can be used alone. Sections named are those of the VIRTIO 1.2
specification. Uses `PageAllocator` (`pagehint/_core.pyx`) and the rooms below it.
"""

from pagehint.virtio.balloon import Balloon
from pagehint.virtio.pci import VirtioPci
from pagehint.virtio.qtest import Qtest
from pagehint.virtio.split_queue import SplitQueue

__all__ = ["Balloon", "Qtest", "SplitQueue", "VirtioPci"]
