"""Which files pictures, and pages with pictures, can be written to."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def plottable(path: Path) -> bool:
    """Whether the file's ending is that of a format pictures can be written in. Needs the extra "demo" (matplotlib)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a command's file is imported at each start

    return path.suffix.lstrip(".").lower() in FigureCanvasAgg.get_supported_filetypes()


def check_writable(parser: argparse.ArgumentParser, option: str, path: Path) -> None:
    """Refuse a file that cannot be written, before the work."""
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        parser.error(f"{option} {path}: cannot be written")
