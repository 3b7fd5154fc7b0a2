"""Recordings of a kernel's page allocator, read from what tracers write into one table, and kept as Parquet.

Begin with `events.py`, which says what a row is, and `table.py`; then `files.py`, which knows the readers: each is a
`Source` (`source.py`). What is hot is compiled: `text.pyx`, `trace_cmd.pyx`. Uses `pagehint/errors.py`,
`pagehint/extras.py` and `sync`. Parquet, and what zstd has compressed, need pyarrow: the extra "traces".
"""

from pagehint.errors import TraceError
from pagehint.traces.events import EVENT_DTYPE, NO_CPU, NO_ORDER, NO_PFN, NO_PID, NO_TYPE, Event, Flag
from pagehint.traces.files import convert, open_source, read
from pagehint.traces.reading import Reading
from pagehint.traces.series import SERIES_DTYPE, read_series
from pagehint.traces.table import Trace

__all__ = [
    "EVENT_DTYPE",
    "NO_CPU",
    "NO_ORDER",
    "NO_PFN",
    "NO_PID",
    "NO_TYPE",
    "SERIES_DTYPE",
    "Event",
    "Flag",
    "Reading",
    "Trace",
    "TraceError",
    "convert",
    "open_source",
    "read",
    "read_series",
]
