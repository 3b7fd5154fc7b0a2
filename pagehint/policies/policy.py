"""Policies written in Python: told of granules that become whole or are broken, asked what to report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pagehint.errors import BadPageError
from pagehint.policies.recording import Recording
from pagehint.policies.reports import REPORT_DTYPE

SECOND = 10**9
"""Nanoseconds."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a policy did with a recording.

    Attributes
    ----------
    reports : ndarray of `REPORT_DTYPE`
    counts : dict
        What the policy counted of its own: passes, closed gates, and the like.
    """

    reports: NDArray[np.void]
    counts: dict[str, Any] = field(default_factory=dict)


class Rule(Protocol):
    """What can be run on a recording: a built-in policy, or a `Policy`."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    def decide(self, recording: Recording) -> Decisions:
        """Say what it reports, and when."""


class Policy:
    """A policy in Python. Override `report`, `next_time`, and `whole` and `broken` or `changes`.

    A run begins with `start`, and `whole` for each granule that is free then. Whatever happens up to `next_time`, and
    at it, is told; then `report` is asked, at that time. A time that has passed is now. Times are whole nanoseconds by
    the clock of the recording; a granule is known by its first page.

    An object is run once at a time, and `start` makes it as new.

    Examples
    --------
    What is free for a second goes, looked at twice a second:

    >>> class Old(Policy):
    ...     def start(self, recording):
    ...         self.free, self.look = {}, recording.begin
    ...
    ...     def whole(self, pfn, time):
    ...         self.free[pfn] = time
    ...
    ...     def broken(self, pfn, time):
    ...         self.free.pop(pfn, None)
    ...
    ...     def next_time(self):
    ...         return self.look
    ...
    ...     def report(self, now):
    ...         self.look = now + SECOND // 2
    ...         old = [pfn for pfn, time in self.free.items() if now - time >= SECOND]
    ...         for pfn in old:
    ...             del self.free[pfn]
    ...         return old
    """

    name = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    def start(self, recording: Recording) -> None:
        """Begin anew, at ``recording.begin``."""

    def next_time(self) -> int | None:
        """Return when to ask next, or None: not before something else has changed."""
        raise NotImplementedError(f"{self.name} does not say when to ask it next: it has no next_time()")

    def report(self, now: int) -> ArrayLike:
        """Return the first pages of the granules to report now. All of them must be entirely free."""
        raise NotImplementedError(f"{self.name} does not say what to report: it has no report()")

    def whole(self, pfn: int, time: int) -> None:
        """Learn that a granule has become entirely free."""

    def broken(self, pfn: int, time: int) -> None:
        """Learn that a page of an entirely free granule was taken."""

    def changes(self, rows: NDArray[np.void]) -> int:
        """Learn of many changes at once; return how many of them were taken.

        Parameters
        ----------
        rows : ndarray of `CHANGE_DTYPE`
            In their order, at least one; none of them later than `next_time`, or, if that has passed, than now.

        Returns
        -------
        int
            All, or fewer, if `next_time` has changed with the last of them; the others come again in their time.

        Notes
        -----
        By default each is handed to `whole` or `broken`, at about a million a second, until `next_time` has come to
        be before the next. Override it for policies that work on arrays.
        """
        times, pfns, are_whole = rows["time"].tolist(), rows["pfn"].tolist(), rows["whole"].tolist()
        due: int | None = None  # the first is not later than it may be
        now = 0
        for number, (time, pfn) in enumerate(zip(times, pfns, strict=True)):
            if due is not None and due < time and now < time:
                return number
            now = time
            if are_whole[number]:
                self.whole(pfn, time)
            else:
                self.broken(pfn, time)
            due = self.next_time()
        return len(times)

    def decide(self, recording: Recording) -> Decisions:
        """Run it on a recording.

        Raises
        ------
        BadPageError
            If it reports what is not a granule, or not entirely free.
        """
        return _Run(self, recording).decisions()


class _Run:
    """One run of a policy over the changes of a recording."""

    def __init__(self, policy: Policy, recording: Recording) -> None:
        self.policy, self.recording = policy, recording
        self.rows, self.taken = recording.changes, 0
        self.times = self.rows["time"]
        self.is_whole = np.zeros((len(recording.free) >> recording.granule_order) + 1, bool)
        self.found: list[NDArray[np.void]] = []
        self.now = recording.begin

    def decisions(self) -> Decisions:
        self.policy.start(self.recording)
        while True:
            due = self.policy.next_time()
            at = self.recording.end if due is None else max(due, self.now)
            last = int(np.searchsorted(self.times, at, side="right"))
            if self.taken < last:
                self.tell(last, due)
            elif due is None or due > self.recording.end:
                break
            else:
                self.ask(at)
                self.refuse_standing_still(due)
        reports = np.concatenate(self.found) if self.found else np.zeros(0, REPORT_DTYPE)
        return Decisions(reports, {"asked": len(self.found)})

    def refuse_standing_still(self, due: int) -> None:
        """Refuse to ask for ever: who was asked, and says the same moment again, would be."""
        again = self.policy.next_time()
        if again is not None and again <= due and not len(self.found[-1]):
            raise ValueError(f"{self.policy.name} was asked at {due / SECOND:.6f} s, reported nothing, and wants to be"
                             " asked at that time again: next_time() must move on")  # fmt: skip

    def tell(self, last: int, due: int | None) -> None:
        """Tell of the changes up to one; the policy may take fewer, and have another time to be asked at."""
        rows = self.rows[self.taken : last]
        taken = int(self.policy.changes(rows))
        if not 0 <= taken <= len(rows):
            raise ValueError(f"{self.policy.name} says that it took {taken} of {len(rows)} changes")
        self.is_whole[rows["pfn"][:taken] >> self.recording.granule_order] = rows["whole"][:taken]
        self.taken += taken
        if taken:
            self.now = int(rows["time"][taken - 1])
        elif self.policy.next_time() == due:
            raise ValueError(f"{self.policy.name} takes none of {len(rows)} changes, and wants to be asked no sooner")

    def position_at(self, now: int) -> int:
        """How many operations have happened: all that are not later."""
        position = int(np.searchsorted(self.recording.operations["time"], now, side="right"))
        return max(position, self.recording.begin_position)

    def ask(self, now: int) -> None:
        """Ask, and write down the answer if it is right."""
        answer = self.policy.report(now)
        pfns = np.atleast_1d(np.asarray(answer))
        self.now = now
        reports = np.zeros(len(pfns), REPORT_DTYPE)
        self.found.append(reports)
        if not len(pfns):
            return
        if pfns.dtype.kind not in "iu":
            raise BadPageError(
                f"{self.policy.name} reports a {type(answer).__name__} of {pfns.dtype}; it has to be a list or an array"
                " of pages, which are whole numbers"
            )
        order = self.recording.granule_order
        wrong = (pfns < 0) | (pfns >= len(self.recording.free)) | (pfns & ((1 << order) - 1) != 0)
        wrong[~wrong] = ~self.is_whole[pfns[~wrong] >> order]
        if wrong.any():
            raise BadPageError(f"{self.policy.name} reports PFN {pfns[wrong][0]}, order {order}, at"
                               f" {now / SECOND:.6f} s, which is not a granule that is entirely free")  # fmt: skip
        reports["time"], reports["pfn"], reports["order"] = now, pfns, order
        reports["position"], reports["call"] = self.position_at(now), len(self.found) - 1
