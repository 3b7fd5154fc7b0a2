"""The figures of the demo: of one run, and of both."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Measured:
    """What one run was measured to do, with hinting off or on. Sizes are in bytes, times in seconds."""

    rss_start: int = 0
    rss_peak: int = 0
    rss_end: int = 0
    rss_mean: int = 0
    work_seconds: float = 0.0
    round_seconds: list[float] = field(default_factory=list)
    reports: int = 0
    blocks_reported: int = 0
    bytes_reported: int = 0
    samples: list[tuple[float, int, int]] = field(default_factory=list)  # time, RSS, the guest's RAM in its host
    # With QEMU as the host: what it holds of the guest's RAM, and what it says it has discarded of it.
    host_peak: int = 0
    host_end: int = 0
    host_mean: int = 0
    in_use_end: int = 0
    discards: int = 0
    bytes_discarded: int = 0

    def figures(self) -> dict[str, Any]:
        """Return the figures that `pagehint demo --json` prints of a run."""
        names = ["rss_start", "rss_peak", "rss_end", "rss_mean", "work_seconds", "round_seconds"]
        if self.host_peak:
            names += ["host_peak", "host_end", "host_mean", "in_use_end", "discards", "bytes_discarded"]
        return {name: getattr(self, name) for name in names}


@dataclass
class Outcome:
    """Both runs."""

    off: Measured
    on: Measured

    @property
    def overhead(self) -> float:
        """Seconds of work with hinting for each second without it. Less than `noise` away from 1 says nothing."""
        return self.on.work_seconds / self.off.work_seconds

    @property
    def noise(self) -> float:
        """By which part the rounds of one run differ, although they do the same work.

        The first round is left out: with hinting off it is the only one that touches new memory.
        """
        rounds = [run.round_seconds[1:] for run in (self.off, self.on)]
        return max(max(each) / min(each) for each in rounds) - 1

    def to_json(self) -> str:
        """Return the figures as one JSON object."""
        figures = {
            "off": self.off.figures(),
            "on": self.on.figures(),
            "reports": self.on.reports,
            "blocks_reported": self.on.blocks_reported,
            "bytes_reported": self.on.bytes_reported,
            "overhead": self.overhead,
            "noise": self.noise,
        }
        return json.dumps(figures, indent=2)
