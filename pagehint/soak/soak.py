"""The soak: round after round until the time is over, a finding, or Ctrl-C.

In a round, threads allocate and free in a model, and write canaries to arrays in an arena, while others take sections
offline and online, switch hinting on and off, change its settings, and fail in its callbacks. About every second all
metadata is verified. The first round warms up; what the process has of the system's after the last is compared with
what it had after the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pagehint.soak.footprint import Footprint
from pagehint.soak.round import Round

ROUND_SECONDS = 20.0


@dataclass
class Summary:
    """What a soak has come to."""

    seconds: float = 0.0
    operations: int = 0
    rounds: int = 0
    findings: list[str] = field(default_factory=list)
    interrupted: bool = False
    before: Footprint | None = None  # after the first round
    after: Footprint | None = None  # after the last


def soak(seconds: float, seed: int, tell: Callable[[float, float], None]) -> Summary:
    """Run rounds for so many seconds, until a finding, or until Ctrl-C.

    Parameters
    ----------
    seconds : float
        For all rounds; the first takes a tenth of it or less.
    seed : int
        Of all that is random. Threads take turns as they like, so that a finding need not come again.
    tell : callable
        Told about every second how far it is (0 to 1), and the operations per second since the last time.
    """
    summary = Summary()
    begin = last = time.monotonic()
    told = 0

    def each_second(done: int) -> None:
        nonlocal last, told
        now = time.monotonic()
        tell(min((now - begin) / seconds, 1.0), (summary.operations + done - told) / max(now - last, 1e-9))
        last, told = now, summary.operations + done

    try:
        while not summary.findings and (left := begin + seconds - time.monotonic()) > 0:
            length = min(seconds / 10, ROUND_SECONDS) if summary.rounds == 0 else min(left, ROUND_SECONDS)
            _run_round(Round(f"{seed}/{summary.rounds}"), length, each_second, summary)
            summary.after = Footprint.now()
            summary.before = summary.before or summary.after
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.seconds = time.monotonic() - begin
    if summary.before and summary.after and not summary.findings:
        summary.after = summary.after.settled(summary.before)
        summary.findings += summary.after.leaks(summary.before)
    return summary


def _run_round(current: Round, seconds: float, each_second: Callable[[int], None], summary: Summary) -> None:
    # A function of its own, so that the round is collected before the footprint is taken.
    try:
        current.run(seconds, each_second)
    finally:
        summary.operations += sum(current.operations)
        summary.findings += current.findings
        summary.rounds += 1
