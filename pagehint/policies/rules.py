"""The built-in policies. Those by age are calculations on the table of free intervals; the others follow the lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pagehint.errors import PageHintError
from pagehint.policies.learning import LearntAge, run_learning
from pagehint.policies.policy import SECOND, Decisions
from pagehint.policies.recording import Recording
from pagehint.policies.reports import REPORT_DTYPE, granule_reports, of_free_memory, recorded_reports
from pagehint.policies.simulation import Lists
from pagehint.traces.intervals.table import OPEN
from pagehint.traces.operations import Operation

WHEEL = 32_000_000
"""Nanoseconds by which Linux's timers turn at the distance of the reporting delay: eight jiffies of HZ=250."""

SAME_PASS = SECOND
"""Nanoseconds: what free page reporting isolates within so long of what it has put back belongs to the same pass."""


def seconds_text(seconds: float) -> str:
    """Return a time as it is written in a policy's name."""
    return f"{seconds:g}s"


def lists_of(recording: Recording) -> Lists:
    """Return the free lists at the start of a recording."""
    return Lists(
        recording.operations, recording.free_words, recording.blocks, recording.zones, recording.types,
        recording.granule_order, recording.max_order, recording.pageblock_order, recording.isolate_type,
    )  # fmt: skip


def reported_at_once(recording: Recording, which: NDArray[np.bool_]) -> NDArray[np.void]:
    """Return reports of some of the intervals, each the moment it begins: before the next operation of that time."""
    rows = recording.intervals.table[which]
    reports = np.zeros(len(rows), REPORT_DTYPE)
    reports["time"], reports["pfn"], reports["position"] = rows["start"], rows["pfn"], rows["start_position"]
    reports["order"], reports["call"] = recording.granule_order, np.arange(len(reports))
    return reports


def nanoseconds(seconds: float, what: str) -> int:
    """Return a time in nanoseconds; `what` is its name in the message of a ValueError."""
    if not 0 <= seconds < 1e9:
        raise ValueError(f"{what} must be from 0 to 1e9 seconds, not {seconds}")
    return round(seconds * SECOND)


@dataclass(frozen=True)
class Age:
    """Report each granule when it has been free for so long: what `min_age` does, without batches and the gate.

    With the break-even age it costs at most twice what the offline optimum does (ski rental; Karlin, Manasse, Rudolph
    and Sleator, 1988).
    """

    seconds: float = 1.0

    @property
    def name(self) -> str:
        """Return the name, with the age."""
        return f"age:{seconds_text(self.seconds)}"

    def decide(self, recording: Recording) -> Decisions:
        """Say what it reports. O(intervals log intervals)."""
        table = recording.intervals.table
        at = table["start"] + nanoseconds(self.seconds, "an age")
        lasts = (at < table["end"]) | ((at == table["end"]) & (table["end_position"] == OPEN))
        return Decisions(granule_reports(recording.operations, at[lasts], table["pfn"][lasts], recording.granule_order))


@dataclass(frozen=True)
class Auto:
    """Report each granule at an age that is learnt from how long granules pause, in each zone (`learnt_age.pxd`).

    Over any longer stretch it costs at most twice what the offline optimum does, for its break-even age: a report, and
    the faults that follow, cost as much as keeping a granule for so long; from a microsecond to 1e9 seconds.
    """

    seconds: float = 1.0

    def __post_init__(self) -> None:
        LearntAge(nanoseconds(self.seconds, "a break-even age"))  # refuses what is out of range

    @property
    def name(self) -> str:
        """Return the name, with the break-even age if it is not the default."""
        return "auto" if self == Auto() else f"auto:{seconds_text(self.seconds)}"

    def decide(self, recording: Recording) -> Decisions:
        """Say what it reports. O(intervals log intervals)."""
        break_even = nanoseconds(self.seconds, "a break-even age")
        table, ages = recording.intervals.table, []
        at = np.full(len(table), -1)
        zones = np.searchsorted(recording.zones["start"], table["pfn"], side="right")
        for zone in np.unique(zones):
            at[zones == zone], of_zone = learn(recording, table[zones == zone], break_even)
            ages.append(of_zone[-1] / SECOND)
        reported = at >= 0
        times = at[reported] + recording.begin
        reports = granule_reports(recording.operations, times, table["pfn"][reported], recording.granule_order)
        return Decisions(reports, {"ages_at_end": ages})


def learn(recording: Recording, rows: NDArray[np.void], break_even: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return when each interval of one zone was reported, and the age after each change, as `run_learning` does."""
    ends = np.flatnonzero(rows["end_position"] != OPEN)
    by_end = ends[np.argsort(rows["end_position"][ends], kind="stable")]
    return run_learning(
        rows["start"] - recording.begin, rows["end"] - recording.begin, rows["start_position"].copy(),
        rows["end_position"].copy(), by_end, break_even, recording.end - recording.begin,
    )  # fmt: skip


@dataclass(frozen=True)
class Delay:
    """Report everything that is free, so long after the first granule that became whole since the last time."""

    seconds: float = 2.0

    @property
    def name(self) -> str:
        """Return the name, with the delay."""
        return f"delay:{seconds_text(self.seconds)}"

    def decide(self, recording: Recording) -> Decisions:
        """Say what it reports. O(intervals log intervals), and a few steps for each time that it reports."""
        table, delay = recording.intervals.table, nanoseconds(self.seconds, "a delay")
        starts, at, rows, first = table["start"], [], [], 0
        while first < len(table) and starts[first] + delay <= recording.end:
            due = starts[first] + delay
            after = int(np.searchsorted(starts, due, side="right"))
            pending = table[first:after]
            lasts = (pending["end"] > due) | (pending["end_position"] == OPEN)
            rows.append(pending["pfn"][lasts])
            at.append(np.full(len(rows[-1]), due))
            first = after
        times = np.concatenate(at) if at else np.zeros(0, np.int64)
        pfns = np.concatenate(rows) if rows else np.zeros(0, np.uint64)
        return Decisions(granule_reports(recording.operations, times, pfns, recording.granule_order))


@dataclass(frozen=True)
class Optimum:
    """Who knows how long each granule stays free reports it at once if that is longer than the break-even age."""

    seconds: float = 1.0

    @property
    def name(self) -> str:
        """Return the name, with the break-even age."""
        return f"optimum:{seconds_text(self.seconds)}"

    def decide(self, recording: Recording) -> Decisions:
        """Say what it reports. O(intervals log intervals)."""
        long = recording.intervals.lengths > nanoseconds(self.seconds, "an age")
        return Decisions(reported_at_once(recording, long & recording.charged_intervals))


@dataclass(frozen=True)
class Recorded:
    """What the kernel of the recording itself reported, if it recorded that."""

    name: str = "recorded"

    def decide(self, recording: Recording) -> Decisions:
        """Say what it reported since the beginning, but for what a weaker view takes for memory in use.

        Blocks that are less than a granule are left out, too, and counted.

        Raises
        ------
        PageHintError
            If the recording has no row that says so.
        """
        if not np.isin(recording.operations["op"], (Operation.ISOLATE, Operation.PUTBACK)).any():
            raise PageHintError(
                f"{recording.name} does not say what its kernel reported: it has neither ISOLATE nor PUTBACK, which"
                " come from kprobes"
            )
        reports = recorded_reports(recording.operations)
        reports = reports[reports["position"] > recording.begin_position]
        smaller = reports["order"] < recording.granule_order
        reports = reports[~smaller]
        free = of_free_memory(recording.intervals, reports)
        return Decisions(reports[free], {"not_free": int((~free).sum()), "smaller": int(smaller.sum())})


@dataclass(frozen=True)
class Threshold:
    """pagehint's rule without an age: so many hints in a zone, or a delay, and all of the zone's go, at once.

    The engine's worker takes a moment to wake and to report; here it takes none.
    """

    threshold: int = 16
    max_pages: int = 16
    delay: float | None = 2.0

    @property
    def name(self) -> str:
        """Return the name, with the threshold if it is not the default."""
        return "threshold" if self == Threshold() else f"threshold:{self.threshold}"

    def decide(self, recording: Recording) -> Decisions:
        """Say what it reports. One pass over the operations."""
        delay = 2**63 - 1 if self.delay is None else nanoseconds(self.delay, "a delay")
        rows, counts = lists_of(recording).threshold(
            recording.begin_position, recording.begin, recording.end,
            max_pages=self.max_pages, threshold=self.threshold, delay=delay,
        )  # fmt: skip
        return Decisions(rows.view(REPORT_DTYPE), counts)


@dataclass(frozen=True)
class Series2019:
    """The page hinting series of 2019, v10, with its faults (`series_2019.pxd` has the rules)."""

    max_pages: int = 16

    @property
    def name(self) -> str:
        """Return the name, with `max_pages` if it is not the default."""
        return "v10" if self.max_pages == 16 else f"v10:{self.max_pages}"

    def decide(self, recording: Recording) -> Decisions:
        """Say what it reports. One pass over the operations, and one over a zone's bits for each time it reports."""
        rows, counts = lists_of(recording).series_2019(recording.begin_position, max_pages=self.max_pages)
        return Decisions(rows.view(REPORT_DTYPE), counts)


@dataclass(frozen=True)
class Linux:
    """Linux's free page reporting (`linux_worker.pxd` has the rules).

    Attributes
    ----------
    delay : float
        Seconds from the request for a pass to its beginning.
    capacity : int
        Blocks of a report.
    clock : {"fitted", "recorded", "own"}
        When the worker moves. "own": by the rules alone, with a host that answers at once. "fitted": by the rules, but
        with the recording's phase of the timer wheel, the time at which its first pass began, and the median of what
        its host took for an answer. "recorded": a pass begins, and the host answers, where the recording has that; so
        what is predicted is which blocks, and nothing else. These two are "own" where the recording has no such rows.
    """

    delay: float = 2.0
    capacity: int = 32
    clock: str = "fitted"

    def __post_init__(self) -> None:
        if self.clock not in ("fitted", "recorded", "own"):
            raise ValueError(f"clock must be 'fitted', 'recorded' or 'own', not {self.clock!r}")

    @property
    def name(self) -> str:
        """Return the name, with what is not the default."""
        delay = "" if self.delay == 2.0 else f":{seconds_text(self.delay)}"
        return f"linux{delay}" + ("" if self.clock == "fitted" else f" ({self.clock} clock)")

    def decide(self, recording: Recording) -> Decisions:
        """Say what it reports. One pass over the operations."""
        delay = nanoseconds(self.delay, "a delay")
        steps, begins = worker_steps(recording)
        phase, call_time, registered = 0, 0, recording.begin
        by_record = self.clock == "recorded" and len(steps) > 0
        if self.clock == "fitted" and begins.any():
            phase, call_time, registered = fit_clock(recording, steps, begins, delay)
        rows, counts = lists_of(recording).linux(
            recording.begin_position, registered, min_order=recording.granule_order, capacity=self.capacity,
            delay=delay, wheel=WHEEL, phase=phase, call_time=call_time, steps=steps if by_record else None,
            begins=begins if by_record else None,
        )  # fmt: skip
        return Decisions(rows.view(REPORT_DTYPE), counts)


def worker_steps(recording: Recording) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Return the positions at which the recorded worker moved, and which of them begin a pass.

    The others are those at which the host had answered.
    """
    table = recording.operations
    where = np.flatnonzero((table["op"] == Operation.ISOLATE) | (table["op"] == Operation.PUTBACK))
    isolates = table["op"][where] == Operation.ISOLATE
    turns = np.flatnonzero(np.diff(isolates, prepend=False))
    begins = isolates[turns].copy()
    if len(turns):
        pause = table["time"][where[turns]] - table["time"][where[np.maximum(turns - 1, 0)]]
        begins[1:] &= pause[1:] > SAME_PASS
    moves = begins | ~isolates[turns]
    steps = where[turns[moves]]
    retyped = np.flatnonzero(table["op"] == Operation.SET_TYPE)  # isolation makes pageblocks movable: it has begun then
    while len(early := np.intersect1d(retyped, steps[begins[moves]] - 1)):
        steps[np.isin(steps - 1, early) & begins[moves]] -= 1
    return steps.astype(np.uint32), begins[moves].astype(np.uint8)


def fit_clock(
    recording: Recording, steps: NDArray[np.uint32], begins: NDArray[np.uint8], delay: int
) -> tuple[int, int, int]:
    """Return the phase of the timer wheel, how long the host takes, and when reporting was registered, in nanoseconds.

    A pass is a little late, never early: so the phase is the earliest of the passes' times within a turn of the wheel
    after the longest stretch of it without any.
    """
    times = recording.operations["time"]
    at = times[steps[begins == 1]]
    in_turn = np.sort(at % WHEEL)
    gaps = np.diff(in_turn, append=in_turn[0] + WHEEL)
    phase = int(in_turn[(int(np.argmax(gaps)) + 1) % len(in_turn)])
    answered = steps[begins == 0]
    isolated = np.flatnonzero(recording.operations["op"] == Operation.ISOLATE)
    last = isolated[np.searchsorted(isolated, answered) - 1]
    call_time = int(np.median(times[answered] - times[last])) if len(answered) else 0
    return phase, call_time, max(recording.begin, int(at[0]) - delay - WHEEL // 2)
