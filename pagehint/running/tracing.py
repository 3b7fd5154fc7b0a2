"""A trace of a program's processes: what each has in memory, and what its arenas keep warm and have given back."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from pagehint.errors import PageHintError
from pagehint.observing.asking import ask, command_of, sockets
from pagehint.observing.holdings import Holdings
from pagehint.observing.trace import Trace
from pagehint.running.sample import Process

_PATIENCE: Final = 0.2  # seconds with a process that does not answer, which keeps the others from being looked at,
_SILENCE: Final = 2.0  # and for which it then is not asked again


class Tracer:
    """Write a trace until `close`, or it cannot be written any more, which is said. Time begins with the first look.

    Raises
    ------
    OSError
        If the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._trace = Trace(path)
        self._begin: float | None = None
        self._silent_until: dict[int, float] = {}
        self._over = False

    def add(self, now: float, processes: Iterable[Process]) -> None:
        """Add what the processes that have not ended hold at this time, in seconds."""
        if self._over:
            return
        try:
            self._add(now, processes)
        except OSError as error:  # the program is not to end with it
            self._over = True
            print(f"pagehint: the trace ends here: {error}", file=sys.stderr, flush=True)

    def _add(self, now: float, processes: Iterable[Process]) -> None:
        if self._begin is None:
            self._begin = now
        there = {process.pid: process for process in processes if not process.ended}
        answers = self._ask([pid for pid in there if self._silent_until.get(pid, 0.0) <= now], now)
        for pid, process in there.items():
            answer = answers.get(pid)
            known = {} if answer is None else {"warm": answer.total("warm"), "returned": answer.total("given_back")}
            self._trace.add(now - self._begin, pid, command_of, {"RSS": process.last, **known})

    def close(self) -> None:
        """End the file."""
        with suppress(OSError):
            self._trace.close()

    def _ask(self, pids: list[int], now: float) -> dict[int, Holdings]:
        answers: dict[int, Holdings] = {}
        try:
            places = list(sockets(pids))
        except OSError:  # there is no folder that is ours: no process can be asked
            return answers
        for pid, path in places:
            try:
                answers[pid] = Holdings.from_answer(ask(path, brief=True, patience=_PATIENCE))
            except (ConnectionRefusedError, FileNotFoundError):  # it has just ended
                continue
            except (OSError, PageHintError):
                self._silent_until[pid] = now + _SILENCE
        return answers
