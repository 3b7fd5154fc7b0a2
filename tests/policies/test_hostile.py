"""Operations that make no sense: nothing crashes, nothing goes out of its array, and what was free stays counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operation_tables import SMALL, SMALL_PAGES, recordings

from pagehint.policies import ZONE_DTYPE, Linux, Recording, Series2019, Threshold, evaluate
from pagehint.policies.rules import lists_of
from pagehint.policies.simulation import Lists
from pagehint.traces import OPERATION_DTYPE

pfns = st.one_of(st.integers(0, SMALL_PAGES + 8), st.sampled_from([2**63, 2**64 - 1, 2**40]))
rows = st.tuples(
    st.integers(-(10**9), 10**10),  # time, also backwards
    pfns,
    st.integers(0, 255),  # op
    st.one_of(st.integers(0, 7), st.integers(-128, 127)),  # order
    st.one_of(st.integers(0, 7), st.integers(-128, 127)),  # migratetype
    st.integers(0, 255),
)
sensible = st.tuples(
    st.integers(0, 10**10), st.integers(0, SMALL_PAGES - 1), st.integers(1, 5), st.integers(0, 5), st.integers(-1, 4),
    st.just(1),
)  # fmt: skip


def table_from(found, in_order):
    table = np.zeros(len(found), OPERATION_DTYPE)
    for number, (time, pfn, op, order, migratetype, flags) in enumerate(found):
        if in_order and 0 <= order < 8:
            pfn &= ~((1 << order) - 1)
        table[number] = (time, pfn, number, op, order, migratetype, flags)
    if in_order:
        table["time"].sort()
    return table


@given(st.lists(sensible, max_size=60), st.integers(0, 2**32 - 1))
def test_operations_that_contradict_each_other(found, bits):
    free = np.array([bits >> (page // 4) & 1 for page in range(SMALL_PAGES)], bool)
    zones = np.array([(0, 60, 60, 0, 0), (60, SMALL_PAGES, 68, 0, 4)], ZONE_DTYPE)
    recording = Recording.of(table_from(found, True), free, zones=zones, **SMALL)
    rules = [Linux(clock="own", capacity=1, delay=0.5), Linux(clock="recorded", capacity=2), Linux(capacity=2, delay=0)]
    rules += [Series2019(1), Threshold(1)]
    for rule in rules:
        reports = rule.decide(recording).reports
        assert (reports["order"] >= 3).all()
        assert (reports["pfn"] < SMALL_PAGES).all()
    evaluate(recording, ["age:1s", "threshold:1"])
    for call_time in (0, 10**9):
        lists_of(recording).linux(
            0, recording.begin, min_order=4, capacity=2, delay=10**8, wheel=0, phase=0, call_time=call_time, steps=None,
            begins=None,
        )  # fmt: skip


@given(st.lists(rows, max_size=60), st.booleans())
def test_operations_of_anything(found, in_order):
    free = np.ones(SMALL_PAGES, bool)
    recording = Recording.of(table_from(found, in_order), free, **SMALL)
    assert recording.intervals.doubtful_pages >= 0
    for rule in (Linux(clock="own", capacity=1, delay=0.5), Series2019(1), Threshold(1)):
        rule.decide(recording)
    evaluate(recording, [Threshold(1)])


@given(recordings(), st.lists(st.integers(-128, 127), min_size=40, max_size=40))
def test_pages_of_a_migratetype_that_is_none_did_not_move(recording, types):
    """The lists passed such an operation over, which scores follow: a policy reported what was in use."""
    recording.operations["migratetype"] = types[: len(recording.operations)]
    rules = [Linux(clock="own", capacity=1, delay=0.5), Series2019(1), Threshold(1), Threshold(3)]
    for rule, found in zip(rules, evaluate(recording, rules), strict=True):
        decided = rule.decide(recording)
        assert found.reported == (1 << decided.reports["order"]).sum() * recording.page_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 5, "max_order": 4}, "orders from 5 to 4"),
        ({"order": 0, "max_order": 12}, "out of range"),
        ({"zones": np.zeros(0, ZONE_DTYPE)}, "in 0 zones"),
    ],
)
def test_lists_of_what_cannot_be_are_refused(arguments, message):
    recording = Recording.of(np.zeros(0, OPERATION_DTYPE), np.ones(64, bool), **SMALL)
    given_ = {"zones": recording.zones, "order": 3, "max_order": 5} | arguments
    with pytest.raises(ValueError, match=message):
        Lists(recording.operations, recording.free_words, recording.blocks, given_["zones"], recording.types,
              given_["order"], given_["max_order"], 3, 4)  # fmt: skip


def test_a_damaged_report_of_a_kernel_is_counted_and_left_out():
    table = table_from([(0, 0, 1, 0, 1, 0), (10, 0, 4, 3, 1, 0), (20, 0, 5, 3, 1, 1)], True)
    recording = Recording.of(table, np.ones(64, bool), **SMALL)
    [score] = evaluate(recording, ["recorded"])
    assert score.counts == {"not_free": 1, "smaller": 0}
    assert score.reported == 0
