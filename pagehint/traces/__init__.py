"""Recordings of a kernel's page allocator, and snapshots of its state: what happened to which page, and when.

Begin with `events.py`, which says what a row of a recording is, and `table.py`; then `files.py`, which knows the
readers of `formats/`. `snapshots/` has the memory's state at one moment. From both, `views/` makes
`operations.py`: what happened to the free lists. What is hot is compiled. Uses `errors`, `layout`, `extras.py`, `sync`,
and `MachineState` of `allocator/`. Parquet, and what zstd has compressed, need pyarrow: the extra "traces".
"""

from pagehint.errors import TraceError
from pagehint.traces.events import EVENT_DTYPE, NO_CPU, NO_ORDER, NO_PFN, NO_PID, NO_TYPE, Event, Flag
from pagehint.traces.files import convert, open_source, read
from pagehint.traces.folder import read_recording
from pagehint.traces.formats.series import SERIES_DTYPE, read_series
from pagehint.traces.operations import OPERATION_DTYPE, Contradiction, Operation, OperationFlag, Operations, Reports
from pagehint.traces.reading import Reading
from pagehint.traces.snapshots.check import check_snapshot
from pagehint.traces.snapshots.files import live_snapshot, read_snapshot, write_snapshot
from pagehint.traces.snapshots.snapshot import Snapshot
from pagehint.traces.table import Trace
from pagehint.traces.views.checking import Check, ViewCheck, check
from pagehint.traces.views.view import operations_of

__all__ = [
    "EVENT_DTYPE",
    "NO_CPU",
    "NO_ORDER",
    "NO_PFN",
    "NO_PID",
    "NO_TYPE",
    "OPERATION_DTYPE",
    "SERIES_DTYPE",
    "Check",
    "Contradiction",
    "Event",
    "Flag",
    "Operation",
    "OperationFlag",
    "Operations",
    "Reading",
    "Reports",
    "Snapshot",
    "Trace",
    "TraceError",
    "ViewCheck",
    "check",
    "check_snapshot",
    "convert",
    "live_snapshot",
    "open_source",
    "operations_of",
    "read",
    "read_recording",
    "read_series",
    "read_snapshot",
    "write_snapshot",
]
