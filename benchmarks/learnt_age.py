"""What the learnt age costs against the offline optimum, on made-up workloads and on recordings.

    python -m benchmarks.learnt_age [--recordings DIR] [--seeds N] [--break-even SECONDS ...] [--csv FILE]

For each break-even age a table: a row a workload, the cost of each policy over that of the offline optimum. "constant"
is the best age in hindsight, of a hundred from 0 to 20 s. The workloads are of granules of 2 MiB that are free for a
time, and are described where they are made. `--recordings` is a folder of recordings, a folder each, as those of
`tests/data/` and of `pagehint traces record`. A count, not a timing; the same seed gives the same figures.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import pagehint as ph
from pagehint.policies import Recording, age_curve, evaluate
from pagehint.traces import OPERATION_DTYPE, Operation

AGES = np.concatenate([[0.0], np.geomspace(0.001, 20, 99)])
POLICIES = {"auto": "auto:{}s", "break-even": "age:{}s", "linux": "linux", "default": "threshold"}
LENGTH = 120.0  # seconds of a workload
GRANULE = 512
USED = 0.004  # seconds for which a granule is used between two pauses, where nothing else is said
Pauses = Iterator[tuple[int, float, float]]  # granule, free from, until


# ---- workloads: each yields when a granule becomes free, and when it is taken


def loop(period: float, granules: range, begin: float, end: float, rng: np.random.Generator) -> Pauses:
    """Every period, give or take 2 %, all granules are used for a moment, in a burst that takes a tenth of it."""
    spread = np.sort(rng.random(len(granules))) * 0.1 * period
    at = begin
    while at + period < end:
        length = period * (1 + 0.02 * rng.standard_normal())
        for granule, offset in zip(granules, spread, strict=True):
            used = min(USED, 0.2 * period)
            yield granule, at + offset + used, at + offset + max(length, 2 * used)
        at += max(length, period / 2)


def periodic(period: float, pool: int) -> Callable[[np.random.Generator], Pauses]:
    """A loop of 64 granules, beside memory that stays free."""

    def made(rng: np.random.Generator) -> Pauses:
        yield from loop(period, range(64), 0.5, LENGTH, rng)
        for granule in range(64, 64 + pool):
            yield granule, 0.1, LENGTH + 1

    return made


def phases(rng: np.random.Generator) -> Pauses:
    """Loops of other periods and sizes every 5 to 25 s, or nothing but memory that stays free until the next."""
    begin = 0.5
    while begin < LENGTH:
        end = begin + rng.uniform(5, 25)
        nr = int(rng.integers(8, 400))
        if rng.random() < 0.3:
            for granule in range(nr):
                yield granule, begin + rng.uniform(0, 0.5), end
        else:
            yield from loop(float(np.exp(rng.uniform(np.log(0.02), np.log(8)))), range(nr), begin, end, rng)
        begin = end + 0.1


def tails(pause: Callable[[np.random.Generator], float]) -> Callable[[np.random.Generator], Pauses]:
    """Each of 256 granules for itself: used for some 50 ms, free for a random time."""

    def made(rng: np.random.Generator) -> Pauses:
        for granule in range(256):
            at = rng.uniform(0, 1)
            while at < LENGTH:
                until = at + pause(rng)
                yield granule, at, until
                at = until + rng.exponential(0.05) + 1e-4

    return made


def agents(rng: np.random.Generator) -> Pauses:
    """Two agents: 3 GB/s up to 2 to 6 GB, a while of work on it with a loop of its own, all freed; then a wait."""
    for first in (0, 4096):
        at = rng.uniform(0, 5)
        free_since = dict.fromkeys(range(first, first + 3000), 0.0)
        while at < LENGTH:
            nr = int(rng.integers(1000, 3000))
            for i in range(nr):
                granule = first + i
                yield granule, free_since.pop(granule), at + i / 1500
            at += nr / 1500
            work = rng.exponential(2.0) + 0.2
            busy = list(range(first, first + int(rng.integers(20, 200))))
            yield from loop(float(rng.choice([0.05, 0.2, 0.7])), range(busy[0], busy[-1] + 1), at, at + work, rng)
            at += work + 1.0
            for i in range(nr):
                free_since[first + i] = at + i / 15000
            at += nr / 15000 + float(rng.choice([rng.uniform(0.2, 1.0), rng.exponential(15.0)]))
        for granule, since in free_since.items():
            yield granule, since, max(LENGTH + 1, since + 1)


def tools(rng: np.random.Generator) -> Pauses:
    """An agent that waits for a model: 100 MB for each call of a tool, freed after it, with pauses of 0.2 to 30 s."""
    at = 0.5
    while at < LENGTH:
        pause = float(rng.lognormal(np.log(2.5), 1.3))
        for granule in range(50):
            yield granule, at + granule * 1e-4, at + 0.01 + pause + granule * 1e-4
        at += pause + 0.1 + rng.exponential(0.5)


def mixture(rng: np.random.Generator) -> Pauses:
    """Loops of four periods at once, one that is too slow to keep, and frees that last."""
    for i, period in enumerate((0.03, 0.3, 0.8, 3.0, 7.0)):
        yield from loop(period, range(100 * i, 100 * i + 40), 0.2 + i / 10, LENGTH, rng)
    yield from ((1000 + i, 0.1 + LENGTH * i / 1500, LENGTH + 1) for i in range(1500))


def builds(rng: np.random.Generator) -> Pauses:
    """Processes that come and go: 20 to 200 granules each, placed anew, so that most are wanted by the next soon."""
    free = dict.fromkeys(range(1200), 0.0)
    ends: list[tuple[float, list[int]]] = []
    at = 0.2
    while at < LENGTH:
        for done in sorted(each for each in ends if each[0] <= at):
            free |= dict.fromkeys(done[1], done[0])
            ends.remove(done)
        hot = sorted(free, key=lambda granule: -free[granule])[: int(rng.integers(20, 200))]
        for granule in hot:
            yield granule, free.pop(granule), at
        ends.append((at + rng.exponential(0.8) + 0.01, hot))
        at += rng.exponential(0.25 if int(at / 20) % 2 else 2.5)
    for granule, since in free.items():
        yield granule, since, max(LENGTH, since) + 1


PERIODS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 1.1, 2.0, 4.5, 5.5, 10.0)
WORKLOADS: dict[str, Callable[[np.random.Generator], Pauses]] = {
    **{f"loop of {period:g} s": periodic(period, 0) for period in PERIODS},
    **{f"loop of {period:g} s, and a pool": periodic(period, 512) for period in PERIODS},
    "phases": phases,
    "Pareto 0.6": tails(lambda rng: float(0.005 * (1 + rng.pareto(0.6)))),
    "Pareto 1": tails(lambda rng: float(0.02 * (1 + rng.pareto(1.0)))),
    "Pareto 1.5": tails(lambda rng: float(0.1 * (1 + rng.pareto(1.5)))),
    "lognormal": tails(lambda rng: float(rng.lognormal(np.log(0.3), 2))),
    "exponential": tails(lambda rng: float(rng.exponential(1.0))),
    "agents": agents,
    "tools": tools,
    "mixture": mixture,
    "builds": builds,
}  # fmt: skip


def recording_of(name: str, pauses: Pauses) -> Recording:
    """A recording in which each granule is used but for its pauses; those of one granule do not touch."""
    found = np.array(sorted(pauses, key=lambda each: (each[0], each[1])))
    granules, starts, ends = found[:, 0].astype(np.uint64), found[:, 1], found[:, 2]
    nr = int(granules.max()) + 1
    sound = starts < ends
    sound[1:] &= (granules[1:] != granules[:-1]) | (starts[1:] > ends[:-1])
    rows = np.zeros(nr + 2 * int(sound.sum()), OPERATION_DTYPE)
    rows["order"], rows["migratetype"] = 9, 1
    rows["op"][:nr], rows["pfn"][:nr] = Operation.TAKE, np.arange(nr) * GRANULE
    rest = rows[nr:].reshape(2, -1)
    rest["pfn"] = granules[sound] * GRANULE
    rest["op"][0], rest["op"][1] = Operation.GIVE, Operation.TAKE
    rest["time"][0], rest["time"][1] = 1000 + starts[sound] * 1e9, 1000 + ends[sound] * 1e9
    rows = rows[rows["time"] < LENGTH * 1e9]
    rows = rows[np.argsort(rows["time"], kind="stable")]
    return Recording.of(rows, np.ones(nr * GRANULE, bool), name=name, begin=1)


def generated(seeds: int) -> Iterator[Recording]:
    for name, make in WORKLOADS.items():
        for seed in range(1, seeds + 1):
            called = f"{name} ({seed})" if seeds > 1 else name
            yield recording_of(called, make(np.random.default_rng(seed)))


def recorded(folder: Path) -> Iterator[Recording]:
    for each in sorted(folder.iterdir()):
        if each.is_dir():
            trace, before, after = ph.traces.read_recording(each)
            yield ph.replay(trace, [], before=before, after=after, name=each.name).recording


# ---- what is shown


def costs(recording: Recording, break_even: float) -> dict[str, float]:
    """Return costs in GiB·s: the optimum's, the best constant's, and those of each of `POLICIES`."""
    scores = evaluate(recording, [name.format(break_even) for name in POLICIES.values()], break_evens=[break_even])
    curve = age_curve(recording, AGES, break_evens=[break_even])
    found = {"optimum": curve.optimum[break_even], "constant": float(curve.cost[break_even].min())}
    return found | {name: each.cost[break_even] for name, each in zip(POLICIES, scores, strict=True)}


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    table = Table(title=title)
    names = ("auto", "constant", *list(POLICIES)[1:])
    for name in ("", *names, "auto / constant"):
        table.add_column(name, justify="right" if name else "left")
    total = {name: sum(row[name] for row in rows.values()) for name in ("optimum", *names)}
    for label, row in (*rows.items(), ("in sum", total)):
        ratios = [row[name] / max(row["optimum"], 1e-12) for name in names]
        table.add_row(label, *(f"{ratio:.3f}" for ratio in ratios), f"{row['auto'] / max(row['constant'], 1e-12):.3f}")
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--break-even", type=float, nargs="+", default=[0.1, 1.0, 5.0])
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    sets = {"generated": list(generated(arguments.seeds))}
    if arguments.recordings:
        sets["recordings"] = list(recorded(arguments.recordings))
    everything = []
    for kind, recordings in sets.items():
        for break_even in arguments.break_even:
            rows = {recording.name: costs(recording, break_even) for recording in recordings}
            show(f"{kind}, break-even age {break_even:g} s", rows)
            everything += [{"kind": kind, "break_even": break_even, "name": name, **row} for name, row in rows.items()]
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, everything[0].keys())
            writer.writeheader()
            writer.writerows(everything)


if __name__ == "__main__":
    main()
