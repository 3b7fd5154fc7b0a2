"""The transport: a virtio device on the PCI bus (section 4.1), through ports 0xcf8 and 0xcfc and the device's BARs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from pagehint.errors import HostError, HostTimeoutError
from pagehint.virtio.pci_bus import BARS, COMMAND, DECODE, MASTER, PciBus, Register, Wire

VENDOR: Final = 0x1AF4
DEVICE_BASE: Final = 0x1040  # of a modern device: plus its device ID (section 4.1.2)
_TRANSITIONAL: Final = range(0x1000, DEVICE_BASE)  # the subsystem ID of these is the device ID (section 4.1.2.1)

VERSION_1: Final = 1 << 32  # feature bits of all devices (section 6)
EVENT_IDX: Final = 1 << 29
ACCESS_PLATFORM: Final = 1 << 33

ACKNOWLEDGE: Final = 1  # bits of the device status (section 2.1)
DRIVER: Final = 2
DRIVER_OK: Final = 4
FEATURES_OK: Final = 8
NEEDS_RESET: Final = 64
_RUNNING: Final = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK

_SUBSYSTEM: Final = 0x2E  # registers of PCI configuration space
_CAPABILITIES: Final = 0x34
_NO_INTX: Final = 0x0400  # a bit of the command register

_NR_BARS: Final = 6
_WINDOW_END: Final = 0xFEC0_0000  # a PC's interrupt controllers are from here on
_VENDOR_SPECIFIC: Final = 0x09  # the ID of virtio's capabilities
_CAPABILITY, _NOTIFY_CAPABILITY = 16, 20  # bytes
_FIRST_CAPABILITY: Final = 0x40  # they are behind the header, each at a multiple of 4
_MOST_CAPABILITIES: Final = (256 - _FIRST_CAPABILITY) // 4

_COMMON, _NOTIFY, _ISR, _DEVICE = 1, 2, 3, 4  # cfg_type of the capabilities (section 4.1.4)
_LEAST: Final = {_COMMON: 56, _NOTIFY: 2, _ISR: 1, _DEVICE: 1}  # bytes of the structures


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


@dataclass(frozen=True)
class _Structure:
    """Where in memory a structure of section 4.1.4 is; the multiplier is that of the notifications."""

    address: int
    nr_bytes: int
    multiplier: int


class _MalformedError(Exception):
    """What is wrong with a device; or a reset of the machine came in between, and nothing is."""


_DEVICE_FEATURE_SELECT = _Field(0, 4)
_DEVICE_FEATURE = _Field(4, 4)
_DRIVER_FEATURE_SELECT = _Field(8, 4)
_DRIVER_FEATURE = _Field(12, 4)
_DEVICE_STATUS = _Field(20, 1)
_CONFIG_GENERATION = _Field(21, 1)
_QUEUE_SELECT = _Field(22, 2)
_QUEUE_SIZE = _Field(24, 2)
_QUEUE_ENABLE = _Field(28, 2)
_QUEUE_NOTIFY_OFF = _Field(30, 2)
_QUEUE_DESC = _Field(32, 8)
_QUEUE_DRIVER = _Field(40, 8)
_QUEUE_DEVICE = _Field(48, 8)


class VirtioPci:
    """A virtio device on the PCI bus: it is looked for, its BARs are placed, and it is ready for negotiation.

    It may be a modern or a transitional one, any function of its slot, and behind bridges.

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

    Notes
    -----
    A reset of the machine takes the device's BARs away, and what is read from it then is zeros or ones. So does
    unplugging. `is_running` and `status` tell this from what the device says, and `probe` finds it again, in any slot.
    """

    def __init__(self, wire: Wire, device_id: int, window: int = 0xE000_0000, timeout: float = 10.0) -> None:
        self._wire = wire
        self._bus = PciBus(wire)
        self._timeout = timeout
        self._window = window
        self._device_id = device_id
        self._function = 0x8000_0000  # as long as none is found
        self._bridges: tuple[int, ...] = ()
        self._placed: dict[Register, int] = {}  # what a reset of the machine clears, and what it reads as
        self._status_set = 0  # what the driver has made the status
        self.probe()

    def probe(self) -> None:
        """Look for the device, in all slots, and map it, unless it is where it was; it is ready for `negotiate` then.

        Raises
        ------
        HostError
            If it is not there, or lacks a structure of section 4.1.4.
        """
        if self._is_plugged() and self._is_mapped():
            return
        for function, bridges in self._bus.places():
            if self._is_ours(function):
                self._function, self._bridges = function, bridges
                if self._map():
                    return
                raise HostError(f"virtio device {self._device_id} was reset or unplugged while its BARs were placed")
        name = f"{VENDOR:#x}:{DEVICE_BASE + self._device_id:#x}"
        raise HostError(f"no virtio device {self._device_id} (PCI {name}, or a transitional one) on the bus")

    def _is_ours(self, function: int) -> bool:
        """Whether this is a function of the device that is looked for, modern or transitional."""
        identity = self._bus.read(function, 0, 4)
        if identity == VENDOR | (DEVICE_BASE + self._device_id) << 16:
            return True
        return (
            identity & 0xFFFF == VENDOR
            and identity >> 16 in _TRANSITIONAL
            and self._bus.read(function, _SUBSYSTEM, 2) == self._device_id
        )

    def _is_plugged(self) -> bool:
        return self._is_ours(self._function)

    def _is_mapped(self) -> bool:
        """Whether the BARs are where they were placed, and the device answers there."""
        return bool(self._placed) and self._are_set(self._placed)

    def _are_set(self, registers: dict[Register, int]) -> bool:
        return all(self._bus.read(*register) == value for register, value in registers.items())

    def _map(self) -> bool:
        """Place the device's BARs, and find its structures in them; returns whether no reset has taken them away."""
        self._placed = {}
        self._doorbells: dict[int, int] = {}
        bars: dict[int, int] = {}
        forwarded: dict[Register, int] = {}
        malformed = None
        self._set_config(COMMAND, 2, MASTER)  # nothing is decoded while BARs move
        try:
            sizes = self._bar_sizes()
            bars = self._place_bars(sizes)
            for bridge in self._bridges:
                end = max(bars[number] + sizes[number] for number in bars)
                forwarded |= self._bus.forward(bridge, min(bars.values()), end)
            if not self._config(COMMAND, 2) & MASTER:
                return False
            self._set_config(COMMAND, 2, DECODE | MASTER | _NO_INTX)
            self._structures = self._find_structures(bars, sizes)
        except _MalformedError as error:
            malformed = error
        # A reset clears these registers, and may come between any two accesses. What was read is known to be the
        # device's when they are still as they were set.
        placed = {number: self._config(BARS + 4 * number, 4) for number in bars}
        command = self._config(COMMAND, 2)
        if not command & MASTER or any(placed[number] & ~0xF != bar for number, bar in bars.items()):
            return False
        if not self._are_set(forwarded):
            return False
        if malformed is not None and not self._is_plugged():
            return False
        if malformed is not None:
            self._set_config(COMMAND, 2, 0)
            raise HostError(f"virtio device {self._device_id} {malformed}")
        self._placed = forwarded | {Register(self._function, COMMAND, 2): command}
        self._placed |= {Register(self._function, BARS + 4 * number, 4): value for number, value in placed.items()}
        return True

    def _bar_sizes(self) -> dict[int, int]:
        """Return the bytes of each memory BAR, by its number."""
        sizes = {}
        numbers = iter(range(_NR_BARS))
        for number in numbers:
            register = BARS + 4 * number
            self._set_config(register, 4, 0xFFFF_FFFF)
            mask = self._config(register, 4)
            if mask and not mask & 1:
                sizes[number] = (~(mask & ~0xF) & 0xFFFF_FFFF) + 1
                if mask & 4:  # of 64 bits: the next one is its upper half
                    if next(numbers, None) is None:
                        raise _MalformedError("has a BAR of 64 bits that is the last one, without its upper half")
                    self._set_config(register + 4, 4, 0)
        if not sizes:
            raise _MalformedError("has no BAR in memory, as devices older than virtio 1.0 do not")
        return sizes

    def _place_bars(self, sizes: dict[int, int]) -> dict[int, int]:
        """Give each memory BAR an address, aligned to its size; returns them by number."""
        placed = {}
        window = self._window
        for number, size in sizes.items():
            window = -(-window // size) * size
            if size & (size - 1) or window + size > _WINDOW_END:
                raise _MalformedError(f"has a BAR {number} of {size:#x} bytes, for which there is no room")
            self._set_config(BARS + 4 * number, 4, window)
            placed[number] = window
            window += size
        return placed

    def _capabilities(self) -> Iterator[int]:
        """Yield where in configuration space each capability is."""
        at = self._config(_CAPABILITIES, 1) & ~3
        for _ in range(_MOST_CAPABILITIES):
            if not at:
                return
            if at < _FIRST_CAPABILITY:
                raise _MalformedError(f"has a capability at {at:#x}, where none can be")
            yield at
            at = self._config(at + 1, 1) & ~3
        raise _MalformedError(f"has a list of capabilities that goes on after {_MOST_CAPABILITIES}, as a ring does")

    def _find_structures(self, bars: dict[int, int], sizes: dict[int, int]) -> dict[int, _Structure]:
        """Find the structures of section 4.1.4 by their capabilities, the first of each kind; returns them by kind."""
        found: dict[int, _Structure] = {}
        for at in self._capabilities():
            kind, number = self._config(at + 3, 1), self._config(at + 4, 1)
            if self._config(at, 1) != _VENDOR_SPECIFIC or kind not in _LEAST or kind in found or number not in bars:
                continue
            nr_bytes = _NOTIFY_CAPABILITY if kind == _NOTIFY else _CAPABILITY
            if at + nr_bytes > 256:
                raise _MalformedError(f"has a capability at {at:#x} that goes beyond its configuration space")
            offset, length = self._config(at + 8, 4), self._config(at + 12, 4)
            if offset + length > sizes[number] or length < _LEAST[kind]:
                raise _MalformedError(
                    f"has a structure {kind} of {length:#x} bytes from {offset:#x}, in BAR {number} of"
                    f" {sizes[number]:#x} bytes: it has at least {_LEAST[kind]}"
                )
            multiplier = self._config(at + 16, 4) if kind == _NOTIFY else 0
            found[kind] = _Structure(bars[number] + offset, length, multiplier)
        if found.keys() != _LEAST.keys():
            raise _MalformedError(
                "lacks one of the structures of VIRTIO 1.2, section 4.1.4, as devices older than virtio 1.0 do"
            )
        return found

    def _config(self, register: int, nr_bytes: int) -> int:
        return self._bus.read(self._function, register, nr_bytes)

    def _set_config(self, register: int, nr_bytes: int, value: int) -> None:
        self._bus.write(self._function, register, nr_bytes, value)

    def _get(self, field: _Field) -> int:
        return self._wire.read(self._structures[_COMMON].address + field.offset, field.nr_bytes)

    def _set(self, field: _Field, value: int) -> None:
        self._wire.write(self._structures[_COMMON].address + field.offset, field.nr_bytes, value)

    def _set_status(self, status: int) -> None:
        self._set(_DEVICE_STATUS, status)
        self._status_set = status

    def is_running(self) -> bool:
        """Whether the device is in operation, as `start` left it: neither reset nor unplugged since, nor broken."""
        return self._status_set == _RUNNING == self._get(_DEVICE_STATUS)

    @property
    def status(self) -> int:
        """The device status (section 2.1): what the driver has set, and NEEDS_RESET if the device has given up.

        Raises
        ------
        HostError
            If it is another, which cannot be: the device has been reset or unplugged, or is broken. Nothing that was
            read from it since means anything.
        """
        status = self._get(_DEVICE_STATUS)
        if status & ~NEEDS_RESET == self._status_set:
            return status
        if not self._is_plugged() and self._are_connected():
            why = "the device has been unplugged"
        elif not status or not self._is_mapped():
            why = "the device has been reset, and not by its driver"
        else:
            why = "the device is broken"
        raise HostError(f"{why}: its status is {status:#x}, and {self._status_set:#x} was set")

    def _of_bridges(self) -> dict[Register, int]:
        return {register: value for register, value in self._placed.items() if register.function != self._function}

    def _are_connected(self) -> bool:
        """Whether the bridges on the way to the device are as they were set."""
        return self._are_set(self._of_bridges())

    def _connect(self) -> None:
        """Set the bridges on the way to the device again: one that does not forward is no sign that it was reset."""
        for register, value in self._of_bridges().items():
            if self._bus.is_bridge(register.function):
                self._bus.write(*register, value)

    def features(self) -> int:
        """Return the feature bits that the device offers."""
        offered = 0
        for half in (0, 1):
            self._set(_DEVICE_FEATURE_SELECT, half)
            offered |= self._get(_DEVICE_FEATURE) << 32 * half
        return offered

    def reset(self) -> None:
        """Reset the device (section 2.4). When this returns, it has let go of all memory, or is unplugged.

        Raises
        ------
        HostTimeoutError
            If the device does not confirm it in time.
        """
        self._status_set = 0
        self._connect()
        # Where the registers do not stay as they are set, the machine is reset, or the device is unplugged: either ends
        # what the device does with the memory, however often it comes.
        if not self._is_plugged() or not (self._is_mapped() or self._map()):
            return
        self._set_status(0)
        deadline = time.monotonic() + self._timeout
        while self._is_mapped() and self._get(_DEVICE_STATUS):  # it reads 0 when the reset is complete
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
        self._set_status(ACKNOWLEDGE)
        self._set_status(ACKNOWLEDGE | DRIVER)
        for half in (0, 1):
            self._set(_DRIVER_FEATURE_SELECT, half)
            self._set(_DRIVER_FEATURE, accepted >> 32 * half & 0xFFFF_FFFF)
        self._set(_DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        if self._get(_DEVICE_STATUS) == self._status_set:
            raise HostError(f"the device refused the features {accepted:#x}")
        self._status_set |= FEATURES_OK
        _ = self.status  # HostError if it is one that cannot be

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
        offset = self._get(_QUEUE_NOTIFY_OFF) * self._structures[_NOTIFY].multiplier
        self._doorbells[number] = self._place_in(_NOTIFY, offset, 2)
        self._set(_QUEUE_ENABLE, 1)

    def start(self) -> None:
        """Tell the device that the driver is ready (section 3.1.1, step 8).

        Raises
        ------
        HostError
            If the device has been reset or unplugged meanwhile, and knows nothing of the queues.
        """
        _ = self.status
        self._set_status(_RUNNING)
        _ = self.status

    def notify(self, number: int) -> bool:
        """Tell the device that a queue has buffers for it (section 4.1.5.2); returns whether it was in no operation.

        One that was reset or unplugged before this does not hear it, so no harm is done if it is only known afterwards.
        """
        status = self._structures[_COMMON].address + _DEVICE_STATUS.offset, _DEVICE_STATUS.nr_bytes
        before = self._wire.read_then_write(status, (self._doorbells[number], 2), number)
        return not self._status_set == _RUNNING == before

    def interrupt_status(self) -> int:
        """Read and clear the ISR status (section 4.1.4.5). The device answers when it has done what it was at."""
        return self._wire.read(self._structures[_ISR].address, 1)

    def read_config(self, offset: int, nr_bytes: int) -> int:
        """Return a field of the device's own configuration; HostError if it is not so long."""
        return self._wire.read(self._place_in(_DEVICE, offset, nr_bytes), nr_bytes)

    def config_generation(self) -> int:
        """Return a number that is another one after the device's own configuration has changed (section 2.5.3)."""
        return self._get(_CONFIG_GENERATION)

    def write_config(self, offset: int, nr_bytes: int, value: int) -> None:
        """Write a field of the device's own configuration; HostError if it is not so long."""
        self._wire.write(self._place_in(_DEVICE, offset, nr_bytes), nr_bytes, value)

    def _place_in(self, kind: int, offset: int, nr_bytes: int) -> int:
        """Return where a part of a structure is in memory; HostError if it is outside."""
        structure = self._structures[kind]
        if offset + nr_bytes > structure.nr_bytes:
            raise HostError(
                f"virtio device {self._device_id} has a structure {kind} of {structure.nr_bytes} bytes, in which"
                f" there are no {nr_bytes} at {offset:#x}"
            )
        return structure.address + offset
