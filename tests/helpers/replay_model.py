"""A replay as the specification says it, in plain Python over the oracle: one call by one, by a clock set by hand."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

import pagehint as ph
from pagehint.testing.oracle import MOST_PASSES, OracleAllocator
from pagehint.testing.oracle_zone import OracleZone
from pagehint.traces.operations import Operation

Row = tuple[int, int, int, int, int]  # time, op, pfn, order, migratetype


class ReplayModel(OracleAllocator):
    """The oracle, which carries out rows; its host takes a time for each report, and refuses those it is told to."""

    def start(self, now: int, latency: int = 0, rate: int | None = None, fails: tuple[bool, ...] = (False,)) -> None:
        self.now = now
        self.latency, self.rate, self.fails = latency, rate, fails
        self.calls: list[tuple[int, list[tuple[int, int]]]] = []
        self.batch: list[tuple[int, int]] = []
        self.batch_zone: OracleZone | None = None
        self.back_at = math.inf
        self.rows: list[Row] = []
        self.at = 0
        self.causes: Counter[str] = Counter()
        self.wrong = 0
        self.waits: list[int] = []
        self.failing = False
        self.last = now

    def _now(self) -> int:
        return self.now

    # -- time

    def next_due(self) -> float:
        due = min(self.work_at, math.inf if self.deadline is None else self.deadline)
        return max(due, self.not_before, self.now)

    def run_until(self, until: int) -> None:
        at_once = 0
        while self.hinting_enabled and self.next_due() <= until and at_once < MOST_PASSES:
            at_once = at_once + 1 if self.next_due() == self.now else 1
            self.now = int(self.next_due())
            self._run(everything=self._late() or self.failures > 0)
        self.now = max(self.now, until)

    def replay(self, rows: list[Row]) -> None:
        self.rows, self.at, self.last = rows, 0, rows[0][0] if rows else 0
        while self.at < len(rows):
            at = self.at
            self.run_until(max(rows[at][0], self.last))
            if self.at == at:  # else it went on inside a report
                self.step()
        self.run_until(self.last)

    def step(self) -> None:
        time, op, pfn, order, mt = self.rows[self.at]
        if time < self.last:
            self.causes["time falls"] += 1
        self.last = max(time, self.last)
        self.now = max(self.now, self.last)
        self.at += 1
        if not 1 <= op <= 7:
            self.causes["unknown operation"] += 1
            return
        if op in (Operation.MARK, Operation.LOST):
            return
        cause = self.carry_out(op, pfn, order, mt)
        if cause:
            self.causes[f"{Operation(op).name.lower()} {cause}"] += 1
        self._settle()

    # -- operations

    def carry_out(self, op: int, pfn: int, order: int, mt: int) -> str | None:
        if not 0 <= order <= self.max_page_order:
            return "of an order out of range"
        if op == Operation.PUTBACK:
            return None
        try:
            zone = self._zone(pfn)
        except ph.BadPageError:
            return "outside every zone"
        page = pfn - zone.base
        if op == Operation.SET_TYPE:
            return self.set_type(zone, page, 1 << order, mt)
        if pfn + (1 << order) > zone.end_pfn:
            return "of pages without memory"
        run = slice(page, page + (1 << order))
        if op == Operation.ISOLATE:
            in_use = int((~self.free_or_out(zone))[run].sum())
            self.wrong += in_use
            return "of what is in use" if in_use else None
        if page % (1 << order):
            return "not aligned to the order"
        return self.take(zone, page, run) if op == Operation.TAKE else self.give(zone, page, run)

    def free_or_out(self, zone: OracleZone) -> Any:
        free = zone.free.copy()
        if zone is self.batch_zone:
            for page, order in self.batch:
                free[page : page + (1 << order)] = True
        return free

    def take(self, zone: OracleZone, page: int, run: slice) -> str | None:
        if zone.isolate[page]:
            return "in a pageblock of type isolate"
        if not self.free_or_out(zone)[run].all() or zone.isolate[run].any():
            return "of what is in use"
        if not zone.free[run].all():
            self.waits.append(int(self.back_at) - self.now)
            for block in [each for each in self.batch if each[0] < run.stop and page < each[0] + (1 << each[1])]:
                self.batch.remove(block)
                self.put_back(zone, *block)
        self._take(zone, page, run.stop - page)
        return None

    def put_back(self, zone: OracleZone, page: int, order: int) -> None:
        zone.free[page : page + (1 << order)] = True
        zone.out -= 1 << order
        self.count.blocks_isolated += 1
        self.count.blocks_returned += 1
        if self.failing:
            self.count.blocks_failed += 1
            self.count.hints_set += len(set(zone.granules(page, 1 << order)) - zone.hints)
            zone.hints |= set(zone.granules(page, 1 << order))
        else:
            self.count.blocks_reported += 1
            self.count.pages_reported += 1 << order

    def give(self, zone: OracleZone, page: int, run: slice) -> str | None:
        if self.free_or_out(zone)[run].any():
            return "of what is free"
        if zone.absent[run].any():
            return "of pages without memory"
        for first, nr_pages in list(zone.used.items()):  # what is left are pages, each for itself
            if first < run.stop and page < first + nr_pages:
                del zone.used[first]
                zone.used.update({p: 1 for p in range(first, first + nr_pages) if not page <= p < run.stop})
        self._give(zone, page, run.stop - page)
        return None

    def set_type(self, zone: OracleZone, page: int, nr_pages: int, mt: int) -> None:
        if mt not in (0, 1, 2):
            return
        unit = max(512, 1 << self.min_order)
        first, last = page // unit * unit, -(-(page + nr_pages) // unit) * unit
        if zone.isolate[first:last].any():
            zone.isolate[first:last] = False
            zone.look_at = 0
            self._evaluate(zone)

    # -- the host

    def hint_pages(self, blocks: Any) -> bool:
        self.failing = self.fails[len(self.calls) % len(self.fails)]
        self.calls.append((self.now, [(int(block["pfn"]), int(block["order"])) for block in blocks]))
        takes = self.latency
        if self.rate:
            takes += int(sum(self.page_size << order for _, order in self.batch) * 10**9 / self.rate)
        if takes:
            self.back_at = self.now + takes
            while self.at < len(self.rows) and max(self.rows[self.at][0], self.last) < self.back_at:
                self.step()
            if self.at < len(self.rows):
                self.last = self.now = max(self.now, int(self.back_at))
            self.back_at = math.inf
        return not self.failing

    def _report(self, zone: OracleZone, batch: list[tuple[int, int]]) -> bool:
        self.batch, self.batch_zone = batch, zone
        try:
            failed = super()._report(zone, batch)
            if not batch and self.failing:  # it has failed, though all of it was wanted back before
                self.count.report_errors += 1
            return failed or (not batch and self.failing)
        finally:
            self.batch, self.batch_zone = [], None

    def enable(self, most: int, **options: Any) -> None:
        self.enable_hinting(ph.PageHintingCallbacks(self.hint_pages, most), **options)


def random_rows(zones: list[OracleZone], rng: np.random.Generator, n: int, top: int, wrong: float) -> list[Row]:
    """Rows that are mostly right; with the probability `wrong` they are anything."""
    free = [zone.free & ~zone.isolate for zone in zones]
    used = [~zone.free & ~zone.absent for zone in zones]
    rows, time = [], 10**9
    for _ in range(n):
        time += int(
            rng.choice([0, 0, 1, 10**6, 3 * 10**7, 3 * 10**8, 2 * 10**9], p=[0.3, 0.2, 0.1, 0.2, 0.1, 0.07, 0.03])
        )
        i = int(rng.integers(len(zones)))
        zone, order = zones[i], int(rng.integers(0, top + 1))
        if rng.random() < wrong:
            pfn = int(rng.integers(max(zone.start_pfn - 3, 0), zone.end_pfn + 3))
            order += int(rng.integers(-1, 2)) if rng.random() < 0.1 else 0
            pfn = pfn >> max(order, 0) << max(order, 0) if rng.random() < 0.8 else pfn
            op = int(rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8], p=[0.02, 0.4, 0.4, 0.05, 0.05, 0.03, 0.02, 0.01, 0.02]))
            rows.append((time - (rng.random() < 0.1) * 10**6, op, pfn, order, int(rng.integers(-1, 4))))
            continue
        op, pages = (Operation.TAKE, free[i]) if rng.random() < 0.5 else (Operation.GIVE, used[i])
        if op == Operation.GIVE and rng.random() < 0.3:
            op, pages, order = Operation.ISOLATE, free[i], order
        starts = np.flatnonzero(pages.reshape(-1, 1 << order).all(axis=1)) << order
        if not len(starts):
            continue
        page = int(rng.choice(starts))
        rows.append((time, int(op), zone.base + page, order, 1))
        if op != Operation.ISOLATE:
            run = slice(page, page + (1 << order))
            free[i][run], used[i][run] = (op == Operation.GIVE) & ~zone.isolate[run], op == Operation.TAKE
    return rows
