"""A virtio driver in user space: the guest's half of a device that a real hypervisor has.

In the order in which a report takes its way: `Balloon` (the driver), `SplitQueue` (the virtqueue in shared memory),
`VirtioPci` (the transport), `Qtest` (the wire to QEMU). Each can be used alone. Sections named are those of the
VIRTIO 1.2 specification.
"""

from pagehint.virtio.balloon import Balloon
from pagehint.virtio.pci import VirtioPci
from pagehint.virtio.qtest import Qtest
from pagehint.virtio.split_queue import SplitQueue

__all__ = ["Balloon", "Qtest", "SplitQueue", "VirtioPci"]
