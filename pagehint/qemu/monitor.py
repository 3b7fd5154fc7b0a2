"""QEMU's monitor: commands and events over QMP. Needs the extra "qemu" (the package qemu.qmp)."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from pagehint.errors import HostError, HostTimeoutError

_T = TypeVar("_T")

# What it logs when QEMU goes is raised here as well, in our words.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


class Monitor:
    """A QMP session, for any thread; its event loop runs on a thread of its own.

    Parameters
    ----------
    connection : socket.socket
        Connected to QEMU's monitor. It is owned from now on.
    timeout : float
        Seconds that a command may take.
    """

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pagehint-qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("pagehint")
        try:
            self._wait("connect", self._client.connect(connection))
        except BaseException:
            self._end()
            raise

    def _wait(self, what: str, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, self._timeout), self._loop)
        try:
            return future.result()
        except TimeoutError:
            raise HostTimeoutError(f"QEMU's monitor did not answer {what!r} in {self._timeout:g} s") from None
        except ExecuteError as error:
            raise HostError(f"QEMU refused {what!r}: {error}") from None
        except (QMPError, OSError, EOFError) as error:
            raise HostError(f"QEMU has gone: {error}") from None
        except BaseException:
            future.cancel()
            raise

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        """Run a command and return what it returns."""
        return self._wait(command, self._client.execute(command, arguments))

    def events(self) -> list[dict[str, Any]]:
        """Return the events since last asked, oldest first."""

        async def arrived() -> list[dict[str, Any]]:
            return [dict(event) for event in self._client.events.clear()]

        return self._wait("events", arrived())

    def close(self) -> None:
        """End the session."""

        async def disconnect() -> None:
            with suppress(QMPError, OSError, EOFError):  # it may have gone first
                await self._client.disconnect()

        self._wait("disconnect", disconnect())
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
