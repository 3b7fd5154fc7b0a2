"""A recording as a folder: the trace, and the state of the memory before and after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pagehint.errors import TraceError
from pagehint.traces.files import read
from pagehint.traces.snapshots.files import read_snapshot, snapshot_of
from pagehint.traces.snapshots.snapshot import Snapshot
from pagehint.traces.table import Trace
from pagehint.traces.views.settling import settled
from pagehint.traces.views.view import AFTER_MARK, BEFORE_MARK

_NAMES = ("trace.parquet", "trace.txt.gz", "trace.txt.xz", "trace.txt.zst", "trace.txt", "trace.dat")


class RecordingFiles(NamedTuple):
    """Where the parts of a recording are; None where one is missing."""

    trace: Path
    before: Path | None = None
    after: Path | None = None


def recording_files(path: str | os.PathLike[str]) -> RecordingFiles:
    """Return where the parts of a recording are.

    Parameters
    ----------
    path : path
        A folder with the trace and, each if there is one, the folders ``before`` and ``after``, as `record` leaves it.
        Or a trace alone.

    Raises
    ------
    TraceError
        If the folder has no trace.
    """
    place = Path(path)
    if not place.is_dir():
        return RecordingFiles(place)
    traces = [place / name for name in _NAMES if (place / name).exists()]
    if not traces:
        raise TraceError(
            f"{place}: no trace in this folder; it would be named {', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
        )
    before, after = (each if each.is_dir() else None for each in (place / "before", place / "after"))
    return RecordingFiles(traces[0], before, after)


class Known(NamedTuple):
    """A recording and, as far as they are known, the memory's states at its beginning and end."""

    trace: Trace
    before: Snapshot | None = None
    after: Snapshot | None = None


def read_recording(
    path: str | os.PathLike[str],
    before: str | os.PathLike[str] | None = None,
    after: str | os.PathLike[str] | None = None,
) -> Known:
    """Read a recording with its states. Those that were read while events were recorded are made those of one moment.

    Parameters
    ----------
    path : path
        A folder, or a trace alone: `recording_files`.
    before, after : path, optional
        Where the states are, if not in the folder, or in the Parquet file of the trace: `read_snapshot`.

    Raises
    ------
    TraceError, SnapshotError, OSError
        As `read` and `read_snapshot`.
    """
    files = recording_files(path)
    trace = read(files.trace)
    return Known(
        trace,
        _state(trace, files.trace, before or files.before, "before", BEFORE_MARK),
        _state(trace, files.trace, after or files.after, "after", AFTER_MARK),
    )


def _state(trace: Trace, path: Path, place: str | os.PathLike[str] | None, name: str, mark: str) -> Snapshot | None:
    """Return a state from its place, or else from the trace's own file, as of its mark; None if it is in neither."""
    if place is not None:
        return settled(trace, read_snapshot(place), mark)
    if name in trace.snapshots:
        return settled(trace, snapshot_of(trace.snapshots[name], f"{path}, {name}"), mark)
    return None
