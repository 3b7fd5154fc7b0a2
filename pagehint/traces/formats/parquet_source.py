"""Recordings from Parquet files that pagehint has written."""

from __future__ import annotations

import base64
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagehint.errors import TraceError
from pagehint.extras import require
from pagehint.traces.events import EVENT_DTYPE, NO_ORDER, NO_PFN, NO_PID, NO_TYPE, Event
from pagehint.traces.formats.parquet import KEY, SNAPSHOT, TYPES, VERSION
from pagehint.traces.formats.source import Source
from pagehint.traces.reading import Reading
from pagehint.traces.table import Trace

_READ_ROWS = 1 << 16
_RANGES = {
    "time": (0, (2**63 - 1) // 1000 - 1),  # microseconds, of which the nanoseconds have 63 bits
    "nanoseconds": (0, 999),
    "pid": (NO_PID, 2**31 - 1),
    "order": (NO_ORDER, 63),
    "fallback_order": (NO_ORDER, 63),
    "migratetype": (NO_TYPE, 127),
    "fallback_migratetype": (NO_TYPE, 127),
    "event": (min(Event), max(Event)),
}
"""What the other readers can have made of a column."""

PFN_BITS = np.uint64(52)

_NUMBERS = ("entries_written", "entries_in_buffer", "cpus", "max_pfn")  # of the metadata, besides texts


class ParquetSource(Source):
    """A recording as `pagehint.traces.parquet.write` has written it; see `Source`. To be used in a ``with`` block.

    Attributes
    ----------
    rows : int
        How many events there are.

    Raises
    ------
    TraceError
        If it is damaged, of another form, or of a later version. Also while it is read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, {})
        pa, pq = (require(module, f"{path}, which is Parquet,", "traces") for module in ("pyarrow", "pyarrow.parquet"))
        self._errors = (pa.ArrowException, OSError)
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        except self._errors as error:
            raise self._damaged(error) from error
        try:
            self._read_metadata(self._file.metadata.metadata or {})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ParquetSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    @property
    def reading(self) -> Reading:
        """What was met when the recording was converted."""
        return self._reading

    def trace(self) -> Trace:
        """Read all of it into memory, without a copy in pieces.

        Rows are filled by as many threads as there are processors. Most of the time goes where memory is touched for
        the first time, which the kernel, and the host of a virtual machine, have to find then.
        """
        events = np.empty(self.rows, EVENT_DTYPE)
        row = 0
        processors = len(os.sched_getaffinity(0))
        filling: deque[Future[None]] = deque()
        with ThreadPoolExecutor(processors) as threads:
            for batch in self._batches():
                filling.append(threads.submit(self._fill, events[row : row + batch.num_rows], batch))
                row += batch.num_rows
                if len(filling) > 2 * processors:
                    filling.popleft().result()
            for one in filling:
                one.result()
        return Trace(events, self.names, self.marks, self.metadata, self.snapshots, self.reading)

    def _read(self) -> Iterator[NDArray[np.void]]:
        for batch in self._batches():
            piece = np.empty(batch.num_rows, EVENT_DTYPE)
            self._fill(piece, batch)
            yield piece

    def _damaged(self, why: object) -> TraceError:
        return TraceError(f"{self.path} is damaged: {why}")

    def _read_metadata(self, stored: Mapping[bytes, bytes]) -> None:
        if KEY not in stored:
            raise TraceError(f"{self.path} is a Parquet file, but no recording: pagehint has not written it")
        try:
            header = json.loads(stored[KEY])
            if header["version"] > VERSION:
                raise TraceError(f"{self.path} is of version {header['version']}; this pagehint reads up to {VERSION}")
            self.rows = int(header["rows"])
            self.names = {int(pid): tuple(map(str, names)) for pid, names in header["names"].items()}
            self.marks = list(map(str, header["marks"]))
            self.metadata = dict(header["metadata"])
            for name, value in self.metadata.items():
                if not (type(value) is int and value >= 0 if name in _NUMBERS else isinstance(value, (str, int))):
                    raise ValueError(f"{name} is {value!r:.40}")
            self._reading = Reading(**{**header["reading"], "examples": tuple(header["reading"]["examples"])})
            self.snapshots = {
                key.removeprefix(SNAPSHOT).decode(): base64.b64decode(value, validate=True)
                for key, value in stored.items()
                if key.startswith(SNAPSHOT)
            }
        except TraceError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._damaged(f"its metadata: {error!r}") from error
        if self._file.schema_arrow.names != list(TYPES) or self._file.metadata.num_rows != self.rows:
            raise self._damaged("its columns or its rows are not those that it says it has")

    def _batches(self) -> Iterator[Any]:
        try:
            yield from self._file.iter_batches(_READ_ROWS)
        except self._errors as error:
            raise self._damaged(error) from error

    def _column(self, batch: Any, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        column = batch.column(name)
        if column.null_count or column.type.to_pandas_dtype() != dtype.type:
            raise self._damaged(f"column {name} has nulls, or is of type {column.type}")
        values: NDArray[Any] = column.to_numpy()
        return values

    def _fill(self, rows: NDArray[np.void], batch: Any) -> None:
        """Copy a batch into rows, and see that they are what a reader could have made."""
        columns = {name: self._column(batch, name, dtype) for name, dtype in TYPES.items()}
        for name, column in columns.items():
            self._check_range(name, column)
        nanoseconds = columns.pop("nanoseconds")
        for name, column in columns.items():
            rows[name] = column
        rows["time"] *= 1000
        rows["time"] += nanoseconds
        marks = rows["value"][rows["event"] == Event.MARK]
        if len(marks) and not (marks.min() >= 0 and marks.max() < len(self.marks)):
            raise self._damaged("a marker has no text")

    def _check_range(self, name: str, column: NDArray[Any]) -> None:
        """Refuse numbers that would mislead, or run over, further on."""
        if name == "pfn":
            wrong = column[(column >> PFN_BITS != 0) & (column != NO_PFN)]
        elif name in _RANGES and len(column):
            least, most = _RANGES[name]
            if column.min() >= least and column.max() <= most:
                return
            wrong = column[(column < least) | (column > most)]
        else:
            return
        if len(wrong):
            raise self._damaged(f"column {name} has {wrong[0]}, which means nothing")
