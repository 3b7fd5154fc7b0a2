"""The bars of long work, in a terminal: of one replay, and of steps one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pagehint.extras import require

if TYPE_CHECKING:
    from rich.console import Console


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


Step = Callable[[str, int, int], None]
"""Told of each step before it begins: what it is, how many are done, and of how many; 0 of 0 if that is not known."""


@contextmanager
def steps_bar(show: bool) -> Iterator[Step]:
    """Yield what to tell of each step, which is shown on the standard error if that is a terminal.

    When all is done it takes itself away. Without rich (the extra "demo") there is no bar, as it is only a comfort.
    """
    console = _terminal() if show else None
    if console is None:
        yield lambda step, done, total: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<16}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total or None, refresh=True)

        yield tell


def _terminal() -> Console | None:
    """Return the standard error, if it is a terminal and rich is installed."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True)
    return console if console.is_terminal else None
