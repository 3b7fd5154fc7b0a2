"""``%load_ext pagehint``: NumPy on an arena, from a notebook. Needs IPython, which whoever loads it has."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.display import Image, display

import pagehint.numpy
from pagehint.arena.arena import Arena
from pagehint.demo.demo import rss_bytes
from pagehint.sizes import format_size

_EVERY = 0.05  # seconds between looks at the RSS
_REDRAW = 1.0


class Chart:
    """Resident memory of this process over time, drawn while it grows."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._begin = time.monotonic()
        self._handle = display(self._picture(), display_id=True)  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._watch, name="pagehint-chart", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        drawn = self._begin
        while not self._over.wait(_EVERY):
            now = time.monotonic()
            self._samples.append((now - self._begin, rss_bytes() / (1 << 20)))
            if now - drawn > _REDRAW:
                self._handle.update(self._picture())
                drawn = now

    def _picture(self) -> Image:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise UsageError("%%pagehint chart needs matplotlib: pip install 'pagehint[demo]'") from None
        figure = Figure(figsize=(8, 3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if self._samples:
            seconds, mebibytes = zip(*self._samples, strict=True)
            axes.fill_between(seconds, mebibytes, alpha=0.4)
        axes.set_xlabel("seconds")
        axes.set_ylabel("resident memory, MiB")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=100)
        return Image(data=picture.getvalue(), format="png")  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Draw it for the last time."""
        self._over.set()
        self._thread.join()
        self._handle.update(self._picture())


@magics_class
class PagehintMagics(Magics):
    """The magic ``%pagehint``."""

    @line_cell_magic
    def pagehint(self, line: str, cell: str | None = None) -> Any:
        """NumPy on an arena, which gives back to the operating system what stays unused.

        %pagehint on         NumPy's new arrays of 64 KiB or more are made in an arena
        %pagehint on 1       one that keeps what is free for a second, and not a hundredth of one
        %pagehint off        they are not any more; those there are stay
        %pagehint status     what the arena holds: used, free and warm, given back
        %pagehint trim       give everything back that is free, now
        %%pagehint chart     run the cell, and draw the memory of this process meanwhile
        """
        command = line.strip() or "status"
        if command == "chart" and cell is not None:
            chart = Chart()
            try:
                self.shell.run_cell(cell).raise_error()  # type: ignore[union-attr]
            finally:
                chart.end()
            return None
        if cell is not None:
            raise UsageError("a cell is for %%pagehint chart")
        verb, *seconds = command.split()
        if verb == "on" and len(seconds) <= 1:
            try:
                return pagehint.numpy.install(min_age=float(seconds[0]) if seconds else None)
            except ValueError as error:
                raise UsageError(f"%pagehint {command}: {error}") from None
        if command == "off":
            pagehint.numpy.uninstall()
            return None
        if command == "status":
            return self._arena().status()
        if command == "trim":
            print(f"{format_size(self._arena().trim())} given back")
            return None
        raise UsageError(f"%pagehint {command}: it is on, off, status or trim, or a cell's %%pagehint chart")

    def _arena(self) -> Arena:
        arena = pagehint.numpy.installed()
        if arena is None:
            raise UsageError("NumPy is not on an arena: %pagehint on")
        return arena


def load(shell: InteractiveShell) -> None:
    """Register the magic."""
    shell.register_magics(PagehintMagics)
