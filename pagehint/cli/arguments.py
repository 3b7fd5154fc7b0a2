"""Types of arguments, for `add_argument(type=...)`: what a user writes, and what is said if it is wrong."""

from __future__ import annotations

import argparse

from pagehint.sizes import parse_size


def memory_size(text: str) -> int:
    """Return a memory size in bytes, such as "512MiB"."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """Return a time in seconds, at most a day."""
    return _time(text, "seconds", 24 * 60 * 60)


def minutes(text: str) -> float:
    """Return a time in minutes, at most a week."""
    return _time(text, "minutes", 7 * 24 * 60)


def _time(text: str, unit: str, most: int) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number of {unit}: {text!r}") from None
    if not 0 < number <= most:  # true of NaN, too
        raise argparse.ArgumentTypeError(f"{unit} must be more than 0 and at most {most}, not {text}")
    return number
