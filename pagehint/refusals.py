"""What the kernel, or a sandbox, refuses: it costs a feature, which is said once in a process, and everything goes on.

Code that runs without the GIL notes that it was refused, and what runs with it says so.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Final

_log: Final = logging.getLogger("pagehint")
_said: Final[dict[str, object]] = {}


def say_once(what: str, why: int | str, lost: str) -> None:
    """Log that a system call, or a feature, is refused, why (an errno, or words), and what is lost; once for each."""
    mine = object()
    if _said.setdefault(what, mine) is not mine:
        return
    with suppress(Exception):  # a logging handler that raises must not cost more than the feature
        _log.warning("%s is refused (%s): %s", what, os.strerror(why) if isinstance(why, int) else why, lost)


def say_no_barrier() -> None:
    """Say that the kernel orders no other thread's accesses for us, as the locks would have it."""
    say_once("membarrier", "not to be had, or not any more", "each use of a lock passes a memory fence")
