"""NumPy's arrays in an arena, in the whole process; in a context of one's own it is `Arena.numpy`.

::

    ph.numpy.install()

That is an arena as large as this machine's memory, whose granules go back to the operating system when they have been
free for a hundredth of a second. What a loop frees and uses again at once stays, and what it wants back later is made
resident ahead of its writing, by another thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pagehint.arena.counts import Counts
from pagehint.numpy import handler as _numpy

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from pagehint.arena.arena import Arena

__all__ = ["Counts", "install", "installed", "uninstall"]

# Seconds. Some 60 times what it costs to have a granule again, where it was not populated ahead; `benchmarks/README.md`
# has what shorter and longer ones do to throughput and memory.
MIN_AGE: Final = 0.01


def install(arena: Arena | None = None, *, min_age: float | None = None) -> Arena:
    """Have NumPy's new arrays made in an arena in all threads, those to come included.

    Parameters
    ----------
    arena : Arena, optional
        Kept alive until `uninstall`. Closed meanwhile, it serves nothing any more, and the C heap does. Whether it
        gives back what is free is up to you: `Arena.hinting`. Default: the one that is installed, or else a new one of
        this machine's memory, with hinting on.
    min_age : float, optional
        Of a new one: seconds for which a granule must have been free before it goes back. Default: 0.01.

    Returns
    -------
    Arena
        The arena.

    Raises
    ------
    PageHintError
        If another arena is installed, or this one is a guest's RAM. The same one again is no mistake.
    ValueError
        If it is closed, or `min_age` is given and no arena is made here.

    Notes
    -----
    It stands in for NumPy's default allocator, to which it hands on what is not for the arena: see `Arena.numpy`, which
    goes before it in its context, as does any handler that others have set in theirs. A forked child has the arena
    installed, too, and memory of its own in it.
    """
    if arena is None:
        arena = installed()
    if arena is not None and min_age is not None:
        raise ValueError("min_age is for an arena that is made here; for another it is Arena.hinting's")
    if arena is None:
        arena = _new(MIN_AGE if min_age is None else min_age)
    arena._install()
    return arena


def _new(min_age: float) -> Arena:
    from pagehint.arena.arena import Arena

    arena = Arena()
    # Until it is collected. What is free now has never been in memory.
    arena.hinting(min_age=min_age, threshold=1, delay=None, mark_free=False).__enter__()
    return arena


def installed() -> Arena | None:
    """Return the arena that is installed, or None."""
    return _numpy.installed_in()


def uninstall() -> None:
    """Have NumPy's new arrays made in the C heap again. Nothing happens if no arena is installed.

    Arrays in the arena live on, and the last of them frees its mapping, if nothing else refers to the arena.
    """
    _numpy.uninstall()


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Have the magic ``%pagehint``: what ``%load_ext pagehint`` calls."""
    from pagehint.notebook.magic import load

    load(ipython)
