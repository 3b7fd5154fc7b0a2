"""The counts of an allocator at one moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from pagehint.sizes import format_size


@dataclass(frozen=True)
class LockStats:
    """How the zone locks fare, over all zones since the allocator was made.

    `holds` are the engine's rounds (a batch isolated, a batch put back) by how long each held the lock: pairs of a
    limit in nanoseconds, a power of two, and how many rounds stayed under it and over the one before.
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
    """Counts, added over all zones. At rest managed = free + pcp + isolated + allocated, and isolated is 0.

    Pages are pages, blocks are buddy blocks of any order, hints are granules.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the counts by name."""
        values = asdict(self)
        del values["page_size"], values["locks"]
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
        return "Stats\n" + "\n".join(f"  {name:<24}{text}" for name, text in self._rows())

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self._rows())
        return f"<table>{rows}</table>"
