"""The texts of Linux's /proc/buddyinfo, /proc/pagetypeinfo and /proc/zoneinfo, for tools that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]


def _by_node(zones: Sequence[Figures]) -> list[Figures]:
    """Return the zones in the order of the /proc files."""
    return sorted(zones, key=lambda zone: zone["node"])


def buddyinfo(zones: Sequence[Figures]) -> str:
    """Return the free blocks of each order, as /proc/buddyinfo has them."""
    lines = []
    for zone in _by_node(zones):
        counts = [sum(by_type) for by_type in zip(*zone["nr_free"], strict=True)]
        lines.append(f"Node {zone['node']}, zone {zone['name']:>8} " + "".join(f"{count:>6} " for count in counts))
    return "\n".join(lines) + "\n"


def pagetypeinfo(zones: Sequence[Figures], pageblock_order: int, types: Sequence[str]) -> str:
    """Return the free blocks of each migratetype and order, then the pageblocks of each type."""
    orders = range(len(zones[0]["nr_free"][0]))
    lines = [f"Page block order: {pageblock_order}", f"Pages per block:  {1 << pageblock_order}", ""]
    lines.append(f"{'Free pages count per migrate type at order ':<43} " + "".join(f"{order:>6} " for order in orders))
    for zone in _by_node(zones):
        for name, counts in zip(types, zone["nr_free"], strict=True):
            head = f"Node {zone['node']:>4}, zone {zone['name']:>8}, type {name.capitalize():>12} "
            lines.append(head + "".join(f"{count:>6} " for count in counts))
    lines += ["", f"{'Number of blocks type ':<23}" + "".join(f"{name.capitalize():>12} " for name in types)]
    for zone in _by_node(zones):
        head = f"Node {zone['node']}, zone {zone['name']:>8} "
        lines.append(head + "".join(f"{count:>12} " for count in zone["pageblocks"]))
    return "\n".join(lines) + "\n"


# Linux counts these by node, and prints them with the node's first zone. Here there is no page cache: they are 0.
_NODE_STATS = ("nr_inactive_anon", "nr_active_anon", "nr_inactive_file", "nr_active_file", "nr_unevictable")


def zoneinfo(zones: Sequence[Figures]) -> str:
    """Return the sizes, watermarks and per-CPU page sets of each zone, all in pages."""
    lines = []
    nodes = set()
    for zone in _by_node(zones):
        marks = zone["watermarks"]
        lines.append(f"Node {zone['node']}, zone {zone['name']:>8}")
        if zone["node"] not in nodes:
            nodes.add(zone["node"])
            lines += ["  per-node stats", *(f"      {name:<12} 0" for name in _NODE_STATS)]
        lines.append(f"  pages free     {zone['free_pages']}")
        values = [
            ("boost", 0),
            ("min", marks.min),
            ("low", marks.low),
            ("high", marks.high),
            ("promo", 2 * marks.high - marks.low),
            ("spanned", zone["spanned_pages"]),
            ("present", zone["managed_pages"]),
            ("managed", zone["managed_pages"]),
            ("cma", 0),
        ]
        lines += [f"        {name:<8} {value}" for name, value in values]
        lines.append(f"        protection: ({', '.join(map(str, zone['protection']))})")
        lines.append(f"      {'nr_free_pages':<12} {zone['free_pages']}")
        lines.append("  pagesets")
        for cpu, (count, high, batch) in enumerate(zone["page_sets"]):
            lines.append(f"    cpu: {cpu}")
            values = [("count:", count), ("high:", high), ("batch:", batch), ("high_min:", high), ("high_max:", high)]
            lines += [f"              {name:<9} {value}" for name, value in values]
        lines.append("  node_unreclaimable:  0")
        lines.append(f"  start_pfn:           {zone['start_pfn']}")
    return "\n".join(lines) + "\n"
