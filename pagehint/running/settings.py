"""The arena that a program is to have, as options, and as the environment variable that all its processes see."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final, SupportsIndex

from pagehint._core import check_hinting
from pagehint.arena.arena import Arena
from pagehint.errors import PageHintError
from pagehint.malloc.library import LEAST_THRESHOLD
from pagehint.numpy.installation import MIN_AGE, install
from pagehint.sizes import format_size, parse_size

VARIABLE: Final = "PAGEHINT_RUN"  # so it stands in pagehint_hook.py and pagehint.pth, which are outside the package
VERSION: Final = 1  # of the text; another one is refused


@dataclass(frozen=True)
class Settings:
    """What `pagehint run` was told; None is for the default of `pagehint.numpy.install`.

    Attributes
    ----------
    size : int, optional
        Bytes of an arena.
    min_age : float or "auto", optional
        Seconds.
    cost : float, optional
        Seconds.
    hugepages : bool, optional
        Whether to ask for them.
    malloc : int, optional
        Bytes of malloc's requests from which on the arena serves these, too: 4 KiB or more; None: no such requests.
    accounts : str, optional
        The folder where each process says what its arena has done, for a summary.
    """

    size: int | None = None
    min_age: float | str | None = None
    cost: float | None = None
    hugepages: bool | None = None
    malloc: int | None = None
    accounts: str | None = None

    def __post_init__(self) -> None:
        if self.malloc is not None and self.malloc < LEAST_THRESHOLD:
            raise ValueError(
                f"malloc's threshold must be at least {format_size(LEAST_THRESHOLD)}, not {self.malloc} bytes"
            )

    @classmethod
    def checked(
        cls,
        *,
        size: str | SupportsIndex | None = None,
        min_age: float | str | None = None,
        cost: float | None = None,
        hugepages: bool | None = None,
        malloc: str | SupportsIndex | None = None,
    ) -> Settings:
        """Return settings for processes elsewhere; raise here if there can be no such arena.

        Raises
        ------
        ValueError, TypeError
            As by `install`, and by `parse_size` for `malloc`; ValueError, too, for one under 4 KiB.
        """
        ages: dict[str, Any] = {"min_age": MIN_AGE if min_age is None else min_age, "cost": cost}
        with Arena(1 if size is None else size) as arena:
            check_hinting(arena.pages, arena._checked_callbacks("dontneed", None, False), **ages)
        return cls(
            size=None if size is None else parse_size(size),
            min_age=min_age if min_age is None or isinstance(min_age, str) else float(min_age),
            cost=None if cost is None else float(cost),
            hugepages=None if hugepages is None else bool(hugepages),
            malloc=None if malloc is None else parse_size(malloc),
        )

    def to_text(self) -> str:
        """Return the variable's value: one JSON object, of what is not a default."""
        return json.dumps(
            {"version": VERSION, **{name: value for name, value in asdict(self).items() if value is not None}}
        )

    @classmethod
    def from_text(cls, text: str) -> Settings:
        """Read the variable's value.

        Raises
        ------
        PageHintError
            If it is anything that `to_text` does not write: another version, an unknown name, a value of another type,
            a threshold that is too small.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise PageHintError(f"{text[:60]!r} is no settings of an arena") from None
        if not isinstance(found, dict) or type(found.get("version")) is not int:
            raise PageHintError(f"{text[:60]!r} is no settings of an arena")
        version = found.pop("version")
        if version != VERSION:
            raise PageHintError(f"settings of version {version}, and this pagehint knows version {VERSION}")
        for name, value in found.items():
            if name not in _TYPES or type(value) not in _TYPES[name]:
                raise PageHintError(f"{name[:30]!r} cannot be {str(value)[:30]!r} in the settings of an arena")
        try:
            return cls(**found)
        except ValueError as error:
            raise PageHintError(str(error)) from None

    def install(self) -> Arena:
        """Install such an arena for NumPy in this process; see `pagehint.numpy.install`, also for the errors."""
        options: dict[str, Any] = asdict(self)
        del options["malloc"], options["accounts"]
        return install(**options)


_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "size": (int,),
    "min_age": (int, float, str),
    "cost": (int, float),
    "hugepages": (bool,),
    "malloc": (int,),
    "accounts": (str,),
}
