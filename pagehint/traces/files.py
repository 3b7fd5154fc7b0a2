"""Files in, tables out. What a file is is seen from how it begins, and not from its name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from pagehint.errors import TraceError
from pagehint.traces.events import EVENT_DTYPE
from pagehint.traces.formats import parquet
from pagehint.traces.formats.compression import PlainFile
from pagehint.traces.formats.llfree import LLFreeSource, is_llfree
from pagehint.traces.formats.parquet_source import ParquetSource
from pagehint.traces.formats.source import Source
from pagehint.traces.formats.text import LineParser
from pagehint.traces.formats.text_source import BPFTRACE_HEADER, TextSource
from pagehint.traces.formats.trace_cmd_source import MAGIC as TRACE_CMD_MAGIC
from pagehint.traces.formats.trace_cmd_source import TraceCmdSource
from pagehint.traces.reading import Reading
from pagehint.traces.table import Trace

_PERF_DATA = b"PERFILE2"
_TRIED_BYTES = 1 << 16  # of text, to see who wrote it


def read(path: str | os.PathLike[str]) -> Trace:
    """Read a recording into memory, 32 bytes an event.

    Parameters
    ----------
    path : path-like
        What ftrace writes (tracefs' ``trace`` and ``trace_pipe``), ``trace-cmd report``, ``perf script``, the bpftrace
        script of this package (``record.bt`` in its folder), trace-cmd's own files, LLFree's, or Parquet that `convert`
        has written. Each but the last may be compressed with gzip, xz or zstd. ``perf script`` says what was lost only
        with ``--show-lost-events``; ``trace-cmd report`` writes the callers of kprobes as addresses, which its own file
        knows the names of.

    Returns
    -------
    Trace
        Look at its ``reading`` and ``lost`` before you believe it: lines that are not understood, and a file that is
        cut, do not raise.

    Raises
    ------
    TraceError
        If the file is none of these, or has no event; and for a Parquet file that is damaged.
    PageHintError
        If it takes what is not installed: pyarrow for Parquet and zstd, libtracecmd for trace-cmd's own files.
    OSError
        If it cannot be read.

    Notes
    -----
    Linear in the size of the file. Two to four million events a second from compressed text, ten to forty from Parquet:
    most of it goes where memory is touched for the first time.
    """
    with open_source(path) as source:
        return source.trace()


def convert(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], *, snapshots: Mapping[str, bytes] | None = None
) -> Reading:
    """Convert a recording to Parquet, in pieces: it may be larger than memory.

    Parameters
    ----------
    src : path-like
        As in `read`; also Parquet, to give it other snapshots.
    dst : path-like
        A file that is replaced when the new one is whole; any error leaves it alone.
    snapshots : dict of str to bytes, optional
        What was recorded of the memory beside the events, in place of those of `src`.

    Returns
    -------
    Reading
        What was not understood, or cut; it is also kept in the file.

    Raises
    ------
    TraceError, PageHintError, OSError
        As `read`, and from the disk.
    """
    with open_source(src) as source:
        if snapshots is not None:
            source.snapshots = dict(snapshots)
        parquet.write(dst, source, source.pieces())
        return source.reading


@contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Open a recording of any form, to be read in pieces inside the ``with`` block. Parameters and errors: `read`."""
    with PlainFile(path) as file:
        if file.begins(parquet.MAGIC):
            with ParquetSource(file.path) as source:
                yield source
        else:
            yield _source(file)


def _source(file: PlainFile) -> Source:
    begin = file.peek()
    if not begin and not file.damage:
        raise TraceError(f"{file.path} is empty")
    if begin.startswith(TRACE_CMD_MAGIC):
        return TraceCmdSource(file)
    if begin.startswith(_PERF_DATA):
        raise TraceError(f"{file.path} is perf's: convert it: perf script --show-lost-events -i {file.path} > FILE")
    if is_llfree(begin):
        return LLFreeSource(file)
    if not (style := _style(begin)):
        raise TraceError(f"{file.path} is no recording of a form that is known; it begins with {begin[:40]!r}")
    return TextSource(file, style)


def _style(begin: bytes) -> str:
    """Who wrote a text that begins so; nobody that is known if there is neither a header nor an event."""
    begin = begin[:_TRIED_BYTES]
    if BPFTRACE_HEADER in begin[:1000]:
        return "bpftrace"
    if begin.startswith(b"# tracer:"):
        return "ftrace"
    ftrace, perf = (_nr_events(begin, perf) for perf in (False, True))
    return "" if not ftrace + perf else "perf" if perf > ftrace else "ftrace"


def _nr_events(text: bytes, perf: bool) -> int:
    """How many of the lines are events if they are perf's, or if they are not."""
    parser = LineParser(perf)
    rows = np.empty(1000, EVENT_DTYPE).view(np.uint8)
    found = begin = 0
    what = ""
    while what != "end" and begin < len(text):
        begin, row, what, _, _ = parser.parse(text, begin, rows, 0)
        found += row + (what == "event")
    return found
