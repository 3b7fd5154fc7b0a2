"""The figures of a run, against sums made by hand, and against plain Python that looks at every page."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operation_tables import GIVE, SMALL, TAKE, recordings, table_of

import pagehint as ph
from pagehint.policies import (
    REPORT_DTYPE,
    SECOND,
    Age,
    Decisions,
    Recording,
    Score,
    compare,
    evaluate,
    floor_of,
    policy_of,
    score,
)
from pagehint.traces import Operation

S = SECOND
PAGE = 4096 / 2**30  # GiB
GRANULE = 8 * PAGE


def reports_of(*rows):
    """Reports of (time, position, pfn, order), each a call of its own."""
    reports = np.zeros(len(rows), REPORT_DTYPE)
    for number, (time, position, pfn, order) in enumerate(rows):
        reports[number] = (time, pfn, position, number, order)
    return Decisions(reports)


def recording_of(*rows, nr_pages=16, **options):
    return Recording.of(table_of(*rows), np.ones(nr_pages, bool), **(SMALL | options))


END = (10 * S, Operation.MARK, 0, -1)


def test_nothing_reported_all_is_charged_as_long_as_it_is_free():
    found = score(recording_of((0, TAKE, 0, 0), (4 * S, GIVE, 0, 0), END), reports_of(), "none")
    # The first granule has seven pages free for four seconds, and eight for six; the second, eight for ten.
    assert found.free_charged == pytest.approx((4 * 7 + 6 * 8 + 10 * 8) * PAGE)
    assert found.free_charged_whole == pytest.approx((6 * 8 + 10 * 8) * PAGE)
    assert (found.reported, found.again, found.refaults, found.calls) == (0, 0, 0, 0)
    assert found.cost[1.0] == pytest.approx(16 * GRANULE)
    assert found.optimum == pytest.approx({0.1: 0.2 * GRANULE, 1.0: 2 * GRANULE, 5.0: 10 * GRANULE})
    assert found.latency == {"mean": None, "median": None, "p99": None, "max": None}


def test_a_report_takes_the_charge_and_use_of_a_page_brings_it_back_for_that_page():
    recording = recording_of((0, Operation.MARK, 0, -1), (3 * S, TAKE, 2, 1), (5 * S, GIVE, 2, 1), END, nr_pages=8)
    found = score(recording, reports_of((1 * S, 1, 0, 3)), "one")
    # Charged: all for a second; then, from the fifth, the two pages that were used.
    assert found.free_charged == pytest.approx((1 * 8 + 5 * 2) * PAGE)
    assert found.free_charged_whole == pytest.approx(found.free_charged)
    assert found.refaults == 2
    assert (found.reported, found.used) == (8 * 4096, 8 * 4096)
    assert found.reused == {1.0: 0, 5.0: 8 * 4096}
    # By whole granules: a second and a report, then five seconds of the second interval.
    assert found.cost == pytest.approx({0.1: 6.1 * GRANULE, 1.0: 7 * GRANULE, 5.0: 11 * GRANULE})
    assert found.optimum == pytest.approx({0.1: 0.2 * GRANULE, 1.0: 2 * GRANULE, 5.0: (3 + 5) * GRANULE})
    assert found.latency["mean"] == found.latency["max"] == 1.0


def test_a_page_used_a_second_after_the_report_is_used_too_soon_just_so():
    recording = recording_of((0, Operation.MARK, 0, -1), (2 * S, TAKE, 0, 0), END, nr_pages=8)
    assert score(recording, reports_of((S, 1, 0, 3)), "x").reused[1.0] == 8 * 4096
    assert score(recording, reports_of((S - 1, 1, 0, 3)), "x").reused[1.0] == 0


def test_reported_twice_is_again_and_costs_twice():
    recording = recording_of((0, Operation.MARK, 0, -1), END)
    found = score(recording, reports_of((S, 1, 0, 4), (2 * S, 1, 8, 3)), "x")
    assert (found.reported, found.again, found.calls) == (3 * 8 * 4096, 8 * 4096, 2)
    assert found.cost[1.0] == pytest.approx((2 * 1 + 3) * GRANULE)
    assert found.latency["max"] == 1.0  # that of the first report


def test_what_the_host_never_had_costs_nothing_until_it_is_used():
    resident = np.zeros(16, bool)
    resident[8] = True
    recording = recording_of((0, Operation.MARK, 0, -1), END, resident=resident)
    found = score(recording, reports_of((S, 1, 0, 3)), "x")
    assert found.free_charged == pytest.approx(10 * PAGE)  # the one page
    assert found.uncharged == found.reported == 8 * 4096
    assert found.cost[1.0] == pytest.approx((10 + 1) * GRANULE)  # a report for nothing, and a granule kept
    assert found.optimum[1.0] == pytest.approx(1 * GRANULE)


def test_only_what_happens_after_the_beginning_counts():
    rows = ((0, TAKE, 0, 3), (5 * S, GIVE, 0, 3), END)
    found = score(recording_of(*rows, begin=5 * S, nr_pages=8), reports_of((6 * S, 2, 0, 3)), "x")
    assert found.seconds == 5.0
    assert found.free_charged == pytest.approx(1 * 8 * PAGE)
    assert found.refaults == 0


@pytest.mark.parametrize(
    "report",
    [(2 * S, 1, 0, 3), (S, 0, 0, 2), (S, 0, 4, 3), (S, 0, 16, 3), (S, 9, 8, 3)],
    ids=["in use", "less than a granule", "not aligned", "no such page", "after the end"],
)
def test_a_report_of_what_is_not_free_granules_is_refused(report):
    recording = recording_of((S, TAKE, 0, 0), END)
    with pytest.raises(ph.BadPageError, match=rf"rule: report 0 is of PFN {report[2]}, order {report[3]}"):
        score(recording, reports_of(report), "rule")


def test_reports_out_of_order_are_refused():
    recording = recording_of((S, TAKE, 0, 0), (2 * S, GIVE, 0, 0), END)
    with pytest.raises(ph.BadPageError, match="report 1"):
        score(recording, reports_of((2 * S, 2, 0, 3), (0, 0, 8, 3)), "rule")


def naive(recording, decisions):
    """GiB·s free and charged, all and in whole granules, by looking at every page before every step."""
    free, size = recording.free.copy(), 1 << recording.granule_order
    charged = np.ones(len(free), bool) if recording.resident is None else recording.resident.copy()
    steps = [(p, 1, int(r["time"]), r) for p, r in enumerate(recording.operations)]
    steps += [(int(r["position"]), 0, int(r["time"]), r) for r in decisions.reports]
    now, sums = None, [0.0, 0.0]
    steps = [*sorted(steps, key=lambda step: step[:2]), (2**32, 2, recording.end, None)]
    for position, is_operation, time, row in steps:
        if position >= recording.begin_position and now is None:
            now = recording.begin
        if now is not None and time > now:
            both = free & charged
            whole = free.reshape(-1, size).all(axis=1).repeat(size)
            sums[0] += both.sum() * (time - now)
            sums[1] += (both & whole).sum() * (time - now)
            now = time
        if row is not None:
            block = slice(int(row["pfn"]), int(row["pfn"]) + (1 << int(row["order"])))
            if not is_operation:
                assert free[block].all()
                charged[block] = False
            elif row["op"] == TAKE:
                free[block], charged[block] = False, True
            else:
                free[block] = True
    return [each * PAGE / S for each in sums]


NAMES = ["age:0", "age:1s", "delay:1s", "threshold:2", "v10:1", "linux:1s", "optimum:1s"]


@given(recordings(), st.sampled_from(NAMES), st.booleans())
def test_as_counted_page_by_page(recording, name, resident):
    if resident:
        recording = Recording.of(recording.operations, recording.free, resident=~recording.free, begin=recording.begin,
                                 **SMALL)  # fmt: skip
    decisions = policy_of(name).decide(recording)
    found = score(recording, decisions, name)
    assert [found.free_charged, found.free_charged_whole] == pytest.approx(naive(recording, decisions))
    assert found.again <= found.reported
    assert found.reused[1.0] <= found.reused[5.0] <= found.used


@given(recordings())
def test_the_floor_is_under_every_policy(recording):
    floor = floor_of(recording)
    for name in NAMES:
        [found] = evaluate(recording, [name])
        assert found.free_charged >= floor.fragmented - 1e-12
    assert floor.fragmented <= floor.free + 1e-12


def test_the_floor_of_the_cpus_lists_is_what_users_have_free_beside():
    buddy = recording_of((0, TAKE, 0, 0), (4 * S, GIVE, 0, 0), END)
    user = recording_of((1 * S, TAKE, 0, 0), (2 * S, GIVE, 0, 0), END, begin=0)
    floor = floor_of(buddy, user)
    assert floor.per_cpu == pytest.approx(3 * PAGE)  # for one second before its use, and two after
    assert floor_of(buddy).per_cpu is None
    assert floor.free == pytest.approx((10 * 16 - 4) * PAGE)
    assert floor.fragmented == 0  # the other seven pages had been reported before


def test_the_floor_of_fragmentation_is_what_is_free_and_charged_beside_pages_in_use():
    rows = ((0, TAKE, 0, 3), (0, GIVE, 4, 2), (4 * S, GIVE, 0, 2), END)
    assert floor_of(recording_of(*rows)).fragmented == pytest.approx(4 * 4 * PAGE)


def test_a_score_is_a_row_and_json():
    found = evaluate(recording_of(END), ["age:1s"])[0]
    assert isinstance(found, Score)
    assert json.loads(json.dumps(found.to_dict()))["cost"].keys() == {"0.1", "1", "5"}
    row = found.to_row()
    assert {"policy", "cost_0.1", "optimum_5", "reused_1", "latency_p99"} <= row.keys()
    assert all(not isinstance(value, dict) for value in row.values())


def test_how_two_runs_differ():
    first, second = reports_of((0, 0, 0, 3), (1, 0, 8, 3), (2, 0, 8, 3)), reports_of((0, 0, 0, 3), (1, 0, 16, 3))
    found = compare(first, second)
    assert (found.same, found.in_order) == (1, 1)
    assert (found.missing, found.extra) == ([(16, 3)], [(8, 3), (8, 3)])


def test_other_ages_and_windows_may_be_asked_for():
    [found] = evaluate(recording_of(END), [Age(0)], break_evens=[2], windows=[0.5, 3])
    assert found.cost.keys() == {2.0}
    assert found.reused.keys() == {0.5, 3.0}
    with pytest.raises(ValueError, match="at most 16"):
        evaluate(recording_of(END), [Age(0)], break_evens=range(17))
