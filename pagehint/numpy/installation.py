"""NumPy's arrays in an arena, in the whole process; in one context it is `Arena.numpy`.

::

    ph.numpy.install()

This makes an arena as large as the memory that this process can have. Its granules go back to the operating system when
they have been free for a hundredth of a second. What a loop frees and uses again at once stays, and what it wants back
later is made resident by another thread, ahead of the one that writes to it.
"""

from __future__ import annotations

from typing import Final

from pagehint.arena.arena import Arena
from pagehint.arena.counts import Counts
from pagehint.numpy import handler

__all__ = ["MIN_AGE", "Counts", "install", "installed", "uninstall"]

# Seconds. About 60 times what it costs to have a granule again that was not populated ahead; `benchmarks/README.md` has
# what shorter and longer ages do to throughput and memory.
MIN_AGE: Final = 0.01


def install(arena: Arena | None = None, *, min_age: float | None = None, hugepages: bool | None = None) -> Arena:
    """Have NumPy's new arrays made in an arena, in all threads, also in those that start later.

    Parameters
    ----------
    arena : Arena, optional
        Kept alive until `uninstall`. If it is closed meanwhile, the C heap serves all requests. Whether it gives back
        what is free is up to you: `Arena.hinting`. Default: the one that is installed, or else a new one, of the size
        that `Arena` has by default, with hinting on.
    min_age : float, optional
        Of a new one: seconds for which a granule must have been free before it goes back. Default: 0.01.
    hugepages : bool, optional
        Of a new one: whether to ask for huge pages, as for `Arena`. Default: True. Without them an array has no more in
        memory than what was touched of it, as with the C heap, but touching it takes several times as long.

    Returns
    -------
    Arena
        The arena.

    Raises
    ------
    PageHintError
        If another arena is installed, or this one is a guest's RAM. To install the same one again is no mistake.
    ValueError
        If it is closed, or `min_age` or `hugepages` is given and no arena is made here.

    Notes
    -----
    This replaces NumPy's default allocator, which serves what is not for the arena: see `Arena.numpy`. In its context
    `Arena.numpy` takes precedence, as does any other handler that is set there. A forked child has the arena installed,
    too, its memory there is its own, and what it frees goes back: a worker of its own starts when there is something to
    give back.
    """
    if arena is None:
        arena = installed()
    if arena is not None and min_age is not None:
        raise ValueError("min_age is for an arena that is made here; for another it is Arena.hinting's")
    if arena is not None and hugepages is not None:
        raise ValueError("hugepages is for an arena that is made here; for another it is an argument of Arena")
    if arena is None:
        arena = _new(MIN_AGE if min_age is None else min_age, hugepages is None or hugepages)
    handler.install(arena._numpy_heap(), arena)
    return arena


def _new(min_age: float, hugepages: bool) -> Arena:
    arena = Arena(hugepages=hugepages)
    # Hinting is on until the arena is collected. What is free now has never been in memory: it need not be reported.
    arena.hinting(min_age=min_age, threshold=1, delay=None, mark_free=False).__enter__()
    return arena


def installed() -> Arena | None:
    """Return the arena that is installed, or None."""
    return handler.installed_in()


def uninstall() -> None:
    """Have NumPy's new arrays made in the C heap again. Nothing happens if no arena is installed.

    Arrays in the arena live on. The last of them frees its mapping, if nothing else refers to the arena.
    """
    handler.uninstall()
