"""Where the free memory is, and why it is not with the host: each free page is in exactly one state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pagehint.sizes import format_size
from pagehint.stats.regret import Regret

_ISOLATE = 3

_REASONS = {
    "reported": "with the host: reported, and not touched since",
    "reported or unmarked": "with the host, or free since before hinting was enabled with mark_free=False",
    "came back": "reported, and not touched since, but its host has memory for it again, as after a dump;"
    " goes out on flush_hinting() or trim()",
    "not tracked": "hinting is off, so nobody tells the host",
    "reporting": "out for reporting at this moment",
    "pending": "hinted, its zone has reached the threshold; goes out with the next pass",
    "below threshold": "hinted, too few for the threshold; goes out after the delay, or on flush_hinting()",
    "too young": "hinted, and free for less than min_age, or in the reserve and free for less than reserve_age;"
    " goes out when it is old enough, or on flush_hinting()",
    "under the watermark gate": "hinted, but the zone has too little free memory to spare a batch",
    "fragmented": "free pages in granules that are partly used",
    "in pcp": "free, in page sets; drain_pcp() or flush_hinting() gives it back",
    "isolate": "free, in pageblocks of migratetype isolate",
    "offline": "offline sections, not managed",
}
_WARM = "of these, granules entirely free and not with the host; in an arena, what is in memory"


@dataclass(frozen=True)
class Reason:
    """One state of free memory, a line of an `Explanation`: its name, its pages and bytes, and what it means."""

    name: str
    pages: int
    bytes: int
    why: str


class Explanation(Sequence[Reason]):
    """The states that free memory is in, with pages and bytes; a table in a terminal and in a notebook.

    Attributes
    ----------
    warm : Reason
        Memory of granules that are entirely free, and not with the host. It is no state, but a part of several, and the
        table has it last. In an arena it is what is in memory, as the kernel says, and the same as
        `ArenaStatus.warm_bytes`; in a model what is hinted, or, with hinting off, every free granule. Free pages beside
        others in use are "fragmented" instead: the host cannot have these.
    regret : Regret or None
        As `Stats` has it.
    """

    warm: Reason

    def __init__(self, pages: Mapping[str, int], page_size: int, warm: int, regret: Regret | None = None) -> None:
        self.regret = regret
        self._reasons = [
            Reason(name, pages.get(name, 0), pages.get(name, 0) * page_size, _REASONS[name]) for name in _REASONS
        ]
        self.warm = Reason("warm", warm, warm * page_size, _WARM)
        self._shown = [reason for reason in self._reasons if reason.pages or reason.name in pages]

    def __getitem__(self, key: Any) -> Any:
        """Return a reason by its name or its place; for another name KeyError, with those that there are."""
        if key == self.warm.name:
            return self.warm
        if isinstance(key, str):
            for reason in self._reasons:
                if reason.name == key:
                    return reason
            raise KeyError(f"no state of free memory is named {key!r}; there are: {', '.join(_REASONS)}")
        return self._reasons[key]

    def __len__(self) -> int:
        return len(self._reasons)

    def to_dict(self) -> dict[str, int]:
        """Return the pages in each state."""
        return {reason.name: reason.pages for reason in self._reasons}

    def _lines(self) -> list[Reason]:
        return [*self._shown, self.warm] if self.warm.pages else self._shown

    def __repr__(self) -> str:
        lines = [f"{'free memory':<26}{'pages':>14}{'':>12}  why it is there"]
        lines += [f"{r.name:<26}{r.pages:>14,}{format_size(r.bytes):>12}  {r.why}" for r in self._lines()]
        return "\n".join(lines if self.regret is None else [*lines, repr(self.regret)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(r.name)}</th><td>{r.pages:,}</td><td>{format_size(r.bytes)}</td>"
            f"<td style='text-align:left'>{escape(r.why)}</td></tr>"
            for r in self._lines()
        )
        regret = "" if self.regret is None else f"<pre>{escape(repr(self.regret))}</pre>"
        heads = "<tr><th>free memory</th><th>pages</th><th>size</th><th>why it is there</th></tr>"
        return f"<table>{heads}{rows}</table>{regret}"


def explain_zones(
    zones: Sequence[Mapping[str, Any]],
    *,
    page_size: int,
    min_order: int,
    hinting: bool,
    marked: bool,
    warm: int | None,
    regret: Regret | None = None,
) -> Explanation:
    """Sort every free page of the zones into one state. O(zones * max_page_order).

    `zones` are what `Zone.figures` returns. `marked`: what was free when hinting was enabled has been hinted. If
    not, a free granule without a hint need not have been reported. `warm`: pages in memory of free granules, or None
    where nothing says it. A zone has one more figure here: `came_back`, the granules without a hint that its host has
    again.
    """
    reported = "reported" if marked else "reported or unmarked"
    pages = dict.fromkeys(
        [reported, "pending", "below threshold", "fragmented", "in pcp"] if hinting else ["not tracked", "in pcp"], 0
    )

    def add(state: str, count: int) -> None:
        if count:
            pages[state] = pages.get(state, 0) + count

    unreported = 0
    for zone in zones:
        usable = [sum(counts) for counts in zip(*zone["nr_free"][:_ISOLATE], strict=True)]
        whole = sum(count << order for order, count in enumerate(usable) if order >= min_order)
        free = sum(count << order for order, count in enumerate(usable))
        hints = zone["hints_pending"] - zone["hints_in_isolation"]
        hinted = hints << min_order
        add("isolate", zone["free_pages"] - free)
        add("in pcp", zone["pcp_pages"])
        add("offline", zone["offline_pages"])
        add("reporting", zone["reporting_pages"])
        unreported += hinted if hinting else whole
        if not hinting:
            add("not tracked", free)
            continue
        add("fragmented", free - whole)
        back = min(zone["came_back"] << min_order, max(whole - hinted, 0))
        add("came back", back)
        add(reported, max(whole - hinted - back, 0))
        if free < zone["gate"]:
            add("under the watermark gate", hinted)
        else:
            young = zone["hints_too_young"] << min_order
            add("too young", young)
            add("pending" if hints >= zone["threshold"] else "below threshold", hinted - young)
    return Explanation(pages, page_size, unreported if warm is None else warm, regret)
