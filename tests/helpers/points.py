"""Holding threads at the test points of a debug build (`pagehint/sync/testpoint.pxd`)."""

from __future__ import annotations

import ctypes
import re
import threading
import time
from pathlib import Path
from typing import Self

from pagehint import _core
from pagehint.allocator import fork, memory
from pagehint.arena import mapping
from pagehint.hinting import callbacks, engine

PATIENCE = 15  # seconds; a held thread has twenty
UNUSED, WAITS, HOLDS, OVER, EXPIRED = range(5)
# All modules share the table, so it does not matter in which it is looked up.
_FILE = _core.__file__


class _Hold(ctypes.Structure):
    _fields_ = (("point", ctypes.c_char * 64), ("until", ctypes.c_char * 64), ("state", ctypes.c_int32))


def _table() -> ctypes.Array[_Hold]:
    return (_Hold * 8).in_dll(ctypes.CDLL(_FILE), "ph_holds")


def compiled_points() -> set[str]:
    """Every point there is in the modules."""
    found: set[bytes] = set()
    for module in (mapping, callbacks, _core, engine, fork, memory):
        found.update(re.findall(rb"at: [ -~]+(?=\0)", Path(module.__file__).read_bytes()))
    return {point.decode() for point in found}


class Hold:
    """Hold the next thread that comes to a point, until it is let go, or another thread comes to the point `until`.

    A context manager: on exit the held thread is let go. It fails if no thread came, or if one was held for so long
    that it went on by itself. With `until` only a thread without the GIL can be held.
    """

    def __init__(self, point: str, until: str = "") -> None:
        self.point = point
        self._slot = next(slot for slot in _table() if slot.state == UNUSED)
        self._slot.point, self._slot.until = point.encode(), until.encode()
        self._slot.state = WAITS

    def wait(self) -> None:
        """Wait until a thread is held here."""
        deadline = time.monotonic() + PATIENCE
        while self._slot.state == WAITS:
            assert time.monotonic() < deadline, f"no thread came to {self.point!r}"
            time.sleep(0.0005)

    def let_go(self) -> None:
        self._slot.state = OVER if self._slot.state == HOLDS else self._slot.state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.let_go()
        state, self._slot.state = self._slot.state, UNUSED
        if kind is None:
            assert state != WAITS, f"no thread came to {self.point!r}"
            assert state != EXPIRED, f"the thread held at {self.point!r} was not let go, or it had the GIL"


class Thread(threading.Thread):
    """A thread whose result, or error, is its caller's. A daemon: one that hangs must not keep the tests from ending"""

    def __init__(self, function, *arguments) -> None:
        super().__init__(daemon=True)
        self._call = function, arguments
        self._outcome = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        function, arguments = self._call
        try:
            self._outcome = function(*arguments)
        except BaseException as error:
            self._error = error

    def result(self):
        """What the function returned."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._outcome
