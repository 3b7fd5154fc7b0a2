"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, names: bool = False, between: str = "  ") -> list[str]:
    """Return a line for each row: columns as wide as their widest cell, and to the right; a row may end early.

    With `names` the first column is to the left.
    """
    widths = [max(len(row[i]) for row in rows if len(row) > i) for i in range(max(map(len, rows)))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        if names:
            cells[0] = row[0].ljust(widths[0])
        lines.append(between.join(cells).rstrip())
    return lines
