"""A chart of this process's resident memory, drawn while it grows. Needs the extra "demo" (Matplotlib)."""

from __future__ import annotations

import io
import threading
import time

from IPython.display import Image, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pagehint.process_memory import rss_bytes

SAMPLE_SECONDS = 0.05
REDRAW_SECONDS = 1.0


class Chart:
    """The chart below a cell. A thread samples and redraws until `end`."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []  # seconds, MiB
        self._over = threading.Event()
        self._begin = time.monotonic()
        self._handle = display(self._picture(), display_id=True)  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._watch, name="pagehint-chart", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        drawn = self._begin
        while not self._over.wait(SAMPLE_SECONDS):
            now = time.monotonic()
            self._samples.append((now - self._begin, rss_bytes() / (1 << 20)))
            if now - drawn > REDRAW_SECONDS:
                self._handle.update(self._picture())
                drawn = now

    def _picture(self) -> Image:
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
        """Stop sampling, and draw the chart for the last time."""
        self._over.set()
        self._thread.join()
        self._handle.update(self._picture())
