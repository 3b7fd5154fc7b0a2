"""What NumPy has asked an arena for."""

from __future__ import annotations

from typing import NamedTuple


class Counts(NamedTuple):
    """What NumPy has asked an arena for; see `Arena.numpy_counts`.

    Attributes
    ----------
    arena : int
        Requests served from the arena.
    heap : int
        Requests served from the C heap: small ones, and those for which there was no room.
    full : int
        Of these, large ones for which the arena had no free run of pages, or was closed.
    cleared : int
        Bytes that were overwritten with zeros for arrays of zeros.
    spared : int
        Bytes of such arrays that were zero already: as the operating system has handed them over.
    dropped : int
        Bytes of such arrays, of 16 MiB and more, that went back to the operating system instead: it hands them over
        zeroed again when they are first written to.
    """

    arena: int = 0
    heap: int = 0
    full: int = 0
    cleared: int = 0
    spared: int = 0
    dropped: int = 0
