"""The bar of work that takes several steps: which one is being done, and how many are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Step = Callable[[str, int, int], None]
"""Told of each step before it begins: what it is, how many are done, and of how many; 0 of 0 if that is not known."""


@contextmanager
def steps_bar(show: bool) -> Iterator[Step]:
    """Yield what to tell of each step, which is shown on the standard error if that is a terminal.

    When all is done it takes itself away. Without rich (the extra "demo") there is no bar, as it is only a comfort.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        show = False
    if not show or not Console(stderr=True).is_terminal:
        yield lambda step, done, total: None
        return
    columns = (TextColumn("{task.description:<16}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total or None, refresh=True)

        yield tell
