"""The kinds of owners, in the order in which they claim: first those who know their addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from pagehint.memory.address_space import AddressSpace
from pagehint.memory.owners_of import (
    arenas,
    arrow,
    c_heap,
    jemalloc,
    libraries,
    mimalloc,
    numpy_cache,
    python_objects,
    stacks,
)
from pagehint.memory.part import Part

FINDERS: Final[tuple[Callable[[AddressSpace], Iterator[Part]], ...]] = (
    arenas.find,
    libraries.find,
    stacks.find,
    c_heap.find_heaps,
    python_objects.find,
    c_heap.find_mapped,
    numpy_cache.find,
    mimalloc.find,
    arrow.find,
    jemalloc.find,
)


def releases() -> dict[str, Callable[[], None]]:
    """Return how each owner of this process that can gives back, by its name, in an order in which all come to it.

    The C heap is last: others may free into it.
    """
    space = AddressSpace()
    found: dict[str, Callable[[], None]] = {}
    for backend in arrow.pools():
        found[arrow.name_of(backend)] = partial(arrow.release, backend)
    for each in jemalloc.jemallocs(space):
        found[each.name] = each.release
    if mimalloc.is_there(space):
        found[mimalloc.NAME] = partial(mimalloc.release, space)
    if arenas.are_there():
        found[arenas.NAME] = arenas.release
    found[c_heap.NAME] = c_heap.release
    return found
