"""Recordings from Parquet files that pagehint has written."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagehint.errors import TraceError
from pagehint.extras import require
from pagehint.traces.events import EVENT_DTYPE, Event
from pagehint.traces.formats.parquet import KEY, SNAPSHOT, TYPES, VERSION
from pagehint.traces.formats.source import Source
from pagehint.traces.reading import Reading
from pagehint.traces.table import Trace

_READ_ROWS = 1 << 17


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
        """Read all of it into memory, without a copy in pieces."""
        events = np.empty(self.rows, EVENT_DTYPE)
        row = 0
        for batch in self._batches():
            self._fill(events[row : row + batch.num_rows], batch)
            row += batch.num_rows
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
        nanoseconds = columns.pop("nanoseconds")
        for name, column in columns.items():
            rows[name] = column
        rows["time"] *= 1000
        rows["time"] += nanoseconds
        event = rows["event"]
        if len(event) and not (event.min() >= min(Event) and event.max() <= max(Event)):
            raise self._damaged(f"there are events with numbers that mean nothing, from {event.min()} to {event.max()}")
        marks = rows["value"][event == Event.MARK]
        if len(marks) and not (marks.min() >= 0 and marks.max() < len(self.marks)):
            raise self._damaged("a marker has no text")
