"""Where an arena puts arrays, against other policies: how much memory granules in partial use keep.

`python -m benchmarks.placement [--steps N]`. The same trace (sizes of 64 KiB to 16 MiB, evenly by logarithm, from a
fixed seed; growing, steady, and falling to a tenth) goes through each policy over 16 GiB, with 2 in use at most. What
can give back whole granules only keeps the memory of all granules in use, however little of each: shown for each byte
in use. A count, not a timing.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pagehint as ph

KIB, MIB = 1 << 10, 1 << 20
PAGE, GRANULE = 4 * KIB, 512  # bytes; pages
PAGES, MOST = (16384 * MIB) // PAGE, (2048 * MIB) // PAGE
PHASES = (
    ("growing", 0.75, 0.0),
    ("steady", 0.5, 0.0),
    ("falling", 0.25, 0.1),
)  # share of allocations; until so much is left


class Pagehint:
    """An arena's: the shortest free run that is long enough, at any page."""

    def __init__(self) -> None:
        self.arena = ph.Arena(PAGES * PAGE)
        self.pages = self.arena.pages

    def take(self, n: int) -> int:
        return self.pages.alloc_pages_exact(n)

    def give(self, at: int, n: int) -> None:
        self.pages.free_pages_exact(at, n)


class SmallestBlock(Pagehint):
    """A plain buddy's: of the free blocks the smallest that is large enough, its tail given back."""

    def __init__(self) -> None:
        granule = GRANULE.bit_length() - 1
        self.pages = ph.PageAllocator(
            [ph.ZoneSpec("Arena", 0, PAGES)], pcp=False, min_order=granule, max_page_order=PAGES.bit_length() - 1
        )


class Extents:
    """Free runs of pages, merged with their neighbours; the first in `order` that is long enough is taken."""

    def __init__(self) -> None:
        self.free = [(0, PAGES)]

    def take(self, n: int) -> int:
        for i, (at, length) in enumerate(self.free):
            if length >= n:
                self.free[i : i + 1] = [(at + n, length - n)] if length > n else []
                return at
        raise MemoryError

    def merged(self, at: int, n: int) -> tuple[int, int]:
        """Take the neighbours out, and return what they are together."""
        for other in [run for run in self.free if run[0] + run[1] == at or at + n == run[0]]:
            self.free.remove(other)
            at, n = min(at, other[0]), n + other[1]
        return at, n


class FirstFit(Extents):
    """The run at the lowest address."""

    def give(self, at: int, n: int) -> None:
        self.free.append(self.merged(at, n))
        self.free.sort()


class LastFreed(Extents):
    """The run that was freed last: the warmest."""

    def give(self, at: int, n: int) -> None:
        self.free.insert(0, self.merged(at, n))


def replay(policy: Pagehint | FirstFit | LastFreed, steps: int, name: str) -> list[float]:
    """Return bytes in granules in use for each byte in use: the mean of each phase, and at most if none went back."""
    rng = random.Random(20261125)
    used = np.zeros(PAGES, bool)
    touched = np.zeros(PAGES // GRANULE, bool)
    most = 0
    living: list[tuple[int, int]] = []
    means = []
    for phase, share, least in PHASES:
        figures = []
        floor = int(len(living) * least)
        for step in track(range(steps), f"{name}, {phase}", transient=True):
            size = int(64 * KIB * 2 ** (8 * rng.random()))
            n = -(-size // PAGE)
            if rng.random() < share and used.sum() + n < MOST:
                at = policy.take(n)
                used[at : at + n] = True
                touched[at // GRANULE : (at + n - 1) // GRANULE + 1] = True
                most = max(most, int(used.sum()))
                living.append((at, n))
            elif len(living) > floor:
                i = rng.randrange(len(living))
                living[i], living[-1] = living[-1], living[i]
                at, n = living.pop()
                used[at : at + n] = False
                policy.give(at, n)
            if step % 50 == 0 and living:
                figures.append(used.reshape(-1, GRANULE).any(1).sum() * GRANULE / used.sum())
        means.append(float(np.mean(figures)))
    return [*means, float(touched.sum() * GRANULE / most)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000, help="in each phase")
    steps = parser.parse_args().steps
    table = Table(title="bytes of granules in use, for each byte in use")
    table.add_column("")
    for phase, _, _ in PHASES:
        table.add_column(phase, justify="right")
    table.add_column("ever touched", justify="right")
    for name, policy in (
        ("pagehint", Pagehint()), ("smallest block", SmallestBlock()), ("first fit", FirstFit()),
        ("last freed first", LastFreed()),
    ):  # fmt: skip
        table.add_row(name, *(f"{mean:.3f}" for mean in replay(policy, steps, name)))
    Console().print(table)


if __name__ == "__main__":
    main()
