"""A comparison of policies as a table: in a terminal of 80 columns, and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from textwrap import wrap

from pagehint.columns import aligned
from pagehint.policies.scores import Score

MIB = 1 << 20
WIDTH = 80
LEGEND = """\
MiB: what a policy reports, what of it again though nobody had used it, and what
was used within so many seconds. GiB·s: free pages that stayed charged to the
guest, and those of them in whole granules, which a policy can return. Cost in
GiB·s: of keeping granules charged, and of a report each, which counts as much
as keeping its granule for the age in the heading. "best" knows the future."""


def _short(number: float) -> str:
    """Return a number in six characters, up to a hundred million, with two digits behind the point if it is small."""
    if number < 100:
        return f"{number:.2f}"
    if number < 1000:
        return f"{number:.1f}"
    return _count(number)


def _count(number: float) -> str:
    """Return a whole number in six characters, up to a hundred million."""
    return f"{number:,.0f}" if number < 99_999.5 else f"{number / 1000:,.0f}k"


def _rows(scores: Sequence[Score]) -> Iterator[tuple[str, ...]]:
    ages = list(scores[0].cost) if scores else []
    for score in scores:
        yield (
            score.policy,
            _count(score.reported / MIB),
            _count(score.again / MIB),
            *(_count(size / MIB) for size in score.reused.values()),
            _short(score.free_charged),
            _short(score.free_charged_whole),
            *(_short(score.cost[age]) for age in ages),
        )
    if scores:
        best = scores[0].optimum
        nothing = [""] * len(scores[0].reused)
        yield ("best", "", "", *nothing, "", "", *(_short(best[age]) for age in ages))


def _headings(scores: Sequence[Score]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    score = scores[0]
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


def as_text(facts: Sequence[str], scores: Sequence[Score]) -> str:
    """Return the facts, a row a policy, and what the columns mean."""
    lines = [*(part for fact in facts for part in wrap(fact, WIDTH, subsequent_indent="  ")), ""]
    if scores:
        table = [*_headings(scores), *_rows(scores)]
        lines += [*aligned(table, names=True, between=" "), "", *LEGEND.splitlines()]
    return "\n".join(lines)


def as_html(facts: Sequence[str], scores: Sequence[Score]) -> str:
    """Return the same for a notebook or a page."""
    parts = ["<p>" + "<br>".join(escape(line) for line in facts) + "</p>"]
    if scores:
        units, names = _headings(scores)
        heads = "".join(f"<th>{escape(f'{name} ({unit})' if unit else name)}</th>"
                        for unit, name in zip(units, names, strict=True))  # fmt: skip
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(row[0])}</th>"
            + "".join(f"<td style='text-align:right'>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in _rows(scores)
        )
        parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>")
        parts.append(f"<p><small>{escape(LEGEND)}</small></p>")
    return "".join(parts)
