"""What tests of a process's memory ask in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import pagehint as ph

MIB = 1 << 20
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)


def kernel_figure() -> int:
    """The process's anonymous memory, read here and not by pagehint."""
    [line] = [
        line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Anonymous:")
    ]
    return int(line.split()[1]) << 10


def sound() -> ph.memory.Owners:
    """Owners, whose sum is within 2 % of the kernel's figure just before and after, and exactly their own."""
    before = kernel_figure()
    found = ph.memory.owners()
    after = kernel_figure()
    total = sum(owner.in_use + owner.kept for owner in found.owners.values())
    assert total == found.anonymous_rss, found
    assert min(before, after) * 0.98 <= total <= max(before, after) * 1.02, (before, total, after)
    assert all(min(owner.in_use, owner.kept, owner.returned) >= 0 for owner in found.owners.values()), found
    return found


def near(figure: float, wanted: float, share: float = 0.02, spare: int = MIB) -> None:
    """A figure is what was wanted, within a share, and a MiB of what the tests' own work takes."""
    assert abs(figure - wanted) <= abs(wanted) * share + spare, (figure / MIB, wanted / MIB)


@contextlib.contextmanager
def growing(owner: str, in_use: int, kept: int | None = 0, spare: int = MIB, unknown: int = MIB) -> Iterator[None]:
    """What one owner has in use and kept grows by so much in a block, and nobody's memory by nothing.

    With `kept` None it may have been taken out of what was kept.
    """
    sound()  # what it imports and keeps itself
    before = sound().owners
    yield
    found = sound()
    after, was = found.owners[owner], before.get(owner, ph.memory.Owner(0, 0, 0))
    try:
        near(after.in_use - was.in_use, in_use, spare=spare)
        if kept is not None:
            near(after.kept - was.kept, kept, spare=spare)
        if owner != "unknown":
            near(found.owners["unknown"].in_use - before["unknown"].in_use, 0, spare=unknown)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{found}") from None


def malloced(nr_bytes: int, size: int) -> list[int]:
    """Requests of `size` bytes of malloc, each written to."""
    made = []
    for _ in range(nr_bytes // size):
        address = libc.malloc(size)
        ctypes.memset(address, 7, size)
        made.append(address)
    return made


def free(addresses: list[int]) -> None:
    for address in addresses:
        libc.free(address)


def touched_mapping(nr_bytes: int) -> mmap.mmap:
    """A mapping that is nobody's."""
    mapping = mmap.mmap(-1, nr_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(mapping, np.uint8)[:] = 1
    return mapping


def released() -> ph.memory.Released:
    """A release that brings what it says, within 5 %, by the kernel's figure.

    That may show more, as allocators give back by themselves, too: jemalloc ten seconds after a free, mimalloc sooner.
    """
    sound()
    before = kernel_figure()
    found = ph.memory.release()
    gone = before - kernel_figure()
    if not found.total < gone < found.total * 1.25 + 8 * MIB:
        near(gone, found.total, 0.05, 512 << 10)
    assert found.total == sum(found.returned.values())
    return found
