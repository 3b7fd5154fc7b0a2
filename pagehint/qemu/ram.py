"""The guest's RAM: a file in memory, mapped here and by QEMU, and where in the guest each part of it is."""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from pagehint.errors import HostError, OutOfMemoryError
from pagehint.qemu.guest_blocks import GuestBlocks, Places
from pagehint.qemu.guest_file import Holes
from pagehint.qemu.huge_pages import HUGE_PAGE, HUGETLB, THP, no_pool, require_transparent, shortage
from pagehint.sizes import format_size
from pagehint.virtio.owner import Owner

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

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


def _file(nr_bytes: int, hugepages: str | None) -> int:
    """Return a file in memory, of this size for good: accesses beyond its end would kill whoever makes them."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if hugepages == THP:
        require_transparent()
    if hugepages == HUGETLB:
        flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
    try:
        fd = os.memfd_create("pagehint-guest", flags)
    except OSError as error:
        if hugepages == HUGETLB:
            raise no_pool(str(error.strerror)) from None
        raise
    try:
        os.ftruncate(fd, nr_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


class GuestRam:
    """RAM of a PC with so much memory, in a memfd.

    Parameters
    ----------
    nr_bytes : int
        A multiple of 2 MiB, at least 8 MiB.
    hugepages : {"2MiB", "thp"}, optional
        In huge pages: of the machine's pool, from which all that is needed is taken now, or transparent.

    Attributes
    ----------
    owner : Owner
        The process whose guest it is.
    page_bytes : int
        The host drops such a unit as a whole, or not at all.
    hinted_pages : int
        How many of the pages that the engine has reported were hinted for a migration, and not given back.

    Raises
    ------
    HostError
        If the machine does not have such huge pages, or not so many.
    """

    def __init__(self, nr_bytes: int, hugepages: str | None = None) -> None:
        if nr_bytes % FREE or nr_bytes < 4 * FREE:
            raise ValueError(f"a guest's memory is a multiple of 2 MiB, at least 8 MiB, not {format_size(nr_bytes)}")
        self.owner = Owner("the guest's RAM and its QEMU")
        self.nr_bytes = nr_bytes
        self.hugepages = hugepages
        self.hinted_pages = 0
        self.page_bytes = HUGE_PAGE if hugepages == HUGETLB else PAGE_SIZE
        low = min(nr_bytes, PCI_HOLE)
        self.parts = [Part(0, 0, low)]
        if nr_bytes > low:
            self.parts.append(Part(HIGH, low, nr_bytes - low))
        self.fd = _file(nr_bytes, hugepages)
        self._close = weakref.finalize(self, os.close, self.fd)
        self._close.atexit = False  # at exit hosts are closed first
        if hugepages == HUGETLB:
            why = self._promise(0, nr_bytes)
            if why:
                raise HostError(shortage(nr_bytes, f"a guest of {format_size(nr_bytes)}", why))
        self._places = Places(self.parts)
        self._holes = Holes(self.fd, nr_bytes, HUGE_PAGE if hugepages == HUGETLB else 0)
        self.driver_memory = memoryview(mmap.mmap(self.fd, FREE))[DRIVER:]

    @property
    def resident_bytes(self) -> int:
        """Bytes of the guest's RAM that the host has memory for. O(1)."""
        return os.fstat(self.fd).st_blocks * 512

    def blocks(self, blocks: NDArray[np.void]) -> GuestBlocks:
        """Return where the engine's blocks are in the guest and in the file; ValueError if one is not RAM."""
        return self._places.of(blocks)

    def is_dropped(self, address: int, nr_bytes: int) -> bool:
        """Whether the host has no memory for a range of guest-physical addresses, that is, it is a hole of the file."""
        return bool(self.are_dropped([address], [nr_bytes])[0])

    def are_dropped(self, addresses: ArrayLike, lengths: ArrayLike) -> NDArray[np.bool_]:
        """Return for each range of guest-physical addresses whether the host has no memory for it: `is_dropped`.

        Parameters
        ----------
        addresses, lengths : array_like of uint64
            In bytes. Of hugetlb memory whole huge pages.
        """
        return self._holes.are(self.fd, self._offsets(addresses), lengths)

    def are_blocks_dropped(self, blocks: GuestBlocks) -> NDArray[np.bool_]:
        """Return for each of the engine's blocks whether the host has no memory for it."""
        return self._holes.are(self.fd, blocks.offsets, blocks.sizes)

    def _offsets(self, addresses: ArrayLike) -> NDArray[np.uint64]:
        """Return where in the file guest-physical addresses of RAM are."""
        places = np.asarray(addresses, np.uint64)
        return places - (places >= HIGH) * np.uint64(HIGH - PCI_HOLE)

    def reserve(self, address: int, nr_bytes: int) -> None:
        """Make sure that a range of guest-physical addresses can be touched: the pool has huge pages for it.

        What was given back went to the pool, where others may take it. A page that is then not to be had is a SIGBUS
        for whoever touches it. Nothing happens with ordinary memory.

        Raises
        ------
        OutOfMemoryError
            If the pool is short of pages.
        """
        if self.hugepages != HUGETLB:
            return
        offset = int(self._offsets(address))
        first, end = offset // HUGE_PAGE * HUGE_PAGE, -(-(offset + nr_bytes) // HUGE_PAGE) * HUGE_PAGE
        why = self._promise(first, end - first)
        if why:
            raise OutOfMemoryError(shortage(end - first, f"{nr_bytes} bytes that were given back", why))

    def _promise(self, offset: int, nr_bytes: int) -> str:
        """Have huge pages of the pool promised to a range of the file; returns why it has not so many, or nothing.

        A mapping does it, and the promise is the file's: it lives on without the mapping until a page is dropped.
        """
        try:
            mmap.mmap(self.fd, nr_bytes, offset=offset).close()
        except OSError as error:
            return str(error.strerror)
        return ""

    def close(self) -> None:
        """Close the file; its mappings keep it. Nothing happens the second time."""
        self._close()
        self.fd = -1  # the number may soon be another file's
