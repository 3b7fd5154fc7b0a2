"""A comparison of policies as a table: in a terminal of 80 columns, and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagehint.policies.comparison import Comparison

MIB = 1 << 20
WIDTH = 80
LEGEND = """\
MiB: what a policy reports, what of it again though nobody had used it, and what
was used within so many seconds. GiB·s: free pages that stayed charged to the
guest, and those of them in whole granules, which a policy can return. Cost in
GiB·s: of keeping granules charged, and of a report each, which counts as much
as keeping its granule for the age in the heading. "best" knows the future."""


def _rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    ages = list(comparison.scores[0].cost) if comparison.scores else []
    for score in comparison.scores:
        yield (
            score.policy,
            f"{score.reported / MIB:,.0f}",
            f"{score.again / MIB:,.0f}",
            *(f"{size / MIB:,.0f}" for size in score.reused.values()),
            f"{score.free_charged:.2f}",
            f"{score.free_charged_whole:.2f}",
            *(f"{score.cost[age]:.2f}" for age in ages),
        )
    if comparison.scores:
        best = comparison.scores[0].optimum
        nothing = [""] * len(comparison.scores[0].reused)
        yield ("best", "", "", *nothing, "", "", *(f"{best[age]:.2f}" for age in ages))


def _headings(comparison: Comparison) -> tuple[tuple[str, ...], tuple[str, ...]]:
    score = comparison.scores[0]
    windows, ages = list(score.reused), list(score.cost)
    return (
        ("", "MiB", "MiB", *("used in" for _ in windows), "GiB·s", "in whole", *("cost" for _ in ages)),
        (
            "policy",
            "reported",
            "again",
            *(f"{window:g} s" for window in windows),
            "charged",
            "granules",
            *(f"{age:g} s" for age in ages),
        ),
    )


def facts(comparison: Comparison) -> list[str]:
    """Return what the recording is, and how far to believe a replay of it, a line each."""
    recording, operations = comparison.recording, comparison.operations
    seconds = (recording.end - recording.begin) / 1e9
    managed = max(operations.managed_pages, 1)
    lines = [
        f"{recording.name}: {len(operations):,} operations by view {operations.view!r}, "
        f"{operations.managed_pages * recording.page_size / MIB:,.0f} MiB, {seconds:.1f} s"
    ]
    if comparison.wrong_pages_end is None:
        lines.append("wrong pages at the end: not known, without a snapshot of it")
    else:
        wrong = comparison.wrong_pages_end
        lines.append(f"wrong pages at the end: {wrong:,} of {managed:,} ({100 * wrong / managed:.3f} %)")
    blocks = operations.reports.blocks
    if blocks:
        lines.append(
            f"the kernel's own reports: {blocks:,}, {operations.reports.wrong_blocks:,} of blocks not free here"
        )
    count = sum(comparison.contradictions.values())
    lines.append(
        f"contradictions: {count:,}" + "".join(f"; {n:,} x {why}" for why, n in comparison.contradictions.items())
    )
    floor = comparison.floor
    lines.append(
        f"no policy returns {floor.fragmented:.2f} GiB·s in broken granules, {floor.gates:.2f} under the gates,"
        f" of {floor.free:.2f} free"
    )
    return lines


def comparison_text(comparison: Comparison) -> str:
    """Return the facts, a row a policy, and what the columns mean."""
    lines = [*(part for fact in facts(comparison) for part in wrap(fact, WIDTH, subsequent_indent="  ")), ""]
    if comparison.scores:
        table = [*_headings(comparison), *_rows(comparison)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(" ".join([row[0].ljust(len(first)), *rest]).rstrip())
        lines += ["", *LEGEND.splitlines()]
    return "\n".join(lines)


def comparison_html(comparison: Comparison) -> str:
    """Return the same for a notebook or a page."""
    parts = ["<p>" + "<br>".join(escape(line) for line in facts(comparison)) + "</p>"]
    if comparison.scores:
        units, names = _headings(comparison)
        heads = "".join(f"<th>{escape(f'{name} ({unit})' if unit else name)}</th>"
                        for unit, name in zip(units, names, strict=True))  # fmt: skip
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(row[0])}</th>"
            + "".join(f"<td style='text-align:right'>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in _rows(comparison)
        )
        parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>")
        parts.append(f"<p><small>{escape(LEGEND)}</small></p>")
    return "".join(parts)
