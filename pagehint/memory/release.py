"""Have every owner give back what it keeps, and measure what came back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pagehint.memory.owners_of.kinds import releases
from pagehint.memory.table import as_html, as_text
from pagehint.memory.vmas import anonymous_rss
from pagehint.sizes import format_size


@dataclass(frozen=True, repr=False)
class Released:
    """What `pagehint.memory.release` has brought. It is shown as a table.

    Attributes
    ----------
    returned : mapping of str to int
        By owner, by how many bytes this process's anonymous memory shrank while it gave back. Less than 0 if others
        took more meanwhile.
    errors : mapping of str to str
        By owner, why it could not give back, or not all.
    """

    returned: Mapping[str, int]
    errors: Mapping[str, str]

    @property
    def total(self) -> int:
        """Bytes that came back in all."""
        return sum(self.returned.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, in bytes, and the errors: {"returned": {name: bytes}, "errors": {name: text}}."""
        return {"returned": dict(self.returned), "errors": dict(self.errors)}

    def to_json(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def _table(self) -> tuple[list[str], list[list[str]], list[str]]:
        rows = [[name, format_size(nr_bytes)] for name, nr_bytes in self.returned.items()]
        rows.append(["all", format_size(self.total)])
        return ["", "returned"], rows, [f"{name}: {error}" for name, error in self.errors.items()]

    def __repr__(self) -> str:
        return as_text(*self._table())

    def _repr_html_(self) -> str:
        return as_html(*self._table())


def release() -> Released:
    """Have every owner of this process's memory give back what it keeps.

    That are PyArrow's pools (`release_unused`), jemalloc (purge), mimalloc (collect), arenas (`Arena.trim`), and the C
    heap (malloc_trim), one after the other.

    Returns
    -------
    Released
        What came back, by owner, measured: the process's anonymous memory before and after each. What other threads
        take or free meanwhile is in it. An owner that fails is named there with its error, and the others go on.

    Raises
    ------
    PageHintError
        If /proc/self/smaps cannot be read, before anything is given back.

    Notes
    -----
    What was returned is faulted in again, zeroed, when it is wanted again. Objects that nobody can reach, but the
    garbage collector has not found, are in use: `gc.collect` first.
    """
    returned, errors = {}, {}
    ways = releases()
    anonymous_rss()  # what it takes the first time is in no figure
    for name, give_back in ways.items():
        before = anonymous_rss()
        try:
            give_back()
        except Exception as error:  # whatever a library raises, the others go on
            errors[name] = str(error) or type(error).__name__
        returned[name] = before - anonymous_rss()
    return Released(MappingProxyType(returned), MappingProxyType(errors))
