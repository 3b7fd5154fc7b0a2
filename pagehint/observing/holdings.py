"""What a process has answered, as figures: what it holds, what it has given back, and why not the rest."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pagehint.errors import PageHintError
from pagehint.stats.explain import Explanation, explain_zones

VERSION: Final = 1  # of an answer; `answering.pyx` has this number, too
_MOST: Final = 1 << 64


@dataclass(frozen=True)
class Holding:
    """What one arena of a process holds, in bytes.

    Attributes
    ----------
    size : int
        What it can have at most.
    used : int
        In use, whether it has been written to or not.
    warm : int
        In memory, in granules that are entirely free: as `ArenaStatus.warm_bytes`.
    fragmented : int or None
        In memory and free, beside others in use in the same granule. None in a brief answer, as the next one.
    resident : int or None
        In memory.
    given_back : int
        What was in memory until then, in all; in a forked child since the fork.
    again : int or None
        Of this, what was handed out again within the break-even age, in whole granules; None where no age is learnt.
    hinting : bool
        Whether what is free is given back.
    memory_short : bool
        Whether nothing stays warm at the moment, since memory is short.
    estimated : bool
        Whether the kernel does not say what is in memory.
    free : Explanation
        Where the free memory is, and why it is not with the operating system.
    """

    size: int
    used: int
    warm: int
    fragmented: int | None
    resident: int | None
    given_back: int
    again: int | None
    hinting: bool
    memory_short: bool
    estimated: bool
    free: Explanation

    @classmethod
    def from_answer(cls, found: Mapping[str, Any]) -> Holding:
        """Read an arena's part of an answer. LookupError or ValueError if it is none."""
        page_size, counts = _number(found, "page_size"), found["nr_free"]
        if not isinstance(counts, list) or not all(_is_number(count) for count in counts) or len(counts) > 64:
            raise ValueError("nr_free")
        zone: dict[str, Any] = {name: _number(found, name) for name in _PAGES}
        zone |= {"came_back": _number(found, "came_back", 0), "threshold": _number(found, "threshold")}
        zone |= {"offline_pages": 0, "nr_free": [counts, *[[0] * len(counts)] * 2]}
        used = zone["managed_pages"] - zone["free_pages"] - zone["pcp_pages"] - zone["reporting_pages"]
        warm = _number(found, "warm")
        in_full = "resident" in found
        return cls(
            size=_number(found, "size"),
            used=max(used, 0) * page_size,
            warm=warm * page_size,
            fragmented=_number(found, "fragmented") * page_size if in_full else None,
            resident=_number(found, "resident") * page_size if in_full else None,
            given_back=_number(found, "given_back"),
            again=_number(found, "again") if "again" in found else None,
            hinting=found["hinting"] is True,
            memory_short=found["memory_short"] is True,
            estimated=found["estimated"] is True,
            free=explain_zones(
                [zone],
                page_size=page_size,
                min_order=min(_number(found, "min_order"), 64),
                hinting=found["hinting"] is True,
                marked=False,  # it is not known here: what was free at first may never have been reported
                warm=warm,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, in bytes; the states of the free memory under "free"."""
        figures = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**figures, "free": {reason.name: reason.bytes for reason in self.free if reason.pages}}


_PAGES: Final = (
    "managed_pages", "free_pages", "reporting_pages", "pcp_pages", "hints_pending", "hints_in_isolation",
    "hints_too_young", "gate",
)  # fmt: skip


@dataclass(frozen=True)
class Holdings:
    """What a process holds.

    Attributes
    ----------
    pid : int
        Its number, as it sees it itself.
    resident : int
        Bytes of the process that are in memory.
    arenas : tuple of Holding
        Its arenas of memory of its own.
    """

    pid: int
    resident: int
    arenas: tuple[Holding, ...]

    @classmethod
    def from_answer(cls, answer: bytes) -> Holdings:
        """Read an answer.

        Raises
        ------
        PageHintError
            If it is none, or another version's.
        """
        try:
            found = json.loads(answer)
            if found["version"] != VERSION:
                raise PageHintError(f"an answer of version {found['version']!r:.20}; this pagehint knows {VERSION}")
            if not isinstance(found["arenas"], list):
                raise ValueError("arenas")
            return cls(
                pid=_number(found, "pid"),
                resident=_number(found, "resident_pages") * mmap.PAGESIZE,
                arenas=tuple(Holding.from_answer(each) for each in found["arenas"]),
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
            raise PageHintError("what it answers cannot be read") from None

    def total(self, name: str) -> int | None:
        """Return the sum of a figure over the arenas; None if it is not known of one of them, or there is none."""
        values = [getattr(each, name) for each in self.arenas]
        return None if None in values or not values else sum(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, in bytes."""
        return {"pid": self.pid, "resident": self.resident, "arenas": [each.to_dict() for each in self.arenas]}


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _number(found: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = found[name] if default is None else found.get(name, default)
    if not _is_number(value):
        raise ValueError(name)
    return int(value)
