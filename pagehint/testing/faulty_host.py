"""The callbacks under test, with faults around them: a host that refuses, raises or answers nonsense on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from pagehint.testing.checker import Checker


class InjectedError(Exception):
    """What callbacks are made to fail with."""


class FaultyHost:
    """The callbacks under test for one `enable_hinting`. The checker says which fault is put around them just now."""

    def __init__(self, checker: Checker, callbacks: ph.PageHintingCallbacks) -> None:
        if not callable(callbacks.hint_pages):
            raise TypeError("hint_pages must be a Python function, through which the checker can see what is reported")
        self.checker, self.callbacks = checker, callbacks

    def _guarded(self, function: Any, *args: Any) -> Any:
        """Call a callback. Its assertion error is a finding, and not only a failed report, as it is to the engine."""
        try:
            return function(*args)
        except AssertionError as error:
            self.checker.broken.append(error)
            raise

    def prepare(self) -> Any:
        if self.checker.failure == "prepare raises":
            raise InjectedError
        if self.checker.failure == "prepare refuses":
            return -1
        return self._guarded(self.callbacks.prepare) if self.callbacks.prepare else None

    def hint_pages(self, blocks: NDArray[np.void]) -> Any:
        failure = self.checker.failure
        if failure == "raises" or (failure == "raises at times" and int(blocks["pfn"][0]) % 3 == 0):
            raise InjectedError
        if failure == "wrong answer":
            return np.ones(len(blocks) + 1, bool)
        taken = np.ones(len(blocks), bool)
        if failure == "refuses some":
            taken = (blocks["pfn"] >> blocks["order"]) % 3 != 0
        if not taken.any():
            return taken
        told = blocks if taken.all() else blocks[taken]
        told.flags.writeable = False
        answer = self._guarded(self.callbacks.hint_pages, told)
        if not well_formed(answer, len(told)):
            self.checker.broken.append(f"hint_pages returned {answer!r} for {len(told)} blocks")
        elif not taken.all():
            taken[taken] = True if answer is None else answer
            return taken
        return answer

    def is_dropped(self, blocks: NDArray[np.void]) -> Any:
        if self.checker.failure == "raises":
            raise InjectedError
        if self.checker.failure == "wrong answer":
            return np.ones(len(blocks) + 1, bool)
        if self.checker.failure == "refuses some":  # and has some of what it took again
            return (blocks["pfn"] >> blocks["order"]) % 3 != 1
        return self._guarded(self.callbacks.is_dropped, blocks) if self.callbacks.is_dropped else None

    def cleanup(self) -> None:
        if self.checker.failure == "cleanup raises":
            raise InjectedError
        if self.callbacks.cleanup:
            self._guarded(self.callbacks.cleanup)


def well_formed(answer: Any, nr_blocks: int) -> bool:
    """Whether `hint_pages` may return this."""
    return answer is None or (np.asarray(answer).dtype == np.bool_ and np.shape(answer) in ((), (nr_blocks,)))
