"""A memory balloon on a PCI bus, in plain Python: what the driver's wire leads to where there is no QEMU.

It follows the VIRTIO specification, version 1.2, to the letter. What else a test wants of it, such as other numbers of
its queues, a reset of the machine, or answers that cannot be, is an attribute, or a method that a test replaces.
"""

from __future__ import annotations

import mmap
import struct

from pagehint.virtio.balloon import Balloon
from pagehint.virtio.pci import VERSION_1, VirtioPci
from pagehint.virtio.queue_numbers import FREE_PAGE_HINT, REPORTING, STATS_VQ

ADDRESS = 1 << 20  # guest-physical, of the driver's memory
NAMES = ("inflate", "deflate", "statistics", "free page hint", "reporting")  # in the order of their fixed numbers
NEEDS = {"statistics": STATS_VQ, "free page hint": FREE_PAGE_HINT, "reporting": REPORTING}
BAR_BYTES = 0x4000
COMMON, NOTIFY, ISR, DEVICE = 0x0000, 0x1000, 0x2000, 0x3000  # in the BAR
MULTIPLIER = 4  # notify_off_multiplier


def dense(features):
    """Number the queues that these features have one after the other."""
    return dict(enumerate(name for name in NAMES if name not in NEEDS or features & NEEDS[name]))


class BalloonModel:
    """The device, its slot on the bus, and the memory that it shares with its driver.

    `numbering` is how it numbers its queues: "fixed" as the specification does; "all", the same, and those of features
    that it does not offer are there, too; "offered" or "negotiated", densely, by what it offers or what was accepted.
    """

    def __init__(self, offered=VERSION_1 | STATS_VQ | REPORTING, numbering="offered", queue_size=32):
        self.memory = mmap.mmap(-1, Balloon.NR_BYTES)
        self.offered, self.numbering, self.queue_size = offered, numbering, queue_size
        self.unmapped = 0  # what is read where nothing is; or -1, all ones
        self.answers = True  # whether it gives back what it is sent
        self.misses = 0  # how many notifications go by unseen
        self.sent = []  # (name of the queue, [(address, bytes)], what it has read), in turn
        self.target = self.actual = self.poison = 0
        self.hint_command = self.generation = 0
        self.hides_command = False  # whether it reads as 0 from when a pass has begun, as QEMU's does
        self.mapped = 0  # how often its BAR was placed
        self.slot = 3
        self.pci_device, self.subsystem = 0x1045, 0x1100  # of a modern device
        self.plug()

    # -- the machine

    def plug(self, slot=None):
        self.plugged, self.slot = True, self.slot if slot is None else slot
        self.system_reset()

    def unplug(self):
        self.plugged = False
        self.system_reset()

    def system_reset(self):
        """Reset the machine: the device forgets all, and where its BAR is, too."""
        self.selected = 0  # of configuration space
        self.configuration = bytearray(256)
        struct.pack_into("<HHHH", self.configuration, 0, 0x1AF4, self.pci_device, 0, 0x10)
        struct.pack_into("<HH", self.configuration, 0x2C, 0x1AF4, self.subsystem)
        self.configuration[0x34] = 0x40
        parts = ((1, COMMON, 56), (2, NOTIFY, 0x1000), (3, ISR, 1), (4, DEVICE, 16))
        for kind, offset, length in parts:
            at = 0x40 + 0x18 * (kind - 1)
            following = at + 0x18 if kind < 4 else 0
            struct.pack_into(
                "<BBBBBxxxIII", self.configuration, at, 9, following, 24, kind, 0, offset, length, MULTIPLIER
            )
        self.device_reset()

    def device_reset(self):
        self.status = self.accepted = self.select = self.queue_select = self.driver_select = 0
        self.queues = {}
        self.pending_statistics = None
        self.begun = None  # the last hinting command that the driver has sent

    # -- the wire

    def read_port(self, port, nr_bytes):
        register = self._register(port)
        if register is None:
            return (1 << 8 * nr_bytes) - 1
        return int.from_bytes(self.configuration[register : register + nr_bytes], "little")

    def write_port(self, port, nr_bytes, value):
        if port == 0xCF8:
            self.selected = value
            return
        register = self._register(port)
        if register is None:
            return
        if register == 0x10:
            value &= ~(BAR_BYTES - 1)
            self.mapped += value not in (0, 0xFFFF_FFFF & ~(BAR_BYTES - 1))
        if register in (0x04, 0x10):  # else it cannot be written
            self.configuration[register : register + nr_bytes] = value.to_bytes(nr_bytes, "little")

    def _register(self, port):
        """Return the register of our function that a port leads to, or None."""
        slot, function = self.selected >> 11 & 31, self.selected >> 8 & 7
        if not self.plugged or (slot, function) != (self.slot, 0):
            return None
        return (self.selected & 0xFC) + (port - 0xCFC)

    def _offset(self, address):
        """Return where in the BAR an address is, or None if it is not, or not decoded."""
        command, bar = struct.unpack_from("<H", self.configuration, 4)[0], self._bar()
        if not self.plugged or not command & 2 or not bar <= address < bar + BAR_BYTES:
            return None
        return address - bar

    def _bar(self):
        return struct.unpack_from("<I", self.configuration, 0x10)[0]

    def read(self, address, nr_bytes):
        offset = self._offset(address)
        if offset is None:
            return self.unmapped & (1 << 8 * nr_bytes) - 1
        return self.register(offset) & (1 << 8 * nr_bytes) - 1

    def write(self, address, nr_bytes, value):
        assert 0 <= value < 1 << 8 * nr_bytes
        offset = self._offset(address)
        if offset is not None:
            self.set_register(offset, value)

    def read_then_write(self, source, target, value):
        number = self.read(*source)
        self.write(*target, value)
        return number

    # -- the device

    def roles(self):
        """Return the names of its queues by their numbers."""
        if self.numbering == "all":
            return dict(enumerate(NAMES))
        if self.numbering == "fixed":
            have = dense(self.offered).values()
            return {number: name for number, name in enumerate(NAMES) if name in have}
        return dense(self.offered if self.numbering == "offered" else self.accepted)

    def register(self, offset):
        queue = self.queues.get(self.queue_select, {})
        return {
            COMMON + 4: self.offered >> 32 * self.select & 0xFFFF_FFFF if self.select < 2 else 0,
            COMMON + 20: self.status,
            COMMON + 21: self.generation & 0xFF,
            COMMON + 24: queue.get(24, self.queue_size) if self.queue_select in self.roles() else 0,
            COMMON + 30: self.queue_select,
            DEVICE: self.target,
            DEVICE + 4: self.actual,
            DEVICE + 8: 0 if self.hides_command and self.begun == self.hint_command else self.hint_command,
        }.get(offset, 0)

    def set_register(self, offset, value):
        if offset == COMMON + 0:
            self.select = value
        elif offset == COMMON + 8:
            self.driver_select = value
        elif offset == COMMON + 12:
            self.accepted |= value << 32 * self.driver_select
        elif offset == COMMON + 20:
            self.status = value
            if not value:
                self.device_reset()
        elif offset == COMMON + 22:
            self.queue_select = value
        elif COMMON + 24 <= offset < COMMON + 56:
            self.queues.setdefault(self.queue_select, {"seen": 0, "used": 0})[offset] = value
        elif offset - NOTIFY == value * MULTIPLIER:  # each queue has a doorbell of its own
            self.notified(value)
        elif offset == DEVICE + 4:
            self.actual = value
        elif offset == DEVICE + 12:
            self.poison = value

    # -- its queues; addresses are of the driver's memory

    def unpack(self, layout, address):
        return struct.unpack_from("<" + layout, self.memory, address - ADDRESS)

    def pack(self, layout, address, *values):
        struct.pack_into("<" + layout, self.memory, address - ADDRESS, *values)

    def notified(self, number):
        """Take every chain that the queue has, and give it back, but for the statistics, which it keeps until asked."""
        queue = self.queues.get(number, {})
        if not queue.get(28):
            return  # it is not enabled
        if self.misses:
            self.misses -= 1
            return
        name = self.roles().get(number, "none")
        while self.answers and queue["seen"] != self.unpack("H", queue[40] + 2)[0]:
            head = self.unpack("H", queue[40] + 4 + 2 * (queue["seen"] % queue[24]))[0]
            queue["seen"] = (queue["seen"] + 1) % 65536
            self.sent.append((name, *self.chain(queue, head)))
            if name == "free page hint" and self.sent[-1][2]:
                self.begun = int.from_bytes(self.sent[-1][2], "little")
            if name == "statistics":
                self.pending_statistics = number, head
            else:
                self.give_back(number, head)

    def chain(self, queue, head):
        buffers, data, at, more = [], b"", head, True
        while more:
            address, length, flags, at = self.unpack("QIHH", queue[32] + 16 * at)
            buffers.append((address, length))
            if not flags & 2:
                data += self.memory[address - ADDRESS : address - ADDRESS + length]
            more = flags & 1
        return buffers, data

    def give_back(self, number, head, written=0, ahead=1):
        """Put a chain into the used ring, and say that so many more are there."""
        queue = self.queues[number]
        self.pack("II", queue[48] + 4 + 8 * (queue["used"] % queue[24]), head, written)
        queue["used"] = (queue["used"] + ahead) % 65536
        self.pack("H", queue[48] + 2, queue["used"])

    def forbid_notifications(self, name):
        """Ask for no notification of a queue, and look at it no more by itself."""
        number = next(number for number, its in self.roles().items() if its == name)
        self.pack("H", self.queues[number][48], 1)

    def ask_for_hints(self, command):
        """Ask for a pass over free pages, or for none any more."""
        self.hint_command = command
        self.generation += 1

    def ask_for_statistics(self):
        """Give the statistics back, as a host that polls does; returns whether there were any."""
        if self.pending_statistics is None:
            return False
        self.give_back(*self.pending_statistics)
        self.pending_statistics = None
        return True

    def names(self):
        """Return the queues that got something, in turn."""
        return [name for name, _, _ in self.sent]


def driven(model, **options):
    """Return the driver of a model. Its fence only remembers that it was called, in `model.fenced`."""
    model.fenced = 0

    def fence():
        model.fenced += 1

    transport = VirtioPci(model, 5, timeout=options.get("timeout", 0.5))
    return Balloon(transport, model.memory, ADDRESS, fence=fence, **{"timeout": 0.5, **options})
