"""What the arena of a process has done, written to a file named after the process when it ends.

The file is made when the arena is installed, and by a forked child at once: so whoever watches knows which processes
have an arena. It is filled at the end. A process that is killed, or leaves by `os._exit`, leaves it empty.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pagehint.arena.arena import Arena
from pagehint.observing.ending import AtEnd


@dataclass(frozen=True)
class Balance:
    """What the arena of one process has done.

    Attributes
    ----------
    given_back : int
        Bytes that were in memory until then; those given back twice count twice.
    again : int or None
        Bytes of these that were handed out again within the break-even age, in whole granules; None where the age is
        not learnt, and so nothing counts them.
    """

    given_back: int
    again: int | None


class Account:
    """The account of this process, and of each child that it forks.

    Parameters
    ----------
    folder : Path
        Where the files are. If it is gone nothing is written.
    arena : Arena
        The one that is installed.
    """

    def __init__(self, folder: Path, arena: Arena) -> None:
        self._folder, self._arena = folder, arena
        self._inherited = 0  # bytes that the parent had given back when it forked this process

    def keep(self) -> None:
        """Make the file, and have it written at the end; so, too, in forked children."""
        self._open()
        os.register_at_fork(after_in_child=self._forked)
        AtEnd(self._close)

    def _forked(self) -> None:
        self._inherited = self._arena._given_back_bytes()
        self._open()

    def _open(self) -> None:
        with suppress(OSError):
            self._path.touch()

    def _close(self) -> None:
        if self._arena.closed:
            return
        again = self._arena.pages.stats().regret
        balance = Balance(
            given_back=self._arena._given_back_bytes() - self._inherited,
            again=None if again is None else sum(again.too_soon) * again.granule_bytes,
        )
        with suppress(OSError):
            if self._path.exists():  # else whoever wanted to know has gone
                self._path.write_text(json.dumps(asdict(balance)))

    @property
    def _path(self) -> Path:
        return self._folder / str(os.getpid())


def processes(folder: Path) -> Iterator[int]:
    """Yield the ids of the processes that have an account; none if the program has removed the folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name.isdecimal():
                yield int(path.name)


def balance_of(folder: Path, pid: int) -> Balance | None:
    """Return what a process has written at its end; None if it did not come to that."""
    try:
        found = json.loads((folder / str(pid)).read_text())
        return Balance(
            given_back=int(found["given_back"]), again=None if found["again"] is None else int(found["again"])
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None
