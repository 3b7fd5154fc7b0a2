"""What an arena holds, for readers: a few figures and a picture."""

from __future__ import annotations

import html
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pagehint.sizes import format_size

_GRANULE = 2 << 20  # bytes
_CELLS = 512  # in a picture, at most
_COLUMNS = 64
_COLOURS = {"used": "#2b6cb0", "warm": "#ed8936", "given back": "#e2e8f0"}
_SIGNS = {"used": "█", "warm": "▒", "given back": "·"}
_ASCII_SIGNS = {"used": "#", "warm": "+", "given back": "."}


def _signs() -> dict[str, str]:
    """Return the signs of a picture in text: those that standard output can take, where it will be printed."""
    try:
        "".join(_SIGNS.values()).encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return _ASCII_SIGNS
    return _SIGNS


def used_by_granule(
    blocks: NDArray[np.void], start_pfn: int, nr_pages: int, granule: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which granules have pages in use, and how many; ``blocks`` are all free blocks, by address.

    O(blocks + granules in use).
    """
    begin = blocks["pfn"].astype(np.int64) - start_pfn
    end = begin + (1 << blocks["order"].astype(np.int64))
    # What is in use is what lies between the free blocks.
    first, last = np.append(0, end), np.append(begin, nr_pages)
    first, last = first[first < last], last[first < last]
    low = first // granule
    counts = (last - 1) // granule + 1 - low
    piece = np.repeat(np.arange(len(first)), counts)
    number = low[piece] + np.arange(len(piece)) - (np.cumsum(counts) - counts)[piece]
    pages = np.minimum(last[piece], (number + 1) * granule) - np.maximum(first[piece], number * granule)
    return _sums(number, pages)


def merged(
    granules: NDArray[np.int64], counts: NDArray[np.int64], others: NDArray[np.int64], other_counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the granules that are in either list, and both counts of each; the lists are in ascending order."""
    both = np.sort(np.concatenate((granules, others)), kind="stable")
    both = both[np.diff(both, prepend=-1) > 0]
    columns = np.zeros((2, len(both)), np.int64)
    columns[0, np.searchsorted(both, granules)] = counts
    columns[1, np.searchsorted(both, others)] = other_counts
    return both, columns[0], columns[1]


def _sums(number: NDArray[np.int64], pages: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each number once, with the sum of its pages; they are in ascending order."""
    heads = np.flatnonzero(np.diff(number, prepend=-1))
    return number[heads], np.add.reduceat(pages, heads) if len(heads) else pages


@dataclass(frozen=True, repr=False, eq=False)
class ArenaStatus:
    """What an arena held when `Arena.status` was called. It is shown as a table with a picture.

    Attributes
    ----------
    size : int
        Bytes in all.
    arrays : int
        Arrays in it.
    hinting : bool
        Whether what is free is given back.
    given_back : int
        Bytes given back so far that were in memory until then; those given back twice count twice. In a guest's RAM:
        those reported to its host, whether it had memory for them or not.
    page_size : int
        Bytes of a page.
    granules : numpy.ndarray of int
        The granules (2 MiB) in use or in memory, by their numbers from the first byte on, in ascending order.
    used, resident : numpy.ndarray of int
        Pages in use, and pages in memory, of each of `granules`.
    estimated : bool
        Whether the kernel does not say what is in memory, as in some sandboxes. Then `resident` is what may be: every
        granule in full but for those that were given back and not used since.
    """

    size: int
    arrays: int
    hinting: bool
    given_back: int
    page_size: int
    granules: NDArray[np.int64]
    used: NDArray[np.int64]
    resident: NDArray[np.int64]
    estimated: bool = False

    @property
    def used_bytes(self) -> int:
        """Bytes in use, whether they have been written to or not."""
        return int(self.used.sum()) * self.page_size

    @property
    def warm_bytes(self) -> int:
        """Bytes in memory, in granules that are entirely free: they are given back next, or used again at no cost.

        The same as `Explanation.warm`, of `PageAllocator.explain`.
        """
        return int(self.resident[self.used == 0].sum()) * self.page_size

    @property
    def fragmented_bytes(self) -> int:
        """Bytes that are in memory and free, beside others in use in the same granule, and so are not given back.

        A used page that is not in memory hides one that is free and is, so this may be too low, and never too high.
        """
        spare = np.maximum(self.resident - self.used, 0)
        return int(spare[self.used > 0].sum()) * self.page_size

    @property
    def resident_bytes(self) -> int:
        """Bytes in memory."""
        return int(self.resident.sum()) * self.page_size

    def _figures(self) -> dict[str, str]:
        at_most = " at most (estimated: the kernel does not say)" if self.estimated else ""
        return {
            "in use": f"{format_size(self.used_bytes)} in {self.arrays} arrays",
            "free and warm": format_size(self.warm_bytes) + at_most,
            "free beside others": format_size(self.fragmented_bytes) + at_most,
            "in memory": format_size(self.resident_bytes) + at_most,
            "given back so far": f"{format_size(self.given_back)}, hinting is {'on' if self.hinting else 'off'}",
            "reserved": format_size(self.size),
        }

    def _cells(self) -> list[tuple[str, float]]:
        """Return the cells to draw, up to the last granule that holds anything: a state, and the share of its pages."""
        granule = _GRANULE // self.page_size
        last = int(self.granules[-1]) + 1 if len(self.granules) else 0
        end = max(last, min(_COLUMNS, -(-self.size // _GRANULE)))
        step = max(-(-end // _CELLS), 1)
        cell = self.granules // step
        nr_cells = -(-end // step)
        used = np.bincount(cell, self.used, nr_cells)
        resident = np.bincount(cell, self.resident, nr_cells)
        cells = []
        for i in range(nr_cells):
            all_pages = (min((i + 1) * step, end) - i * step) * granule
            state = "used" if used[i] else "warm" if resident[i] else "given back"
            pages = {"used": used[i], "warm": resident[i], "given back": all_pages}[state]
            cells.append((state, min(float(pages / all_pages), 1.0)))
        return cells

    def __repr__(self) -> str:
        width = max(map(len, self._figures()))
        table = "\n".join(f"{name:<{width}}  {figure}" for name, figure in self._figures().items())
        sign_of = _signs()
        signs = "".join(sign_of[state] for state, _ in self._cells())
        picture = "\n".join(signs[i : i + _COLUMNS] for i in range(0, len(signs), _COLUMNS))
        return f"{table}\n{picture}\n" + "   ".join(f"{sign} {state}" for state, sign in sign_of.items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{figure}</td></tr>"
            for name, figure in self._figures().items()
        )
        cells = self._cells()
        squares = "".join(
            f"<rect x='{i % _COLUMNS * 10}' y='{i // _COLUMNS * 10}' width='9' height='9' fill='{_COLOURS[state]}'"
            f" fill-opacity='{0.3 + 0.7 * share:.2f}'/>"
            for i, (state, share) in enumerate(cells)
        )
        height = -(-len(cells) // _COLUMNS) * 10
        legend = " ".join(f"<span style='color:{colour}'>&#9632;</span> {state}" for state, colour in _COLOURS.items())
        return f"<table>{rows}</table><svg width='{_COLUMNS * 10}' height='{height}'>{squares}</svg><div>{legend}</div>"
