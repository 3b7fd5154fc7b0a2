"""Which files pictures can be written to. Needs the extra "demo" (matplotlib)."""

from __future__ import annotations

from pathlib import Path


def plottable(path: Path) -> bool:
    """Whether the file's ending is that of a format pictures can be written in."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a command's file is imported at each start

    return path.suffix.lstrip(".").lower() in FigureCanvasAgg.get_supported_filetypes()
