"""When each granule of a recording was entirely free: all of what a policy decides about that no policy changes.

Begin with `table.py`, then `find.pyx`, the one pass that makes it. Uses `pagehint/traces/operations.py`.
"""

from pagehint.traces.intervals.table import INTERVAL_DTYPE, OPEN, Intervals, granule_intervals

__all__ = ["INTERVAL_DTYPE", "OPEN", "Intervals", "granule_intervals"]
