"""The errors pagehint raises. Messages name the PFN, the order and the zone."""

from __future__ import annotations

import os
import resource

from pagehint.sizes import format_size


class PageHintError(Exception):
    """Base of all errors of pagehint."""


class OutOfMemoryError(PageHintError, MemoryError):
    """No zone has the pages, also after waiting for those out for reporting."""


class BadPageError(PageHintError, ValueError):
    """A page, order, count or range that the call cannot be about. Nothing has changed."""


class HintingActiveError(PageHintError, RuntimeError):
    """Hinting is on already, or the call comes from inside one of its callbacks."""


class HintingInactiveError(PageHintError, RuntimeError):
    """The call needs hinting to be on."""


class HostError(PageHintError, OSError):
    """The host has gone, or refuses what it was asked. What it was told of is not with it."""


class HostTimeoutError(HostError, TimeoutError):
    """The host did not answer in time; it has been kept from touching what it was told of."""


def no_mapping(code: int, what: str) -> MemoryError:
    """Return the error for address space that the kernel does not give, naming the limit there may be on it."""
    why = os.strerror(code)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        why += f"; the address space of this process is limited to {format_size(limit)} (ulimit -v)"
    return MemoryError(f"{what}: {why}")
