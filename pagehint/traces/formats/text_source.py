"""Recordings as lines of text: ftrace, ``trace-cmd report``, ``perf script``, and our own bpftrace script."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pagehint.traces.events import EVENT_DTYPE, Event
from pagehint.traces.formats.compression import PlainFile
from pagehint.traces.formats.source import PIECE_ROWS, Source, lost_row
from pagehint.traces.formats.text import LineParser

BPFTRACE_HEADER = b"# pagehint record.bt 1"
"""The first line that our bpftrace script writes, but for what bpftrace says itself."""

_LONGEST_LINE = 1 << 16
_LOOKED_AT = 512  # bytes of a line that is no event
_REORDERED_ROWS = 1 << 18  # how much later a row of bpftrace's may come than one that happened after it

# Lines of tracers that are no events.
_LOST = re.compile(
    rb"\s*(?:CPU:(?P<cpu>\d{1,9}) \[(?:LOST )?(?P<count>\d{0,18}) ?EVENTS(?: DROPPED)?\]"  # ftrace, trace-cmd report
    rb"|##### CPU (?P<begun>\d{1,9}) buffer started ####"  # ftrace: what was there before has been overwritten
    rb"|Lost (?P<all>\d{1,18}) events"  # bpftrace
    rb"|.*\[(?P<perf_cpu>\d{1,9})\].*: PERF_RECORD_LOST(?:_SAMPLES)? lost (?P<perf>\d{1,18}))\s*$"
)
_ENTRIES = re.compile(rb"# entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18}) +#P:(\d{1,9})")
_CPUS = re.compile(rb"cpus=(\d{1,9})\s*$")
_CALL = re.compile(rb"\s+(?:=> .*|[0-9a-f]{8,16} .*)$")  # of a stack
_CHATTER = re.compile(rb"Attaching \d+ probes?\.\.\.\s*$|version = \d+\s*$|#")


class TextSource(Source):
    """Lines of text, parsed piece by piece; see `Source`.

    Parameters
    ----------
    file : PlainFile
        It is read once, and closed by its owner.
    format : str
        ``"ftrace"``, ``"perf"`` or ``"bpftrace"``.
    """

    def __init__(self, file: PlainFile, format: str) -> None:
        super().__init__(file.path, {"format": format})
        self._file = file
        self._parser = LineParser(format == "perf")
        self._out = np.empty(PIECE_ROWS, EVENT_DTYPE)
        self._row = 0
        self._last_time: int | None = None  # of a row of a piece before

    def _read(self) -> Iterator[NDArray[np.void]]:
        if self.metadata["format"] == "bpftrace":
            yield from self._in_order(self._parsed())
        else:
            yield from self._parsed()
            self.backwards = self._parser.backwards

    def _parsed(self) -> Iterator[NDArray[np.void]]:
        for text, begin in self._whole_lines():
            while begin < len(text):
                begin = self._parse(text, begin)
                self.lines = self._parser.lines
                if self._row == len(self._out):
                    yield self._full()
        if self._row:
            yield self._full()
        self.damage = self._file.damage or self.damage

    def _full(self) -> NDArray[np.void]:
        rows = self._out[: self._row]
        if self._last_time is None:  # what was lost before the first event has its time
            first = np.argmax(rows["event"] != Event.LOST)
            rows["time"][:first] = rows["time"][first]
        self._last_time = int(rows["time"][-1])
        self._out = np.empty(PIECE_ROWS, EVENT_DTYPE)
        self._row = 0
        return rows

    def _whole_lines(self) -> Iterator[tuple[bytes, int]]:
        """Text, and where its first line begins; what follows its last newline is not for parsing.

        A line over two pieces comes by itself, so that nothing else is copied. The last line of a file that does not
        end in a newline may be cut: it is used as far as it is understood, unless a compressed file is known to be cut.
        """
        rest = b""
        for piece in self._file:
            begin = piece.find(b"\n") + 1 if rest else 0
            if begin:
                yield rest + piece[:begin], 0
                rest = b""
            if not rest and (end := piece.rfind(b"\n") + 1):
                yield piece, begin
                rest = piece[end:]
            elif len(rest) < _LONGEST_LINE:
                rest += piece  # what is left out of a line that is far too long does not matter
        if rest:
            self.damage = f"the last line has no end, and may be cut: {rest[:60]!r}"
            if not self._file.damage:
                yield rest + b"\n", 0

    def _parse(self, text: bytes, begin: int) -> int:
        """Parse up to the next thing that is rare, and do that; return where to go on."""
        begin, self._row, what, subject, detail = self._parser.parse(text, begin, self._out.view(np.uint8), self._row)
        if what == "name":
            self.name(int(self._out["pid"][self._row - 1]), subject)
        elif what == "mark":
            self._out["value"][self._row - 1] = self.mark(subject)
            self.name(int(self._out["pid"][self._row - 1]), detail)
        elif what == "event":
            self.count_other(subject)
        elif what == "line":
            self.lines = self._parser.lines
            self._no_event(subject[:_LOOKED_AT])
        return len(text) if what == "end" else begin

    def _no_event(self, line: bytes) -> None:
        """Take a line that is no event: lost events, a header, a part of a stack; or count it as not understood."""
        if lost := _LOST.match(line):
            self._lost(lost)
        elif entries := _ENTRIES.match(line):
            for key, number in zip(("entries_in_buffer", "entries_written", "cpus"), entries.groups(), strict=True):
                self.metadata[key] = int(number)
        elif cpus := _CPUS.match(line):
            self.metadata["cpus"] = int(cpus[1])
        elif _CALL.match(line):
            self.count_other(b"calls of stacks")
        elif not _CHATTER.match(line):
            self.reject(line)

    def _lost(self, match: re.Match[bytes]) -> None:
        cpu = match["cpu"] or match["begun"] or match["perf_cpu"]
        count = match["count"] or match["all"] or match["perf"]
        time = int(self._out["time"][self._row - 1]) if self._row else self._last_time or 0
        self._out[self._row] = lost_row(time, int(cpu) if cpu else None, int(count or 0))
        self._row += 1

    def _in_order(self, pieces: Iterator[NDArray[np.void]]) -> Iterator[NDArray[np.void]]:
        """Sort by time: bpftrace empties the buffers of the CPUs one after the other. Each of them is in order."""
        waiting = np.empty(0, EVENT_DTYPE)
        last = np.iinfo(np.int64).min
        for piece in pieces:
            waiting = np.concatenate([waiting, piece])
            if len(waiting) >= 2 * _REORDERED_ROWS:
                waiting = waiting[np.argsort(waiting["time"], kind="stable")]
                ready, waiting = waiting[:-_REORDERED_ROWS], waiting[-_REORDERED_ROWS:]
                self.backwards += int(np.count_nonzero(ready["time"] < last))
                last = ready["time"][-1]
                yield ready
        if len(waiting):
            waiting = waiting[np.argsort(waiting["time"], kind="stable")]
            self.backwards += int(np.count_nonzero(waiting["time"] < last))
            yield waiting
