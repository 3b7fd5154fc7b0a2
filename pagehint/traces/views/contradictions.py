"""What an event can say that the events before it exclude, by cause. `contradictions.pxd` has the same numbers."""

from __future__ import annotations

from enum import IntEnum


class Cause(IntEnum):
    """Why an event contradicts those before it; `label` is its name in tables and in JSON."""

    OUTSIDE = 0
    """A page of the block is in no zone, or in a hole, or beyond what a recording without a snapshot may have."""
    NOT_A_BLOCK = 1
    """The order is out of range, or the PFN is no multiple of the block's size."""
    RESERVED = 2
    """Memory that the snapshot calls reserved is taken or allocated."""
    TAKE_NOT_FREE = 3
    """A block is taken off the free lists, and was not on them."""
    TAKE_REPORTING = 4
    """A block is taken off the free lists while it was out for a report."""
    GIVE_FREE = 5
    """Pages are put on the free lists, and were on them."""
    GIVE_IN_USE = 6
    """Pages are put on the free lists, and had not been freed."""
    ALLOC_FREE = 7
    """A block is handed out, and nothing has said that it left the free lists."""
    ALLOC_IN_USE = 8
    """A block is handed out, and somebody has it."""
    FREE_FREE = 9
    """A block is freed, and had never left the free lists."""
    FREE_TWICE = 10
    """A block is freed, and had not been allocated since it was last freed or taken."""
    ISOLATE_NOT_FREE = 11
    """A block is isolated, and was not free."""
    ISOLATE_HALF = 12
    """An isolation that never ends, or that never began."""
    PUTBACK_NOT_OUT = 13
    """A block is put back, and had not been isolated."""
    ORDER_MISMATCH = 14
    """A block comes with another order than it went with, and is no part of what went."""

    @property
    def label(self) -> str:
        """In a few words."""
        return LABELS[self]


LABELS = {
    Cause.OUTSIDE: "outside every zone",
    Cause.NOT_A_BLOCK: "no block",
    Cause.RESERVED: "use of reserved memory",
    Cause.TAKE_NOT_FREE: "take of what is not free",
    Cause.TAKE_REPORTING: "take of what is out for a report",
    Cause.GIVE_FREE: "give of what is free",
    Cause.GIVE_IN_USE: "give of what is in use",
    Cause.ALLOC_FREE: "alloc of what never left",
    Cause.ALLOC_IN_USE: "alloc of what is in use",
    Cause.FREE_FREE: "free of what never left",
    Cause.FREE_TWICE: "double free",
    Cause.ISOLATE_NOT_FREE: "isolate of what is not free",
    Cause.ISOLATE_HALF: "half an isolation",
    Cause.PUTBACK_NOT_OUT: "put back of what is not out",
    Cause.ORDER_MISMATCH: "order mismatch",
}

MOST_EXAMPLES = 5
"""How many contradictions of each cause are kept."""
