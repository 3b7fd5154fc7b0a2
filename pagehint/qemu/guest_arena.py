"""The RAM of a guest as an arena, whose host is QEMU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, SupportsIndex

from pagehint._core import PageHintingCallbacks
from pagehint.arena.base import HUGE_PAGE, BaseArena
from pagehint.arena.mapping import Mapping
from pagehint.errors import HostError, PageHintError
from pagehint.layout import ZoneSpec
from pagehint.qemu.guest_file import ask_for_huge_pages
from pagehint.qemu.huge_pages import THP
from pagehint.qemu.ram import FREE, PAGE_SIZE, GuestRam, Part

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray


class GuestArena(BaseArena):
    """The RAM of a guest as an arena: page frame numbers are the guest's, and what is free goes back to its host.

    Made by `Host.arena`. Two things are different from an `Arena`. QEMU drops a block at once when it is reported, so
    there is no advice "free". And a forked child shares the memory with its parent: it can make no arrays, and NumPy's
    own arrays cannot live here.

    Attributes
    ----------
    pages : PageAllocator
        Zone "DMA32" from 2 MiB to the hole for devices, at 3 GiB; zone "Normal" from 4 GiB, where there is so much.
    """

    _place = "RAM of this guest"
    _max_batch = 32

    def __init__(self, ram: GuestRam, callbacks: Callable[[int], PageHintingCallbacks]) -> None:
        self._ram = ram
        self._callbacks_of_host = weakref.WeakMethod(callbacks)  # the arena does not keep its host
        end = ram.parts[-1].address + ram.parts[-1].nr_bytes
        parts = [Part(FREE, FREE, ram.parts[0].nr_bytes - FREE), *ram.parts[1:]]
        zones = [
            ZoneSpec(name, part.address // PAGE_SIZE, (pages := part.nr_bytes // PAGE_SIZE), span_limit=pages)
            for name, part in zip(("DMA32", "Normal"), parts, strict=False)
        ]
        super().__init__(Mapping(end, HUGE_PAGE, False, ram.fd, ram.parts), zones)
        self.hugepages = ram.hugepages is not None
        if ram.hugepages == THP:
            for part in ram.parts:
                ask_for_huge_pages(self._mapping.address + part.address, part.nr_bytes)

    def empty(
        self, shape: SupportsIndex | Iterable[SupportsIndex], dtype: DTypeLike = float, order: Literal["C", "F"] = "C"
    ) -> NDArray[Any]:
        """Return a new array in the guest's RAM: see `BaseArena.empty`.

        Raises
        ------
        OutOfMemoryError
            Also if the RAM is in huge pages of the machine's pool, and the pool is short of them.
        """
        array = super().empty(shape, dtype, order)
        self._ram.reserve(array.ctypes.data - self._mapping.address, max(array.nbytes, 1))
        return array

    @property
    def resident_bytes(self) -> int:
        """Bytes of the guest's RAM that the host has memory for. O(1) as long as the host is open."""
        self._require_open()
        return super().resident_bytes if self._ram.fd < 0 else self._ram.resident_bytes

    def trim(self) -> int:
        """Give everything that is free back to the host, now, whether hinting is on or off: see `BaseArena.trim`."""
        before = self.resident_bytes
        super().trim()
        return max(before - self.resident_bytes, 0)

    def _given_back_bytes(self) -> int:
        stats = self.pages.stats()
        return (stats.pages_reported - self._ram.hinted_pages) * stats.page_size

    def numpy(self) -> NoReturn:
        """Raise PageHintError: a forked child would share NumPy's arrays with its parent."""
        self._numpy_heap()

    def _numpy_heap(self) -> NoReturn:
        raise PageHintError("NumPy's arrays cannot live in a guest's RAM: a forked child would share them")

    def _callbacks(self, advice: str, max_pages: int) -> PageHintingCallbacks:
        if advice != "dontneed":
            raise ValueError(f"advice {advice!r} is for memory of this process: QEMU drops what is reported at once")
        callbacks = self._callbacks_of_host()
        if callbacks is None:
            raise HostError("the host of this arena is gone")
        return callbacks(max_pages)

    def _is_dropped(self, blocks: NDArray[np.void]) -> NDArray[np.bool_] | None:
        if self._ram.fd < 0:  # the host is closed
            return None
        return self._ram.are_blocks_dropped(self._ram.blocks(blocks))

    def _require_usable(self) -> None:
        self._ram.owner.require()
        super()._require_usable()
