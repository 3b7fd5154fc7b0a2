"""Others' tests with NumPy's arrays in an arena: a plugin for pytest.

``PYTHONPATH=tests/helpers python -m pytest -p installed --pyargs numpy._core -m "not slow"``; without
``-p installed`` for comparison. The arena's allocator is checked at the end, and what became of the requests is
printed.
"""

from __future__ import annotations

import gc
import itertools
import os

import pytest

import pagehint as ph

arena = ph.Arena("4GiB")
hinting = arena.hinting(os.environ.get("PAGEHINT_ADVICE", "dontneed"), delay=0.01)
forks = itertools.count()


def pytest_configure() -> None:
    ph.numpy.install(arena)
    os.register_at_fork(after_in_parent=lambda: next(forks))
    hinting.__enter__()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    gc.collect()
    assert ph.numpy.installed() is arena
    arena.pages.verify()
    stats = arena.pages.stats()
    assert stats.blocks_failed == 0
    assert arena.pages.last_error is None
    terminalreporter.write_line(
        f"{arena.numpy_counts}, {arena.live_arrays} arrays alive, {stats.blocks_reported} blocks given back,"
        f" {next(forks)} forks"
    )
