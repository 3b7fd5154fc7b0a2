"""Arenas of this process, for NumPy's arrays and others."""

from __future__ import annotations

from collections.abc import Iterator

from pagehint.arena.arena import Arena, living
from pagehint.errors import ArenaClosedError, PageHintError
from pagehint.memory.address_space import AddressSpace
from pagehint.memory.part import Part

NAME = "arenas"


def find(space: AddressSpace) -> Iterator[Part]:
    """Find each arena by its addresses. One whose object has gone is in use as long as its arrays live."""
    for mapping, arena in living():
        claim = space.claim([(mapping.address, mapping.address + mapping.open_bytes)])
        try:
            status = arena.status() if arena is not None else None
        except ArenaClosedError:
            status = None
        if status is None:
            yield Part(NAME, claim, returned=mapping.given_back_bytes)
        else:
            note = "what is in memory is estimated: the kernel does not say it" if status.estimated else ""
            kept = status.warm_bytes + status.fragmented_bytes
            yield Part(NAME, claim, kept=kept, returned=status.given_back, note=note)


def are_there() -> bool:
    """Whether there is any."""
    return bool(living())


def release() -> None:
    """Give back all that is free in them: `Arena.trim`. All are tried before the first error is raised."""
    errors = [error for _, arena in living() if arena is not None and (error := _trim(arena))]
    if errors:
        raise errors[0]


def _trim(arena: Arena) -> PageHintError | None:
    try:
        arena.trim()
    except ArenaClosedError:
        pass  # it has nothing
    except PageHintError as error:
        return error
    return None
