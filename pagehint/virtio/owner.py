"""Which process something belongs to, where a forked child shares the memory, and must not use it."""

from __future__ import annotations

import os

from pagehint.errors import PageHintError


class Owner:
    """The process that made this object.

    Parameters
    ----------
    what : str
        What belongs to it, a plural, for the message.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether that is this process, and not one that this was forked from."""
        return os.getpid() == self._pid

    def require(self) -> None:
        """Raise PageHintError in a forked child."""
        if not self.is_here:
            raise PageHintError(f"{self._what} belong to the process that this one was forked from")
