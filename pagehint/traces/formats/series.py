"""A quantity of memory over time, as CSV: what a host charged a guest, or its resident memory, to compare with."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from pagehint.errors import TraceError
from pagehint.traces.formats.compression import PlainFile

SERIES_DTYPE = np.dtype([("time", "<i8"), ("bytes", "<u8")])
"""The dtype of a row of a series: nanoseconds, bytes."""

_MOST_SECONDS = 2**63 // 10**9 - 1


def read_series(path: str | os.PathLike[str]) -> NDArray[np.void]:
    """Read a CSV file of two columns: seconds, bytes.

    Parameters
    ----------
    path : path-like
        Its first line may be a header. It may be compressed with gzip, xz or zstd.

    Returns
    -------
    ndarray of `SERIES_DTYPE`
        One row a line; times may be negative, and do not go back.

    Raises
    ------
    TraceError
        If a line is something else, or times go back, or there is no line, or the file is cut. It names the line.
    """
    rows: list[tuple[int, int]] = []
    with PlainFile(path) as file:
        for number, line in enumerate(b"".join(file).decode(errors="replace").splitlines(), 1):
            try:
                row = _row(line)
            except ValueError:
                if number == 1:
                    continue  # the header
                raise TraceError(f"{path}, line {number}: not seconds and bytes: {line[:80]!r}") from None
            if rows and row[0] < rows[-1][0]:
                raise TraceError(f"{path}, line {number}: earlier than the line before it: {line[:80]!r}")
            rows.append(row)
        if file.damage or not rows:
            raise TraceError(f"{path}: {file.damage or 'there is no line of seconds and bytes'}")
    return np.array(rows, SERIES_DTYPE)


def _row(line: str) -> tuple[int, int]:
    """Nanoseconds and bytes; ValueError if the line has something else."""
    first, second = line.split(",")
    seconds, size = float(first), int(second)
    if not (abs(seconds) < _MOST_SECONDS and 0 <= size < 2**64):
        raise ValueError
    return round(seconds * 1e9), size
