"""The context manager in which hinting is on: what `hinting` of an allocator and of an arena returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from pagehint.errors import warn_never_entered

_T = TypeVar("_T")


class HintingContext(AbstractContextManager[_T, None]):
    """Hinting is on from entering to leaving. Dropped without having been entered, it warns.

    Parameters
    ----------
    pages : PageAllocator
        What entering returns.
    enable, disable : callable
        Called without arguments as it is entered, and as it is left. The arguments of `enable` were checked before.
    what : str
        The call that made it, for the warning.
    """

    _entered = True  # nothing to warn of, if it could not be made

    def __init__(self, pages: _T, enable: Callable[[], object], disable: Callable[[], object], what: str) -> None:
        self._pages = pages
        self._enable = enable
        self._disable = disable
        self._what = what
        self._entered = False

    def __enter__(self) -> _T:
        self._entered = True  # also if it fails: that is no silence
        self._enable()
        return self._pages

    def __exit__(self, *exc_info: Any) -> None:
        self._disable()

    def __del__(self) -> None:
        if not self._entered:
            warn_never_entered(self._what, 3)
