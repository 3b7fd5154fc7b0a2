"""Policies compared on one recording: what it says, how far to believe it, and what each policy would have returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pagehint._core import PageAllocator
from pagehint.policies.names import rule_of
from pagehint.policies.policy import Decisions, Rule
from pagehint.policies.recording import Recording, time_of_mark
from pagehint.policies.reports import granules_of
from pagehint.policies.scores import BREAK_EVENS, Difference, Floor, Score, compare, floor_of, score
from pagehint.policies.table import as_html, as_text
from pagehint.replaying.progress import Step, steps_bar
from pagehint.replaying.replayed import Replayed
from pagehint.sizes import format_size
from pagehint.traces.operations import Operation, Operations
from pagehint.traces.snapshots.snapshot import Snapshot
from pagehint.traces.table import Trace
from pagehint.traces.views.checking import flaws_of
from pagehint.traces.views.view import operations_of

MIB = 1 << 20
MOST_SECONDS = 1e9
CHUNK = 1 << 18  # operations at a time
BEGIN = "load balloon"
"""The part of a mark's text at which policies are switched on by default, where a recording has it."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `replay` returns.

    Attributes
    ----------
    recording : Recording
        What the policies were run on.
    operations : Operations
        What happened to the free lists, with the contradictions by cause.
    replayed : Replayed or None
        What came of it on an allocator; None without a snapshot of the beginning.
    wrong_pages_end : int or None
        Managed pages that were not at the end as the kernel has them; None without a snapshot of the end.
    scores : list of Score
        One a policy.
    decisions : dict of str to Decisions
        What each policy reported, and when.
    floor : Floor
        What no policy can have returned.
    problems : tuple of str
        What of the recording is lost, cut or out of order, by which every figure may be wrong: `flaws_of`.
    """

    recording: Recording
    operations: Operations
    replayed: Replayed | None
    wrong_pages_end: int | None
    scores: list[Score]
    decisions: Mapping[str, Decisions]
    floor: Floor
    problems: tuple[str, ...] = ()

    @cached_property
    def predicted(self) -> Difference | None:
        """How what Linux is predicted to report differs from what the recorded kernel did; None without both."""
        if not {"linux", "recorded"} <= self.decisions.keys():
            return None
        return compare(self.decisions["linux"], self.decisions["recorded"])

    @property
    def contradictions(self) -> Mapping[str, int]:
        """By cause: of the events with each other, and of the operations with the allocator."""
        both = dict(self.operations.contradictions)
        for cause, count in (self.replayed.contradictions if self.replayed else {}).items():
            both[cause] = max(count, both.get(cause, 0))
        return both

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, for JSON: sizes in MiB, costs in GiB·s by break-even age."""
        return {
            "recording": self.recording.name,
            "view": self.operations.view,
            "seconds": (self.recording.end - self.recording.begin) / 1e9,
            "operations": len(self.operations),
            "managed_pages": self.operations.managed_pages,
            "wrong_pages_end": self.wrong_pages_end,
            "wrong_pages_at_reports": (
                self.replayed.wrong_pages_at_reports if self.replayed else self.operations.reports.wrong_pages
            ),
            "contradictions": dict(self.contradictions),
            "problems": list(self.problems),
            "optimum": _by_age(self.scores[0].optimum) if self.scores else {},
            "floor": {
                "fragmented_gib_s": self.floor.fragmented,
                "gates_gib_s": self.floor.gates,
                "per_cpu_gib_s": self.floor.per_cpu,
                "free_gib_s": self.floor.free,
            },
            "linux_predicted": None if self.predicted is None else asdict(self.predicted),
            "policies": {each.policy: _figures(each) for each in self.scores},
        }

    def facts(self) -> list[str]:
        """Return what the recording is, and how far to believe a replay of it, a line each."""
        recording, operations = self.recording, self.operations
        seconds = (recording.end - recording.begin) / 1e9
        managed = max(operations.managed_pages, 1)
        lines = [
            f"{recording.name}: {len(operations):,} operations by view {operations.view!r}, "
            f"{operations.managed_pages * recording.page_size / MIB:,.0f} MiB, {seconds:.1f} s,"
            f" granules of {format_size(recording.page_size << recording.granule_order)}"
        ]
        lines += [f"problem: {each}" for each in self.problems]
        if self.wrong_pages_end is None:
            lines.append("wrong pages at the end: not known, without a snapshot of it")
        else:
            wrong = self.wrong_pages_end
            lines.append(f"wrong pages at the end: {wrong:,} of {managed:,} ({100 * wrong / managed:.3f} %)")
        blocks = operations.reports.blocks
        if blocks:
            lines.append(
                f"the kernel's own reports: {blocks:,}, {operations.reports.wrong_blocks:,} of blocks not free here"
            )
        count = sum(self.contradictions.values())
        lines.append(
            f"contradictions: {count:,}" + "".join(f"; {n:,} x {why}" for why, n in self.contradictions.items())
        )
        predicted = self.predicted
        if predicted is not None:
            lines.append(
                f"linux, as predicted: {predicted.same:,} blocks as recorded, {predicted.in_order:,} of them in its"
                f" order, {len(predicted.missing):,} missing, {len(predicted.extra):,} more"
            )
        floor = self.floor
        lines.append(
            f"no policy returns {floor.fragmented:.2f} GiB·s in broken granules, {floor.gates:.2f} under the gates,"
            f" of {floor.free:.2f} free"
        )
        return lines

    def __repr__(self) -> str:
        return as_text(self.facts(), self.scores)

    def _repr_html_(self) -> str:
        return as_html(self.facts(), self.scores)


def _by_age(costs: Mapping[float, float]) -> dict[str, float]:
    return {f"{age:g}": cost for age, cost in costs.items()}


def _figures(score: Score) -> dict[str, Any]:
    return {
        "reported_mib": score.reported / MIB,
        "again_mib": score.again / MIB,
        **{f"reused_{window:g}s_mib": size / MIB for window, size in score.reused.items()},
        "free_charged_gib_s": score.free_charged,
        "free_charged_whole_gib_s": score.free_charged_whole,
        "cost": _by_age(score.cost),
        "calls": score.calls,
        "uncharged_mib": score.uncharged / MIB,
        "refault_pages": score.refaults,
        "latency_s": score.latency,
    }


def replay(
    trace: Trace,
    policies: str | Rule | Iterable[str | Rule] = ("linux", "threshold", "age:1s"),
    *,
    before: Snapshot | None = None,
    after: Snapshot | None = None,
    events: Literal["all", "kmem", "user"] | None = None,
    begin: int | str | None = None,
    resident: bool = False,
    name: str = "recording",
    break_evens: Iterable[float] = BREAK_EVENS,
    progress: Step | Literal[True] | None = None,
    **options: Any,
) -> Comparison:
    """Replay a recording page by page, and say what each policy would have returned, how soon, and at what cost.

    Parameters
    ----------
    trace : Trace
        The recording: `pagehint.traces.read`.
    policies : a policy or several
        Names, as `policy_of` has them, or objects: `Policy` says how to write one.
    before, after : Snapshot, optional
        The memory at the beginning and at the end. Without the first, pages are believed to be what their first event
        needs, and the free lists' order is a guess.
    events : {"all", "kmem", "user"}, optional
        What to believe of the recording: every event, those of the kernel alone, alloc and free alone. Default: all
        there is.
    begin : int or str, optional
        When policies are switched on: nanoseconds by the recording's clock, or a part of a mark's text. Default: where
        it says that the balloon was loaded; else at its beginning.
    resident : bool, default False
        The host begins with the memory that the snapshot says it had; by default with all.
    name : str, default "recording"
        Of the recording, for people.
    break_evens : iterable of float
        Ages in seconds, for costs.
    progress : callable, or True, optional
        Called before each step with what it is, "operations", a policy or "allocator", how many are done, and of how
        many. What it raises ends the replay. True: a bar on standard error, if that is a terminal.
    **options
        As `Recording.of` has them, such as `granule_order`.

    Returns
    -------
    Comparison
        Its `repr` is a table of 80 columns, ``to_dict()`` is for JSON.

    Raises
    ------
    ValueError
        If there is no such view, policy or mark, or two policies have one name.
    TypeError
        If a policy is a class, and no object.
    SnapshotError
        If a snapshot does not say which pages are free.

    Notes
    -----
    Placement is the kernel's own, whatever a policy does: the recording is an open loop. O(operations) for each policy.
    """
    _check(trace, before, after, begin, name)
    if progress is not None and progress is not True and not callable(progress):
        raise TypeError(f"progress must be callable, True or None, not {type(progress).__name__}")
    ages, resident = _ages(break_evens), bool(resident)
    rules = _rules(policies)
    with steps_bar(progress is True) as bar:
        tell = progress if callable(progress) else bar
        tell("operations", 0, len(rules) + 2)
        operations = operations_of(trace, "all" if events is None else events, before, after)
        if before is not None and not resident:
            options["resident"] = None
        recording = recording_of(operations, before, begin=begin, name=name, **options)
        decisions, scores = {}, []
        for done, (called, rule) in enumerate(rules.items(), 1):
            tell(called, done, len(rules) + 2)
            decisions[called] = rule.decide(recording)
            scores.append(score(recording, decisions[called], called, break_evens=ages))
        tell("allocator", len(rules) + 1, len(rules) + 2)
        replayed, wrong = _on_an_allocator(operations, before, after)
    return Comparison(recording, operations, replayed, wrong, scores, decisions, floor_of(recording), flaws_of(trace))


def _rules(policies: str | Rule | Iterable[str | Rule]) -> dict[str, Rule]:
    """Return policies by what they are asked for as; raise a ValueError if two have one name."""
    if isinstance(policies, str) or not isinstance(policies, Iterable):
        policies = [policies]
    asked = [(each, rule_of(each)) for each in policies]
    named = [(each if isinstance(each, str) else rule.name, rule) for each, rule in asked]
    rules = dict(named)
    if len(rules) < len(named):
        raise ValueError(f"policies need names of their own, not {', '.join(sorted(name for name, _ in named))}")
    return rules


def recording_of(
    operations: Operations, before: Snapshot | None, *, begin: int | str | None = None, **options: Any
) -> Recording:
    """Return what policies are run on: with a snapshot of the beginning, or with what the operations need it to be.

    Without `begin` that is where the recording says that the balloon was loaded; else its beginning.
    """
    if begin is None:
        begin = time_of_mark(operations, BEGIN)
    if before is None:
        return Recording.of(operations, _free_before(operations), begin=begin, **options)
    return Recording.of_snapshot(operations, before, begin=begin, **options)


def _check(trace: object, before: object, after: object, begin: object, name: object) -> None:
    """Raise a TypeError for what is none of its kind."""
    if not isinstance(trace, Trace):
        raise TypeError(f"trace must be a pagehint.traces.Trace, not {type(trace).__name__}")
    for what, state in (("before", before), ("after", after)):
        if state is not None and not isinstance(state, Snapshot):
            raise TypeError(f"{what} must be a pagehint.traces.Snapshot or None, not {type(state).__name__}")
    if begin is not None and (isinstance(begin, bool) or not isinstance(begin, (str, int))):
        raise TypeError(f"begin must be nanoseconds or a part of a mark's text, not {type(begin).__name__}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {type(name).__name__}")


def _ages(break_evens: Iterable[float]) -> list[float]:
    """Return break-even ages as numbers; raise for what is no age."""
    ages = [float(age) for age in break_evens]
    if not all(0 < age <= MOST_SECONDS for age in ages):  # true of NaN, too
        raise ValueError(f"break_evens must be more than 0 and at most {MOST_SECONDS:g} seconds, not {ages}")
    return ages


def _free_before(operations: Operations) -> NDArray[np.bool_]:
    """Return which pages the first operation of each needs to have been free."""
    moves = operations.table[np.isin(operations.table["op"], (Operation.TAKE, Operation.GIVE))]
    free = np.zeros(len(operations.free_at_end), np.bool_)
    for end in range(len(moves), 0, -CHUNK):
        rows = moves[max(end - CHUNK, 0) : end][::-1]
        each, page = granules_of(rows, 0)
        free[page] = rows["op"][each] == Operation.TAKE  # of several, NumPy keeps the last, which happened first
    return free


def _on_an_allocator(
    operations: Operations, before: Snapshot | None, after: Snapshot | None
) -> tuple[Replayed | None, int | None]:
    """Carry the operations out at their places; returns what came of it, and the pages that are wrong at the end."""
    if before is None:
        return None, operations.wrong_pages_end
    pages = PageAllocator.from_snapshot(before)
    replayed = pages.replay(operations)
    if after is None:
        return replayed, None
    free, wanted = pages.free_bitmap(), after.free_bitmap()
    common = min(len(free), len(wanted))
    beyond = np.bitwise_count(free[common:]).sum() + np.bitwise_count(wanted[common:]).sum()
    return replayed, int(np.bitwise_count(free[:common] ^ wanted[:common]).sum() + beyond)
