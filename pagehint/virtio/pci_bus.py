"""PCI configuration space, and which functions there are: in all slots, and on the buses behind bridges.

There is no firmware, so nobody has numbered the buses: that is done on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

COMMAND: Final = 0x04  # registers
BARS: Final = 0x10
_CLASS: Final = 0x0A  # class and subclass
_HEADER_TYPE: Final = 0x0E
BUSES: Final = 0x18  # of a bridge: the buses at its near and at its far side, and the last one beyond it
WINDOW: Final = 0x20  # of a bridge: the first and the last MiB of memory that it forwards

DECODE: Final = 0x0002  # bits of the command register: of memory
MASTER: Final = 0x0004

_MULTIFUNCTION: Final = 0x80  # a bit of the header type
_BRIDGE_HEADER: Final = 1
_BRIDGE_CLASS: Final = 0x0604
_NOTHING: Final = 0xFFFF  # is read as the vendor where no function is
_MOST_BUSES: Final = 32
_LAST_BUS: Final = 0xFF
_MIB: Final = 1 << 20


class Wire(Protocol):
    """What is needed of a wire: it reads and writes the machine's ports and memory, as `Qtest` does."""

    def read(self, address: int, nr_bytes: int) -> int:
        """Return a number in memory."""

    def write(self, address: int, nr_bytes: int, value: int) -> None:
        """Write a number to memory."""

    def read_then_write(self, source: tuple[int, int], target: tuple[int, int], value: int) -> int:
        """Return a number in memory, and then write another one elsewhere; a place is an address and its bytes."""

    def read_port(self, port: int, nr_bytes: int) -> int:
        """Return a number at a port."""

    def write_port(self, port: int, nr_bytes: int, value: int) -> None:
        """Write a number to a port."""


class Place(NamedTuple):
    """Where a function is."""

    function: int  # what selects its configuration space: bus, slot and function number
    bridges: tuple[int, ...]  # those on the way to it, from bus 0 on


class Register(NamedTuple):
    """A register of configuration space."""

    function: int
    offset: int
    nr_bytes: int


class PciBus:
    """The functions on bus 0 and on the buses behind its bridges, through ports 0xcf8 and 0xcfc.

    Parameters
    ----------
    wire : Wire
        The wire.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._last = 0  # the last bus that has got a number

    def read(self, function: int, register: int, nr_bytes: int) -> int:
        """Return a register of a function's configuration space; all bits are set if there is no such function."""
        self.wire.write_port(0xCF8, 4, function | register & ~3)
        return self.wire.read_port(0xCFC + (register & 3), nr_bytes)

    def write(self, function: int, register: int, nr_bytes: int, value: int) -> None:
        """Write a register of a function's configuration space."""
        self.wire.write_port(0xCF8, 4, function | register & ~3)
        self.wire.write_port(0xCFC + (register & 3), nr_bytes, value)

    def places(self) -> Iterator[Place]:
        """Yield each function that there is. Buses behind bridges get their numbers; at most 32 are looked at."""
        self._last = 0
        return self._places(0, ())

    def _places(self, bus: int, bridges: tuple[int, ...]) -> Iterator[Place]:
        for slot in range(32):
            first = 0x8000_0000 | bus << 16 | slot << 11
            if self.read(first, 0, 2) == _NOTHING:
                continue
            several = self.read(first, _HEADER_TYPE, 1) & _MULTIFUNCTION
            for function in range(first, first + 0x800 if several else first + 1, 0x100):
                if function > first and self.read(function, 0, 2) == _NOTHING:
                    continue
                yield Place(function, bridges)
                if self._last + 1 < _MOST_BUSES and self.is_bridge(function):
                    self._last += 1
                    number = self._last
                    # All numbers from this one on are behind it, until the last of them is known.
                    self.write(function, BUSES, 4, bus | number << 8 | _LAST_BUS << 16)
                    yield from self._places(number, (*bridges, function))
                    self.write(function, BUSES, 4, bus | number << 8 | self._last << 16)

    def is_bridge(self, function: int) -> bool:
        """Whether a function is a bridge to another PCI bus."""
        return (
            self.read(function, _HEADER_TYPE, 1) & ~_MULTIFUNCTION == _BRIDGE_HEADER
            and self.read(function, _CLASS, 2) == _BRIDGE_CLASS
        )

    def forward(self, bridge: int, first: int, end: int) -> dict[Register, int]:
        """Have a bridge forward memory from `first` to `end`, in MiB around it; returns what it is set to."""
        last = -(-end // _MIB) * _MIB - 1
        self.write(bridge, WINDOW, 4, first >> 16 & 0xFFF0 | last & 0xFFF0_0000)
        self.write(bridge, COMMAND, 2, DECODE | MASTER)
        set_to = {Register(bridge, register, 4): self.read(bridge, register, 4) for register in (BUSES, WINDOW)}
        return set_to | {Register(bridge, COMMAND, 2): DECODE | MASTER}
