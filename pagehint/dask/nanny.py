"""The plugin of each nanny: it has the worker process start as a program does under `pagehint run`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import MutableMapping
from multiprocessing import spawn
from typing import Literal, SupportsIndex
from weakref import WeakKeyDictionary

import dask
from distributed import Nanny, NannyPlugin

from pagehint.errors import PageHintError
from pagehint.malloc.library import THRESHOLD, with_library
from pagehint.running.interpreter import require_hook
from pagehint.running.settings import VARIABLE, Settings


class PageHintNanny(NannyPlugin):
    """Have each Dask worker start as under `pagehint run`: with an arena, and so every Python that it starts.

    ::

        client.register_plugin(PageHintNanny(malloc=True))

    With `malloc` large requests of any library go to the arena, too, as with `pagehint run --malloc`. That must be so
    from the start of a process, and so is the nanny's to do: workers that run are restarted. Register it before there
    are data on them. `PageHintWorker` goes with it: that finds the arena, has what is kept given back, and says whose
    it is.

    Parameters
    ----------
    malloc : bool or str or int, optional
        Whether malloc's large requests go to the arena. A size: those of so many bytes and more. Default: False; with
        True of 32 KiB and more.
    size, min_age, cost, hugepages : optional
        Of each worker's arena, as for `PageHintWorker`.

    Raises
    ------
    ValueError, TypeError
        If there can be no such arena.

    Notes
    -----
    Where a nanny cannot have its worker start so, `Client.register_plugin` raises its PageHintError, and the worker is
    not restarted: pagehint's start-up hook does not run there, Dask is set to start workers by fork
    (`distributed.worker.multiprocessing-method`), or the dynamic linker cannot load the library. On a nanny that comes
    later Dask logs it, and its worker starts without.

    The worker's environment is set before it starts (Dask's ``pre-spawn-environ``), which Dask does by the
    environment of the nanny's own process. With a LocalCluster that is the client's: what it starts from then on has
    an arena, too. When the plugin is removed, or the nanny closes, these variables are as they were. What else is set
    stays, such as Dask's MALLOC_TRIM_THRESHOLD_, which is then about the C heap's small requests only.
    """

    name = "pagehint"
    restart = True

    def __init__(
        self,
        malloc: bool | str | SupportsIndex = False,
        size: str | SupportsIndex | None = None,
        min_age: float | Literal["auto"] | None = None,
        cost: float | None = None,
        hugepages: bool | None = None,
    ) -> None:
        threshold = (THRESHOLD if malloc else None) if isinstance(malloc, bool) else malloc
        self._settings = Settings.checked(size=size, min_age=min_age, cost=cost, hugepages=hugepages, malloc=threshold)

    async def setup(self, nanny: Nanny) -> None:
        """Set the environment of a nanny's worker. Dask calls this, and restarts the worker."""
        method = dask.config.get("distributed.worker.multiprocessing-method")
        if method != "spawn":
            raise PageHintError(
                f"Dask starts workers by {method} here, which have the environment of another process;"
                " set distributed.worker.multiprocessing-method to spawn"
            )
        await asyncio.to_thread(require_hook, [os.fsdecode(spawn.get_executable())], self._settings)
        _set(nanny, self._variables({**os.environ, **nanny.pre_spawn_env, **nanny.env}))

    def teardown(self, nanny: Nanny) -> None:
        """Have the variables as they were before. Dask calls this."""
        _reset(nanny)

    def _variables(self, environment: dict[str, str]) -> dict[str, str]:
        """Return what is to be set for a worker that else has this environment."""
        ours = {VARIABLE: self._settings.to_text()}
        if self._settings.malloc is not None:
            loaded = with_library(environment)
            ours.update({name: loaded[name] for name in with_library({})})
        return ours


# What was set for a nanny, where, and what was there before.
_Change = tuple[MutableMapping[str, str], dict[str, str], dict[str, str | None]]
_changes: WeakKeyDictionary[Nanny, list[_Change]] = WeakKeyDictionary()


def _set(nanny: Nanny, ours: dict[str, str]) -> None:
    """Set variables for a nanny's worker. Those that another plugin of ours has set are as before first."""
    _reset(nanny)
    environments: list[MutableMapping[str, str]] = [nanny.pre_spawn_env, nanny.env, os.environ]
    _changes[nanny] = [(each, ours, {name: each.get(name) for name in ours}) for each in environments]
    nanny.pre_spawn_env.update(ours)
    nanny.env.update(ours)


def _reset(nanny: Nanny) -> None:
    """Have variables as they were, but for those that somebody else has set since."""
    for environment, ours, before in _changes.pop(nanny, ()):
        for name, value in ours.items():
            if environment.get(name) != value:
                continue
            if (was := before[name]) is None:
                del environment[name]
            else:
                environment[name] = was
