"""The errors that pagehint raises. Messages name the PFN, the order and the zone."""

from __future__ import annotations

import os
import resource
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from pagehint.sizes import format_size


class PageHintError(Exception):
    """Base of all errors of pagehint."""


class OutOfMemoryError(PageHintError, MemoryError):
    """No zone has the pages, also after waiting for those that are out with the host."""


class ArenaClosedError(PageHintError, ValueError):
    """The arena is closed: its memory has gone back. As with a closed file, it is a ValueError, too."""


class BadPageError(PageHintError, ValueError):
    """The call does not accept this page, order, count or run of pages. Nothing has changed."""


class HintingActiveError(PageHintError, RuntimeError):
    """Hinting is on already, or the call comes from inside one of its callbacks."""


class HintingInactiveError(PageHintError, RuntimeError):
    """The call needs hinting to be on."""


class HostError(PageHintError, OSError):
    """The host is gone, or refuses what it was asked. It has not taken the blocks that it was told of."""


class HostTimeoutError(HostError, TimeoutError):
    """The host did not answer in time. It has been kept from touching the blocks that it was told of."""


class TraceError(PageHintError, ValueError):
    """A file is no recording that can be read. The message names it, and says why."""


def refuse_what_is_not_compiled(package: Path) -> None:
    """Raise an ImportError that says what to do if a source there is not compiled for this Python.

    The folder of the sources comes before an installed package on the path where it is the current one.
    """
    for source in sorted(package.rglob("*.pyx")):
        if not any(source.with_suffix(suffix).exists() for suffix in EXTENSION_SUFFIXES):
            raise ImportError(
                f"{package} holds the sources of pagehint, of which {source.name} is not compiled for this Python. To"
                " use an installed pagehint, leave this folder, or start Python with -P. To use this one, build it in"
                " place: pip install -e . in the folder above."
            ) from None


def no_mapping(code: int, what: str) -> MemoryError:
    """Return the error for memory that the kernel refuses, with the reason for `code`, an errno.

    Names the limit on the process's address space, if there is one, which may be why.
    """
    why = os.strerror(code)
    try:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except OSError:  # refused as well
        limit = resource.RLIM_INFINITY
    if limit != resource.RLIM_INFINITY:
        why += f"; the address space of this process is limited to {format_size(limit)} (ulimit -v)"
    return MemoryError(f"{what}: {why}")


def warn_never_entered(what: str, stacklevel: int) -> None:
    """Warn that a context manager, `what`, was dropped without having been entered.

    A RuntimeWarning, as for a coroutine that was never awaited: it is the same mistake, and unlike a ResourceWarning
    it is shown unless somebody switches it off. `stacklevel` is that of `warnings.warn`, seen from here.
    """
    warnings.warn(f"{what} was never entered, so it did nothing: with {what}: ...", RuntimeWarning, stacklevel)
