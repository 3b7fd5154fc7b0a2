"""Tables of sizes, as text and as HTML: what owners, a release and a watched block look like."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pagehint.columns import aligned
from pagehint.sizes import format_size


def signed(nr_bytes: int) -> str:
    """Return a difference of sizes as text."""
    return ("+" if nr_bytes > 0 else "") + format_size(nr_bytes)


def as_text(title: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return a table with its first column on the left, the others on the right, and the notes below it."""
    return "\n".join([*aligned([title, *rows], names=True), *notes])


def as_html(title: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return the same as HTML."""

    def line(row: Sequence[str], tag: str) -> str:
        cells = (f"<{tag} style='text-align:right'>{escape(cell)}</{tag}>" for cell in row[1:])
        return f"<tr><th style='text-align:left'>{escape(row[0])}</th>{''.join(cells)}</tr>"

    table = line(title, "th") + "".join(line(row, "td") for row in rows)
    return f"<table>{table}</table>" + "".join(f"<div>{escape(note)}</div>" for note in notes)
