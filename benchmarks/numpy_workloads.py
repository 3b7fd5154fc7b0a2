"""NumPy on the arena against other allocators: how fast, and what stays resident, while it works and afterwards.

`python -m benchmarks.numpy_workloads [--seconds S] [--rounds N] [--only WORDS] [--json FILE] [--plot FILE]`. Every
workload runs for some seconds in a process of its own with each allocator, which take turns, and as long before that
counts; then it deletes everything and sleeps, and is looked at after 1 and 10 seconds. The figures are medians of the
rounds. The others come in by LD_PRELOAD (Debian: libjemalloc2, libmimalloc2.0, libtcmalloc-minimal4); what is not
installed is left out, and said. "pagehint" is `pagehint.numpy.install` as it is, which learns its age; the others of it
have a constant one.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

KIB, MIB = 1 << 10, 1 << 20
SETTINGS = {  # of `pagehint.numpy.install`
    "pagehint": {},
    "pagehint, 1 s": {"min_age": 1.0},
    "pagehint, 0.01 s": {"min_age": 0.01},
}
WARM = 2048 * MIB
AFTER = (1, 10)  # seconds
SAMPLE = 0.005
LIBRARIES = Path("/usr/lib") / f"{os.uname().machine}-linux-gnu"
ALLOCATORS: dict[str, dict[str, str]] = {
    **{name: {} for name in SETTINGS},
    "glibc": {},
    # Nothing mapped on its own, nothing given back: the heap is the cache.
    "glibc, tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 46), "MALLOC_TOP_PAD_": str(64 * MIB)},
    "jemalloc": {"LD_PRELOAD": f"{LIBRARIES}/libjemalloc.so.2"},
    "mimalloc": {"LD_PRELOAD": f"{LIBRARIES}/libmimalloc.so.2"},
    "tcmalloc": {"LD_PRELOAD": f"{LIBRARIES}/libtcmalloc_minimal.so.4"},
}


# -- what is done: each makes a function that does it once


def temporaries(nr_bytes: int):
    """An expression whose every part is a new array of so many bytes."""
    a, b, c, d = (np.random.default_rng(seed).random(nr_bytes // 8) for seed in range(4))
    return lambda: float(((a * b) + c - d).sum())


def mixed():
    """Arrays of 64 KiB to 128 MiB, evenly by logarithm, made, written, read and deleted; up to 768 MiB at a time."""
    rng = random.Random(20261125)
    living: list[np.ndarray] = []

    def once() -> float:
        total = 0.0
        for _ in range(32):
            nr_bytes = int(64 * KIB * 2 ** (11 * rng.random()))
            while living and sum(array.nbytes for array in living) + nr_bytes > 768 * MIB:
                living.pop(rng.randrange(len(living)))
            array = np.empty(nr_bytes // 8)
            array[:] = nr_bytes
            living.append(array)
            total += float(living[rng.randrange(len(living))][:: 4096 // 8].sum())
        return total

    return once


def image():
    """A picture of 24 megapixels, converted, blurred, its edges found and brought back to bytes."""
    raw = np.random.default_rng(1).integers(0, 256, (4000, 6000), dtype=np.uint8)

    def blurred(picture: np.ndarray) -> np.ndarray:
        across = picture[:, :-2] + 2 * picture[:, 1:-1] + picture[:, 2:]
        return (across[:-2] + 2 * across[1:-1] + across[2:]) / 16

    def once() -> int:
        soft = blurred(raw.astype(np.float32) / 255)
        edges = np.hypot(soft[1:, 1:] - soft[:-1, 1:], soft[1:, 1:] - soft[1:, :-1])
        return int((np.clip(edges / edges.max(), 0, 1) * 255).astype(np.uint8).max())

    return once


def group_by():
    """Sums and means of a million rows by a key of a thousand values, with a new column computed and sorted by."""
    import pandas as pd

    rng = np.random.default_rng(2)
    table = pd.DataFrame(
        {"key": rng.integers(0, 1000, 1_000_000), "x": rng.random(1_000_000), "y": rng.random(1_000_000)}
    )

    def once() -> float:
        more = table.assign(z=table.x * table.y + 1)
        figures = more.groupby("key").agg({"x": "sum", "y": "mean", "z": "max"})
        return float(figures.z.sum() + more.sort_values("z").x.iloc[:10].sum())

    return once


WORKLOADS = {
    "temporaries, 1 MiB": partial(temporaries, MIB),
    "temporaries, 8 MiB": partial(temporaries, 8 * MIB),
    "temporaries, 64 MiB": partial(temporaries, 64 * MIB),
    "temporaries, 256 MiB": partial(temporaries, 256 * MIB),
    "mixed, 64 KiB to 128 MiB": mixed,
    "image": image,
    "pandas group-by": group_by,
}


# -- the process that does it


def repeat(once, seconds: float) -> tuple[float, float]:
    """Do it for so long, and twice at least; returns how often a second, and the CPU time of the process each time."""
    begin = now = time.perf_counter()
    cpu = time.process_time()
    times = 0
    while now < begin + seconds or times < 2:
        once()
        times += 1
        now = time.perf_counter()
    return times / (now - begin), (time.process_time() - cpu) / times


def work(workload: str, allocator: str, seconds: float) -> None:
    """Do it for so long, delete everything, and sleep; what the parent must know goes over the standard output."""
    np.random.default_rng()  # which imports much
    if workload.startswith("pandas"):
        import pandas  # noqa: F401

    def tell(**what: float) -> None:
        print(json.dumps(what), flush=True)

    if allocator.startswith("pagehint"):
        import pagehint as ph

        ph.numpy.install(**SETTINGS[allocator])
    tell(start=resident(os.getpid()))
    once = WORKLOADS[workload]()
    repeat(once, seconds)  # a virtual machine has to get memory from its host, and that is not what is to be measured
    tell(warm=0)
    rate, cpu = repeat(once, seconds)
    del once
    tell(rate=rate, cpu=cpu)
    time.sleep(AFTER[-1] + 1)


# -- the one that looks on


@dataclass
class Seen:
    """Bytes are of resident anonymous memory, so without code, above what there was at the start."""

    rate: float  # times a second
    cpu: float  # seconds each time, of all threads
    peak: int
    mean: int
    after: list[int]


def resident(pid: int) -> int:
    _, all_pages, of_files = map(int, Path(f"/proc/{pid}/statm").read_text().split()[:3])
    return (all_pages - of_files) * os.sysconf("SC_PAGESIZE")


busy = threading.Lock()  # one works at a time; others may sleep


def warm_up() -> None:
    """Touch memory and let go of it, so that each finds the machine with as much that it has from its host already."""
    with mmap.mmap(-1, WARM) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1


def look_on(workload: str, allocator: str, seconds: float) -> Seen:
    with busy:
        warm_up()
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.numpy_workloads", "--work", workload, allocator, str(seconds)],
            env={**os.environ, **ALLOCATORS[allocator]}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        start = json.loads(child.stdout.readline())["start"]
        samples: list[int] = []
        over = threading.Event()

        def sample() -> None:
            while not over.wait(SAMPLE):
                samples.append(resident(child.pid) - start)

        sampler = threading.Thread(target=sample)
        child.stdout.readline()
        sampler.start()
        try:
            done = json.loads(child.stdout.readline())
        finally:
            over.set()
            sampler.join()
    ended = time.monotonic()
    after = []
    for wait in AFTER:
        time.sleep(ended + wait - time.monotonic())
        after.append(resident(child.pid) - start)
    child.kill()
    child.wait()
    return Seen(done["rate"], done["cpu"], max(samples), sum(samples) // len(samples), after)


def median(rounds: list[Seen]) -> Seen:
    def of(values):
        return int(statistics.median(values))

    return Seen(
        statistics.median(seen.rate for seen in rounds), statistics.median(seen.cpu for seen in rounds),
        of(seen.peak for seen in rounds), of(seen.mean for seen in rounds),
        [of(values) for values in zip(*(seen.after for seen in rounds), strict=True)],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="that each workload runs, warm, with each allocator")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="workloads with these words in their names")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.add_argument("--plot", type=Path, help="draw throughput against mean RSS")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work[0], arguments.work[1], float(arguments.work[2]))
        return
    allocators = [
        name for name, setting in ALLOCATORS.items()
        if "LD_PRELOAD" not in setting or Path(setting["LD_PRELOAD"]).exists()
    ]  # fmt: skip
    for name in ALLOCATORS.keys() - allocators:
        print(f"{name} is not installed, and left out")
    rounds: dict[tuple[str, str], list[Seen]] = {}
    with ThreadPoolExecutor(len(allocators)) as pool:
        for workload in WORKLOADS:
            if arguments.only not in workload:
                continue
            # Everybody comes first, and after everybody else, in turn.
            turns = [allocators[i:] + allocators[:i] for i in range(arguments.rounds)]
            names = [name for number, turn in enumerate(turns) for name in (turn[::-1] if number % 2 else turn)]
            looks = pool.map(lambda name, workload=workload: look_on(workload, name, arguments.seconds), names)
            for name, seen in zip(names, looks, strict=True):
                rounds.setdefault((workload, name), []).append(seen)
    # By workload, as they came, and in each in the order of the first round, which is that of the allocators.
    seen = {job: median(seen) for job, seen in rounds.items()}
    show(seen)
    if arguments.json:
        arguments.json.write_text(
            json.dumps([{"workload": w, "allocator": a, **asdict(s)} for (w, a), s in seen.items()], indent=1)
        )
    if arguments.plot:
        plot(seen, arguments.plot)


def show(seen: dict[tuple[str, str], Seen]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Resident bytes are above the start; 'of glibc' is throughput against glibc's")
    for column in ("workload", "allocator"):
        table.add_column(column)
    for column in (
        "a second",
        "of glibc",
        "CPU ms",
        "peak MiB",
        "mean MiB",
        *(f"after {wait} s" for wait in AFTER),
        "of peak",
    ):
        table.add_column(column, justify="right")
    for (workload, name), figures in seen.items():
        table.add_row(
            workload, name, f"{figures.rate:.1f}", f"{figures.rate / seen[workload, 'glibc'].rate:.2f}",
            f"{figures.cpu * 1e3:.2f}",
            *(f"{nr_bytes / MIB:,.0f}" for nr_bytes in (figures.peak, figures.mean, *figures.after)),
            f"{figures.after[-1] / figures.peak:.1%}", end_section=name == "tcmalloc",
        )  # fmt: skip
    Console(width=130).print(table)


def plot(seen: dict[tuple[str, str], Seen], path: Path) -> None:
    """Throughput against mean RSS, both as multiples of glibc's; better is up and to the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    workloads = list(dict.fromkeys(workload for workload, _ in seen))
    figure = Figure(figsize=(3.2 * len(workloads), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(workloads), squeeze=False)[0]
    for axes, workload in zip(every, workloads, strict=True):
        base = seen[workload, "glibc"]
        for number, name in enumerate(ALLOCATORS):
            if (workload, name) in seen:
                figures = seen[workload, name]
                axes.plot(
                    figures.mean / base.mean, figures.rate / base.rate, "oPs^Dv*"[number], color=f"C{number}",
                    markersize=9, label=name if axes is every[0] else None,
                )  # fmt: skip
        axes.axhline(1, color="0.8", zorder=0)
        axes.axvline(1, color="0.8", zorder=0)
        axes.set_title(workload, fontsize=9)
        axes.set_xlabel("mean RSS, of glibc's")
    every[0].set_ylabel("throughput, of glibc's")
    figure.legend(frameon=False, loc="outside lower center", ncols=len(ALLOCATORS))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
