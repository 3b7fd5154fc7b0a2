"""What a policy has cost and saved: the figures of one run, the floor under all, and how two runs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagehint.errors import BadPageError
from pagehint.policies.names import rule_of
from pagehint.policies.policy import SECOND, Decisions, Rule
from pagehint.policies.recording import Recording
from pagehint.policies.reports import REPORT_DTYPE
from pagehint.policies.rules import lists_of, reported_at_once
from pagehint.policies.scoring import run_scoring

BREAK_EVENS = (0.1, 1.0, 5.0)
"""Break-even ages in seconds: a report, and the faults that follow, cost as much as keeping a granule for so long."""

WINDOWS = (1.0, 5.0)
"""Seconds within which use after a report counts as too soon."""


@dataclass(frozen=True)
class Score:
    """What one policy did with one recording. Sizes are bytes; GiB·s are of memory that the host could have had.

    Attributes
    ----------
    policy, recording : str
    seconds : float
        From the beginning to the end of the recording.
    calls : int
        To the host.
    reported : int
        All that was reported, `again` and `uncharged` with it.
    again : int
        Reported again while it had stayed entirely free.
    uncharged : int
        Reported although the host had no memory behind any page of the granule.
    used : int
        In granules of which a page was used after they had been reported.
    reused : dict of float to int
        In granules that were used within so many seconds of their last report.
    refaults : int
        Pages that were taken while the host had no memory behind them.
    free_charged : float
        GiB·s of free pages behind which the host had memory.
    free_charged_whole : float
        The same in granules that were entirely free: what a policy could have reported.
    latency : dict of str to float or None
        Seconds from when a granule became entirely free to its report: "mean", "median", "p99", "max". None where
        nothing was reported.
    cost : dict of float to float
        GiB·s by break-even age: for each interval in which a granule was entirely free and charged, the time to its
        first report or its end, and the break-even age for each report.
    optimum : dict of float to float
        What somebody pays who knows the future: the smaller of the interval's length and the break-even age. No policy
        is cheaper.
    counts : dict
        What the policy counted itself.
    """

    policy: str
    recording: str
    seconds: float
    calls: int
    reported: int
    again: int
    uncharged: int
    used: int
    reused: dict[float, int]
    refaults: int
    free_charged: float
    free_charged_whole: float
    latency: dict[str, float | None]
    cost: dict[float, float]
    optimum: dict[float, float]
    counts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it as a dict that JSON can hold; times are keys such as "0.1" and "1"."""
        return {
            name: {f"{key:g}" if isinstance(key, float) else key: each for key, each in value.items()}
            if isinstance(value, dict)
            else value
            for name, value in asdict(self).items()
        }

    def to_row(self) -> dict[str, Any]:
        """Return it as a flat row: ``cost_0.1``, ``reused_1``, ``latency_mean``; the counts are left out."""
        row: dict[str, Any] = {}
        for name, value in self.to_dict().items():
            if name == "counts":
                continue
            if isinstance(value, dict):
                row |= {f"{name}_{key}": each for key, each in value.items()}
            else:
                row[name] = value
        return row


@dataclass(frozen=True)
class Floor:
    """What no policy can have returned, in GiB·s.

    Attributes
    ----------
    fragmented : float
        Free and charged in granules that were partly in use, if every granule was reported the moment it was whole.
    gates : float
        In granules that were entirely free, in zones with less free memory than Linux's gate. pagehint's own gate is
        lower in a small zone.
    per_cpu : float or None
        Free for users, but on the lists of the CPUs. None if it is not known.
    free : float
        All that was on the free lists.
    """

    fragmented: float
    gates: float
    per_cpu: float | None
    free: float


@dataclass(frozen=True)
class Difference:
    """How the blocks that one policy reported differ from another's.

    Attributes
    ----------
    same : int
        Blocks that both reported, each as often as the other did.
    in_order : int
        Blocks that are the same at the same place in the two sequences.
    missing, extra : list of tuple of int
        Blocks (pfn, order) that only the second, and only the first, has reported; as often as they differ.
    """

    same: int
    in_order: int
    missing: list[tuple[int, int]]
    extra: list[tuple[int, int]]


def _sums(recording: Recording, reports: NDArray[np.void], ages: Iterable[float], windows: Iterable[float],
          what: str) -> dict[str, Any]:  # fmt: skip
    """Score reports; refuse one that is not of free granules."""
    right, sums = run_scoring(
        recording.operations, reports, recording.free_words, recording.charged_words, recording.granule_order,
        recording.begin_position, recording.begin, recording.end,
        [round(age * SECOND) for age in ages], [round(window * SECOND) for window in windows],
    )  # fmt: skip
    if right < len(reports):
        wrong = reports[right]
        raise BadPageError(
            f"{what}: report {right} is of PFN {wrong['pfn']}, order {wrong['order']}, after {wrong['position']}"
            f" operations ({wrong['time'] / SECOND:.6f} s): not free granules of order {recording.granule_order} then,"
            " or out of order"
        )
    return sums


def score(
    recording: Recording,
    decisions: Decisions,
    policy: str,
    *,
    break_evens: Iterable[float] = BREAK_EVENS,
    windows: Iterable[float] = WINDOWS,
) -> Score:
    """Return the figures of one run of a policy.

    Parameters
    ----------
    recording : Recording
        With `Recording.resident` the host begins with that memory, else with all.
    decisions : Decisions
        What the policy reported.
    policy : str
        Its name.
    break_evens, windows : sequence of float
        Seconds, at most 16 of each.

    Raises
    ------
    BadPageError
        If a report is not of memory that is entirely free at that place in the recording.

    Notes
    -----
    One compiled pass over operations and reports without the GIL. A page is charged when it is taken, page by page, as
    by a host of small pages; the costs count whole granules.
    """
    break_evens, windows = [float(age) for age in break_evens], [float(window) for window in windows]
    sums = _sums(recording, decisions.reports, break_evens, windows, policy)
    granule = recording.page_size << recording.granule_order
    granule_gib_s, page_gib_s = granule / 2**30 / SECOND, recording.page_size / 2**30 / SECOND
    latency = sums["latency"] / SECOND
    figures = (latency.mean(), *np.percentile(latency, [50, 99, 100])) if len(latency) else (None,) * 4
    return Score(
        policy=policy,
        recording=recording.name,
        seconds=(recording.end - recording.begin) / SECOND,
        calls=len(np.unique(decisions.reports["call"])),
        reported=sums["reported"] * granule,
        again=sums["again"] * granule,
        uncharged=sums["uncharged"] * granule,
        used=sums["broken"] * granule,
        reused={window: each * granule for window, each in zip(windows, sums["reused"], strict=True)},
        refaults=sums["refaults"],
        free_charged=sums["charged"] * page_gib_s,
        free_charged_whole=sums["charged_whole"] * page_gib_s,
        latency={
            name: None if each is None else float(each)
            for name, each in zip(("mean", "median", "p99", "max"), figures, strict=True)
        },
        cost={age: sums["keep"] * granule_gib_s + sums["reported"] * age * granule / 2**30 for age in break_evens},
        optimum={age: each * granule_gib_s for age, each in zip(break_evens, sums["optimum"], strict=True)},
        counts=decisions.counts,
    )


def evaluate(recording: Recording, policies: Iterable[str | Rule], **options: Any) -> list[Score]:
    """Run policies on a recording and score them.

    Parameters
    ----------
    recording : Recording
        What they are run on.
    policies : iterable of str or of policies
        By name, as `policy_of` has it, or objects.
    **options
        As `score` has them.
    """
    rules = [rule_of(each) for each in policies]
    return [score(recording, rule.decide(recording), rule.name, **options) for rule in rules]


def floor_of(recording: Recording, user: Recording | None = None, *, capacity: int = 32) -> Floor:
    """Return what no policy can have returned.

    Parameters
    ----------
    recording : Recording
        By its buddy lists.
    user : Recording, optional
        The same by what users had: its operations are those of the view "user", and its free pages those of the CPUs'
        lists, too. The difference is what lay on the CPUs' lists.
    capacity : int, default 32
        Blocks for which Linux's gate wants room.
    """
    page_gib_s = recording.page_size / 2**30 / SECOND
    everything = np.ones(len(recording.intervals), bool)
    sums = _sums(recording, reported_at_once(recording, everything), (), (), "at once")
    _, counts = lists_of(recording).linux(
        recording.begin_position, recording.begin, min_order=recording.granule_order, capacity=capacity, delay=2**62,
        wheel=0, phase=0, call_time=0, steps=None, begins=None,
    )  # fmt: skip
    per_cpu = None
    if user is not None:
        by_user = _sums(user, np.zeros(0, REPORT_DTYPE), (), (), "nothing")
        per_cpu = (by_user["free_all"] - sums["free_all"]) * page_gib_s
    return Floor(
        fragmented=sums["charged"] * page_gib_s,
        gates=counts["gate_closed_page_ns"] * page_gib_s,
        per_cpu=per_cpu,
        free=sums["free_all"] * page_gib_s,
    )


def compare(first: Decisions, second: Decisions) -> Difference:
    """Return how the blocks that were reported differ, such as Linux's as predicted from those as recorded."""
    blocks = [list(zip(each.reports["pfn"].tolist(), each.reports["order"].tolist(), strict=True))
              for each in (first, second)]  # fmt: skip
    counts = [Counter(each) for each in blocks]
    return Difference(
        same=(counts[0] & counts[1]).total(),
        in_order=sum(a == b for a, b in zip(*blocks, strict=False)),
        missing=sorted((counts[1] - counts[0]).elements()),
        extra=sorted((counts[0] - counts[1]).elements()),
    )
