"""What of a recording is lost, missing or contradictory, and how far to believe a replay of it: before anybody does.

A final comparison with a snapshot is weak, since later events overwrite what an earlier loss has left. Contradictions
are what shows a single lost event; they are counted by cause. What a view cannot see shows as contradictions as well,
and is expected there: those of `_EXPECTED`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any

import numpy as np

from pagehint.traces.events import KERNEL_EVENTS, NO_CPU, Event
from pagehint.traces.operations import Contradiction, Operations, Reports
from pagehint.traces.snapshots.snapshot import Snapshot
from pagehint.traces.table import Trace
from pagehint.traces.views.contradictions import Cause
from pagehint.traces.views.view import VIEWS, operations_of, possible_view

_WIDTH = 80
_EXPECTED = {
    "all": frozenset[str](),
    "kmem": frozenset(cause.label for cause in (Cause.FREE_TWICE, Cause.FREE_FREE, Cause.TAKE_NOT_FREE)),
    "user": frozenset([Cause.FREE_FREE.label]),
}
_OF_LISTS = (Cause.ALLOC_IN_USE.label, Cause.GIVE_IN_USE.label)  # what a page does that comes from a CPU's list
_UNSEEN = {
    Cause.FREE_TWICE.label: "handed out by the bulk allocator in between",
    Cause.FREE_FREE.label: "taken by compaction, or handed out by the bulk allocator",
    Cause.TAKE_NOT_FREE.label: "freed past the CPUs' lists, or an event of a drain is lost",
}
_NAMES = {event: name for name, event in KERNEL_EVENTS.items()}
# Per cent of the pages that may be wrong at the end: more than what moves unseen makes wrong in our recordings.
_MOST_WRONG = {"all": 0, "kmem": 5, "user": 10}
_STANDARD = (Event.ALLOC, Event.FREE, Event.ZONE_LOCKED, Event.PCPU_DRAIN)


@dataclass(frozen=True)
class ViewCheck:
    """What a view of the recording comes to.

    Attributes
    ----------
    name : str
        The view; "kmem, 2 passes" is the one that has seen the snapshot of the end.
    operations : int
        How many operations it makes of the recording.
    contradictions : dict of str to int
        By cause.
    examples : dict of str to tuple of Contradiction
        The first few of each cause.
    corrections : int
        Takes and gives of pages that were put in.
    reports : Reports
        The recorded kernel's own reports: blocks, and how many of them were not free by this view.
    managed_pages : int
        Pages that the allocator has or has handed out.
    wrong_pages_end : int or None
        Of these, how many are not as the snapshot of the end has them.
    belief : str
        How far to believe it.
    """

    name: str
    operations: int
    contradictions: Mapping[str, int]
    examples: Mapping[str, tuple[Contradiction, ...]]
    corrections: int
    reports: Reports
    managed_pages: int
    wrong_pages_end: int | None
    belief: str


@dataclass(frozen=True, repr=False)
class Check:
    """What to know of a recording before believing a replay of it. `check` makes it.

    Attributes
    ----------
    events : int
        Rows.
    seconds : float
        From the first to the last.
    lost : dict of str to int
        ``"events"``: how many the recording says are lost; ``"places"``: at how many places; ``"overwritten"``: how
        many of the oldest were overwritten.
    problems : tuple of str
        What makes a replay wrong: losses, contradictions, snapshots that do not fit.
    missing : tuple of str
        What the recording does not have, by which less can be known.
    views : tuple of ViewCheck
        From the most to the least that can be believed.
    """

    events: int
    seconds: float
    lost: Mapping[str, int]
    problems: tuple[str, ...]
    missing: tuple[str, ...]
    views: tuple[ViewCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        result = asdict(self)
        for view, made in zip(result["views"], self.views, strict=True):
            view["reports"] = made.reports._asdict()
            view["examples"] = {cause: [each._asdict() for each in found] for cause, found in made.examples.items()}
        return result

    def __repr__(self) -> str:
        lines = [f"{self.events:,} events in {self.seconds:.3f} s"]
        lines += _paragraphs("problem", self.problems) or ["no problem"]
        lines += _paragraphs("missing", self.missing)
        lines += ["", f"{'view':<15}{'operations':>12}{'contradicting':>15}{'wrong at the end':>20}{'at reports':>16}"]
        lines += [_line(view) for view in self.views]
        said: Mapping[str, int] = {}
        for view in self.views:
            lines += ["", *wrap(f"{view.name}: {view.belief}", _WIDTH)]
            if view.contradictions != said:
                lines += [line for cause in view.contradictions for line in _contradiction(view, cause)]
            said = view.contradictions
        return "\n".join(lines)


def _paragraphs(word: str, texts: tuple[str, ...]) -> list[str]:
    return [line for text in texts for line in wrap(f"{word}: {text}", _WIDTH, subsequent_indent="  ")]


def _line(view: ViewCheck) -> str:
    wrong, at_reports = "not known", "no reports"
    if view.wrong_pages_end is not None:
        wrong = f"{view.wrong_pages_end:,} ({_percent(view)} %)"
    if view.reports.blocks:
        at_reports = f"{view.reports.wrong_blocks:,} of {view.reports.blocks:,}"
    contradicting = sum(view.contradictions.values())
    return f"{view.name:<15}{view.operations:>12,}{contradicting:>15,}{wrong:>20}{at_reports:>16}"


def _percent(view: ViewCheck | Operations) -> str:
    return f"{100 * (view.wrong_pages_end or 0) / max(view.managed_pages, 1):.3f}"


def _contradiction(view: ViewCheck, cause: str) -> list[str]:
    text = f"{view.contradictions[cause]:,} x {cause}; first: {view.examples[cause][0]}"
    if view.name != "all" and cause in _UNSEEN:
        text += f" (unseen: {_UNSEEN[cause]})"
    return wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ")


def check(trace: Trace, before: Snapshot | None = None, after: Snapshot | None = None) -> Check:
    """Say what of a recording is lost, missing or contradictory, and how far each view of it is to be believed.

    Parameters
    ----------
    trace : Trace
        The recording.
    before, after : Snapshot, optional
        The memory at its beginning and at its end.

    Returns
    -------
    Check
        It reads well as text; ``to_dict()`` is for JSON.

    Raises
    ------
    SnapshotError
        A snapshot does not say which pages are free.

    Notes
    -----
    It goes through the recording once for each view, and once more for the second pass: about 0.5 us an event.
    """
    largest = possible_view(trace, "all")
    made = [operations_of(trace, view, before, after, passes=1) for view in VIEWS[VIEWS.index(largest) :]]
    names: list[str] = [each.view for each in made]
    if largest != "user" and after is not None:
        made.insert(-1, operations_of(trace, "kmem", before, after, passes=2))
        names.insert(-1, "kmem, 2 passes")
    lost = _lost(trace)
    losses = tuple(_losses(trace, lost))
    views = tuple(
        _view_check(each, name, _belief(each, not losses, before)) for each, name in zip(made, names, strict=True)
    )
    problems = (*losses, *_disorder(trace), *_contradicted(made[0], before))
    return Check(len(trace), trace.duration, lost, problems, tuple(_missing(trace, made[0], before, after)), views)


def flaws_of(trace: Trace) -> tuple[str, ...]:
    """Say in sentences what of a recording is lost, cut or out of order, whatever view is taken of it."""
    return (*_losses(trace, _lost(trace)), *_disorder(trace))


def _view_check(made: Operations, name: str, belief: str) -> ViewCheck:
    return ViewCheck(
        name,
        len(made),
        made.contradictions,
        made.examples,
        made.corrections,
        made.reports,
        made.managed_pages,
        made.wrong_pages_end,
        belief,
    )


def _from_lists(made: Operations, before: Snapshot | None) -> int:
    """How many contradictions may be of pages that lay on the CPUs' lists when the recording began.

    No file of /proc tells which these were, only how many; so a snapshot of these alone has them for pages in use.
    """
    if before is None or before.pcp_lists is not None:
        return 0
    most = min(made.contradictions_at_start, sum(zone.pcp_pages for zone in before.zones))
    return min(most, sum(made.contradictions.get(cause, 0) for cause in _OF_LISTS))


def _unexpected(made: Operations, before: Snapshot | None) -> dict[str, int]:
    """The contradictions that what this view cannot see, and what the snapshot cannot tell, do not explain."""
    explained, result = _from_lists(made, before), {}
    for cause, count in made.contradictions.items():
        if cause in _OF_LISTS:
            part = min(count, explained)
            explained, count = explained - part, count - part
        if count and cause not in _EXPECTED[made.view]:
            result[cause] = count
    return result


def _ends_wrong(made: Operations) -> bool:
    """Whether more is wrong at the end than what this view cannot see explains."""
    return 100 * (made.wrong_pages_end or 0) > _MOST_WRONG[made.view] * made.managed_pages


def _belief(made: Operations, whole: bool, before: Snapshot | None) -> str:
    """How far to believe a view, by whether nothing is lost, and by what is known of the beginning."""
    if made.view == "user":
        return (
            "what lies on the CPUs' lists counts as free. Expect up to 6 % of the pages wrong at any time, and reports"
            " that look reused up to eight times too often."
        )
    if _unexpected(made, before) or _ends_wrong(made):
        return "what it says contradicts itself or the snapshot; see the problems."
    if not whole:
        return "nothing in it contradicts, but events are lost: what they did is not in it."
    if made.view == "all":
        said = "every move of a page is in it, and none contradicts another: believe it to the page."
        return said if before is not None else said + " Pages that no event names stay unknown."
    if made.corrections:
        return (
            f"{made.corrections:,} pages moved unseen, and are dated by rules of thumb. The snapshot of the end was"
            " used, so that what is wrong at the end proves nothing."
        )
    unseen = made.contradictions.get(Cause.FREE_FREE.label, 0)
    if unseen > len(made) // 1000:
        return f"compaction took {unseen:,} blocks or more unseen: give a snapshot of the end, and take two passes."
    return "next to nothing moves unseen: expect up to 0.05 % of the pages wrong."


def _lost(trace: Trace) -> dict[str, int]:
    rows = trace.lost
    written, kept = (int(trace.metadata.get(f"entries_{name}", 0)) for name in ("written", "in_buffer"))
    return {
        "events": int(np.maximum(rows["value"], 0).astype(np.int64).sum()),
        "places": len(rows),
        "overwritten": max(written - kept, 0) if kept else 0,
    }


def _losses(trace: Trace, lost: Mapping[str, int]) -> Iterator[str]:
    """What is not in the recording that should be."""
    if lost["places"]:
        first = trace.lost[0]
        count = f"{lost['events']:,} events" if lost["events"] else "events"
        yield f"{count} are lost, at {lost['places']:,} places, first at {first['time'] / 1e9:.6f} s"
    if lost["overwritten"]:
        yield f"{lost['overwritten']:,} of the oldest events were overwritten: the buffer was too small"
    if trace.reading.damage:
        yield f"the file ends before its time: {trace.reading.damage}"
    if trace.reading.not_understood:
        yield f"{trace.reading.not_understood:,} lines are not understood: {'; '.join(trace.reading.examples)}"


def _disorder(trace: Trace) -> Iterator[str]:
    """Times that go back, and PFNs that are none."""
    backwards = np.flatnonzero(np.diff(trace.events["time"]) < 0) + 1
    if len(backwards):
        row = int(backwards[0])
        early, late = (trace.events["time"][at] / 1e9 for at in (row, row - 1))
        yield f"times go back at {len(backwards):,} rows, first at row {row}: {early:.6f} s after {late:.6f} s"
    pfns = trace.events["pfn"][np.isin(trace.events["event"], _STANDARD)]
    if len(pfns) > 1 and not pfns.any():  # a genuine page 0 is never handed out
        yield f"all {len(pfns):,} events are of PFN 0x0: the kernel has hidden the PFNs"


def _contradicted(made: Operations, before: Snapshot | None) -> Iterator[str]:
    """What the largest view finds that cannot be."""
    unexpected = _unexpected(made, before)
    for cause, count in unexpected.items():
        yield f"{count:,} x {cause}: first {made.examples[cause][0]}"
    misplaced = made.contradictions_at_start + made.contradictions.get(Cause.OUTSIDE.label, 0)
    if before is not None and unexpected and 2 * misplaced > sum(made.contradictions.values()):
        unseen = (
            "" if before.pcp_lists is not None else ", or they lay on the CPUs' lists, which page flags do not show"
        )
        yield (
            f"{misplaced:,} contradictions are of pages that the snapshot of the beginning does not have, or that"
            " nothing had moved since: it is of another moment or another machine, or events before them are lost"
            + unseen
        )
    if made.reports.wrong_blocks and made.view == "all":
        yield (
            f"{made.reports.wrong_blocks:,} of {made.reports.blocks:,} blocks that the kernel reported were not free"
            f" here: {made.reports.wrong_pages:,} pages"
        )
    if _ends_wrong(made):
        yield (
            f"{made.wrong_pages_end:,} of {made.managed_pages:,} pages ({_percent(made)} %) are not as the snapshot of"
            " the end has them: events are lost, or it is of another moment or another machine"
        )


def _missing(trace: Trace, made: Operations, before: Snapshot | None, after: Snapshot | None) -> Iterator[str]:
    """What would be good to have."""
    counts = trace.counts
    if before is None:
        yield "a snapshot of the beginning: pages that no event names stay unknown"
    if unknown := _from_lists(made, before):
        yield (
            f"which pages lay on the CPUs' lists at the beginning, since /proc does not tell: {unknown:,}"
            " contradictions can come from that, as they do in any recording of this kind"
        )
    if after is None:
        yield "a snapshot of the end: nothing to compare with, and no second pass"
    for event in _STANDARD:
        if event not in counts:
            yield f"no event {_NAMES[event]}"
    if not any(Event.BULK_ALLOC <= event <= Event.REPORT_CALL_END for event in counts):
        yield "no kprobes: what the bulk allocator and compaction take, and what goes past the CPUs' lists, is unseen"
    elif Event.ISOLATE not in counts:
        yield "no kp_isolate: the kernel reported nothing to compare with, or it is not recorded"
    seen = np.unique(trace.events["cpu"])
    nr_cpus = int(trace.metadata.get("cpus", 0))
    if absent := sorted(set(range(min(nr_cpus, NO_CPU))) - set(seen.tolist())):
        listed = ", ".join(map(str, absent[:16])) + (" ..." if absent[16:] else "")
        yield f"of {nr_cpus} CPUs these have no event: {listed}"
    if len(seen) == 1 and seen[0] == NO_CPU and len(trace):
        yield "the CPU of each event: what belongs together is not told apart"
    if failed := counts.get(Event.ALLOC_FAILED):
        yield f"memory for {failed:,} allocations, which failed"
