"""The figures of a run by a model in plain Python, made from the words of the promise and not from the code.

Each stretch of time in which a granule is entirely free is a ski rental: kept, it costs as long as it is charged; sent
away, it costs a report, which is worth the break-even age. Who knows the future pays the smaller of the two.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operation_tables import TAKE, recordings
from recordings import DATA

import pagehint as ph
from pagehint.policies import SECOND, Recording, policy_of, score
from pagehint.traces import Operation

AGES, WINDOWS = (0.1, 1.0, 5.0), (1.0, 5.0)


class Rental:
    """One stretch of time in which a granule is entirely free."""

    def __init__(self, since, charged):
        self.since, self.charged, self.until, self.reports, self.used = since, charged, None, [], False


class Model:
    """A memory as a set of free pages and a set of charged ones, and the rentals of each granule."""

    def __init__(self, recording):
        self.size = 1 << recording.granule_order
        self.free = set(np.flatnonzero(recording.free).tolist())
        everything = range(len(recording.free))
        self.charged = set(everything if recording.resident is None else np.flatnonzero(recording.resident).tolist())
        self.current, self.past, self.refaults, self.begun = {}, [], 0, False

    def granule(self, number):
        return range(number * self.size, (number + 1) * self.size)

    def look(self, number, time):
        """Begin or end the rental of a granule, if it has become whole or was broken."""
        whole, pages = self.free.issuperset(self.granule(number)), self.granule(number)
        if whole and self.begun and number not in self.current:
            self.current[number] = Rental(time, any(page in self.charged for page in pages))
        elif not whole and number in self.current:
            rental = self.current.pop(number)
            rental.until, rental.used = time, True
            self.past.append(rental)

    def operation(self, row):
        if row["op"] not in (Operation.TAKE, Operation.GIVE):
            return
        first = int(row["pfn"])
        pages = range(first, first + (1 << int(row["order"])))
        if row["op"] == TAKE:
            self.free.difference_update(pages)
        else:
            self.free.update(pages)
        for number in range(pages[0] // self.size, pages[-1] // self.size + 1):
            self.look(number, int(row["time"]))
        if row["op"] == TAKE:
            self.refaults += self.begun and sum(page not in self.charged for page in pages)
            self.charged.update(pages)

    def report(self, row):
        first = int(row["pfn"])
        pages = range(first, first + (1 << int(row["order"])))
        assert self.free.issuperset(pages)
        self.charged.difference_update(pages)
        for number in range(pages[0] // self.size, pages[-1] // self.size + 1):
            self.current[number].reports.append(int(row["time"]))

    def run(self, recording, decisions):
        steps = [(int(row["position"]), 0, row) for row in decisions.reports]
        steps += [(position, 1, row) for position, row in enumerate(recording.operations)]
        for position, is_operation, row in sorted(steps, key=lambda step: step[:2]):
            if position >= recording.begin_position:
                self.begin(recording)
            (self.operation if is_operation else self.report)(row)
        self.begin(recording)
        for rental in self.current.values():
            rental.until = recording.end
        return [*self.past, *self.current.values()]

    def begin(self, recording):
        if not self.begun:
            self.begun = True
            for number in range(len(recording.free) // self.size):
                self.look(number, recording.begin)


def compare(recording, name):
    decisions = policy_of(name).decide(recording)
    found = score(recording, decisions, name, break_evens=AGES, windows=WINDOWS)
    model = Model(recording)
    rentals = model.run(recording, decisions)
    size = recording.page_size << recording.granule_order
    gib_s = size / 2**30 / SECOND
    paid = [each for each in rentals if each.charged]
    kept = sum((each.reports[0] if each.reports else each.until) - each.since for each in paid)
    reports = sum(len(each.reports) for each in rentals)
    for age in AGES:
        nanoseconds = age * SECOND
        assert found.cost[age] == pytest.approx((kept + reports * nanoseconds) * gib_s)
        assert found.optimum[age] == pytest.approx(sum(min(r.until - r.since, nanoseconds) for r in paid) * gib_s)
    assert found.reported == reports * size
    assert found.again == sum(len(each.reports[1:]) for each in rentals) * size
    assert found.refaults == model.refaults
    used = [each for each in rentals if each.used and each.reports]
    assert found.used == len(used) * size
    for window in WINDOWS:
        soon = [each for each in used if each.until - each.reports[-1] <= window * SECOND]
        assert found.reused[window] == len(soon) * size
    waits = [(each.reports[0] - each.since) / SECOND for each in rentals if each.reports]
    assert found.latency["max"] == (pytest.approx(max(waits)) if waits else None)
    assert found.latency["mean"] == (pytest.approx(sum(waits) / len(waits)) if waits else None)
    assert found.calls == len({int(row["call"]) for row in decisions.reports})


@given(
    recordings(),
    st.sampled_from(["age:0", "age:1s", "delay:1s", "threshold:2", "v10:1", "linux:1s", "optimum:1s"]),
    st.booleans(),
)
def test_the_figures_are_the_models(recording, name, with_residency):
    if with_residency:
        resident = np.arange(len(recording.free)) % 12 < 6
        recording = Recording.of(
            recording.operations, recording.free, resident=resident, begin=recording.begin, max_order=5,
            granule_order=recording.granule_order, pageblock_order=recording.pageblock_order,
        )  # fmt: skip
    compare(recording, name)


@pytest.mark.parametrize("name", ["recorded", "linux", "age:1s", "optimum:1s"])
def test_the_figures_of_a_kernels_recording_are_the_models(name):
    folder = "frag-2g-smp2-thp"
    trace = ph.traces.read(DATA / f"{folder}.parquet")
    before = ph.traces.read_snapshot(DATA / folder / "before")
    compare(ph.replay(trace, [], before=before).recording, name)
