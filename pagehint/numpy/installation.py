"""NumPy's arrays in an arena, in the whole process; in one context it is `Arena.numpy`.

::

    ph.numpy.install()

This makes an arena as large as the memory that this process can have. How long its granules stay free before they go
back to the operating system is learnt: what a loop takes again within a second stays, and what nobody wants goes soon,
but for the lowest 64 MiB, which stay for a second and a half. What has gone back and is wanted again is made resident
by another thread, ahead of the one that writes to it.
"""

from __future__ import annotations

import weakref
from typing import Any, Final, Literal, SupportsIndex

from pagehint._core import check_hinting
from pagehint.arena.arena import Arena
from pagehint.arena.base import HUGE_PAGE, BaseArena
from pagehint.arena.counts import Counts
from pagehint.errors import HintingInactiveError, PageHintError
from pagehint.numpy import handler
from pagehint.refusals import say_once
from pagehint.sizes import format_size, parse_size

__all__ = ["MIN_AGE", "RESERVE", "RESERVE_AGE", "Counts", "install", "installed", "uninstall"]

# A constant of 0.01 seconds keeps less warm, and a loop that is slower than that faults its memory in each time;
# `benchmarks/README.md` has what ages do to throughput and memory.
MIN_AGE: Final = "auto"

# Bytes, and seconds for which they stay: for loops at any pace that want it again within a second. glibc keeps as much
# at the top of its heap, without end: M_TRIM_THRESHOLD grows to 64 MiB with the arrays that are freed.
RESERVE: Final = 64 << 20
RESERVE_AGE: Final = 1.5


def install(
    arena: Arena | str | SupportsIndex | None = None,
    *,
    size: str | SupportsIndex | None = None,
    min_age: float | Literal["auto"] | None = None,
    cost: float | None = None,
    reserve: str | SupportsIndex | None = None,
    reserve_age: float | None = None,
    pressure: bool | None = None,
    hugepages: bool | None = None,
) -> Arena:
    """Have NumPy's new arrays made in an arena, in all threads, also in those that start later.

    Parameters
    ----------
    arena : Arena, str or int, optional
        Kept alive until `uninstall`. If it is closed meanwhile, the C heap serves all requests. Whether it gives back
        what is free is up to you: `Arena.enable_hinting`. Default: the one that is installed, or else a new one, of the
        size that `Arena` has by default, with hinting on. A size is taken as `size`.
    size : str or int, optional
        Bytes of a new one, or a size such as "2GiB"; with hinting on. If one of that size was made by this function and
        is installed, it stays.
    min_age : float or "auto", optional
        Of an arena that this function makes or has made: seconds for which a granule must have been free before it goes
        back. "auto": learnt from how long memory stays free, so that what a loop takes again stays warm, and the rest
        goes soon. Default: "auto" for a new one; one that is installed keeps its age. So it is with the next four.
    cost : float, optional
        With "auto", seconds for which keeping a granule costs as much as having it come back. Default: 1.0.
    reserve : str or int, optional
        Bytes, or a size such as "16MiB", of the free memory at the lowest addresses, which must have been free for
        longer. Default: 64 MiB.
    reserve_age : float, optional
        Seconds for which that must have been free; 0 for no reserve. Default: 1.5.
    pressure : bool, optional
        Whether everything that is free goes back at once, whatever its age, while memory is short: see
        `Arena.pressure`, which also says what the kernel offers for that. Default: True.
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
        If another arena is installed, but for that of `pagehint run`, or this one is a guest's RAM. To install the same
        one again is no mistake.
    MemoryError
        If the kernel gives no mapping for an arena.
    ArenaClosedError
        If it is closed.
    ValueError
        If the size is none or too large, or an age or the reserve is, or these or `pressure` are given for an arena
        that was not made here; or if `hugepages` is given and no arena is made.
    TypeError
        If `arena` is neither an arena nor a size, or there is a `size` as well.

    Notes
    -----
    This replaces NumPy's default allocator, which serves what is not for the arena: see `Arena.numpy`. In its context
    `Arena.numpy` takes precedence, as does any other handler that is set there. A forked child has the arena installed,
    too, its memory there is its own, and what it frees goes back: a worker of its own starts when there is something to
    give back.

    `tracemalloc` sees the arrays with their sizes, and the lines that made them, as NumPy reports them to it. memray
    and others that watch ``malloc`` and ``mmap`` see no array in the arena: one mapping, as large as the arena, made
    here. What of it is in memory is in `Arena.status`.

    With hinting on this process has another thread, beside which ``unshare(CLONE_NEWUSER)`` fails: see
    `Arena.enable_hinting`. With `pressure` it has a second one, which sleeps until memory is short.

    Where no thread can be made, as in some sandboxes, a new arena has hinting off, and a warning is logged once.
    """
    if not isinstance(arena, BaseArena) and arena is not None:
        if size is not None:
            raise TypeError("install takes one size, not two")
        arena, size = None, arena
    if size is not None:
        if arena is not None:
            raise TypeError("size is for an arena that is made here; the one that is given has its own")
        arena = _installed_of(size)
    elif arena is None:
        arena = installed() if hugepages is None or installed() not in _giving_way else None
    if arena is not None and hugepages is not None:
        raise ValueError("hugepages is for an arena that is made here; for another it is an argument of Arena")
    settings = {
        "min_age": min_age,
        "cost": cost,
        "reserve": reserve,
        "reserve_age": reserve_age,
        "pressure": pressure,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if arena is None:
        arena = _new(size, given, hugepages is None or hugepages)
    elif given:
        _change(arena, given)
    heap = arena._numpy_heap()
    if installed() in _giving_way and installed() is not arena:
        uninstall()
    handler.install(heap, arena)
    return arena


_giving_way: weakref.WeakSet[Arena] = weakref.WeakSet()


def give_way(arena: Arena) -> None:
    """Have the next installation of another arena take the place of this one: who installs that does not know of it."""
    _giving_way.add(arena)


_made: weakref.WeakSet[Arena] = weakref.WeakSet()  # by `install`, which alone may change their settings


def _new(size: str | SupportsIndex | None, settings: dict[str, Any], hugepages: bool) -> Arena:
    arena = Arena(size, hugepages)
    try:
        _give_back(arena, settings)
    except (PageHintError, RuntimeError, MemoryError) as error:
        say_once("hinting", str(error), "of the installed arena nothing goes back by itself, only with trim()")
    _made.add(arena)
    return arena


def _give_back(arena: Arena, settings: dict[str, Any]) -> None:
    """Enable hinting until the arena is collected, with these settings, and the defaults of others."""
    settings = {"min_age": MIN_AGE, "reserve": RESERVE, "reserve_age": RESERVE_AGE, "pressure": True, **settings}
    # What is free now has never been in memory, or has been given back: it need not be reported.
    arena.enable_hinting(threshold=1, delay=None, mark_free=False, **settings)


def _installed_of(size: Any) -> Arena | None:
    """Return the arena that is installed if it was made here, of this size; None if none is installed."""
    if isinstance(size, bool) or not (isinstance(size, str) or hasattr(size, "__index__")):
        raise TypeError(f"install takes an Arena, or the size of a new one such as '2GiB', not {type(size).__name__}")
    arena = installed()
    wanted = -(-parse_size(size) // HUGE_PAGE) * HUGE_PAGE
    if arena is None or (arena.size != wanted and arena in _giving_way):
        return None
    if arena not in _made or arena.size != wanted:
        raise PageHintError(f"another arena is installed for NumPy, of {format_size(arena.size)}; uninstall it first")
    return arena


def _change(arena: Arena, settings: dict[str, Any]) -> None:
    if arena not in _made:
        raise ValueError(
            f"{' and '.join(settings)} can be set for an arena that is made here;"
            " for another it is Arena.enable_hinting's"
        )
    try:
        ages = {"min_age": arena.pages.min_age, **settings}
        heeds = ages.pop("pressure", False)
        check_hinting(arena.pages, arena._checked_callbacks("dontneed", None, heeds), **ages)  # all, or nothing changes
        for name, value in settings.items():
            if name == "pressure":
                arena._heed(value)
            else:
                setattr(arena.pages, name, value)
    except HintingInactiveError:
        _give_back(arena, settings)


def installed() -> Arena | None:
    """Return the arena that is installed, or None."""
    return handler.installed_in()


def uninstall() -> None:
    """Have NumPy's new arrays made in the C heap again. Nothing happens if no arena is installed.

    Arrays in the arena live on. The last of them frees its mapping, if nothing else refers to the arena.
    """
    handler.uninstall()
