"""Types of arguments, for `add_argument(type=...)`: what a user writes, and what is said if it is wrong."""

from __future__ import annotations

import argparse
from typing import Literal

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


def age(text: str) -> float | Literal["auto"]:
    """Return a time in seconds, at most a day, which may be 0, or "auto"."""
    if text == "auto":
        return "auto"
    return 0.0 if text == "0" else seconds(text)


def address(text: str) -> tuple[str, int]:
    """Return a host and a port: "127.0.0.1:9464", "[::1]:9464"; ":9464" for every interface."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535 or (bare == host and ":" in host):
        raise argparse.ArgumentTypeError(f"not an address such as 127.0.0.1:9464: {text!r}")
    return bare, int(port)


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
