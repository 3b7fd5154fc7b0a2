"""jemalloc, where it has taken malloc's place or came with a library that exports its control function."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, Final

from pagehint.memory.address_space import AddressSpace
from pagehint.memory.exported import exported
from pagehint.memory.part import Part

_CONTROLS: Final = ("mallctl", "je_mallctl", "_rjem_mallctl", "jemalloc_mallctl")
_ALL: Final = 4096  # MALLCTL_ARENAS_ALL


class Jemalloc:
    """One jemalloc of those in this process.

    Parameters
    ----------
    address : int
        Where its mallctl is.
    symbol : str
        What that is called.
    """

    def __init__(self, address: int, symbol: str) -> None:
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
        )
        self._control: Callable[..., Any] = prototype(address)
        prefix = symbol.removesuffix("mallctl").strip("_")
        self.name = f"jemalloc ({prefix})" if prefix else "jemalloc"

    def _do(self, what: str, *arguments: Any) -> None:
        code = self._control(what.encode(), *(arguments or (None, None, None, 0)))
        if code:
            raise OSError(code, f"{self.name} refuses {what}")

    def _figure(self, what: str) -> int:
        value, length = ctypes.c_size_t(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_size_t))
        self._do(what, ctypes.addressof(value), ctypes.addressof(length), None, 0)
        return value.value

    def part(self) -> Part:
        """Return what it counts: it does not say where."""
        try:
            epoch = ctypes.c_uint64(1)
            self._do("epoch", None, None, ctypes.addressof(epoch), ctypes.sizeof(epoch))  # count anew
            allocated, resident = self._figure("stats.allocated"), self._figure("stats.resident")
            metadata, retained = self._figure("stats.metadata"), self._figure("stats.retained")
        except OSError as error:
            return Part(self.name, note=f"no figures, it is in unknown: {error}")
        note = "as it counts: what was never touched is in use, too, as far as there is memory that is nobody else's"
        return Part(self.name, kept=resident - allocated - metadata, at_least=resident, returned=retained, note=note)

    def release(self) -> None:
        """Give back what it keeps for later requests."""
        self._do(f"arena.{_ALL}.purge")


def jemallocs(space: AddressSpace) -> list[Jemalloc]:
    """Return those whose control functions a library of this process exports."""
    return [Jemalloc(address, name) for address, name in exported(space.libraries(), _CONTROLS).items()]


def find(space: AddressSpace) -> Iterator[Part]:
    """Ask each for its figures."""
    for each in jemallocs(space):
        yield each.part()
