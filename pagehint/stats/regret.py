"""What reports that were too soon, and too late, have cost with an age that is learnt; and what others would have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SECOND = 1e9
_SHOWN = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Regret:
    """Pauses of granules, from free until taken again, since hinting was switched on; added over all zones.

    A pause is long if it is at least the break-even age; it is counted when it is so long, and others when they end.
    Costs are GiB·s: of keeping memory, and for each report as much as keeping its granule for the break-even age.

    Attributes
    ----------
    break_even : float
        Seconds, the `cost` of a report.
    ages : tuple of float
        Seconds, by zone: the age at which is reported now what has just become free.
    edges : tuple of float
        Seconds: the bins of short pauses are between two of these.
    short_pauses : tuple of int
        Granules by how long their pause was.
    too_soon : tuple of int
        Of these, granules that had been reported: handed out again so soon.
    long_pauses : int
        Granules.
    reported : int
        Granules.
    cost : float
        What has been paid.
    granule_bytes : int
        Bytes of a granule.
    """

    break_even: float
    ages: tuple[float, ...]
    edges: tuple[float, ...]
    short_pauses: tuple[int, ...]
    too_soon: tuple[int, ...]
    long_pauses: int
    reported: int
    cost: float
    granule_bytes: int

    def _gib_s(self, granule_seconds: float) -> float:
        return granule_seconds * self.granule_bytes / 2**30

    def _short(self) -> list[tuple[float, int]]:
        """Each bin's mean pause, and how many granules it has."""
        return [((a + b) / 2, n) for a, b, n in zip(self.edges, self.edges[1:], self.short_pauses, strict=False)]

    @property
    def optimum(self) -> float:
        """What somebody would have paid who knows the future: the pause, or the break-even age if that is less."""
        return self.cost_of(self.break_even) - self._gib_s(self.long_pauses * self.break_even)

    def cost_of(self, age: float) -> float:
        """Return what it would have cost to report at an age, in seconds, of at most the break-even age.

        To within a bin, which is an eighth of an octave.

        Raises
        ------
        ValueError
            If the age is out of range.
        """
        if not 0 <= age <= self.break_even:
            raise ValueError(f"an age must be from 0 to the break-even age of {self.break_even:g} s, not {age}")
        short = sum(n * (pause if pause <= age else age + self.break_even) for pause, n in self._short())
        return self._gib_s(short + self.long_pauses * (age + self.break_even))

    def within(self, seconds: float) -> int:
        """Return how many bytes were handed out again, after a report, within so many seconds of becoming free.

        Raises
        ------
        ValueError
            If the time is negative.
        """
        if not seconds >= 0:
            raise ValueError(f"a time must be 0 seconds or more, not {seconds}")
        ends = zip(self.edges[1:], self.too_soon, strict=True)
        return self.granule_bytes * sum(n for end, n in ends if end <= seconds or seconds >= self.break_even)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, for JSON."""
        return {
            "break_even": self.break_even, "ages": list(self.ages), "edges": list(self.edges),
            "short_pauses": list(self.short_pauses), "too_soon": list(self.too_soon),
            "long_pauses": self.long_pauses, "reported": self.reported, "cost": self.cost, "optimum": self.optimum,
        }  # fmt: skip

    def __repr__(self) -> str:
        ages = ", ".join(f"{age:.3g}" for age in self.ages)
        lines = [
            f"Regret: a report costs {self.break_even:g} s of its granule; reported at an age of {ages} s now",
            f"  {self.reported:,} granules reported, {sum(self.too_soon):,} of them handed out again sooner than that"
            " would have paid",
            f"  cost {self.cost:.3f} GiB·s, the optimum {self.optimum:.3f}; of constant ages:",
        ]
        shown = [self.break_even * share for share in (0.0, 0.01, 0.1, 0.5, 1.0)]
        lines.append("  " + ", ".join(f"{age:g} s {self.cost_of(age):.3f}" for age in shown))
        soon = [(seconds, self.within(seconds)) for seconds in _SHOWN if seconds < self.break_even]
        soon.append((self.break_even, self.within(self.break_even)))
        lines.append(
            "  MiB handed out again within: " + ", ".join(f"{age:g} s {size / 2**20:,.0f}" for age, size in soon)
        )
        return "\n".join(lines)


def regret_of(zones: Sequence[Mapping[str, Any]], granule_bytes: int) -> Regret:
    """Add up what the zones have counted; they have one break-even age."""
    first = zones[0]
    reported, kept = sum(zone["reported"] for zone in zones), sum(zone["kept"] for zone in zones)
    return Regret(
        break_even=first["break_even"] / SECOND,
        ages=tuple(zone["age"] / SECOND for zone in zones),
        edges=tuple(edge / SECOND for edge in first["edges"]),
        short_pauses=tuple(map(sum, zip(*(zone["short_pauses"] for zone in zones), strict=True))),
        too_soon=tuple(map(sum, zip(*(zone["too_soon"] for zone in zones), strict=True))),
        long_pauses=sum(zone["long_pauses"] for zone in zones),
        reported=reported,
        cost=(kept + reported * first["break_even"]) / SECOND * granule_bytes / 2**30,
        granule_bytes=granule_bytes,
    )
