"""The errors that pagehint raises. Messages name the PFN, the order and the zone."""

from __future__ import annotations

import os
import resource

from pagehint.sizes import format_size


class PageHintError(Exception):
    """Base of all errors of pagehint."""


class OutOfMemoryError(PageHintError, MemoryError):
    """No zone has the pages, also after waiting for those that are out with the host."""


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


def no_mapping(code: int, what: str) -> MemoryError:
    """Return the error for memory that the kernel refuses, with the reason for `code`, an errno.

    Names the limit on the process's address space, if there is one, which may be why.
    """
    why = os.strerror(code)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        why += f"; the address space of this process is limited to {format_size(limit)} (ulimit -v)"
    return MemoryError(f"{what}: {why}")
