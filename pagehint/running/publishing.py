"""The metrics of all processes of a program, on one address that `pagehint run` serves itself.

So there is one address however many processes come and go, none of them has to have `prometheus_client`, and nothing is
added to what a program publishes itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TypeAlias

from pagehint.extras import require
from pagehint.observing.asking import look
from pagehint.observing.holdings import Holdings
from pagehint.observing.metrics import Collector
from pagehint.running.sample import Process

Address: TypeAlias = tuple[str, int]
_PATIENCE = 2.0  # seconds with a process that does not answer: less than a scrape may take


class Publisher:
    """Serve metrics until `close`.

    Parameters
    ----------
    address : (host, port)
        Port 0: a free one, which is said on stderr.
    seen : mapping of int to Process
        The processes, by their numbers. Others may come into it meanwhile.

    Raises
    ------
    PageHintError
        If `prometheus_client` is not installed.
    OSError
        If the address cannot be had.
    """

    def __init__(self, address: Address, seen: Mapping[int, Process]) -> None:
        client = require("prometheus_client", "--metrics", "metrics")
        registry = client.CollectorRegistry()
        registry.register(Collector(lambda: _holdings(seen)))
        host, port = address
        try:
            self._server, self._thread = client.start_http_server(port, host or "0.0.0.0", registry)
        except OSError as error:
            raise OSError(f"no metrics at {host}:{port}: {error.strerror or error}") from None
        if port == 0:
            print(f"pagehint: metrics at {host}:{self._server.server_port}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _holdings(seen: Mapping[int, Process]) -> Iterator[Holdings]:
    """Yield what the processes that have not ended hold; of one that does not answer, only that it is there."""
    processes = {process.pid: process for process in list(seen.values()) if not process.ended}
    answers: dict[int, Holdings | None] = {}
    with suppress(OSError):  # there may be no folder that is ours: then no process can be asked
        answers.update((each.pid, each.holdings) for each in look(processes, patience=_PATIENCE))
    for pid, process in processes.items():
        holdings = answers.get(pid)
        if holdings is not None:
            yield holdings
        elif process.last is not None:
            yield Holdings(pid, process.last, ())
