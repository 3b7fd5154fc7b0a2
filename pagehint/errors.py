"""The errors pagehint raises. Messages name the PFN, the order and the zone."""

from __future__ import annotations


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
