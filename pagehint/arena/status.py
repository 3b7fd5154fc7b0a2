"""What an arena holds, for readers: a few figures and a picture."""

from __future__ import annotations

import html
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pagehint.sizes import format_size

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


def free_by_granule(blocks: NDArray[np.void], start_pfn: int, nr_pages: int, granule: int) -> NDArray[np.int32]:
    """Return how many pages of each granule are free; ``blocks`` are all free blocks. O(blocks + granules)."""
    pages = 1 << blocks["order"].astype(np.int64)
    first = (blocks["pfn"].astype(np.int64) - start_pfn) // granule
    large = pages >= granule
    begin_and_end = np.zeros(-(-nr_pages // granule) + 1, np.int32)
    np.add.at(begin_and_end, first[large], granule)
    np.add.at(begin_and_end, first[large] + pages[large] // granule, -granule)
    free = np.cumsum(begin_and_end[:-1], dtype=np.int32)
    np.add.at(free, first[~large], pages[~large])
    return free


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
        Bytes given back so far; those given back twice count twice.
    page_size : int
        Bytes of a page.
    used, resident : numpy.ndarray of int
        Pages in use, and pages in memory, of each granule of 2 MiB, by address.
    """

    size: int
    arrays: int
    hinting: bool
    given_back: int
    page_size: int
    used: NDArray[np.int32]
    resident: NDArray[np.uint32]

    @property
    def used_bytes(self) -> int:
        """Bytes in use, whether they have been written to or not."""
        return int(self.used.sum()) * self.page_size

    @property
    def warm_bytes(self) -> int:
        """Bytes that are in memory and free: they are given back next, or used again at no cost."""
        warm = np.maximum(self.resident.astype(np.int64) - self.used, 0)
        return int(warm.sum()) * self.page_size

    @property
    def resident_bytes(self) -> int:
        """Bytes in memory."""
        return int(self.resident.sum()) * self.page_size

    def _figures(self) -> dict[str, str]:
        return {
            "in use": f"{format_size(self.used_bytes)} in {self.arrays} arrays",
            "free and warm": format_size(self.warm_bytes),
            "in memory": format_size(self.resident_bytes),
            "given back so far": f"{format_size(self.given_back)}, hinting is {'on' if self.hinting else 'off'}",
            "reserved": format_size(self.size),
        }

    def _cells(self) -> list[tuple[str, float]]:
        """Return the cells to draw, up to the last granule that holds anything: a state, and the share of its pages."""
        holds = np.flatnonzero(self.used + self.resident)
        end = max(int(holds[-1]) + 1 if len(holds) else 0, min(_COLUMNS, len(self.used)))
        step = -(-end // _CELLS)
        cells = []
        for i in range(0, end, step):
            used, resident = self.used[i : i + step], self.resident[i : i + step]
            state = "used" if used.any() else "warm" if resident.any() else "given back"
            all_pages = len(used) * int(self.used.max(initial=1))
            share = {"used": used.sum(), "warm": resident.sum()}.get(state, all_pages) / all_pages
            cells.append((state, min(float(share), 1.0)))
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
