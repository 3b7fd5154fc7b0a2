"""The bar of a long replay, in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pagehint.extras import require


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Show how far a replay is, and how fast; yields the function to tell that. Needs the extra "demo" (rich)."""
    require("rich", "progress=True", "demo")
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("replay"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("replay", total=None, rate="")

        def tell(done: int, total: int) -> None:
            rate = done / 1e6 / max(bar.tasks[task].elapsed or 0, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:>6.1f} million operations/s")

        yield tell
