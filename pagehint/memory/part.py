"""What one kind of owner has found of the process's memory to be its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Memory of one owner, of which there may be several parts.

    Attributes
    ----------
    owner : str
        Whose.
    claim : int or None
        The number of the claim on the addresses where it is; None if they are not known.
    used : int or None
        Bytes in use, resident or not; None if nobody says.
    kept : int or None
        Bytes that are resident and not in use, if that is what the owner says.
    free : int or None
        Bytes that are not in use, resident or not: what is not kept of them is with the kernel.
    at_least : int
        Bytes that it says to have resident. What its claim lacks of them is taken from what nobody claims.
    returned : int
        Bytes given back, as the owner counts them.
    note : str
        What it cannot say.
    """

    owner: str
    claim: int | None = None
    used: int | None = None
    kept: int | None = None
    free: int | None = None
    at_least: int = 0
    returned: int = 0
    note: str = ""

    def divided(self, resident: int) -> tuple[int, int, int]:
        """Return what is in use, kept and returned if so many bytes are resident."""
        if self.kept is not None:
            kept = min(max(self.kept, 0), resident)
        elif self.used is not None:
            kept = max(resident - max(self.used, 0), 0)
        else:
            kept = 0
        returned = self.returned if self.free is None else max(self.free - kept, 0)
        return resident - kept, kept, returned
