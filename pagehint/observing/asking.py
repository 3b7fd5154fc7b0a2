"""Asking the processes of this user what they hold. A process may be stopped, busy, gone, or not be what it says."""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pagehint.errors import PageHintError
from pagehint.observing.holdings import Holdings
from pagehint.observing.places import folders

_NAME: Final = re.compile(r"(\d{1,10})-\d{1,20}", re.ASCII)  # of a socket: the process, and when it was started
_MOST: Final = 1 << 20  # bytes of an answer
_AT_ONCE: Final = 16
_TO_END: Final = 0.05  # seconds in which a process that is ending has closed its socket


@dataclass(frozen=True)
class Process:
    """A process that has a socket.

    Attributes
    ----------
    pid : int
        Its number; of a container's process that has numbers of its own, the one that it has there.
    command : str
        How it was started, as far as that can be seen from here and printed.
    holdings : Holdings or None
        What it has answered.
    trouble : str
        Why it has not, else empty.
    """

    pid: int
    command: str
    holdings: Holdings | None
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return everything, sizes in bytes."""
        figures = {"resident": None, "arenas": []} if self.holdings is None else self.holdings.to_dict()
        return {**figures, "pid": self.pid, "command": self.command, "trouble": self.trouble or None}


def sockets(pids: Iterable[int] | None = None) -> Iterator[tuple[int, Path]]:
    """Yield processes, all or these, and their sockets; also of such as have ended. PermissionError as of `folders`."""
    wanted = None if pids is None else frozenset(pids)
    for folder in folders():
        for path in sorted(folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match is not None and (wanted is None or int(match[1]) in wanted):
                yield int(match[1]), path


def ask(path: Path, *, brief: bool = False, patience: float = 5.0) -> bytes:
    """Ask at a socket.

    Parameters
    ----------
    path : Path
        The socket.
    brief : bool
        Leave out what takes long to find where much is in use.
    patience : float
        Seconds, in all.

    Raises
    ------
    OSError
        If nobody answers in time (TimeoutError), nobody is there any more (ConnectionRefusedError), or the socket is
        not of this user or root.
    """
    until = time.monotonic() + patience
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(patience)
        _connect(asked, path, until)
        asked.sendall(b"b" if brief else b"f")
        parts: list[bytes] = []
        size = 0
        while size <= _MOST:
            asked.settimeout(_left(until))
            part = asked.recv(1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
    raise OSError("it does not stop answering")


def _connect(asked: socket.socket, path: Path, until: float) -> None:
    """Connect, as soon as there are not too many who wait for an answer."""
    while True:
        with suppress(BlockingIOError):
            asked.connect(os.fspath(path))
            return
        time.sleep(min(_left(until), 0.01))


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("it does not answer")
    return left


def look(pids: Iterable[int] | None = None, *, brief: bool = False, patience: float = 5.0) -> list[Process]:
    """Ask all processes of this user, or these, by their numbers; remove what ended ones have left.

    Raises
    ------
    PermissionError
        If the folder of the sockets is somebody else's.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = threads.map(lambda each: _look_at(each[0], each[1], brief, patience), list(sockets(pids)))
        return sorted((each for each in found if each is not None), key=lambda each: each.pid)


def _look_at(pid: int, path: Path, brief: bool, patience: float, *, again: bool = True) -> Process | None:
    """Ask a process; None if it has ended. One that ends while it answers is asked again, and is not there any more."""
    try:
        return Process(pid, command_of(pid), Holdings.from_answer(ask(path, brief=brief, patience=patience)))
    except ConnectionRefusedError:  # nobody listens: a socket has its name only from then on
        with suppress(OSError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        return None
    except FileNotFoundError:
        return None
    except TimeoutError:
        return Process(pid, command_of(pid), None, f"it has not answered within {patience:g} s; it may be stopped")
    except (OSError, PageHintError) as error:
        if again:
            time.sleep(_TO_END)
            return _look_at(pid, path, brief, patience, again=False)
        return Process(pid, command_of(pid), None, str(error))


def command_of(pid: int) -> str:
    """Return how a process was started, without what a terminal would take for commands."""
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            words = os.fsdecode(file.read(4096)).rstrip("\0").split("\0")
    except OSError:
        return ""
    return "".join(char if char.isprintable() else "?" for char in " ".join(words))
