"""What a block of code left behind, and with whom."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self

from pagehint.errors import PageHintError
from pagehint.memory.owners import UNKNOWN, Owner, Owners, owners
from pagehint.memory.table import as_html, as_text, signed
from pagehint.sizes import format_size

_NOTHING = Owner(0, 0, 0)


class Watch:
    """What `pagehint.memory.watch` returns: owners before and after a block. It is shown as a table.

    Attributes
    ----------
    before, after : Owners or None
        What was found when the block began, and when it ended.
    """

    def __init__(self) -> None:
        self.before: Owners | None = None
        self.after: Owners | None = None

    def __enter__(self) -> Self:
        self.after = None
        self.before = owners()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.after = owners()

    def _both(self) -> tuple[Owners, Owners]:
        if self.before is None or self.after is None:
            raise PageHintError("what a block has left behind is known when it has ended")
        return self.before, self.after

    def _names(self) -> list[str]:
        """Return all owners, the one that has grown most first."""
        before, after = self._both()
        names = dict.fromkeys((*before.owners, *after.owners))
        return sorted(names, key=lambda name: -sum(self._changes(name)))

    def _changes(self, name: str) -> tuple[int, int]:
        before, after = (found.owners.get(name, _NOTHING) for found in self._both())
        return after.in_use - before.in_use, after.kept - before.kept

    def to_dict(self) -> dict[str, Any]:
        """Return what was left behind, in bytes: {"owners": {name: {"in_use", "kept"}}, "anonymous_rss"}.

        Raises
        ------
        PageHintError
            If the block has not ended.
        """
        before, after = self._both()
        changes = {name: self._changes(name) for name in self._names()}
        return {
            "owners": {name: {"in_use": in_use, "kept": kept} for name, (in_use, kept) in changes.items()},
            "anonymous_rss": after.anonymous_rss - before.anonymous_rss,
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def _table(self) -> tuple[list[str], list[list[str]], list[str]]:
        before, after = self._both()
        rows = []
        for name in self._names():
            was, now = before.owners.get(name, _NOTHING), after.owners.get(name, _NOTHING)
            if was.in_use or was.kept or now.in_use or now.kept or name == UNKNOWN:
                sizes = map(format_size, (was.in_use, now.in_use, was.kept, now.kept))
                rows.append([name, *sizes, signed(sum(self._changes(name)))])
        difference = signed(after.anonymous_rss - before.anonymous_rss)
        notes = [f"{name}: {owner.note}" for name, owner in after.owners.items() if owner.note]
        return (
            ["", "in use before", "after", "kept before", "after", "left behind"],
            [*rows, ["all", "", "", "", "", difference]],
            notes,
        )

    def __repr__(self) -> str:
        if self.before is None or self.after is None:
            return "<Watch, its block has not ended>"
        return as_text(*self._table())

    def _repr_html_(self) -> str:
        if self.before is None or self.after is None:
            return "<div>its block has not ended</div>"
        return as_html(*self._table())


def watch() -> Watch:
    """Return a context manager that tells what a block of code left behind, and with whom.

    ::

        with ph.memory.watch() as left:
            frame = load()
            del frame
        print(left)

    Returns
    -------
    Watch
        A table, after the block: for each owner what was in use and kept before and after, and the difference.

    Raises
    ------
    PageHintError
        When it is entered or left, if /proc/self/smaps cannot be read.

    Notes
    -----
    What other threads did meanwhile is in it. O(mappings + resident pages), twice.
    """
    return Watch()
