"""Whole programs, unchanged, under one allocator after another: how long, how much memory, and what is left of it.

`python -m benchmarks.pipelines [--rounds N] [--only NAME] [--json FILE] [--plot FILE]`. The programs are those of
`pipeline_programs.py`; they need pandas, pyarrow, scikit-learn, Pillow and distributed. Each runs in a process of its
own, does its work three times, then drops everything and waits. Memory is the anonymous resident memory of all its
processes, above what it was when the program was ready. The time is that of the three, and `end` is five seconds after
them. Allocators take turns; figures are medians of the rounds, and `time` is also shown as a multiple of the shortest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.numpy_workloads import LIBRARIES, MIB, warm_up
from benchmarks.pipeline_programs import FOLDER, PROGRAMS, TIMES

AFTER = 5.0  # seconds
SAMPLE = 0.05
ALLOCATORS: dict[str, tuple[list[str], dict[str, str]]] = {  # how Python is started, and with what environment
    "python": ([], {}),
    "MALLOC_TRIM_THRESHOLD_": ([], {"MALLOC_TRIM_THRESHOLD_": "65536"}),  # as Dask's nannies have it
    "jemalloc": ([], {"LD_PRELOAD": f"{LIBRARIES}/libjemalloc.so.2"}),
    "mimalloc": ([], {"LD_PRELOAD": f"{LIBRARIES}/libmimalloc.so.2"}),
    "pagehint run": (["-m", "pagehint", "run"], {}),
    "pagehint run --malloc": (["-m", "pagehint", "run", "--malloc"], {}),
}


# -- the program


def work(name: str) -> None:
    once = PROGRAMS[name]()
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.perf_counter()
    for _ in range(TIMES):
        once()
    print(time.perf_counter() - begin, flush=True)
    sys.stdin.readline()


# -- the one that looks on


@dataclass
class Seen:
    """Seconds, and bytes above the beginning's."""

    seconds: float
    peak: int
    mean: int
    end: int


def resident(program: psutil.Process) -> int:
    total = 0
    for process in (program, *program.children(recursive=True)):
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += memory.rss - memory.shared
    return total


def look_on(name: str, allocator: str) -> Seen:
    options, environment = ALLOCATORS[allocator]
    warm_up()
    command = [sys.executable, *options, "-m", "benchmarks.pipelines", "--work", name]
    child = subprocess.Popen(
        command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    if child.stdout.readline() != "ready\n":
        raise SystemExit(f"{name} under {allocator} did not begin")
    program = psutil.Process(child.pid)
    time.sleep(1)
    start, samples, over = resident(program), [], threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE):
            samples.append(resident(program) - start)

    sampler = threading.Thread(target=sample)
    sampler.start()
    child.stdin.write("go\n")
    child.stdin.flush()
    seconds = float(child.stdout.readline())
    time.sleep(AFTER)
    over.set()
    sampler.join()
    end = resident(program) - start
    child.communicate("end\n", timeout=60)
    return Seen(seconds, max(samples), sum(samples) // len(samples), end)


def median(rounds: list[Seen]) -> Seen:
    return Seen(
        statistics.median(seen.seconds for seen in rounds),
        *(int(statistics.median(getattr(seen, each) for seen in rounds)) for each in ("peak", "mean", "end")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PROGRAMS, help="one program")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.add_argument("--plot", type=Path, help="draw time against the memory that is left")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if arguments.work:
        work(arguments.work)
        return
    allocators = [
        name for name, (_, variables) in ALLOCATORS.items()
        if "LD_PRELOAD" not in variables or Path(variables["LD_PRELOAD"]).exists()
    ]  # fmt: skip
    for name in ALLOCATORS.keys() - allocators:
        print(f"{name} is not installed, and left out")
    seen = {}
    for program in [arguments.only] if arguments.only else PROGRAMS:
        look_on(program, "python")  # makes its files, and has them read
        rounds: dict[str, list[Seen]] = {name: [] for name in allocators}
        for number in range(arguments.rounds):
            turn = allocators[number % len(allocators) :] + allocators[: number % len(allocators)]
            for name in turn[::-1] if number % 2 else turn:
                rounds[name].append(look_on(program, name))
        seen.update({(program, name): median(each) for name, each in rounds.items()})
    show(seen)
    if arguments.json:
        figures = [{"program": p, "allocator": a, **asdict(each)} for (p, a), each in seen.items()]
        arguments.json.write_text(json.dumps(figures, indent=1))
    if arguments.plot:
        plot(seen, arguments.plot)


def show(seen: dict[tuple[str, str], Seen]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Resident MiB above the start; time also as a multiple of the shortest")
    table.add_column("program")
    table.add_column("allocator")
    for column in ("seconds", "of the best", "peak", "mean", "end", "end / peak"):
        table.add_column(column, justify="right")
    for (program, name), figures in seen.items():
        best = min(each.seconds for (other, _), each in seen.items() if other == program)
        table.add_row(
            program, name, f"{figures.seconds:.2f}", f"{figures.seconds / best:.2f}",
            *(f"{nr_bytes / MIB:,.0f}" for nr_bytes in (figures.peak, figures.mean, figures.end)),
            f"{figures.end / figures.peak:.1%}", end_section=name == list(ALLOCATORS)[-1],
        )  # fmt: skip
    Console(width=110).print(table)


def plot(seen: dict[tuple[str, str], Seen], path: Path) -> None:
    """Time, as a multiple of plain Python's, against what is left of the peak; better is down and to the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    programs = list(dict.fromkeys(program for program, _ in seen))
    figure = Figure(figsize=(2.6 * len(programs), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(programs), squeeze=False, sharex=True, sharey=True)[0]
    for axes, program in zip(every, programs, strict=True):
        for number, name in enumerate(ALLOCATORS):
            if (program, name) in seen:
                figures = seen[program, name]
                axes.plot(
                    100 * figures.end / figures.peak, figures.seconds / seen[program, "python"].seconds,
                    "os^Dv*"[number], color=f"C{number}", markersize=9, label=name if axes is every[0] else None,
                )  # fmt: skip
        axes.axhline(1, color="0.8", zorder=0)
        axes.set_title(program, fontsize=9)
        axes.set_xlabel("left at the end, % of the peak")
    every[0].set_ylabel("time, of plain Python's")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
