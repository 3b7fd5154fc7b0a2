"""The traces that LLFree's evaluation replays: binary, 16 bytes an event, written in pages by each CPU.

The layout is that of ``eval/src/bin/replay.rs`` in https://github.com/luhsra/llfree-rs. A file is of pages of 4096
bytes. The first holds three numbers of 32 bits: how many pages, how many CPUs, the highest PFN. Each of the others
holds the number of its CPU, and from byte 16 on up to 255 events, which end at one whose PFN is 0. An event is a number
of 128 bits; from the lowest: 38 of the time in microseconds, 24 of the PFN, 1 that is set for an allocation, 4 of the
order, 29 of the GFP flags, and 32 of the PID.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pagehint.traces.events import EVENT_DTYPE, NO_CPU, NO_ORDER, NO_PID, NO_TYPE, Event
from pagehint.traces.formats.compression import PlainFile
from pagehint.traces.formats.source import PIECE_ROWS, Source

PAGE = 4096
_FIRST, _EVENT_BYTES = 16, 16
_TIME_BITS, _PFN_BITS, _ORDER_BITS = 38, 24, 4
_GFP_TYPE_SHIFT, _GFP_TYPE_MASK = 3, 3  # in the kernel's GFP flags: bit 3 is movable, bit 4 reclaimable


def is_llfree(begin: bytes) -> bool:
    """Whether a file that begins so can be such a trace; `begin` is of two pages at least, if the file has them.

    There is no magic number, but the first three numbers bound each other, and the rest of the page is empty.
    """
    if len(begin) < 2 * PAGE:
        return False
    pages, cores, max_pfn = np.frombuffer(begin, "<u4", 3)
    cpu = np.frombuffer(begin, "<u4", 1, PAGE)[0]
    return bool(pages and 0 < cores <= PAGE and cpu < cores and max_pfn) and not any(begin[12:PAGE])


class LLFreeSource(Source):
    """An LLFree trace; see `Source`. It is read into memory, since only each CPU's pages are in order."""

    def __init__(self, file: PlainFile) -> None:
        super().__init__(file.path, {"format": "llfree"})
        self._file = file

    def _read(self) -> Iterator[NDArray[np.void]]:
        raw = b"".join(self._file)
        pages, rest = divmod(len(raw), PAGE)
        self.damage = self._file.damage
        if rest and not self.damage:
            self.damage = f"the file is cut: {rest} bytes of page {pages} are there"
        if not pages:
            return
        self.metadata["cpus"] = int(np.frombuffer(raw, "<u4", 2)[1])
        self.metadata["max_pfn"] = int(np.frombuffer(raw, "<u4", 3)[2])
        body = np.frombuffer(raw, np.uint8, pages * PAGE).reshape(pages, PAGE)[1:]
        cpus = np.ascontiguousarray(body[:, :4]).view("<u4")[:, 0]
        words: NDArray[np.uint64] = np.ascontiguousarray(body[:, _FIRST:]).view("<u8").reshape(len(body), -1, 2)
        pfn = np.asarray(words[:, :, 0] >> _TIME_BITS & (1 << _PFN_BITS) - 1, np.uint64)
        used = np.logical_and.accumulate(pfn != 0, axis=1)
        words, pfn = words[used], pfn[used]
        cpu = np.broadcast_to(cpus[:, None], used.shape)[used]
        order = np.argsort(words[:, 0] & (1 << _TIME_BITS) - 1, kind="stable")
        self.lines = len(order)
        for begin in range(0, len(order), PIECE_ROWS):
            which = order[begin : begin + PIECE_ROWS]
            yield _rows(words[which], pfn[which], cpu[which])


def _rows(words: NDArray[np.uint64], pfn: NDArray[np.uint64], cpu: NDArray[np.uint32]) -> NDArray[np.void]:
    """Rows of the two words of each event."""
    low, high = words[:, 0], words[:, 1]
    allocated = (low >> _TIME_BITS + _PFN_BITS & 1).astype(bool)
    flags = high >> _ORDER_BITS - 1
    rows = np.zeros(len(words), EVENT_DTYPE)
    rows["time"] = (low & (1 << _TIME_BITS) - 1) * 1000
    rows["pfn"] = pfn
    rows["pid"] = np.where(high >> 63, NO_PID, high >> 32)
    rows["cpu"] = np.minimum(cpu, NO_CPU)
    rows["event"] = np.where(allocated, Event.ALLOC, Event.FREE)
    rows["order"] = low >> 63 | (high & (1 << _ORDER_BITS - 1) - 1) << 1
    rows["migratetype"] = np.where(allocated, flags >> _GFP_TYPE_SHIFT & _GFP_TYPE_MASK, NO_TYPE)
    rows["fallback_order"] = NO_ORDER
    rows["fallback_migratetype"] = NO_TYPE
    return rows
