"""The end of this process, and of each child that it forks, for what is to be done then."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable


class AtEnd:
    """Call a function when this process ends, and each child that it forks.

    Not if it is killed, or leaves by `os._exit` without `multiprocessing`.

    Parameters
    ----------
    then : callable
        Called once or twice.
    """

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then
        atexit.register(self._call)
        os.register_at_fork(after_in_child=self._also_in_multiprocessing)
        self._also_in_multiprocessing()

    def _call(self) -> None:
        self._then()

    def _also_in_multiprocessing(self) -> None:
        # Its children end by os._exit, which runs its finalizers and not atexit's; those that were registered before a
        # child begins its work it drops, but for what is registered as after a fork.
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.register_after_fork(self, AtEnd._finish_with_multiprocessing)
            self._finish_with_multiprocessing()

    def _finish_with_multiprocessing(self) -> None:
        sys.modules["multiprocessing.util"].Finalize(None, self._call, exitpriority=0)
