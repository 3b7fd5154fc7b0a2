"""Counter tracks of processes over time, in the JSON that Perfetto (ui.perfetto.dev) and chrome://tracing read.

One event a line. The format does without the closing bracket, so the file of a run that was killed is read, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


class Trace:
    """A file of counter tracks.

    Parameters
    ----------
    path : Path
        It is made, or made anew.

    Raises
    ------
    OSError
        If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[str] | None = path.open("w", encoding="utf-8")
        self._first = True
        self._named: set[int] = set()

    def add(self, seconds: float, pid: int, name_of: Callable[[int], str], counters: dict[str, int | None]) -> None:
        """Add what a process holds at a time, in bytes; None is not known, and leaves its track as it is.

        `name_of` is called once for each process.
        """
        if pid not in self._named:
            self._named.add(pid)
            self._write({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name_of(pid)}})
        for name, value in counters.items():
            if value is not None:
                event = {"ph": "C", "name": name, "pid": pid, "ts": round(seconds * 1e6), "args": {"bytes": value}}
                self._write(event)

    def close(self) -> None:
        """End the file. Nothing happens the second time."""
        if self._file is not None:
            self._file.write("[]\n" if self._first else "\n]\n")
            self._file.close()
            self._file = None

    def _write(self, event: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write(("[\n" if self._first else ",\n") + json.dumps(event))
        self._file.flush()
        self._first = False
