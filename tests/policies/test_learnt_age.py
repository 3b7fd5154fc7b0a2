"""The learnt age: against a model in plain Python, within its bound whatever happens, and on workloads by hand."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learnt_age_model import Model
from operation_tables import GIVE, SMALL, TAKE, recordings, table_of

from pagehint.policies import ZONE_DTYPE, Age, Auto, LearntAge, Recording, age_curve, evaluate, learning, policy_of

S = 10**9
BREAK_EVENS = (1000, 77_777, 10**8, S, 5 * S, 10**18)
LATEST = 2**63 - 1


# ---- step by step beside the model


@st.composite
def stories(draw):
    """A break-even age, and what happens: (what, nanoseconds since the step before), some of it at once."""
    break_even = draw(st.sampled_from(BREAK_EVENS))
    parts = st.sampled_from([0, 0, 1, break_even // 1000, break_even // 31, break_even // 7, break_even // 2,
                             break_even - 1, break_even, 2 * break_even, 9 * break_even])  # fmt: skip
    steps = st.tuples(st.sampled_from(["free", "free 9", "report", "take", "take", "take 9", "ask"]), parts)
    return break_even, draw(st.lists(steps, max_size=60))


def follow(learnt: LearntAge, model: Model, steps, break_even: int) -> None:
    """Tell both of the same, and compare all that they say."""
    free: list[tuple[int, bool]] = []
    now = 0
    for step, pause in steps:
        now = min(now + pause, LATEST)
        what, _, number = step.partition(" ")
        for _ in range(int(number or 1)):
            if what == "free":
                learnt.free(now)
                model.free(now)
                free.append((now, False))
            elif what == "report" and any(not reported for _, reported in free):
                place = [reported for _, reported in free].index(False)
                learnt.reported(free[place][0], now)
                model.reported(free[place][0], now)
                free[place] = (free[place][0], True)
            elif what == "take" and free:
                since, reported = free.pop(len(free) // 2)
                learnt.taken(since, now, reported)
                model.taken(since, now, reported)
        age = learnt.age(now)
        expected = model.age(now)
        assert learnt.account == pytest.approx(model.account, rel=1e-9, abs=1e-6)
        if model.close:
            return  # a rounding may decide it
        assert age == pytest.approx(expected, abs=1)
        for probe in (0, 1, break_even // 3, break_even // 2, break_even - 1, break_even):
            if abs(probe - model.least) > 1:
                assert learnt.is_old_enough(probe) == model.is_old_enough(probe), probe


@given(stories())
def test_it_is_what_the_model_computes_from_all_pauses(story):
    break_even, steps = story
    follow(LearntAge(break_even), Model(break_even), steps, break_even)


def test_a_long_story_is_what_the_model_computes():
    rng = np.random.default_rng(5)
    whats = rng.choice(["free", "free 9", "report", "take", "take 9", "ask"], 1500, p=[0.2, 0.1, 0.3, 0.25, 0.1, 0.05])
    pauses = (10 ** rng.uniform(4, 9.2, 1500)).astype(int)
    steps = list(zip(whats.tolist(), pauses.tolist(), strict=True))
    follow(LearntAge(S), Model(S), steps, S)


def test_it_goes_on_after_weights_were_made_small_again():
    learnt = LearntAge(S)
    for now in range(0, 2000 * S, S // 2):
        learnt.free(now)
        learnt.taken(now, now + S // 4)
    assert S // 4 < learnt.age(2000 * S) < S // 3


def test_the_latest_time_of_all_and_the_first_are_times_as_others():
    learnt = LearntAge(10**18)
    learnt.free(0, 3)
    learnt.taken(0, LATEST)
    learnt.free(LATEST)
    learnt.taken(LATEST, LATEST)
    assert 0 <= learnt.age(LATEST) <= 10**18
    assert learnt.is_old_enough(LATEST)
    assert learnt.next_old_enough(LATEST) == 10**18


# ---- what a caller may not do


@pytest.mark.parametrize(
    "call",
    [
        lambda: LearntAge(999),
        lambda: LearntAge(10**18 + 1),
        lambda: LearntAge(S, -1),
        lambda: LearntAge(S).free(-1),
        lambda: LearntAge(S).taken(5, 4),
        lambda: LearntAge(S).taken(0, 0),
        lambda: policy_of("auto:0s"),
        lambda: policy_of("auto:long"),
        lambda: Auto(-1.0),
        lambda: Auto(1e9),
        lambda: Auto(float("nan")),
    ],
)
def test_what_makes_no_sense_is_refused(call):
    with pytest.raises(ValueError, match=r"break-even age|times go on|no granule|not a time"):
        call()


def test_what_is_refused_has_changed_nothing():
    learnt, model = LearntAge(S), Model(S)
    learnt.free(S)
    model.free(S)
    with pytest.raises(ValueError, match="no granule"):
        learnt.taken(S // 2, S)
    follow(learnt, model, [("ask", 2 * S), ("free", 2 * S), ("take", S // 2), ("ask", S)], S)


# ---- what it learns


def after_a_loop(period: int, pause: int, cycles: int, granules: int = 16, break_even: int = S):
    """A learnt age after a loop that reports nothing, and the time."""
    learnt, now = LearntAge(break_even), 0
    for _ in range(cycles):
        learnt.free(now, granules)
        for _ in range(granules):
            learnt.taken(now, now + pause)
        now += period
    return learnt, now


@pytest.mark.parametrize("pause", [S // 1000, S // 50, S // 3, 9 * S // 10])
def test_what_cycles_is_kept_until_just_after_its_pause(pause):
    learnt, now = after_a_loop(pause + S // 100, pause, 40)
    assert pause < learnt.age(now) <= max(pause * 9 / 8, S / 14)  # which is the age of who knows nothing


def test_what_pauses_longer_than_the_break_even_age_is_not_kept():
    learnt, now = after_a_loop(56 * S // 10, 55 * S // 10, 40, break_even=5 * S)
    assert learnt.age(now) < S // 100


def test_memory_that_stays_free_is_counted_without_an_end():
    learnt = LearntAge(S)
    unknowing = learnt.age(0)
    assert S // 20 < unknowing < S // 14
    learnt.free(0, 16)
    assert learnt.age(S // 3) < unknowing  # they have been free for so long already
    assert learnt.age(2 * S) < S // 50


def test_a_pause_counts_as_long_whether_it_has_ended_or_not():
    ended, still = LearntAge(S), LearntAge(S)
    for learnt in (ended, still):
        learnt.free(0, 20)
    for _ in range(20):
        ended.taken(0, 4 * S)
    assert [ended.age(now) for now in range(4 * S, 8 * S, S)] == [still.age(now) for now in range(4 * S, 8 * S, S)]


def test_a_new_phase_is_learnt_within_a_few_cycles():
    learnt, now = after_a_loop(S // 10, S // 20, 600)
    for cycle in range(12):  # memory that stays free
        learnt.free(now, 16)
        now += S
        if cycle > 9:
            assert learnt.age(now) < S // 10
    for _ in range(4):
        learnt.free(now, 160)
        for _ in range(160):
            learnt.taken(now, now + 6 * S // 10)
        now += 7 * S // 10
    assert 6 * S // 10 < learnt.age(now) < 7 * S // 10


def test_whoever_waits_when_the_age_drops_is_kept_if_to_wait_on_costs_less():
    """Loops of 0.9 s, and as much memory that stays free: once the others are more, what has waited 0.8 s waits on."""
    learnt, now = after_a_loop(S, 9 * S // 10, 20)
    assert learnt.age(now) > 9 * S // 10
    learnt.free(now, 600)
    now += 3 * S
    assert learnt.age(now) < S // 10
    assert learnt.is_old_enough(S // 4)
    assert not learnt.is_old_enough(8 * S // 10)
    assert 9 * S // 10 < learnt.next_old_enough(8 * S // 10) <= S


# ---- the bound


def recording_of(*rows, nr_pages=64, **options):
    return Recording.of(table_of(*rows), np.ones(nr_pages, bool), **(SMALL | options))


def run(pauses, break_even):
    """The policy on pauses (from, until or None); returns starts, ends, and when each was reported, or -1."""
    pauses = sorted(pauses, key=lambda each: each[0])
    last = max(max(start, end or 0) for start, end in pauses)
    ended = [(end, 0 if end > start else 2, i) for i, (start, end) in enumerate(pauses) if end is not None]
    changes = sorted([(start, 1, i) for i, (start, _) in enumerate(pauses)] + ended)
    starts = np.array([start for start, _ in pauses])
    ends = np.array([last if end is None else end for _, end in pauses])
    start_positions, end_positions = (np.full(len(pauses), 2**32 - 1, np.uint32) for _ in range(2))
    for position, (_, kind, i) in enumerate(changes):
        (start_positions if kind == 1 else end_positions)[i] = position + (kind == 1)
    by_end = np.array([i for _, kind, i in changes if kind != 1], np.int64)
    at, ages = learning.run_learning(starts, ends, start_positions, end_positions, by_end, break_even, last)
    return starts, ends, at, ages


def account_of(starts, ends, at, break_even, since=0):
    """What the pauses from a time on have cost beyond twice the optimum, and how many granules were free at most."""
    lengths, reported = ends - starts, at >= 0
    paid = np.where(reported, at - starts + break_even, lengths)
    over = (paid - 2 * np.minimum(lengths, break_even))[starts >= since].sum()
    order = np.lexsort((np.concatenate([np.ones(len(starts)), -np.ones(len(ends))]), np.concatenate([starts, ends])))
    changes = np.concatenate([np.ones(len(starts), int), -np.ones(len(ends), int)])[order]
    return int(over), max(int(np.cumsum(changes).max()), 1)


@st.composite
def pauses_of_granules(draw):
    """Pauses of up to six granules, of lengths about the ages that are chosen for a break-even age of a second."""
    shares = [S // share for share in (10**9, 10**6, 40, 28, 15, 14, 9, 3, 2)]
    lengths = st.sampled_from([*shares, 9 * S // 10, S - 1, S, S + 1, 3 * S])
    used = st.sampled_from([1, 1000, S // 100, S, 7 * S])
    found = []
    for _ in range(draw(st.integers(1, 6))):
        now = draw(st.integers(0, S))
        for length, after in draw(st.lists(st.tuples(lengths, used), max_size=40)):
            found.append((now, now + length))
            now += length + after
        found.append((now, None))
    return found


@settings(max_examples=300)
@given(pauses_of_granules(), st.sampled_from([S // 10, S, 5 * S]), st.integers(0, 20 * S))
def test_no_stretch_costs_more_than_twice_the_optimum_and_a_little_for_each_granule(pauses, break_even, since):
    starts, ends, at, _ = run(pauses, break_even)
    over, most = account_of(starts, ends, at, break_even)
    assert over <= 3 * most * break_even
    over, most = account_of(starts, ends, at, break_even, since)
    assert over <= 4 * most * break_even
    assert np.all(at[at >= 0] - starts[at >= 0] <= break_even)
    assert np.all((at >= 0) | (ends - starts <= break_even))  # nothing is kept for longer


@pytest.mark.parametrize("granules", [1, 7])
@pytest.mark.parametrize("spite", ["always", "every other time", "in phases"])
def test_an_adversary_who_knows_the_age_gains_no_more_than_the_bound(granules, spite):
    """Granules are taken just after they were reported, or else stay free for long: what the age was wrong for."""
    learnt, rng, now = LearntAge(S), np.random.default_rng(3), 0
    starts, ends, at = [], [], []
    most_over = 0
    for turn in range(600):
        age = learnt.age(now)
        stays = turn % 2 if spite == "every other time" else turn // 40 % 2 if spite == "in phases" else False
        length = 3 * S if stays else age + 1
        learnt.free(now, granules)
        for _ in range(granules):
            reported = length > age
            starts.append(now)
            ends.append(now + length)
            at.append(now + age if reported else -1)
            if reported:
                learnt.reported(now, now + age)
        for _ in range(granules):
            learnt.taken(now, now + length, reported)
        now += length + int(rng.integers(1, S // 100))
        over, _ = account_of(np.array(starts), np.array(ends), np.array(at), S)
        most_over = max(most_over, over)
    assert S * granules < most_over <= 3 * S * granules


# ---- the policy


@given(recordings(), st.sampled_from([0.1, 1.0]))
def test_the_policy_reports_free_granules_once_and_none_later_than_at_the_break_even_age(recording, seconds):
    [found] = evaluate(recording, [Auto(seconds)])  # refuses reports of what is not free
    assert found.again == 0
    assert found.latency["max"] is None or found.latency["max"] <= seconds
    assert found.reported >= evaluate(recording, [Age(seconds)])[0].reported


def test_zones_learn_for_themselves():
    rows, now = [(0, TAKE, 0, 4)], 0
    for _ in range(40):  # the zone from page 0 pauses for half a second, that from page 64 for three
        for page, pause in ((0, S // 2), (64, 3 * S)):
            rows += [(now, GIVE, page, 3), (now + pause, TAKE, page, 3)]
        now += 31 * S // 10
    rows[0] = (0, TAKE, 0, 3)
    rows.insert(1, (0, TAKE, 64, 3))
    rows = sorted(rows, key=lambda row: row[0])
    zones = np.array([(0, 64, 64, 0, 0), (64, 128, 64, 0, 0)], ZONE_DTYPE)
    recording = recording_of(*rows, nr_pages=128, zones=zones)
    decisions = Auto().decide(recording)
    late = decisions.reports[decisions.reports["time"] > 60 * S]
    assert set(late["pfn"].tolist()) == {64}
    kept, sent = decisions.counts["ages_at_end"]
    assert sent < S // 20 / S < 0.5 < kept < 0.6


def test_a_loop_is_near_the_optimum_where_every_constant_is_wrong_at_times():
    rows, now = [(0, TAKE, 0, 3)], S
    for phase in range(6):
        for _ in range(100 if phase % 2 else 12):
            pause = S // 5 if phase % 2 else 4 * S
            rows += [(now, GIVE, 0, 3), (now + pause, TAKE, 0, 3)]
            now += pause + S // 100
    recording = recording_of(*rows, nr_pages=8)
    [found] = evaluate(recording, [Auto()], break_evens=[1.0])
    curve = age_curve(recording, np.geomspace(0.001, 10, 200), break_evens=[1.0])
    assert found.cost[1.0] < 1.15 * found.optimum[1.0]
    assert found.cost[1.0] < curve.cost[1.0].min()


def test_names():
    assert policy_of("auto").name == "auto"
    assert policy_of("auto:100ms") == Auto(0.1)
    assert policy_of("auto:100ms").name == "auto:0.1s"


def test_the_example_is_right():
    assert doctest.testmod(learning).failed == 0
    assert LearntAge.__doc__ is not None
    parser = doctest.DocTestParser().get_doctest(LearntAge.__doc__, {"LearntAge": LearntAge}, "LearntAge", None, 0)
    assert doctest.DocTestRunner().run(parser).failed == 0
