"""Recordings on disk as Parquet, compressed with zstd: half a byte an event, or two where events are few.

The columns are those of `EVENT_DTYPE`, but for the time: ``time`` is in microseconds, and ``nanoseconds`` what is left
of it, from 0 to 999. Most tracers tell microseconds, whose differences are small numbers. Of pages each byte is stored
by itself (BYTE_STREAM_SPLIT): the upper ones hardly change, and the lower ones come again in the same sequence, when
what was allocated is freed.

What is known besides the events is in the file's metadata: under ``pagehint.trace`` a JSON object, with the version of
this form as ``"version"``, and under ``pagehint.snapshot.NAME`` each snapshot in base 64. Other programs that read
Parquet see an ordinary table.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pagehint.extras import require
from pagehint.traces.events import EVENT_DTYPE
from pagehint.traces.reading import Reading

MAGIC = b"PAR1"
VERSION = 1
"""Of the form. It changes when a file could be misread by what was written for the one before."""

KEY, SNAPSHOT = b"pagehint.trace", b"pagehint.snapshot."
_GROUP_ROWS = 1 << 20
_LEVEL = 9  # of zstd: a tenth smaller than 3, at the same speed of reading
_ENCODINGS = {
    "time": "DELTA_BINARY_PACKED",
    "pfn": "BYTE_STREAM_SPLIT",
}  # in the others few values come again and again
TYPES = {name: np.dtype(dtype) for name, (dtype, *_) in (EVENT_DTYPE.fields or {}).items()} | {
    "nanoseconds": np.dtype("u2")
}
"""The columns and their types."""


class Known(Protocol):
    """What is written besides the events: a `Trace`, or a `Source` at its end."""

    names: dict[int, tuple[str, ...]]
    marks: list[str]
    metadata: dict[str, str | int]
    snapshots: dict[str, bytes]

    @property
    def reading(self) -> Reading:
        """What the reader met."""


def write(path: str | os.PathLike[str], known: Known, pieces: Iterable[NDArray[np.void]]) -> None:
    """Write a recording. The file appears under its name when it is whole.

    Parameters
    ----------
    path : path-like
        What is there is replaced.
    known : Trace or Source
        It is asked when the pieces have come to an end.
    pieces : iterable of ndarray of EVENT_DTYPE
        A million rows of them are in memory at a time.

    Raises
    ------
    PageHintError
        Without pyarrow; it names the extra.
    OSError
        From the disk. Nothing is left there then.
    """
    pa, pq = (require(module, "Parquet", "traces") for module in ("pyarrow", "pyarrow.parquet"))
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    schema = pa.schema([pa.field(name, pa.from_numpy_dtype(dtype), nullable=False) for name, dtype in TYPES.items()])
    rows = 0
    try:
        with pq.ParquetWriter(
            unfinished,
            schema,
            compression="zstd",
            compression_level=_LEVEL,
            use_dictionary=[name for name in TYPES if name not in _ENCODINGS],
            column_encoding=_ENCODINGS,
            write_page_checksum=True,
        ) as writer:
            for group in _groups(pieces):
                writer.write_table(pa.table(_columns(group), schema=schema))
                rows += len(group)
            writer.add_key_value_metadata(_metadata(known, rows))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _groups(pieces: Iterable[NDArray[np.void]]) -> Iterator[NDArray[np.void]]:
    """Pieces joined, and split, to groups of `_GROUP_ROWS`; the last may be smaller."""
    group, row = np.empty(_GROUP_ROWS, EVENT_DTYPE), 0
    for piece in pieces:
        while len(piece):
            fits = min(len(piece), _GROUP_ROWS - row)
            group[row : row + fits] = piece[:fits]
            row, piece = row + fits, piece[fits:]
            if row == _GROUP_ROWS:
                yield group
                row = 0
    if row:
        yield group[:row]


def _columns(rows: NDArray[np.void]) -> dict[str, NDArray[np.generic]]:
    columns = {name: np.ascontiguousarray(rows[name]) for name in EVENT_DTYPE.names or ()}
    columns["time"], nanoseconds = np.divmod(rows["time"], 1000)
    return {**columns, "nanoseconds": nanoseconds.astype(TYPES["nanoseconds"])}


def _metadata(known: Known, rows: int) -> dict[bytes, bytes]:
    header = {
        "version": VERSION,
        "rows": rows,
        "names": {str(pid): names for pid, names in known.names.items()},
        "marks": known.marks,
        "metadata": known.metadata,
        "reading": asdict(known.reading),
    }
    snapshots = {SNAPSHOT + name.encode(): base64.b64encode(data) for name, data in known.snapshots.items()}
    return {KEY: json.dumps(header).encode(), **snapshots}
