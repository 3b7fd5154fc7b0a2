"""A recording in memory: the table of its events, and what is known of it besides."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pagehint.traces.events import EVENT_DTYPE, Event
from pagehint.traces.formats import parquet
from pagehint.traces.reading import Reading


@dataclass(eq=False)
class Trace:
    """A recording: one row an event, and what is known besides.

    Attributes
    ----------
    events : ndarray of `EVENT_DTYPE`
        One row an event, in the order of the recording. `pagehint.traces.events` says which column means what for
        which event. It may be a memory map.
    names : dict of int to tuple of str
        The names (COMMs) that each pid had, in the order of their first appearance: a program that starts another one
        in its place has two, and a pid can be used again.
    marks : list of str
        The texts of the rows `Event.MARK`; their ``value`` is an index into it.
    metadata : dict of str to str or int
        What the file says of itself. ``"format"`` is always there: ``"ftrace"``, ``"perf"``, ``"trace-cmd"``,
        ``"bpftrace"`` or ``"llfree"``. ``"entries_written"`` and ``"entries_in_buffer"`` are from ftrace's header: if
        the first is more, the oldest events have been overwritten. ``"cpus"`` and ``"kernel"`` where they are known.
    snapshots : dict of str to bytes
        What was recorded of the memory's state beside the events: usually ``"before"`` and ``"after"``. They are kept
        with the events and not interpreted here.
    reading : Reading
        What the reader did not understand, or passed over.
    """

    events: NDArray[np.void]
    names: dict[int, tuple[str, ...]] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    metadata: dict[str, str | int] = field(default_factory=dict)
    snapshots: dict[str, bytes] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        if self.events.dtype != EVENT_DTYPE or self.events.ndim != 1:
            raise TypeError(f"events must be one-dimensional and of EVENT_DTYPE, not {self.events.dtype}")

    def __len__(self) -> int:
        return len(self.events)

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} events in {self.duration:.3f} s, {self.metadata.get('format', 'of no file')}>"

    @property
    def duration(self) -> float:
        """Seconds from the first event to the last."""
        time = self.events["time"]
        return float(time[-1] - time[0]) / 1e9 if len(time) else 0.0

    @property
    def lost(self) -> NDArray[np.void]:
        """The rows that say that events are missing before them (a copy)."""
        rows: NDArray[np.void] = self.events[self.events["event"] == Event.LOST]
        return rows

    @property
    def counts(self) -> dict[Event, int]:
        """How many rows there are of each event that occurs."""
        counts = np.bincount(self.events["event"], minlength=max(Event) + 1)
        return {event: int(counts[event]) for event in Event if counts[event]}

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write it to a Parquet file, from which `pagehint.traces.read` makes an equal one.

        Parameters
        ----------
        path : path-like
            What is there is replaced when the new file is whole.

        Raises
        ------
        PageHintError
            Without pyarrow; it names the extra.
        OSError
            From the disk. What was there is left alone then.

        Notes
        -----
        Linear in the number of events, at several million a second and under a byte each.
        """
        parquet.write(path, self, [self.events])
