"""The plugin of each worker: it installs an arena, and has the worker attended to as long as it lives."""

from __future__ import annotations

import math
from numbers import Real
from typing import Final, Literal, SupportsIndex

from distributed import Worker, WorkerPlugin

from pagehint.dask.attendant import Attendant
from pagehint.numpy.installation import give_way, installed
from pagehint.running.settings import Settings

IDLE: Final = 5.0  # seconds: a client that computes again does so sooner, as a rule


class PageHintWorker(WorkerPlugin):
    """Have NumPy's arrays in an arena on every Dask worker, and memory that is kept given back.

    ::

        client.register_plugin(PageHintWorker())

    On each worker, also on those that come later, it installs an arena as `pagehint.numpy.install` does. It calls
    `pagehint.memory.release` once whenever the worker has been idle for a while, and, at most every ten seconds, while
    its process has nine tenths of its memory target (`distributed.worker.memory.target`) or more. What the worker's
    unmanaged memory is goes into its metrics: see `Notes`.

    Parameters
    ----------
    size : str or int, optional
        Of each worker's arena, in bytes, or as "2GiB". Default: the memory that its process can have.
    min_age : float or "auto", optional
        Seconds for which memory must have been free before it goes back by itself. Default: "auto", which is learnt.
    cost : float, optional
        With "auto", seconds for which keeping memory costs as much as having it come back. Default: 1.0.
    hugepages : bool, optional
        Whether to ask for huge pages. Default: True.
    idle : float, optional
        Seconds without a task, and without data coming or going, after which everything that is kept is given back.
        Default: 5.0. None: it is kept.

    Raises
    ------
    ValueError, TypeError
        If there can be no such arena.

    Notes
    -----
    A worker that cannot install it, as where another arena is installed, says so: `Client.register_plugin` raises its
    PageHintError, or Dask logs it on a worker that comes later. That worker goes on without.

    ``client.scheduler_info()["workers"][address]["metrics"]["pagehint"]`` has these numbers, in bytes. The four parts
    come to what is unmanaged:

    - unmanaged: the process's resident memory, less what Dask knows of in-memory data
    - in_use: what its owners have in use, less that data, too
    - warm: free in arenas, and not given back yet
    - kept: free, and kept by all others: kept_by says which of them has how much
    - files: pages of programs and libraries, and shared memory
    - returned: by arenas so far; what went back twice counts twice
    - released, releases: what `pagehint.memory.release` has brought here, and how often it was called
    - age: seconds since these were found. That takes up to a quarter of a second a GiB, on a thread of its own, and so
      is done at most every five seconds, and a fiftieth of the time.

    Workers that are threads of one process (``processes=False``) each show that process.

    When the plugin is removed the arena stays, with the arrays that are in it; registered again, with another size,
    another arena takes its place.
    """

    name = "pagehint"

    def __init__(
        self,
        size: str | SupportsIndex | None = None,
        min_age: float | Literal["auto"] | None = None,
        cost: float | None = None,
        hugepages: bool | None = None,
        *,
        idle: float | None = IDLE,
    ) -> None:
        self._settings = Settings.checked(size=size, min_age=min_age, cost=cost, hugepages=hugepages)
        if idle is not None and (isinstance(idle, bool) or not isinstance(idle, Real)):
            raise TypeError(f"idle must be a number of seconds, or None, not {type(idle).__name__}")
        if idle is not None and not 0 <= idle < math.inf:
            raise ValueError(f"idle must be a number of seconds from 0 on, not {idle}")
        self._idle = None if idle is None else float(idle)
        self._attendant: Attendant | None = None

    def setup(self, worker: Worker) -> None:
        """Install the arena in a worker, and begin to attend to it. Dask calls this."""
        before = installed()
        arena = self._settings.install()
        if arena is not before:  # else it is somebody's who knows of it
            give_way(arena)
        self._attendant = Attendant(worker, self._idle)
        self._attendant.begin()

    def teardown(self, worker: Worker) -> None:
        """End that. Dask calls this."""
        if self._attendant is not None:
            self._attendant.end()
            self._attendant = None
