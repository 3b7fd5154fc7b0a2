"""What every reader is: pieces of the table, one after the other, and at the end what is known besides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pagehint.errors import TraceError
from pagehint.traces.events import EVENT_DTYPE, NO_CPU, NO_ORDER, NO_PFN, NO_PID, NO_TYPE, Event
from pagehint.traces.reading import Reading
from pagehint.traces.table import Trace

PIECE_ROWS = 1 << 16
"""Rows of a piece: 2 MiB."""

_EXAMPLES, _EXAMPLE_BYTES = 5, 160
_MOST_NAMES = 1000  # of events that are no rows; a kernel has two thousand


def text_of(raw: bytes) -> str:
    """Bytes that anybody may have written, as text that can be shown and stored."""
    return raw.decode(errors="backslashreplace")


class Source(ABC):
    """A recording that is being read, in pieces. What it says of itself is complete when the last piece has come.

    Attributes
    ----------
    path : Path
        Its file.
    names, marks, metadata, snapshots
        As in `Trace`.
    """

    def __init__(self, path: Path, metadata: dict[str, str | int]) -> None:
        self.path = path
        self.names: dict[int, tuple[str, ...]] = {}
        self.marks: list[str] = []
        self.metadata = metadata
        self.snapshots: dict[str, bytes] = {}
        self.lines = 0
        self.backwards = 0
        self.damage: str | None = None
        self._other_events: Counter[str] = Counter()
        self._not_understood = 0
        self._examples: list[str] = []

    @abstractmethod
    def _read(self) -> Iterator[NDArray[np.void]]:
        """As `pieces`, and none may be left."""

    def pieces(self) -> Iterator[NDArray[np.void]]:
        """Read it, once. Each piece is an array of `EVENT_DTYPE` that the caller may keep.

        Raises
        ------
        TraceError
            If there is no event.
        """
        empty = True
        for piece in self._read():
            empty = False
            yield piece
        if empty:
            reading = self.reading
            events = ", ".join(f"{count} {name}" for name, count in [*reading.other_events.items()][:5])
            met = [events, *reading.examples[:1], reading.damage or ""]
            why = "; ".join(filter(None, met)) or "it is empty"
            raise TraceError(f"{self.path} has no event of the page allocator's: {why}")

    @property
    def reading(self) -> Reading:
        """What was met that is no row."""
        return Reading(
            lines=self.lines,
            other_events=dict(self._other_events.most_common()),
            not_understood=self._not_understood,
            examples=tuple(self._examples),
            backwards=self.backwards,
            damage=self.damage,
        )

    def trace(self) -> Trace:
        """Read all of it into memory."""
        pieces = list(self.pieces())
        events = np.empty(sum(map(len, pieces)), EVENT_DTYPE)
        end = len(events)
        while pieces:  # each goes as soon as it has been copied
            piece = pieces.pop()
            events[end - len(piece) : end] = piece
            end -= len(piece)
        return Trace(events, self.names, self.marks, self.metadata, self.snapshots, self.reading)

    def name(self, pid: int, name: bytes) -> None:
        """Note that this process has this name, unless the tracer did not know it."""
        known = self.names.get(pid, ())
        text = text_of(name)
        if pid >= 0 and text not in ("<...>", f":{pid}") and text not in known:
            self.names[pid] = (*known, text)

    def mark(self, text: bytes) -> int:
        """Keep the text of a marker, and return its index."""
        self.marks.append(text_of(text).strip())
        return len(self.marks) - 1

    def count_other(self, event: bytes) -> None:
        """Count an event that is no row."""
        name = text_of(event[:_EXAMPLE_BYTES])
        if name not in self._other_events and len(self._other_events) >= _MOST_NAMES:
            name = "..."
        self._other_events[name] += 1

    def reject(self, line: bytes) -> None:
        """Count a line that is not understood, and keep the first as examples."""
        self._not_understood += 1
        if len(self._examples) < _EXAMPLES:
            more = "..." if len(line) > _EXAMPLE_BYTES else ""
            self._examples.append(f"line {self.lines}: {text_of(line[:_EXAMPLE_BYTES])}{more}")


def lost_row(time: int, cpu: int | None, count: int) -> NDArray[np.void]:
    """Return a row that says that so many events are missing, 0 for an unknown number."""
    most = np.iinfo(np.int32).max
    row = (time, NO_PFN, NO_PID, min(count, most), NO_CPU if cpu is None else min(cpu, NO_CPU), Event.LOST, 0)
    return np.array([(*row, NO_ORDER, NO_TYPE, NO_ORDER, NO_TYPE)], EVENT_DTYPE)
