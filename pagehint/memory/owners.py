"""Who holds this process's memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from pagehint.memory.address_space import AddressSpace
from pagehint.memory.owners_of.kinds import FINDERS
from pagehint.memory.part import Part
from pagehint.memory.table import as_html, as_text
from pagehint.sizes import format_size

UNKNOWN: Final = "unknown"


@dataclass(frozen=True)
class Owner:
    """What one owner holds.

    Attributes
    ----------
    in_use : int
        Resident bytes that its callers have.
    kept : int
        Resident bytes that are free: it keeps them for the next request. Also what lies beside memory in use, and
        cannot go back alone.
    returned : int
        Bytes that are not resident and were: given back so far by arenas, twice if they went twice; of others what they
        have free, and the kernel has. It is in no sum. 0 where nobody counts it.
    note : str
        What this owner cannot say; else empty.
    """

    in_use: int
    kept: int
    returned: int
    note: str = ""


@dataclass(frozen=True, repr=False)
class Owners:
    """What `pagehint.memory.owners` found. It is shown as a table, the largest owner first.

    Attributes
    ----------
    owners : mapping of str to Owner
        By their names; "unknown" is what is nobody's.
    anonymous_rss : int
        Bytes of anonymous memory that the kernel counts; `in_use` and `kept` of all owners come to this.
    """

    owners: Mapping[str, Owner]
    anonymous_rss: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, in bytes: {"owners": {name: {"in_use", "kept", "returned"}}, "anonymous_rss"}."""
        figures = {
            name: {"in_use": owner.in_use, "kept": owner.kept, "returned": owner.returned}
            for name, owner in self.owners.items()
        }
        return {"owners": figures, "anonymous_rss": self.anonymous_rss}

    def to_json(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def _table(self) -> tuple[list[str], list[list[str]], list[str]]:
        rows = [
            [name, *map(format_size, (owner.in_use, owner.kept, owner.returned))]
            for name, owner in sorted(self.owners.items(), key=lambda item: -item[1].in_use - item[1].kept)
            if owner.in_use or owner.kept or owner.returned or not owner.note  # with none of them the note says it
        ]
        in_use = sum(owner.in_use for owner in self.owners.values())
        kept = sum(owner.kept for owner in self.owners.values())
        rows.append([f"all: {format_size(self.anonymous_rss)}", format_size(in_use), format_size(kept), ""])
        notes = [f"{name}: {owner.note}" for name, owner in self.owners.items() if owner.note]
        return ["", "in use", "kept", "returned"], rows, notes

    def __repr__(self) -> str:
        return as_text(*self._table())

    def _repr_html_(self) -> str:
        return as_html(*self._table())


def owners() -> Owners:
    """Return who holds how much of this process's memory: in use, and kept for later.

    Returns
    -------
    Owners
        A table; `Owners.to_dict` has it as figures.

    Raises
    ------
    PageHintError
        If /proc/self/smaps cannot be read, which says what memory this process has.

    Notes
    -----
    Bytes are those that are resident. They go to the owner at whose addresses they are; to jemalloc, which does not say
    where it has memory, as many as it counts, of what is nobody's. What then is left is "unknown", so that the sum is
    the kernel's figure. If owners that only count say more than is left, each gets its share of that.

    The figures are of a moment: other threads go on, and what they map or free meanwhile is in the wrong row, or in
    unknown. Nothing is imported for it: PyArrow is asked if the program has imported it, by some buffers that are freed
    at once.

    O(mappings + resident pages): up to a quarter of a second a GiB, and a tenth for the libraries of a large program.
    """
    space = AddressSpace()
    parts: list[Part] = []
    refused = ""
    for find in FINDERS:
        try:
            parts += find(space)
        except OSError as error:
            refused = f"the kernel refuses to look at this process's memory, so owners are missing: {error}"
    return _settled(space, parts, refused)


def _settled(space: AddressSpace, parts: list[Part], note: str) -> Owners:
    """Return what each owner has of what is resident."""
    claimed = space.resident()
    resident = [0 if part.claim is None else claimed[part.claim] for part in parts]
    left = space.anonymous - sum(resident)
    wanted = [max(part.at_least - here, 0) for part, here in zip(parts, resident, strict=True)]
    share = min(left, sum(wanted))
    found: dict[str, Owner] = {}
    for part, here, more in zip(parts, resident, wanted, strict=True):
        granted = more * share // max(sum(wanted), 1)
        left -= granted
        in_use, kept, returned = part.divided(here + granted)
        so_far = found.get(part.owner, Owner(0, 0, 0))
        notes = [text for text in dict.fromkeys((so_far.note, part.note)) if text]
        found[part.owner] = Owner(
            so_far.in_use + in_use, so_far.kept + kept, so_far.returned + returned, "; ".join(notes)
        )
    found[UNKNOWN] = Owner(left, 0, 0, note)
    return Owners(MappingProxyType(found), space.anonymous)
