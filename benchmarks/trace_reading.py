"""Recordings, read and converted: ``python -m benchmarks.trace_reading RECORDING [--events N] [--rounds N]``.

RECORDING is compressed text of any tracer's; it is repeated until it has as many events as are asked for. Each round is
a process of its own, which reads a file or converts it. Shown are the median and the quickest, in millions of events a
second, and the processors' time, which other processes disturb less; and the most memory that such a process had
resident, beyond what it had after its imports.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pagehint as ph

WORK = {
    "read text": lambda text, parquet: len(ph.traces.read(text)),
    "convert to Parquet": lambda text, parquet: ph.traces.convert(text, parquet).lines,
    "read Parquet": lambda text, parquet: len(ph.traces.read(parquet)),
    "touch as much": lambda text, parquet: touched(parquet),
}
"""The last is no more than a table of the same size, of which each page is written to: what the kernel, and the host
of a virtual machine, take to find the memory."""


def touched(parquet: str) -> int:
    from pyarrow.parquet import read_metadata

    table = np.empty(read_metadata(parquet).num_rows, ph.traces.EVENT_DTYPE)
    table.view(np.uint8)[:: mmap.PAGESIZE] = 1
    return len(table)


def one_round(what: str, text: str, parquet: str) -> None:
    """Do it once, and print what it took: events, seconds, seconds of a processor, bytes of memory."""
    import pyarrow.parquet  # noqa: F401 - not counted

    resident, used, began = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        time.process_time(),
        time.perf_counter(),
    )
    nr_events = WORK[what](text, parquet)
    took, used = time.perf_counter() - began, time.process_time() - used
    print(json.dumps([nr_events, took, used, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) << 10]))


def measured(what: str, text: Path, parquet: Path, rounds: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.trace_reading", "--round", what, str(text), str(parquet)]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for _ in track(range(rounds), what, transient=True, console=Console(stderr=True))
    ]
    events, took, used, memory = zip(*map(json.loads, outputs), strict=True)
    return {
        "events": events[0],
        "M/s, median": events[0] / statistics.median(took) / 1e6,
        "M/s, quickest": events[0] / min(took) / 1e6,
        "CPU, us an event": statistics.median(used) / events[0] * 1e6,
        "memory, MiB": statistics.median(memory) / 2**20,
    }


def repeated(recording: Path, nr_events: int, folder: Path) -> Path:
    """The recording as often as it takes, which compressed files can be: one after the other."""
    raw, there = recording.read_bytes(), len(ph.traces.read(recording))
    path = folder / recording.name
    with path.open("wb") as file:
        for _ in range(-(-nr_events // there)):
            file.write(raw)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--round", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.round:
        one_round(*arguments.round)
        return
    if arguments.recording is None:
        parser.error("which recording?")
    with tempfile.TemporaryDirectory() as name:
        text = repeated(arguments.recording, arguments.events, Path(name))
        parquet = Path(name) / "trace.parquet"
        rows = {what: measured(what, text, parquet, arguments.rounds) for what in WORK}
        sizes = {path.name: path.stat().st_size / rows["read Parquet"]["events"] for path in (text, parquet)}
    table = Table(title=f"{arguments.recording.name}, repeated; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    for column in ("", *rows["read text"]):
        table.add_column(column, justify="left" if not column else "right")
    for what, figures in rows.items():
        table.add_row(what, *(f"{figure:,.0f}" if figure > 1000 else f"{figure:.3g}" for figure in figures.values()))
    Console().print(table, *(f"{name}: {size:.3f} bytes an event" for name, size in sizes.items()), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({**rows, "bytes an event": sizes}, indent=1))


if __name__ == "__main__":
    main()
