"""NumPy's arrays in an arena."""

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
        Bytes that were cleared for arrays of zeros.
    """

    arena: int
    heap: int
    full: int
    cleared: int
