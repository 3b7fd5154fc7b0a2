"""Operations done one by one, every invariant checked after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from pagehint.testing.checker import Checker
from pagehint.testing.layouts import ZoneLayout
from pagehint.testing.manual_checker import ManualChecker
from pagehint.testing.page_marks import pages_of
from pagehint.testing.threaded_checker import ThreadedChecker

Operation = tuple[str, Mapping[str, Any]]
"""A name and its arguments, as `operation_lists` makes them and `run_operations` does them."""

CHECKERS: Mapping[str, type[ManualChecker | ThreadedChecker]] = {"manual": ManualChecker, "thread": ThreadedChecker}


def destroying_callbacks(checker: Checker) -> ph.PageHintingCallbacks:
    """Return a host that makes use of its right to drop what it is told of."""

    def hint_pages(blocks: NDArray[np.void]) -> None:
        checker.memory[pages_of(blocks)] = 0xDB

    return ph.PageHintingCallbacks(hint_pages, max_pages=20)


def run_operations(
    layout: ZoneLayout,
    operations: Iterable[Operation],
    callbacks: Callable[[Checker], ph.PageHintingCallbacks] | None = None,
    *,
    workqueue: Literal["manual", "thread"] = "manual",
    pcp: bool = False,
    check_every: int = 1,
) -> None:
    """Do operations one by one, and check every invariant after each, as `HintingMachine` does.

    Parameters
    ----------
    layout : ZoneLayout
        The machine.
    operations : iterable of (name, arguments)
        As `operation_lists` makes them.
    callbacks : callable, optional
        Returns the callbacks under test, given the checker: ``checker.memory`` is the machine's memory. By default
        the host destroys what it gets.
    workqueue : {"manual", "thread"}
        As in `HintingMachine`.
    pcp : bool, default False
        With per-CPU page sets; for "thread" only.
    check_every : int, default 1
        Operations between two checks of everything; answers are compared, and reports checked, always.

    Raises
    ------
    AssertionError, PageHintError
        At the first finding.
    """
    new_callbacks = callbacks or destroying_callbacks
    checker: Checker = CHECKERS[workqueue](layout, lambda: new_callbacks(checker), pcp=pcp)
    try:
        for number, (name, arguments) in enumerate(operations):
            getattr(checker, name)(**arguments)
            if number % check_every == 0:
                checker.check()
        checker.close()
    finally:
        checker.pages.disable_hinting()
