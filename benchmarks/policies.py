"""Rates of what `pagehint.policies` does with a recording: the table of intervals, scoring, policies, a sweep.

    python -m benchmarks.policies [--operations N] [--pages N] [--rounds N] [--folder RECORDING]

The recording is made at random: blocks of all orders, half of the memory in use, pages most often. `--folder` is one
that `Recording.save` has written. Policies in Python have one of whole granules
only, so that all is in what they are told. A rate is that of the best round, by the processor's time. Nothing is
asserted; compare figures of one run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pagehint.policies import Decisions, Policy, Recording, policy_of, score, sweep
from pagehint.traces import OPERATION_DTYPE, Operation
from pagehint.traces.intervals import granule_intervals


class Chunks(Policy):
    """Reports once a second what is free, told by arrays."""

    def start(self, recording):
        self.order, self.due = recording.granule_order, recording.begin
        self.free = np.zeros((len(recording.free) >> self.order) + 1, bool)

    def changes(self, rows):
        self.free[rows["pfn"] >> self.order] = rows["whole"]
        return len(rows)

    def next_time(self):
        return self.due

    def report(self, now):
        self.due = now + 10**9
        pfns = np.flatnonzero(self.free) << self.order
        self.free[:] = False
        return pfns


class Singly(Chunks):
    """The same, told one by one."""

    changes = Policy.changes

    def whole(self, pfn, time):
        self.free[pfn >> self.order] = True

    def broken(self, pfn, time):
        self.free[pfn >> self.order] = False


def recording_at_random(nr_operations: int, nr_pages: int) -> Recording:
    """Whole and single pages taken and given, so that granules become whole and are broken about as in a kernel."""
    rng = np.random.default_rng(1)
    granule, nr_granules = 512, nr_pages // 512
    table, at = np.zeros(nr_operations, OPERATION_DTYPE), 0
    used = np.zeros(nr_granules, bool)
    while at < nr_operations:
        which = int(rng.integers(nr_granules))
        if rng.random() < 0.3:
            pfns, order = np.array([which * granule]), 9
        else:
            pfns, order = which * granule + rng.permutation(granule), 0
        rows = table[at : at + len(pfns)]
        rows["pfn"], rows["order"] = pfns[: len(rows)], order
        rows["op"] = Operation.GIVE if used[which] else Operation.TAKE
        used[which] = not used[which]
        at += len(rows)
    table["time"] = np.cumsum(rng.integers(0, 200_000, nr_operations))
    table["migratetype"] = 1
    return Recording.of(table, np.ones(nr_pages, bool), name="random")


def recording_of_granules(nr_operations: int, nr_pages: int) -> Recording:
    """Only whole granules are taken and given: each operation is a change."""
    rng = np.random.default_rng(1)
    table, granules = np.zeros(nr_operations, OPERATION_DTYPE), rng.integers(nr_pages // 512, size=nr_operations)
    order = np.argsort(granules, kind="stable")
    first = np.flatnonzero(np.diff(granules[order], prepend=-1))
    turn = np.arange(nr_operations) - np.repeat(first, np.diff(first, append=nr_operations))
    table["op"][order] = np.where(turn % 2, Operation.GIVE, Operation.TAKE)
    table["pfn"], table["order"], table["migratetype"] = granules * 512, 9, 1
    table["time"] = np.cumsum(rng.integers(0, 200_000, nr_operations))
    return Recording.of(table, np.ones(nr_pages, bool), name="granules")


def best(rounds: int, function: Callable[[], object]) -> float:
    """The processor's seconds of the quickest round, after one to warm up."""
    function()
    seconds = []
    for _ in range(rounds):
        begin = time.thread_time()
        function()
        seconds.append(time.thread_time() - begin)
    return min(seconds)


def show(what: str, seconds: float, number: int, unit: str) -> None:
    print(f"{what:<44} {1e3 * seconds:>9.2f} ms {number / seconds / 1e6:>9.1f} million {unit} a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=2_000_000)
    parser.add_argument("--pages", type=int, default=1 << 20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    recording = (
        Recording.load(arguments.folder)
        if arguments.folder
        else recording_at_random(arguments.operations, arguments.pages)
    )
    table, free, nr = recording.operations, np.array(recording.free), len(recording.operations)
    print(f"{nr} operations, {len(recording.intervals)} intervals, {len(recording.changes)} changes of granules\n")
    show("intervals", best(rounds, lambda: granule_intervals(table, free)), nr, "operations")
    for name in ("age:1s", "delay:1s", "auto", "optimum:1s"):
        rule = policy_of(name)
        show(name, best(rounds, lambda rule=rule: rule.decide(recording)), len(recording.intervals), "intervals")
    for name in ("linux", "v10", "threshold"):
        rule = policy_of(name)
        show(name, best(rounds, lambda rule=rule: rule.decide(recording)), nr, "operations")
    granules = recording_of_granules(arguments.operations // 4, arguments.pages)
    for rule in (Chunks(), Singly()):
        show(f"a policy in Python, {rule.name}", best(rounds, lambda rule=rule: rule.decide(granules)),
             len(granules.changes), "changes")  # fmt: skip
    for name, decisions in (("nothing", Decisions(np.zeros(0, policy_of("age:1s").decide(recording).reports.dtype))),
                            ("age:1s", policy_of("age:1s").decide(recording))):  # fmt: skip
        show(f"scoring of {name}", best(rounds, lambda d=decisions: score(recording, d, "x")), nr, "operations")
    names = [f"age:{tenths / 10}" for tenths in range(1, 21)]
    with tempfile.TemporaryDirectory() as folder:
        recording.save(Path(folder) / "recording")
        for jobs in (1, 2):
            begin = time.perf_counter()
            sweep([Path(folder) / "recording"], names, Path(folder) / f"{jobs}.parquet", jobs=jobs, progress=False)
            seconds = time.perf_counter() - begin
            print(f"{f'a sweep of 20 policies, processes: {jobs}':<44} {1e3 * seconds:>9.2f} ms")


if __name__ == "__main__":
    main()
