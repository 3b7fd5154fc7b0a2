"""Everything side by side: ``python -m benchmarks.compare [--quick] [--markdown FILE] [--plot DIR] [pytest's own]``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections import defaultdict
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

import pagehint
from benchmarks.build import compiler_version

MARKS = "<!-- results, by benchmarks.compare -->", "<!-- end of results -->"
DISTURBED = 5  # per cent of the time that threads had no core
PLOT_SIZES = "1,4,16,64,256,1024"
COLUMNS = ("row", "size", "target", "measured", "spread", "to target", "beside it", "hinting on / off")
Row = dict[str, Any]


def machine() -> str:
    """What this ran on, and how busy that is."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"pagehint {pagehint.__version__} on {os.cpu_count()} x {model}, Linux {platform.release()},"
        f" Python {platform.python_version()}, {compiler_version()}, {date.today()}, load {load}"
    )


def collect(benchmarks: list[dict[str, Any]]) -> list[Row]:
    """All rows that were measured, in the order of the suite; those of one name together."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        also = info.pop("also", [])
        for row in [info, *also]:
            if "figure" in row:  # else it failed
                by_name[row["row"]].append(row)
    return [row for rows in by_name.values() for row in rows]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of COLUMNS."""
    figure, target, unit = row["figure"], row["target"], row["unit"]
    wanted = verdict = ""
    if target is not None:
        wanted = f"{'≥' if row['at_least'] else '≤'} {number(target)}"
        share = figure["median"] / target
        met = share >= 1 if row["at_least"] else share <= 1
        verdict = f"{share:.2f} {'ok' if met else 'MISS'}"
    others = {who: its for who, its in row["who"].items() if who not in ("pagehint", "hinting")}
    beside = [f"{who} {number(its['median'])} ({its['ratio']:.2f}x)" for who, its in others.items()]
    if unit not in ("ns", "ms") and row["who"]:  # the figure is a quotient: say of what
        beside.insert(0, f"ours {number(row['who']['pagehint']['median'])}")
    without_core = row.get("without_core", 0.0)
    if without_core > DISTURBED:
        verdict = "disturbed"  # by other processes: neither a hit nor a miss
        beside.append(f"without a core {without_core:.0f} % of the time")
    hinting = row["who"].get("hinting")
    return (
        row["row"],
        row["size"],
        wanted,
        f"{number(figure['median'])} {unit}",
        f"{number(figure['low'])} to {number(figure['high'])}" if row["rounds"] > 1 else "",
        verdict,
        "; ".join(beside),
        f"{1 / hinting['ratio']:.3f}" if hinting else "",
    )


def print_table(rows: list[Row], title: str) -> None:
    table = Table(title=title, show_lines=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("row", "beside it") else "right")
    for row in rows:
        table.add_row(*cells(row))
    console = Console()
    console.width = max(console.width, 180)  # also into a pipe or a file
    console.print(table)


def markdown(rows: list[Row], title: str) -> str:
    lines = [title, "", "| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def write_markdown(target: Path, text: str) -> None:
    """Put the text where the file has its marks, or make a file of it."""
    begin, end = MARKS
    text = f"{begin}\n\n{text}\n\n{end}"
    old = target.read_text() if target.exists() else ""
    if begin in old and end in old:
        text = old.partition(begin)[0] + text + old.partition(end)[2]
    target.write_text(text)


def plot(rows: list[Row], directory: Path, title: str) -> None:
    """Cost against the model's size: one file for the rows in nanoseconds, one for making a model."""
    import matplotlib.pyplot as plt

    directory.mkdir(parents=True, exist_ok=True)
    for unit, label, stem in (("ns", "ns an operation", "cost"), ("ms", "ms", "creation")):
        lines: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
        for row in rows:
            if row["gib"] and row["unit"] == unit and row["who"]:
                for who in {"pagehint", "linked list"} & set(row["who"]):
                    lines[row["row"], who].append((row["gib"], row["who"][who]["median"]))
        figure, axes = plt.subplots(figsize=(10, 7), layout="constrained")
        colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name for name, _ in lines))}
        for (name, who), points in sorted(lines.items()):
            style: dict[str, Any] = {"label": name, "marker": "o"} if who == "pagehint" else {"linestyle": ":"}
            axes.plot(*zip(*sorted(points), strict=True), color=colours[name], **style)
        axes.set(xscale="log", yscale="log", xlabel="GiB of the model", ylabel=label)
        axes.set_title(f"solid: pagehint, dotted: linked list\n{title}", fontsize="x-small", wrap=True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
        figure.savefig(directory / f"{stem}.png", dpi=100)
        plt.close(figure)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table there, between its marks if it has them"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help=f"plot the cost against the size; sizes {PLOT_SIZES} GiB"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep pytest-benchmark's report, every round in it")
    options, rest = parser.parse_known_args(arguments)
    for peer in ("bitarray", "pyroaring"):
        if find_spec(peer) is None:
            parser.error(f"{peer} is not installed: pip install 'pagehint[bench]'")
    if options.plot:
        rest = [f"--sizes={PLOT_SIZES}", *rest]
    os.environ.pop("PYTEST_ADDOPTS", None)  # pytest-benchmark measures nothing in the workers of pytest-xdist
    before = machine()
    with tempfile.TemporaryDirectory() as directory:
        report = options.json or Path(directory) / "report.json"
        fixed = ["-q", "--benchmark-quiet", f"--benchmark-json={report}"]
        status = pytest.main([str(Path(__file__).parent), *fixed, *rest])
        if not report.exists() or not report.stat().st_size:
            print("benchmarks.compare: nothing was measured", file=sys.stderr)
            return int(status) or 1
        rows = collect(json.loads(report.read_text())["benchmarks"])
    title = f"{before}, at the end {os.getloadavg()[0]:.2f}"
    print_table(rows, title)
    if options.markdown:
        write_markdown(options.markdown, markdown(rows, title))
    if options.plot:
        plot(rows, options.plot, title)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
