"""The counts of an allocator at one moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from pagehint.sizes import format_size
from pagehint.stats.regret import Regret


@dataclass(frozen=True)
class LockStats:
    """How long the zone locks were waited for and held, over all zones, since the allocator was made.

    Attributes
    ----------
    longest_wait_ns : int
        Longest wait of any thread for a zone's lock, in nanoseconds.
    longest_hold_ns : int
        Longest that hinting held a zone's lock to isolate a batch or to put one back, in nanoseconds.
    holds : tuple of (int, int)
        These holds by their length: a power of two in nanoseconds, and how many holds were under it, but not under the
        power before. Only pairs that count any.
    """

    longest_wait_ns: int
    longest_hold_ns: int
    holds: tuple[tuple[int, int], ...]

    def __repr__(self) -> str:
        most = max((count for _, count in self.holds), default=0)
        bars = [f"  under {limit:>9,} ns {count:>9,} {'#' * (40 * count // most)}" for limit, count in self.holds]
        title = f"LockStats: longest wait {self.longest_wait_ns:,} ns, longest hold {self.longest_hold_ns:,} ns"
        return "\n".join([title, *bars])


@dataclass(frozen=True)
class Stats:
    """Counts, added over all zones. At rest managed = free + pcp + reporting + allocated, and reporting is 0.

    Pages are pages, blocks are buddy blocks of any order, hints are granules. A pass is one look of hinting at the
    zones.

    Attributes
    ----------
    managed_pages : int
        Pages that are present and online.
    free_pages : int
        Of these, pages in the buddy system.
    pcp_pages : int
        Of these, free pages in per-CPU page sets.
    reporting_pages : int
        Of these, pages that are out with the host.
    allocated_pages : int
        Of these, all others.
    nr_free : tuple of int
        Maximal free blocks of each order.
    hints_pending : int
        Granules that are free and have not been reported: bits set now.
    hints_set : int
        Bits set: by frees, when hinting was enabled, and again after a failed report.
    hints_cleared_by_alloc : int
        Bits cleared because memory of the granule was allocated.
    work_queued : int
        Requests for a pass over a zone.
    work_runs : int
        Passes.
    scans : int
        Zones that a pass has searched for hints.
    blocks_isolated : int
        Blocks taken out of circulation for a report.
    isolation_refused : int
        Times that a zone had too little free memory to spare a batch.
    reports : int
        Calls of `hint_pages`.
    blocks_reported, pages_reported : int
        Blocks that the host has taken, and their pages.
    blocks_failed : int
        Blocks that it has not taken.
    report_errors : int
        Calls of `hint_pages` after which a block had not been taken.
    prepare_errors : int
        Calls of `prepare` that raised or returned a negative number.
    blocks_returned : int
        Blocks put back after a report, taken or not.
    lock_acquired, lock_contended : int
        Times that the zones' locks were taken, and of these, times that another thread held the lock first.
    page_size : int
        Bytes in a page.
    locks : LockStats or None
        If asked for.
    regret : Regret or None
        With an age that is learnt (``min_age="auto"``): what has been reported too soon, and what other ages would have
        cost.
    """

    managed_pages: int
    free_pages: int
    pcp_pages: int
    reporting_pages: int
    allocated_pages: int
    nr_free: tuple[int, ...]
    hints_pending: int
    hints_set: int
    hints_cleared_by_alloc: int
    work_queued: int
    work_runs: int
    scans: int
    blocks_isolated: int
    isolation_refused: int
    reports: int
    blocks_reported: int
    pages_reported: int
    blocks_failed: int
    report_errors: int
    prepare_errors: int
    blocks_returned: int
    lock_acquired: int
    lock_contended: int
    page_size: int = field(default=4096, repr=False, compare=False)
    locks: LockStats | None = field(default=None, repr=False, compare=False)
    regret: Regret | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts by name."""
        values = asdict(self)
        del values["page_size"], values["locks"], values["regret"]
        return values

    def _rows(self) -> list[tuple[str, str]]:
        rows = []
        for name, value in self.to_dict().items():
            if name == "nr_free":
                text = " ".join(map(str, value))
            else:
                text = f"{value:,}"
                if name.endswith("_pages") or name == "pages_reported":
                    text += f"  ({format_size(value * self.page_size)})"
            rows.append((name, text))
        return rows

    def __repr__(self) -> str:
        lines = ["Stats", *(f"  {name:<24}{text}" for name, text in self._rows())]
        return "\n".join(lines if self.regret is None else [*lines, repr(self.regret)])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self._rows())
        regret = "" if self.regret is None else f"<pre>{escape(repr(self.regret))}</pre>"
        return f"<table>{rows}</table>{regret}"
