"""The transport: a virtio device on the PCI bus (section 4.1), through ports 0xcf8 and 0xcfc and the device's BARs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Protocol

from pagehint.errors import HostError, HostTimeoutError

VENDOR: Final = 0x1AF4
DEVICE_BASE: Final = 0x1040  # of a modern device: plus its device ID (section 4.1.2)

VERSION_1: Final = 1 << 32  # feature bits of all devices (section 6)
EVENT_IDX: Final = 1 << 29

ACKNOWLEDGE: Final = 1  # bits of the device status (section 2.1)
DRIVER: Final = 2
DRIVER_OK: Final = 4
FEATURES_OK: Final = 8
NEEDS_RESET: Final = 64

_COMMAND: Final = 0x04  # registers of PCI configuration space
_CAPABILITIES: Final = 0x34
_BARS: Final = 0x10
_DECODE_AND_MASTER_NO_INTX: Final = 0x0406

_COMMON, _NOTIFY, _ISR, _DEVICE = 1, 2, 3, 4  # cfg_type of the capabilities (section 4.1.4)


class Wire(Protocol):
    """What the transport needs of a wire: it reads and writes the machine's ports and memory, as `Qtest` does."""

    def read(self, address: int, nr_bytes: int) -> int:
        """Return a number in memory."""

    def write(self, address: int, nr_bytes: int, value: int) -> None:
        """Write a number to memory."""

    def read_port(self, port: int, nr_bytes: int) -> int:
        """Return a number at a port."""

    def write_port(self, port: int, nr_bytes: int, value: int) -> None:
        """Write a number to a port."""


class Queue(Protocol):
    """What the transport needs of a virtqueue: where its parts are (section 2.6)."""

    @property
    def size(self) -> int:
        """Descriptors."""

    @property
    def descriptor_area(self) -> int:
        """Guest-physical address."""

    @property
    def driver_area(self) -> int:
        """Guest-physical address."""

    @property
    def device_area(self) -> int:
        """Guest-physical address."""


@dataclass(frozen=True)
class _Field:
    """A field of the common configuration structure (section 4.1.4.3)."""

    offset: int
    nr_bytes: int


_DEVICE_FEATURE_SELECT = _Field(0, 4)
_DEVICE_FEATURE = _Field(4, 4)
_DRIVER_FEATURE_SELECT = _Field(8, 4)
_DRIVER_FEATURE = _Field(12, 4)
_DEVICE_STATUS = _Field(20, 1)
_QUEUE_SELECT = _Field(22, 2)
_QUEUE_SIZE = _Field(24, 2)
_QUEUE_ENABLE = _Field(28, 2)
_QUEUE_NOTIFY_OFF = _Field(30, 2)
_QUEUE_DESC = _Field(32, 8)
_QUEUE_DRIVER = _Field(40, 8)
_QUEUE_DEVICE = _Field(48, 8)


class VirtioPci:
    """A modern virtio device on bus 0: it is looked for, its BARs are placed, and it is ready for negotiation.

    Parameters
    ----------
    wire : Wire
        The wire.
    device_id : int
        Which device it is: 5 is the memory balloon (section 5).
    window : int, default 0xe0000000
        Guest-physical address from which the device's BARs are placed; nothing else may be there.
    timeout : float, default 10.0
        Seconds that a reset may take.

    Raises
    ------
    HostError
        If there is no such device on the bus, or it lacks a structure of section 4.1.4.
    """

    def __init__(self, wire: Wire, device_id: int, window: int = 0xE000_0000, timeout: float = 10.0) -> None:
        self._wire = wire
        self._timeout = timeout
        wanted = VENDOR | (DEVICE_BASE + device_id) << 16
        for slot in range(32):
            self._function = 0x8000_0000 | slot << 11
            if self._config(0, 4) == wanted:
                break
        else:
            raise HostError(f"no virtio device {device_id} (PCI {VENDOR:#x}:{DEVICE_BASE + device_id:#x}) on the bus")
        bars = self._place_bars(window)
        self._set_config(_COMMAND, 2, _DECODE_AND_MASTER_NO_INTX)
        self._structures: dict[int, int] = {}
        at = self._config(_CAPABILITIES, 1)
        while at:
            kind = self._config(at + 3, 1)
            if self._config(at, 1) == 0x09 and kind not in self._structures and self._config(at + 4, 1) in bars:
                self._structures[kind] = bars[self._config(at + 4, 1)] + self._config(at + 8, 4)
                if kind == _NOTIFY:
                    self._notify_multiplier = self._config(at + 16, 4)
            at = self._config(at + 1, 1)
        if not {_COMMON, _NOTIFY, _ISR, _DEVICE} <= self._structures.keys():
            raise HostError(f"virtio device {device_id} lacks one of the structures of VIRTIO 1.2, section 4.1.4")
        self._doorbells: dict[int, int] = {}

    def _config(self, register: int, nr_bytes: int) -> int:
        self._wire.write_port(0xCF8, 4, self._function | register & ~3)
        return self._wire.read_port(0xCFC + (register & 3), nr_bytes)

    def _set_config(self, register: int, nr_bytes: int, value: int) -> None:
        self._wire.write_port(0xCF8, 4, self._function | register & ~3)
        self._wire.write_port(0xCFC + (register & 3), nr_bytes, value)

    def _place_bars(self, window: int) -> dict[int, int]:
        """Give each memory BAR an address, aligned to its size; returns them by number."""
        placed = {}
        number = 0
        while number < 6:
            register = _BARS + 4 * number
            self._set_config(register, 4, 0xFFFF_FFFF)
            mask = self._config(register, 4)
            if mask and not mask & 1:
                size = (~(mask & ~0xF) & 0xFFFF_FFFF) + 1
                window = -(-window // size) * size
                self._set_config(register, 4, window)
                placed[number] = window
                window += size
                if mask & 4:  # of 64 bits: the next one is its upper half
                    self._set_config(register + 4, 4, 0)
                    number += 1
            number += 1
        return placed

    def _get(self, field: _Field) -> int:
        return self._wire.read(self._structures[_COMMON] + field.offset, field.nr_bytes)

    def _set(self, field: _Field, value: int) -> None:
        self._wire.write(self._structures[_COMMON] + field.offset, field.nr_bytes, value)

    @property
    def status(self) -> int:
        """The device status (section 2.1)."""
        return self._get(_DEVICE_STATUS)

    def features(self) -> int:
        """Return the feature bits that the device offers."""
        offered = 0
        for half in (0, 1):
            self._set(_DEVICE_FEATURE_SELECT, half)
            offered |= self._get(_DEVICE_FEATURE) << 32 * half
        return offered

    def reset(self) -> None:
        """Reset the device (section 2.4). When this returns, it has let go of all memory.

        Raises
        ------
        HostTimeoutError
            If the device does not confirm it in time.
        """
        self._set(_DEVICE_STATUS, 0)
        deadline = time.monotonic() + self._timeout
        while self.status:  # it reads 0 when the reset is complete
            if time.monotonic() > deadline:
                raise HostTimeoutError(f"the device was not reset in {self._timeout:g} s")

    def negotiate(self, accepted: int) -> None:
        """Take the device through steps 1 to 6 of section 3.1.1, and accept some of its features.

        Raises
        ------
        HostError
            If it refuses that choice.
        """
        self.reset()
        self._set(_DEVICE_STATUS, ACKNOWLEDGE)
        self._set(_DEVICE_STATUS, ACKNOWLEDGE | DRIVER)
        for half in (0, 1):
            self._set(_DRIVER_FEATURE_SELECT, half)
            self._set(_DRIVER_FEATURE, accepted >> 32 * half & 0xFFFF_FFFF)
        self._set(_DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        if not self.status & FEATURES_OK:
            raise HostError(f"the device refused the features {accepted:#x}")

    def queue_size(self, number: int) -> int:
        """Return the most descriptors that a queue can have, or 0 if there is no such queue."""
        self._set(_QUEUE_SELECT, number)
        return self._get(_QUEUE_SIZE)

    def enable_queue(self, number: int, queue: Queue) -> None:
        """Tell the device where a queue is, and enable it (section 4.1.5.1.3)."""
        self._set(_QUEUE_SELECT, number)
        self._set(_QUEUE_SIZE, queue.size)
        self._set(_QUEUE_DESC, queue.descriptor_area)
        self._set(_QUEUE_DRIVER, queue.driver_area)
        self._set(_QUEUE_DEVICE, queue.device_area)
        self._doorbells[number] = self._structures[_NOTIFY] + self._get(_QUEUE_NOTIFY_OFF) * self._notify_multiplier
        self._set(_QUEUE_ENABLE, 1)

    def start(self) -> None:
        """Tell the device that the driver is ready (section 3.1.1, step 8)."""
        self._set(_DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def notify(self, number: int) -> None:
        """Tell the device that a queue has buffers for it (section 4.1.5.2)."""
        self._wire.write(self._doorbells[number], 2, number)

    def interrupt_status(self) -> int:
        """Read and clear the ISR status (section 4.1.4.5). The device answers when it has done what it was at."""
        return self._wire.read(self._structures[_ISR], 1)

    def read_config(self, offset: int, nr_bytes: int) -> int:
        """Return a field of the device's own configuration."""
        return self._wire.read(self._structures[_DEVICE] + offset, nr_bytes)

    def write_config(self, offset: int, nr_bytes: int, value: int) -> None:
        """Write a field of the device's own configuration."""
        self._wire.write(self._structures[_DEVICE] + offset, nr_bytes, value)
