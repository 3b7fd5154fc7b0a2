"""What a replay has come to: counts, contradictions, reports, waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from pagehint.sizes import format_size
from pagehint.traces.operations import Contradiction


@dataclass(frozen=True)
class Replayed:
    """What `PageAllocator.replay` has carried out and found.

    Attributes
    ----------
    operations : int
        Rows of the table, all of which have been looked at.
    counts : dict of str to int
        How many of each kind were carried out: "take", "give", "set_type", "isolate", "putback", "mark", "lost". Of the
        kernel's own reports, "isolate" and "putback", nothing is done but to compare.
    contradictions : dict of str to int
        Operations that were refused, and have changed nothing, by cause; and, though carried out, those with a time
        before that of the operation before them.
    examples : dict of str to tuple of `Contradiction`
        The first few of each cause.
    wrong_pages_at_reports : int
        Pages that were in use here when the kernel's own free page reporting took them, which it does with free pages.
    unmodelled_types : int
        Pageblocks' changes to migratetypes that an allocator here does not have; their pageblocks keep theirs.
    passes, reports : int
        Passes of hinting, and calls of `hint_pages`.
    blocks_reported, bytes_reported : int
        What the host has taken.
    bytes_again : int
        Of these, what it had been told of before and nobody has used since.
    blocks_failed : int
        Blocks that the host has not taken.
    waits : int
        Takes of pages that were out with the host just then, each of which waits until its report ends.
    wait_seconds, longest_wait_seconds : float
        How long they wait, all together and at most, by the recording's clock.
    """

    operations: int
    counts: Mapping[str, int]
    contradictions: Mapping[str, int]
    examples: Mapping[str, tuple[Contradiction, ...]] = field(repr=False)
    wrong_pages_at_reports: int
    unmodelled_types: int
    passes: int
    reports: int
    blocks_reported: int
    bytes_reported: int
    bytes_again: int
    blocks_failed: int
    waits: int
    wait_seconds: float
    longest_wait_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything by name, as JSON can have it; without the examples."""
        values = asdict(self)
        del values["examples"]
        return values

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("operations", f"{self.operations:,}")]
        rows += [(f"  {name}", f"{count:,}") for name, count in self.counts.items() if count]
        rows.append(("contradictions", f"{sum(self.contradictions.values()):,}"))
        for cause, count in self.contradictions.items():
            first = self.examples[cause][0]
            where = f"first at {first.time / 1e9:.6f} s, PFN {first.pfn:#x}, order {first.order}, row {first.row}"
            rows.append((f"  {cause}", f"{count:,}  ({where})"))
        compared = self.counts["isolate"] + self.contradictions.get("isolate of what is in use", 0)
        rows.append(("wrong pages at reports", f"{self.wrong_pages_at_reports:,}  (in {compared:,} of the kernel's)"))
        if self.unmodelled_types:
            rows.append(("unmodelled types", f"{self.unmodelled_types:,}"))
        if self.passes:
            rows.append(("passes", f"{self.passes:,}"))
            reported, again = format_size(self.bytes_reported), format_size(self.bytes_again)
            rows.append(
                ("reports", f"{self.reports:,}: {self.blocks_reported:,} blocks, {reported}, {again} of it again")
            )
        if self.blocks_failed:
            rows.append(("blocks failed", f"{self.blocks_failed:,}"))
        if self.waits:
            rows.append(
                ("waits", f"{self.waits:,}: {self.wait_seconds:.6f} s, {self.longest_wait_seconds:.6f} s at most")
            )
        return rows

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows) + 2
        return "Replayed\n" + "\n".join(f"  {name:<{width}}{text}" for name, text in rows)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name.strip())}</th><td>{escape(text)}</td></tr>" for name, text in self._rows()
        )
        return f"<table>{rows}</table>"
