"""PyArrow's pools, if the program has imported it.

Where a pool has its memory it does not say. But it says where a buffer is, and what a mapping with a buffer of the pool
has, and nobody else has claimed, is the pool's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

from pagehint.memory.address_space import AddressSpace
from pagehint.memory.part import Part

_PROBES: Final = tuple(1 << shift for shift in range(6, 25))  # bytes: sizes have places of their own


def name_of(backend: str) -> str:
    """Return the name of the owner with this backend."""
    return f"Arrow {backend}"


def pools() -> dict[str, Any]:
    """Return the pools that were used, by their backends."""
    arrow = sys.modules.get("pyarrow")
    default = getattr(arrow, "default_memory_pool", None)  # not there as long as it is being imported
    if default is None:
        return {}
    used = {pool.backend_name: pool for pool in (default(),)}
    for backend in arrow.supported_memory_backends():  # type: ignore[union-attr]
        pool = getattr(arrow, f"{backend}_memory_pool")()
        if pool.bytes_allocated() or (pool.max_memory() or 0) > 0:
            used.setdefault(backend, pool)
    return used


def find(space: AddressSpace) -> Iterator[Part]:
    """Find the mappings of each pool."""
    for backend, pool in pools().items():
        allocated = pool.bytes_allocated()
        if backend == "system":
            yield Part(name_of(backend), note=f"its {allocated} bytes are malloc's: counted there")
            continue
        vmas = {vma for address in _probe(pool) if (vma := space.vma_at(address)) is not None}
        claim = space.claim((vma.start, vma.end) for vma in vmas)
        if backend == "jemalloc":  # its mappings are many, and some may have no buffer of these sizes
            note = "it does not say where it has memory: some of what it keeps may be in unknown"
            yield Part(name_of(backend), claim, used=allocated, at_least=allocated, note=note)
        else:
            yield Part(name_of(backend), claim, used=allocated)


def _probe(pool: Any) -> list[int]:
    """Return where the pool has buffers of several sizes, which are not touched and freed at once."""
    allocate = sys.modules["pyarrow"].allocate_buffer
    return [buffer.address for buffer in [allocate(size, memory_pool=pool) for size in _PROBES]]


def release(backend: str) -> None:
    """Give back what a pool keeps."""
    pools()[backend].release_unused()
