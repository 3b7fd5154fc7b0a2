"""The guest's RAM: a file in memory, mapped here and by QEMU, and where in the guest each part of it is."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import weakref
from collections.abc import Iterable
from typing import Final, NamedTuple

from pagehint.sizes import format_size
from pagehint.virtio.owner import Owner

PAGE_SIZE: Final = 4096  # of an x86 guest, whatever the host's
PCI_HOLE: Final = 3 << 30  # RAM goes on above it, at HIGH; QEMU is told so
HIGH: Final = 4 << 30
DRIVER: Final = 1 << 20  # the driver's queues are here, above a PC's VGA memory and firmware
FREE: Final = 2 << 20  # all RAM from here on is the arena's


class Part(NamedTuple):
    """RAM in one piece, in bytes."""

    address: int  # guest-physical
    offset: int  # in the file
    nr_bytes: int


class GuestRam:
    """RAM of a PC with so much memory, in a memfd.

    Parameters
    ----------
    nr_bytes : int
        A multiple of 2 MiB, at least 8 MiB.

    Attributes
    ----------
    owner : Owner
        The process whose guest it is.
    """

    def __init__(self, nr_bytes: int) -> None:
        if nr_bytes % FREE or nr_bytes < 4 * FREE:
            raise ValueError(f"a guest's memory is a multiple of 2 MiB, at least 8 MiB, not {format_size(nr_bytes)}")
        self.owner = Owner("the guest's RAM and its QEMU")
        self.nr_bytes = nr_bytes
        low = min(nr_bytes, PCI_HOLE)
        self.parts = [Part(0, 0, low)]
        if nr_bytes > low:
            self.parts.append(Part(HIGH, low, nr_bytes - low))
        self.fd = os.memfd_create("pagehint-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close = weakref.finalize(self, os.close, self.fd)
        self._close.atexit = False  # at exit hosts are closed first
        os.ftruncate(self.fd, nr_bytes)
        # The size of the file is fixed: accesses beyond its end would kill whichever process makes them.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.driver_memory = mmap.mmap(self.fd, FREE - DRIVER, offset=DRIVER)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the guest's RAM that the host has memory for. O(1)."""
        return os.fstat(self.fd).st_blocks * 512

    def has(self, address: int, nr_bytes: int) -> bool:
        """Whether a range of guest-physical addresses is RAM, in one piece."""
        return any(part.address <= address <= part.address + part.nr_bytes - nr_bytes for part in self.parts)

    def is_dropped(self, address: int, nr_bytes: int) -> bool:
        """Whether the host has no memory for a range of guest-physical addresses, that is, it is a hole of the file."""
        offset = self._offset(address)
        return self._next_data(offset) >= offset + nr_bytes

    @staticmethod
    def _offset(address: int) -> int:
        return address - HIGH + PCI_HOLE if address >= HIGH else address

    def _next_data(self, offset: int) -> int:
        """Return where the file has memory, from an offset on; its end, if nowhere."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from there to the end
                return self.nr_bytes
            raise

    def are_dropped(self, ranges: Iterable[tuple[int, int]]) -> list[bool]:
        """Return `is_dropped` of ranges of guest-physical addresses, in ascending order, as (address, bytes).

        One system call for each piece of data, and not for each range in a hole. The file itself is asked, and neither
        this process's mapping of it nor QEMU's: who reads through another one makes it resident, too, and memory that
        is swapped out is still the host's.
        """
        answers, asked, data = [], 0, 0
        for address, nr_bytes in ranges:
            offset = self._offset(address)
            if not asked <= offset <= data:
                asked, data = offset, self._next_data(offset)
            answers.append(data >= offset + nr_bytes)
        return answers

    def close(self) -> None:
        """Close the file; its mappings keep it. Nothing happens the second time."""
        self._close()
        self.fd = -1  # the number may soon be another file's
