"""Run the suite and print its table: ``python -m benchmarks [--quick] [any option of pytest]``."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

Figures = dict[tuple[str, int], dict[str, float]]


def collect(results: list[dict[str, Any]]) -> Figures:
    """The figure of each allocator, by row and size."""
    figures: Figures = defaultdict(dict)
    for result in results:
        info = result["extra_info"]
        if "ns_per_op" not in info:
            continue  # it failed
        figures[info["row"], info["gib"]][info["who"]] = info["ns_per_op"]
        if "metadata_bytes_per_page" in info:
            figures["metadata, bytes per page", info["gib"]][info["who"]] = info["metadata_bytes_per_page"]
    return dict(sorted(figures.items(), key=lambda item: [row for row, _ in figures].index(item[0][0])))


def text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(figures: Figures) -> Table:
    made = Table(title="ns an operation, medians", caption="* two Python calls of nothing instead")
    made.add_column("row", no_wrap=True)
    for name in ("size", "pagehint", "linked list", "ratio"):
        made.add_column(name, justify="right", no_wrap=True)
    for (row, gib), by in figures.items():
        ours, calls = by.get("pagehint"), by.get("no-op calls")
        other = by.get("linked-list") if calls is None else calls
        ratio = f"{ours / other:.2f}" if ours is not None and other else "-"
        made.add_row(row, f"{gib} GiB", text(ours), text(other) + ("*" if calls is not None else ""), ratio)
    return made


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        options = ["-q", "--benchmark-quiet", f"--benchmark-json={report}"]
        status = pytest.main([str(Path(__file__).parent), *options, *arguments])
        if report.exists() and report.stat().st_size:
            console = Console()
            console.width = max(console.width, 100)  # also into a pipe or a file
            console.print(table(collect(json.loads(report.read_text())["benchmarks"])))
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
