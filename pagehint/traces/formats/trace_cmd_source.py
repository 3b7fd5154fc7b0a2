"""Recordings in the form of trace-cmd's own files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pagehint.traces.events import EVENT_DTYPE
from pagehint.traces.formats.compression import PlainFile
from pagehint.traces.formats.source import PIECE_ROWS, Source, lost_row
from pagehint.traces.formats.trace_cmd import TraceCmdFile

MAGIC = b"\x17\x08\x44tracing"


class TraceCmdSource(Source):
    """A file of trace-cmd's; see `Source`. libtracecmd seeks in it: what is compressed is unpacked first."""

    def __init__(self, file: PlainFile) -> None:
        super().__init__(file.path, {"format": "trace-cmd"})
        self._plain = file

    def _read(self) -> Iterator[NDArray[np.void]]:
        if not self._plain.compression:
            yield from self._pieces(TraceCmdFile(str(self._plain.path)))
            return
        with tempfile.NamedTemporaryFile(suffix=".dat") as unpacked:
            for piece in self._plain:
                unpacked.write(piece)
            unpacked.flush()
            self.damage = self._plain.damage
            yield from self._pieces(TraceCmdFile(unpacked.name))

    def _pieces(self, file: TraceCmdFile) -> Iterator[NDArray[np.void]]:
        self.metadata["cpus"] = file.cpus
        what = ""
        while what != "end":
            rows = np.empty(PIECE_ROWS, EVENT_DTYPE)
            row = 0
            while row < len(rows) and what != "end":
                row, what, subject, time, cpu, count = file.read(rows.view(np.uint8), row)
                self.lines = file.lines
                if what == "mark":
                    rows["value"][row - 1] = self.mark(subject)
                elif what == "event":
                    self.count_other(subject)
                elif what == "line":
                    self.reject(subject)
                elif what == "lost":
                    rows[row] = lost_row(time, cpu, count)[0]
                    row += 1
            for pid in np.unique(rows["pid"][:row]).tolist():
                if pid not in self.names:
                    self.name(pid, file.name_of(pid))
            if row:
                yield rows[:row]
