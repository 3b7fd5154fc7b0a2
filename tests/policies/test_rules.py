"""The built-in policies: by hand, against the same rules in Python, and against the offline optimum."""

from __future__ import annotations

import dataclasses
import doctest
import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operation_tables import GIVE, SMALL, TAKE, recordings, table_of

import pagehint as ph
from pagehint.policies import (
    BUILT_IN,
    SECOND,
    ZONE_DTYPE,
    Age,
    Delay,
    Linux,
    Optimum,
    Policy,
    Recording,
    Series2019,
    Threshold,
    age_curve,
    evaluate,
    parse_seconds,
    policy_of,
    score,
)
from pagehint.traces import Operation

S = SECOND
AGES = [0.0, 0.1, 1.0, 2.5]
NAMES = ["age:0", "age:1s", "auto", "auto:0.1s", "delay:1s", "threshold:1", "threshold:3", "v10:1", "v10:2", "linux:0s",
         "linux:1s", "optimum:0.1", "optimum:1s"]  # fmt: skip


def recording_of(*rows, nr_pages=64, **options):
    return Recording.of(table_of(*rows), np.ones(nr_pages, bool), **(SMALL | options))


def told(decisions):
    """What was reported: (time, pfn, order)."""
    return [(int(row["time"]), int(row["pfn"]), int(row["order"])) for row in decisions.reports]


# ---- by hand


def test_a_granule_is_reported_at_its_age_if_it_is_free_until_after_that():
    rows = ((0, TAKE, 0, 0), (1 * S, GIVE, 0, 0), (2 * S, TAKE, 0, 0), (3 * S, GIVE, 0, 0), (9 * S, TAKE, 0, 0))
    recording = recording_of(*rows, nr_pages=8)
    assert told(Age(1.0).decide(recording)) == [(4 * S, 0, 3)]  # not at 2 s, when it is broken
    assert told(Age(0.5).decide(recording)) == [(int(1.5 * S), 0, 3), (int(3.5 * S), 0, 3)]


def test_the_delay_runs_from_the_first_granule_since_the_last_report():
    rows = ((0, TAKE, 0, 5), (0, GIVE, 0, 3), (1 * S, GIVE, 8, 3), (2 * S, GIVE, 16, 3), (9 * S, Operation.MARK, 0, -1))
    found = told(Delay(1.0).decide(recording_of(*rows, nr_pages=32)))
    assert found == [(1 * S, 0, 3), (1 * S, 8, 3), (3 * S, 16, 3)]


def test_the_threshold_reports_all_hints_of_its_zone_at_once_and_the_delay_the_rest():
    rows = ((0, TAKE, 0, 5), (1 * S, GIVE, 0, 3), (2 * S, GIVE, 16, 3), (3 * S, GIVE, 8, 3), (5 * S, GIVE, 24, 3),
            (9 * S, Operation.MARK, 0, -1))  # fmt: skip
    found = told(Threshold(3, delay=2.5).decide(recording_of(*rows, nr_pages=32, begin=S)))
    assert found == [(3 * S, 0, 4), (3 * S, 16, 3), (int(7.5 * S), 24, 3)]
    # The delay that the first hint had started ran out at 3.5 s with nothing to report.


def test_a_zone_below_its_gate_waits_until_it_has_the_memory():
    zones = np.array([(0, 64, 64, 0, 40)], ZONE_DTYPE)
    rows = ((0, TAKE, 0, 5), (0, TAKE, 32, 4), (1 * S, GIVE, 0, 3), (2 * S, GIVE, 8, 3), (3 * S, GIVE, 16, 4),
            (9 * S, Operation.MARK, 0, -1))  # fmt: skip
    decisions = Threshold(1).decide(recording_of(*rows, zones=zones, begin=S))
    # 16 pages are free at the start, and 48 is the least that the gate lets a batch of one granule out of.
    assert told(decisions) == [(3 * S, 0, 5), (3 * S, 48, 4)]
    assert decisions.counts["gates_closed"] > 0


def test_who_knows_the_future_reports_what_stays_longer_than_the_break_even_age():
    rows = ((0, TAKE, 0, 0), (1 * S, GIVE, 0, 0), (2 * S, TAKE, 0, 0), (3 * S, GIVE, 0, 0), (9 * S, TAKE, 0, 0))
    assert told(Optimum(1.0).decide(recording_of(*rows, nr_pages=8))) == [(3 * S, 0, 3)]
    assert len(told(Optimum(0.5).decide(recording_of(*rows, nr_pages=8)))) == 2


# ---- what no policy can beat


@given(recordings(), st.sampled_from(NAMES))
def test_the_optimum_is_never_dearer_than_any_other_policy(recording, name):
    [found] = evaluate(recording, [name])
    for age, cost in found.cost.items():
        assert found.optimum[age] <= cost + 1e-12
        assert evaluate(recording, [Optimum(age)])[0].cost[age] == pytest.approx(found.optimum[age])


@given(recordings(), st.sampled_from([0.1, 1.0, 5.0]))
def test_the_age_at_the_break_even_costs_at_most_twice_the_optimum(recording, age):
    [found] = evaluate(recording, [Age(age)])
    assert found.cost[age] <= 2 * found.optimum[age] + 1e-12


@given(recordings(), st.sampled_from(["threshold:1", "threshold:3", "optimum:1s", "age:1s", "delay:1s", "auto"]))
def test_nothing_is_reported_twice_by_a_policy_that_knows_what_it_reported(recording, name):
    assert evaluate(recording, [name])[0].again == 0


@given(recordings(), st.booleans())
def test_the_curve_of_all_ages_is_what_each_age_does(recording, resident):
    if resident:
        recording = dataclasses.replace(recording, resident=~recording.free)
    curve = age_curve(recording, AGES)
    for number, age in enumerate(AGES):
        [found] = evaluate(recording, [Age(age)])
        assert curve.reported[number] == found.reported
        assert {w: each[number] for w, each in curve.reused.items()} == found.reused
        assert {b: each[number] for b, each in curve.cost.items()} == pytest.approx(found.cost)
        assert curve.optimum == pytest.approx(found.optimum)


# ---- the same rules in Python


class SlowAge(Policy):
    """`Age`, a granule at a time."""

    def __init__(self, seconds):
        self.age = round(seconds * S)

    def start(self, recording):
        self.free = {}

    def whole(self, pfn, time):
        self.free[pfn] = time

    def broken(self, pfn, time):
        self.free.pop(pfn, None)

    def next_time(self):
        return min(self.free.values()) + self.age if self.free else None

    def report(self, now):
        old = [pfn for pfn, time in self.free.items() if now - time >= self.age]
        for pfn in old:
            del self.free[pfn]
        return old


class SlowDelay(Policy):
    """`Delay`, by arrays."""

    def __init__(self, seconds):
        self.delay = round(seconds * S)

    def start(self, recording):
        self.due, self.order = None, recording.granule_order
        self.free = np.zeros(len(recording.free) >> self.order, bool)

    def changes(self, rows):
        first = np.flatnonzero(rows["whole"])[:1]
        if self.due is None and len(first):  # stop behind the first: from then on there is a time to be asked at
            rows = rows[: first[0] + 1]
            self.due = int(rows["time"][-1]) + self.delay
        self.free[rows["pfn"] >> self.order] = rows["whole"]
        return len(rows)

    def next_time(self):
        return self.due

    def report(self, now):
        if now < self.due:
            return []
        pfns = np.flatnonzero(self.free) << self.order
        self.free[:], self.due = False, None
        return pfns


class SlowThreshold(Policy):
    """`Threshold` of one zone whose gate is always open."""

    def __init__(self, threshold, seconds):
        self.threshold, self.delay = threshold, round(seconds * S)

    def start(self, recording):
        self.hints, self.due, self.now = set(), None, recording.begin

    def changes(self, rows):
        """Take those of one operation, then see whether there are enough."""
        rows = rows[rows["position"] == rows["position"][0]]
        for pfn, whole in zip(rows["pfn"].tolist(), rows["whole"].tolist(), strict=True):
            (self.hints.add if whole else self.hints.discard)(pfn)
        self.now = int(rows["time"][0])
        if rows["whole"].any() and self.due is None and len(self.hints) < self.threshold:
            self.due = self.now + self.delay
        return len(rows)

    def next_time(self):
        return self.now if len(self.hints) >= self.threshold else self.due

    def report(self, now):
        if len(self.hints) < self.threshold:
            self.due = None
        hints = sorted(self.hints)
        self.hints.clear()
        return hints


def granules(decisions, order):
    """The granules that were reported, each with its time."""
    return sorted(
        (time, granule)
        for time, pfn, of_block in told(decisions)
        for granule in range(pfn, pfn + (1 << of_block), 1 << order)
    )


@given(recordings(), st.sampled_from(AGES))
def test_an_age_in_python_is_the_built_in_one(recording, age):
    assert sorted(told(SlowAge(age).decide(recording))) == sorted(told(Age(age).decide(recording)))


@given(recordings(), st.sampled_from(AGES))
def test_a_delay_in_python_is_the_built_in_one(recording, delay):
    assert told(SlowDelay(delay).decide(recording)) == told(Delay(delay).decide(recording))


@given(recordings(), st.integers(1, 4), st.sampled_from([0.1, 1.0, 2.5]))
def test_a_threshold_in_python_is_the_built_in_one(recording, threshold, delay):
    zones = recording.zones.copy()
    zones["managed"] = 0  # so that a batch is one granule, for which there is always room
    recording = dataclasses.replace(recording, zones=zones)
    slow, quick = SlowThreshold(threshold, delay), Threshold(threshold, delay=delay)
    scores = [score(recording, rule.decide(recording), "x") for rule in (slow, quick)]
    times = [recording.begin, *recording.operations["time"].tolist()]
    if len(set(times)) == len(times):  # a policy in Python is told of all that happens at a time before it is asked
        assert granules(slow.decide(recording), 3) == granules(quick.decide(recording), 3)
        assert scores[0].cost == pytest.approx(scores[1].cost)


def test_the_example_of_the_documentation_runs():
    """Free for a second, looked at twice a second: between the age of one second and that of one and a half."""
    names = {"Policy": Policy, "SECOND": SECOND}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(Policy), names, "Policy", None, 0)
    assert doctest.DocTestRunner().run(example, clear_globs=False).failed == 0
    rows = ((0, TAKE, 0, 5), (int(0.3 * S), GIVE, 0, 4), (9 * S, Operation.MARK, 0, -1))
    assert told(example.globs["Old"]().decide(recording_of(*rows, nr_pages=32))) == [
        (int(1.5 * S), 0, 3),
        (int(1.5 * S), 8, 3),
    ]


# ---- a policy's mistakes


class Wrong(Policy):
    """Reports whatever it is told to, once."""

    def __init__(self, answer):
        self.answer, self.due = answer, 2 * S

    def next_time(self):
        return self.due

    def report(self, now):
        self.due = None
        return self.answer


@pytest.mark.parametrize("pfn", [0, 12, -8, 4096], ids=["in use", "not aligned", "negative", "beyond"])
def test_a_report_of_what_is_not_entirely_free_is_refused_by_name(pfn):
    recording = recording_of((0, TAKE, 0, 0), (9 * S, Operation.MARK, 0, -1))
    with pytest.raises(ph.BadPageError, match=rf"wrong reports PFN {pfn}, order 3, at 2\.000000 s"):
        Wrong([8, pfn]).decide(recording)


def test_pages_must_be_whole_numbers():
    with pytest.raises(ph.BadPageError, match="float64"):
        Wrong([8.5]).decide(recording_of((0, TAKE, 0, 0), (9 * S, Operation.MARK, 0, -1)))


def test_pages_come_in_a_list_or_an_array():
    with pytest.raises(ph.BadPageError, match=r"wrong reports a set .*; it has to be a list or an array"):
        Wrong({8}).decide(recording_of((0, TAKE, 0, 0), (9 * S, Operation.MARK, 0, -1)))


def test_a_time_that_had_passed_was_no_time():
    """A policy whose time has come hears of what happens at one moment, and is asked then; it was refused as stuck."""

    class Now(Wrong):
        def __init__(self, due):
            self.due = due

        def start(self, recording):
            self.free = []

        def whole(self, pfn, time):
            self.free.append(pfn)

        def broken(self, pfn, time):
            if pfn in self.free:
                self.free.remove(pfn)

        def next_time(self):
            return self.due if self.free else None

        def report(self, now):
            pfns, self.free = self.free, []
            return pfns

    recording = recording_of((1 * S, TAKE, 0, 4), (5 * S, GIVE, 0, 4), (9 * S, TAKE, 0, 0), nr_pages=32)
    for due in (0, 1 * S, 3 * S // 2):
        at = max(due, 1 * S)
        assert told(Now(due).decide(recording)) == [(at, 16, 3), (at, 24, 3), (5 * S, 0, 3), (5 * S, 8, 3)]


def test_a_class_was_run_as_if_it_were_a_policy():
    recording = recording_of((0, TAKE, 0, 0))
    with pytest.raises(TypeError, match=r"SlowAge is a class, and a policy is an object of it: SlowAge\(\.\.\.\)"):
        evaluate(recording, [SlowAge])


def test_a_policy_that_stands_still_is_refused():
    class Still(Wrong):
        def report(self, now):
            return []

    with pytest.raises(ValueError, match=r"still was asked at 2\.000000 s.*next_time\(\) must move on"):
        Still(None).decide(recording_of((0, TAKE, 0, 0), (9 * S, Operation.MARK, 0, -1)))


def test_a_policy_without_its_methods_says_which():
    class Empty(Policy):
        pass

    with pytest.raises(NotImplementedError, match=r"empty does not say when to ask it next: it has no next_time\(\)"):
        Empty().decide(recording_of((0, TAKE, 0, 0)))


def test_a_policy_that_takes_more_than_it_was_told_is_refused():
    class Greedy(Wrong):
        def changes(self, rows):
            return len(rows) + 1

    with pytest.raises(ValueError, match="greedy says that it took"):
        Greedy([]).decide(recording_of((0, TAKE, 0, 0)))


# ---- names


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("linux", Linux()),
        ("linux:250ms", Linux(0.25)),
        ("v10", Series2019()),
        ("v10:4", Series2019(4)),
        ("threshold", Threshold()),
        ("threshold:32", Threshold(32)),
        ("delay", Delay(2.0)),
        ("delay: 3 s", Delay(3.0)),
        ("age:100ms", Age(0.1)),
        ("age", Age(1.0)),
        ("optimum:5", Optimum(5.0)),
    ],
)
def test_a_policy_by_its_name(name, rule):
    assert policy_of(name) == rule
    assert policy_of(rule.name) == rule


@pytest.mark.parametrize(
    "name", ["", "automatic", "lru", "age:", "age:soon", "auto:0s", "threshold:0", "recorded:1s", "v10:1.5", "age:-1"]
)
def test_a_name_that_is_none_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=r"polic"):
        policy_of(name)


def test_all_built_in_policies_are_named():
    assert list(BUILT_IN) == ["linux", "recorded", "v10", "threshold", "delay", "age", "auto", "optimum"]
    assert [policy_of(name).name.partition(":")[0] for name in BUILT_IN] == list(BUILT_IN)
    with pytest.raises(ValueError, match="linux, recorded, v10, threshold, delay, age, auto, optimum"):
        policy_of("lru")


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("0.5", 0.5), ("250 ms", 0.25), ("10us", 1e-5), ("2min", 120)]
)
def test_times_are_read(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


def test_what_the_kernel_reported_must_have_been_recorded():
    recording = recording_of((0, TAKE, 0, 0), name="kmem only")
    with pytest.raises(ph.PageHintError, match="kmem only does not say what its kernel reported"):
        evaluate(recording, ["recorded"])
