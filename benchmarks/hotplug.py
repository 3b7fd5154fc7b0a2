"""Hotplug, nodes and refusals as machines grow: ``python -m benchmarks.hotplug [--most TIB] [--json FILE]``.

All sections of a machine go offline one by one, and online again; then every second one, which makes the most
ranges. Then machines of many nodes are made, with Linux's watermarks, and some whose nodes interleave. Last, a page
that is a hole is refused, beside more and more holes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pagehint as ph

SECTION = 32768  # pages
TIB = 1 << 13  # sections
REFUSALS = 1000
STRIPES = 16  # of a node of 1 GiB


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def sections(nr_sections: int) -> dict[str, float]:
    """Microseconds a section."""
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 0, nr_sections * SECTION)], pcp=False)
    figures = {}
    for which, step in (("each", 1), ("every second", 2)):
        starts = range(0, nr_sections * SECTION, step * SECTION)
        for name, call in (("offline", pages.offline), ("online", pages.online)):
            took = seconds(lambda call=call, starts=starts: [call(start, SECTION) for start in starts])
            figures[f"{which} {name}, us"] = took / len(starts) * 1e6
    return figures


def nodes(nr_nodes: int) -> dict[str, float]:
    """Seconds to make a machine of so many nodes, and milliseconds for a section of it, watermarks and all."""
    made: list[ph.PageAllocator] = []
    took = seconds(lambda: made.append(ph.PageAllocator.x86_64(nr_nodes << 30, nodes=nr_nodes, pcp=False)))
    zone = made[0].zones[-1]
    start = zone.start_pfn + zone.spanned_pages - SECTION
    return {"made, s": took, "a section offline, ms": seconds(lambda: made[0].offline(start, SECTION)) * 1e3}


def interleaved(nr_nodes: int) -> dict[str, float]:
    """As `nodes`, where nodes take turns, with STRIPES ranges each; and microseconds to free a page of any of them."""
    stripe = (1 << 18) // STRIPES
    step = nr_nodes * stripe
    zones = []
    for node in range(nr_nodes):
        gaps = [(node * stripe + i * step + stripe, step - stripe) for i in range(STRIPES - 1)]
        zones.append(ph.ZoneSpec("Normal", node * stripe, (STRIPES - 1) * step + stripe, node, gaps))
    made: list[ph.PageAllocator] = []
    took = seconds(lambda: made.append(ph.PageAllocator(zones, pcp=False, watermarks="linux")))
    figures = {"made, s": took, "a range offline, ms": seconds(lambda: made[0].offline(stripe, stripe)) * 1e3}
    pages = np.random.default_rng(1).permutation(STRIPES * nr_nodes)[:REFUSALS] * stripe + 7
    pfns = [made[0].alloc_pages_at(int(pfn)) for pfn in pages if pfn // stripe != 1]
    figures["a page freed, us"] = seconds(lambda: [made[0].free_pages(pfn) for pfn in pfns]) / len(pfns) * 1e6
    return figures


def holes(nr_holes: int) -> dict[str, float]:
    """Microseconds to refuse a page in a hole."""
    spec = ph.ZoneSpec("Normal", 0, 2 * nr_holes + 1, holes=[(2 * i + 1, 1) for i in range(nr_holes)])
    pages = ph.PageAllocator([spec], pcp=False)

    def refuse() -> None:
        for _ in range(REFUSALS):
            try:
                pages.alloc_pages_at(nr_holes // 2 * 2 + 1)
            except ph.BadPageError:
                continue
            raise AssertionError("a hole was allocated")

    return {"a refusal, us": seconds(refuse) / REFUSALS * 1e6}


def main() -> None:
    """Print the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=16, help="TiB of the largest machine")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    arguments = parser.parse_args()
    tib = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= arguments.most]
    curves = {
        "TiB": {size: (sections, size * TIB) for size in tib},
        "nodes": {n: (nodes, n) for n in (64, 128, 256, 512, 1024)},
        "interleaved nodes": {n: (interleaved, n) for n in (64, 128, 256, 512, 1024)},
        "holes": {n: (holes, n) for n in (1000, 10_000, 100_000, 1_000_000)},
    }
    console, seen = Console(), {}
    for what, points in curves.items():
        seen[what] = {
            size: measure(n) for size, (measure, n) in track(points.items(), what, console=console, transient=True)
        }
        table = Table(what, *next(iter(seen[what].values())))
        for size, figures in seen[what].items():
            table.add_row(f"{size:,}", *(f"{figure:,.3g}" for figure in figures.values()))
        console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
