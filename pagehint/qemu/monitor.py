"""QEMU's monitor: commands and events over QMP. Needs the extra "qemu" (the package qemu.qmp)."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from pagehint.errors import HostError, HostTimeoutError

_T = TypeVar("_T")

# When QEMU goes it logs what is raised here as a HostError.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


class Monitor:
    """A QMP session, which any thread may use; its event loop runs on a thread of its own.

    Parameters
    ----------
    connection : socket.socket
        Connected to QEMU's monitor. This closes it.
    timeout : float
        Seconds that a command may take.
    """

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self._timeout = timeout
        self._client = QMPClient("pagehint")
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="pagehint-qmp", daemon=True)
        self._thread.start()
        try:
            self._wait("connect", self._client.connect(connection))
        except BaseException:
            self.close()
            raise

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._ended.wait()
        with suppress(QMPError, OSError, EOFError, TimeoutError):  # QEMU may have gone before
            await asyncio.wait_for(self._client.disconnect(), self._timeout)

    def _wait(self, what: str, work: Coroutine[Any, Any, _T]) -> _T:
        if self._ended.is_set():
            work.close()
            raise HostError(f"QEMU's monitor is closed, and cannot {what!r}")
        limited = asyncio.wait_for(work, self._timeout)
        try:
            future = asyncio.run_coroutine_threadsafe(limited, self._loop)
        except RuntimeError:
            limited.close()
            work.close()
            raise HostError(f"QEMU's monitor is closed, and cannot {what!r}") from None
        try:
            return future.result(2 * self._timeout)
        except TimeoutError:
            raise HostTimeoutError(f"QEMU's monitor did not answer {what!r} in {self._timeout:g} s") from None
        except ExecuteError as error:
            raise HostError(f"QEMU refused {what!r}: {error}") from None
        except (QMPError, OSError, EOFError, CancelledError) as error:
            raise HostError(f"QEMU has gone: {error}") from None
        finally:
            future.cancel()  # nothing happens if it is done

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        """Run a command; returns what it returns."""
        return self._wait(command, self._client.execute(command, arguments))

    def events(self) -> list[dict[str, Any]]:
        """Return the events since last asked, oldest first."""

        async def arrived() -> list[dict[str, Any]]:
            return [dict(event) for event in self._client.events.clear()]

        return self._wait("events", arrived())

    def stop(self) -> None:
        """Have the session end soon, without a wait."""
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._ended.set)

    def close(self) -> None:
        """End the session."""
        self.stop()
        self._thread.join()
