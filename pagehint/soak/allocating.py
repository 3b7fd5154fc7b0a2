"""A thread that allocates in the model and frees again, in every way there is, and makes mistakes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

import pagehint as ph
from pagehint.soak.finding import FindingError
from pagehint.soak.shared import MAX_PAGE_ORDER, MAX_PFN, SECTION, Shared

MAX_RUNS = 200
MIGRATETYPES: tuple[Literal["movable", "unmovable", "reclaimable"], ...] = ("movable", "unmovable", "reclaimable")


def allocate(shared: Shared, rng: random.Random, me: int) -> Iterator[int]:
    """Allocate and free at random until the round ends; then free what is left."""
    allocating = Allocating(shared, rng, me)
    while not shared.stop.is_set():
        try:
            yield allocating.step()
        except ph.OutOfMemoryError:
            yield 1
    allocating.free_all()


class Allocating:
    """The runs of pages that one thread has allocated, and what it does with the model."""

    def __init__(self, shared: Shared, rng: random.Random, me: int) -> None:
        self.shared = shared
        self.model = shared.model
        self.rng = rng
        self.me = me
        self.runs: list[tuple[int, int]] = []  # PFN, pages

    def step(self) -> int:
        """Do something at random. Returns how many operations that was."""
        rng = self.rng
        if len(self.runs) > MAX_RUNS or (self.runs and rng.random() < 0.4):
            return self.free()
        order = rng.choice((0, 0, 0, 1, 2, 3, 5, 6, 9))
        match rng.randrange(8):
            case 0:
                return self.bulk(min(order, 3))
            case 1:
                nr_pages = rng.randrange(1, 700)
                self.took(self.model.alloc_pages_exact(nr_pages), nr_pages)
                return 1
            case 2:
                return self.trace(min(order, 6))
            case 3:
                return self.mistake() if self.runs else 0
            case _:
                self.took(self.model.alloc_pages(order, rng.choice(MIGRATETYPES)), 1 << order)
                return 1

    def took(self, pfn: int, nr_pages: int) -> None:
        """Keep a run that was just allocated."""
        self.shared.claim(pfn, nr_pages, self.me)
        self.runs.append((pfn, nr_pages))

    def give(self) -> tuple[int, int]:
        """Pick a run that is to be freed."""
        pfn, nr_pages = self.runs.pop(self.rng.randrange(len(self.runs)))
        self.shared.release(pfn, nr_pages, self.me)
        return pfn, nr_pages

    def free(self) -> int:
        """Free a run; one that is a block, by its order or by its pages."""
        pfn, nr_pages = self.give()
        is_block = nr_pages & (nr_pages - 1) == pfn & (nr_pages - 1) == 0 and nr_pages <= 1 << MAX_PAGE_ORDER
        if is_block and self.rng.random() < 0.5:
            self.model.free_pages(pfn, nr_pages.bit_length() - 1)
        else:
            self.model.free_pages_exact(pfn, nr_pages)
        return 1

    def free_all(self) -> None:
        """Free every run."""
        while self.runs:
            self.model.free_pages_exact(*self.give())

    def bulk(self, order: int) -> int:
        """Allocate many blocks in one call, and free them in one, in another order."""
        pfns = self.model.alloc_pages_bulk(self.rng.randrange(200), order).tolist()
        for pfn in pfns:
            self.shared.claim(pfn, 1 << order, self.me)
            self.shared.release(pfn, 1 << order, self.me)
        self.model.free_pages_bulk(self.rng.sample(pfns, len(pfns)), order)
        return 2 * len(pfns)

    def trace(self, order: int) -> int:
        """Allocate blocks and free most of them, all in one call."""
        count = self.rng.randrange(1, 60)
        freed = self.rng.sample(range(count), count * 3 // 4)
        ops = np.array(
            [(slot, order, ph.OP_ALLOC) for slot in range(count)] + [(slot, order, ph.OP_FREE) for slot in freed],
            ph.OP_DTYPE,
        )
        pfns = np.zeros(count, np.uint64)
        done = len(ops)
        try:
            self.model.run_ops(ops, pfns)
        except ph.OutOfMemoryError as error:
            done = error.index  # type: ignore[attr-defined]
        left = set(range(min(done, count))) - set(freed[: max(done - count, 0)])
        for slot in left:
            self.took(int(pfns[slot]), 1 << order)
        return done

    def mistake(self) -> int:
        """Do what must be refused, and cannot be right by chance."""
        pfn, nr_pages = self.runs[-1]
        wrong: list[Callable[[], Any]] = [
            lambda: self.model.free_pages_exact(pfn, nr_pages + 1),
            lambda: self.model.free_pages(MAX_PFN + pfn),
            lambda: self.model.free_pages_bulk([pfn, pfn, -1]),
            lambda: self.model.alloc_pages(MAX_PAGE_ORDER + 1),
            lambda: self.model.alloc_pages_at(pfn),
            lambda: self.model.offline(pfn // SECTION * SECTION + 1, SECTION),
        ]
        try:
            self.rng.choice(wrong)()
        except ph.BadPageError:
            return 1
        raise FindingError(f"a mistake was not refused, PFN {pfn:#x}, {nr_pages} pages")
