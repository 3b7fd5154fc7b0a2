"""Memory sizes as text and as numbers of bytes: ``"16GiB"``, ``"512 MiB"``, ``4096``."""

from __future__ import annotations

import operator
import re
from typing import SupportsIndex

_UNITS = {"": 1, "b": 1}
for _power, _prefix in enumerate("kmgtpe", start=1):
    _UNITS[f"{_prefix}ib"] = 1024**_power
    _UNITS[_prefix] = 1024**_power
    _UNITS[f"{_prefix}b"] = 1000**_power

_SIZE = re.compile(r"\s*(\d{1,40}(?:\.\d{1,40})?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def parse_size(size: str | SupportsIndex) -> int:
    """Return a memory size in bytes.

    Parameters
    ----------
    size : str or int
        Bytes as an integer, or a string with a unit: B, KiB to EiB (powers of 1024; K, M, G … for short),
        kB to EB (powers of 1000).

    Raises
    ------
    ValueError
        If the string is not a size, or the size is not a positive whole number of bytes.
    TypeError
        If it is neither a string nor an integer.
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ValueError(f"not a memory size: {size!r} (write it as 4096, '512MiB' or '16GiB')")
        whole, _, fraction = match[1].partition(".")
        scaled, rest = divmod(int(whole + fraction) * unit, 10 ** len(fraction))
        if rest:
            raise ValueError(f"not a whole number of bytes: {size!r}")
        size = int(scaled)
    number = operator.index(size)
    if number <= 0:
        raise ValueError(f"a memory size must be positive, not {shown(number)}")
    return number


def shown(number: int) -> str:
    """Return a number as text: a very long one in hexadecimal, since Python refuses to write that in decimal."""
    return str(number) if -(1 << 500) < number < 1 << 500 else f"{number:#x}"


def format_size(nr_bytes: float) -> str:
    """Return a size in bytes as text: 1.5 GiB, 64 MiB, 100 B."""
    value = float(nr_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) or unit == "B" else f"{value:.1f} {unit}"
