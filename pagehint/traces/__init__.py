"""Recordings of a kernel's page allocator, read from what tracers write into one table, and kept as Parquet.

Begin with `events.py`, which says what a row is, and `table.py`. Uses `pagehint/errors.py` only.
"""

from pagehint.traces.events import EVENT_DTYPE, NO_CPU, NO_ORDER, NO_PFN, NO_PID, NO_TYPE, Event, Flag
from pagehint.traces.table import Reading, Trace

__all__ = [
    "EVENT_DTYPE",
    "NO_CPU",
    "NO_ORDER",
    "NO_PFN",
    "NO_PID",
    "NO_TYPE",
    "Event",
    "Flag",
    "Reading",
    "Trace",
]
