"""What the soak prints: a progress bar, and what it has come to. The bar needs the extra "demo" (rich)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pagehint.sizes import format_size
from pagehint.soak.soak import Summary


@contextmanager
def progress_bar(seed: int) -> Iterator[Callable[[float, float], None]]:
    """Show how far it is, and how fast; yields the function to tell that."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"soak, seed {seed}", total=1.0, rate="")
        yield lambda done, rate: bar.update(task, completed=done, rate=f"{rate:>9,.0f} operations/s")


def print_summary(summary: Summary, seed: int) -> None:
    """Print what the soak has come to. The seed is in every line, so that a line in a log says how to repeat it."""
    how = "interrupted after" if summary.interrupted else "ran for"
    rate = summary.operations / max(summary.seconds, 1e-9)
    print(
        f"seed {seed}: {how} {summary.seconds:.0f} s, {summary.rounds} rounds,"
        f" {summary.operations:,} operations, {rate:,.0f} a second"
    )
    if summary.before and summary.after:
        for name, show in (("rss", format_size), ("mappings", str), ("files", str), ("threads", str)):
            values = (getattr(summary.before, name), getattr(summary.after, name))
            print(f"seed {seed}: {name} after the first round {show(values[0])}, after the last {show(values[1])}")
    for finding in summary.findings:
        print(f"seed {seed}: FOUND {finding}", file=sys.stderr)
    print(f"seed {seed}: {len(summary.findings) or 'no'} findings")
