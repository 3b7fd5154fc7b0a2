"""A finding: something that must not happen, and did."""

from __future__ import annotations


class FindingError(AssertionError):
    """Something that must not happen."""


def require(truth: object, what: str) -> None:
    """Raise a finding unless it is true."""
    if not truth:
        raise FindingError(what)
