"""Linux's free page reporting on lists made by hand: which blocks, in which order, and when."""

from __future__ import annotations

import numpy as np
import pytest
from operation_tables import GIVE, SMALL, TAKE, table_of

import pagehint as ph
from pagehint.policies import LISTED_DTYPE, REPORT_DTYPE, SECOND, ZONE_DTYPE, Linux, Recording, Series2019
from pagehint.policies.rules import lists_of
from pagehint.traces import Operation

S = SECOND
SPARE = 64
UNMOVABLE, MOVABLE, RECLAIMABLE, ISOLATE = 0, 1, 2, 4


def mark(time):
    return (time, Operation.MARK, 0, -1)


def recording_of(rows, blocks, nr_pages=256, *, low=0, least=0, **options):
    """A zone in which these blocks are free, (pfn, order, type) in the order of their lists, and SPARE pages besides.

    These are in halves of granules behind the rest, so that gate and watermark are about something else.
    """
    free = np.zeros(nr_pages + 2 * SPARE, bool)
    free[nr_pages:].reshape(-1, 8)[:, :4] = True
    nr_pages += 2 * SPARE
    for pfn, order, _ in blocks:
        free[pfn : pfn + (1 << order)] = True
    zones = np.array([(0, nr_pages, nr_pages, least, low)], ZONE_DTYPE)
    listed = np.array([tuple(block) for block in blocks], LISTED_DTYPE)
    types = np.ones(nr_pages >> 3, np.uint8)
    return Recording.of(table_of(*rows), free, zones=zones, blocks=listed, types=types, begin=0, **(SMALL | options))


def run(recording, *, capacity=2, delay=2.0, call_time=0, wheel=0, phase=0, lists=None):
    """What was reported: (time, pfn, order, call); and the counts."""
    rows, counts = (lists or lists_of(recording)).linux(
        recording.begin_position, recording.begin, min_order=recording.granule_order, capacity=capacity,
        delay=round(delay * S), wheel=wheel, phase=phase, call_time=call_time, steps=None, begins=None,
    )  # fmt: skip
    reports = rows.view(REPORT_DTYPE)
    return [(int(r["time"]), int(r["pfn"]), int(r["order"]), int(r["call"])) for r in reports], counts


def blocks_told(recording, **options):
    return [(pfn, order) for _, pfn, order, _ in run(recording, **options)[0]]


def test_the_first_pass_begins_after_the_delay_and_reports_what_is_free_already():
    found, counts = run(recording_of([mark(0), mark(3 * S)], [(0, 5, MOVABLE)]))
    assert found == [(2 * S, 0, 5, 0)]
    assert counts["passes"] == 1


def test_lists_are_walked_from_the_least_order_and_the_first_type_and_calls_list_the_last_taken_first():
    blocks = [(64, 5, MOVABLE), (96, 4, MOVABLE), (128, 3, MOVABLE), (144, 3, UNMOVABLE), (160, 3, MOVABLE)]
    # Taken: 144, 128, 160, 96, 64; reported in twos, each two from its end.
    found = blocks_told(recording_of([mark(0), mark(9 * S)], blocks))
    assert found == [(128, 3), (144, 3), (96, 4), (160, 3), (64, 5)]


def test_isolated_pageblocks_are_left_alone():
    assert blocks_told(recording_of([mark(0), mark(3 * S)], [(0, 3, ISOLATE), (16, 3, MOVABLE)])) == [(16, 3)]


def test_a_list_has_a_budget_and_the_rest_waits_for_another_pass():
    blocks = [(pfn, 3, MOVABLE) for pfn in range(0, 256, 16)]  # sixteen: their budget is one by 16 times 2
    found, counts = run(recording_of([mark(0), mark(20 * S)], blocks))
    # Two full reports a pass: one for the budget, and one that overdraws it.
    assert [time // S for time, *_ in found] == [2] * 4 + [4] * 4 + [6] * 4 + [8] * 4
    assert [pfn for _, pfn, *_ in found] == [16, 0, 48, 32, 80, 64, 112, 96, 144, 128, 176, 160, 208, 192, 240, 224]
    assert counts["passes"] == 4


def test_more_blocks_than_sixteen_reports_have_a_larger_budget():
    blocks = [(pfn, 3, MOVABLE) for pfn in range(0, 256, 16)] + [(512, 3, MOVABLE)]
    found, _ = run(recording_of([mark(0), mark(3 * S)], blocks, 1024), capacity=1)
    assert len(found) == 3  # 17 blocks: a budget of two


def test_what_is_put_back_goes_behind_the_rest_with_its_flag():
    recording = recording_of([mark(0), mark(9 * S)], [(0, 3, MOVABLE), (64, 3, MOVABLE), (96, 3, MOVABLE)])
    lists = lists_of(recording)
    run(recording, lists=lists)
    # 0 and 64 are out at once, and come back the other way round; 96 is what is left.
    assert lists.listed() == [(0, 3, MOVABLE, position, pfn, 1) for position, pfn in enumerate((64, 0, 96))]


def test_a_pass_that_stops_makes_what_it_left_the_first_of_its_list():
    blocks = [(pfn, 3, MOVABLE) for pfn in range(0, 96, 16)]
    recording = recording_of([mark(0), mark(3 * S)], blocks)
    lists = lists_of(recording)
    run(recording, lists=lists)
    assert [row[4:] for row in lists.listed()] == [(64, 0), (80, 0), (16, 1), (0, 1), (48, 1), (32, 1)]


def test_while_the_host_answers_the_list_begins_with_what_comes_next():
    """Else an allocation would take memory that the host has dropped before what it still has."""
    rows = [mark(0)]
    rows += [(4 * S, GIVE, pfn, 3, UNMOVABLE) for pfn in (16, 32, 48)]
    rows += [(4 * S, Operation.SET_TYPE, pfn, 3, MOVABLE) for pfn in (16, 32, 48)]  # behind 0, which was reported
    recording = recording_of([*rows, mark(7 * S)], [(0, 3, MOVABLE)])
    lists = lists_of(recording)
    run(recording, lists=lists, call_time=int(1.5 * S))
    assert [row[4:] for row in lists.listed()] == [(48, 0), (0, 1)]


def test_what_was_reported_is_not_reported_again_until_it_is_used():
    rows = [mark(0), (5 * S, TAKE, 100, 0), (6 * S, GIVE, 100, 0), mark(20 * S)]
    blocks = [(0, 3, MOVABLE), (96, 3, MOVABLE)]
    assert blocks_told(recording_of(rows, blocks)) == [(96, 3), (0, 3), (96, 3)]


def test_a_merge_loses_the_flag_of_both_halves():
    rows = [mark(0), (3 * S, GIVE, 8, 3), mark(20 * S)]
    assert blocks_told(recording_of(rows, [(0, 3, MOVABLE)])) == [(0, 3), (0, 4)]


def test_a_split_loses_the_flag_of_the_half_that_stays():
    rows = [mark(0), (3 * S, TAKE, 0, 3), (4 * S, GIVE, 64, 3), mark(20 * S)]
    assert blocks_told(recording_of(rows, [(0, 4, MOVABLE)])) == [(0, 4), (8, 3), (64, 3)]


def test_a_block_that_merges_when_it_comes_back_is_not_flagged():
    blocks = [(0, 3, MOVABLE), (32, 4, MOVABLE)]
    # During the host's answer the buddy of the first is freed; it is no block of its own any more.
    rows = [mark(0), (2 * S + 5, GIVE, 8, 3), mark(20 * S)]
    found, _ = run(recording_of(rows, blocks), capacity=2, call_time=10)
    assert [(pfn, order) for _, pfn, order, _ in found] == [(32, 4), (0, 3), (0, 4)]


def test_a_free_of_less_than_a_reporting_block_asks_for_nothing():
    rows = [mark(0), (5 * S, GIVE, 8, 2), mark(20 * S)]
    _, counts = run(recording_of(rows, [(64, 3, MOVABLE)]))
    assert counts["passes"] == 1


def test_a_free_of_a_part_that_completes_a_block_asks():
    rows = [mark(0), (5 * S, GIVE, 8, 2), (6 * S, GIVE, 12, 2), mark(20 * S)]
    found, counts = run(recording_of(rows, [(64, 3, MOVABLE)]))
    assert counts["passes"] == 2
    assert found[-1] == (8 * S, 8, 3, 1)


def test_frees_while_a_pass_is_asked_for_do_not_move_it():
    rows = [mark(0), (S, GIVE, 0, 3), (int(1.5 * S), GIVE, 16, 3), mark(20 * S)]
    assert [time for time, *_ in run(recording_of(rows, [(64, 3, MOVABLE)]))[0]] == [2 * S] * 3


def test_the_delay_ends_with_a_turn_of_the_wheel():
    recording = recording_of([mark(0), mark(9 * S)], [(0, 3, MOVABLE)])
    wheel = 32_000_000
    assert run(recording, wheel=wheel, phase=5_000_000)[0][0][0] == 63 * wheel + 5_000_000
    assert run(recording, wheel=wheel, phase=16_000_000)[0][0][0] == 62 * wheel + 16_000_000


def test_below_the_gate_a_zone_is_left_out():
    blocks = [(0, 5, MOVABLE)]  # 96 pages are free; the gate wants more than the low watermark and two blocks of eight
    assert run(recording_of([mark(0), mark(9 * S)], blocks, low=80))[1]["gates_closed"] == 1
    assert blocks_told(recording_of([mark(0), mark(9 * S)], blocks, low=80)) == []
    assert blocks_told(recording_of([mark(0), mark(9 * S)], blocks, low=79)) == [(0, 5)]


def test_at_the_min_watermark_isolation_is_refused_and_the_list_is_left():
    found, counts = run(recording_of([mark(0), mark(9 * S)], [(0, 4, MOVABLE), (32, 4, MOVABLE)], least=80))
    assert [(pfn, order) for _, pfn, order, _ in found] == []
    assert counts["refused"] == 1
    found, counts = run(recording_of([mark(0), mark(9 * S)], [(0, 4, MOVABLE), (32, 4, MOVABLE)], least=64))
    assert [(pfn, order) for _, pfn, order, _ in found] == [(0, 4)]
    assert counts["refused"] == 1


def test_a_block_that_the_recording_uses_while_it_is_out_comes_back_first():
    rows = [mark(0), (2 * S + 5, TAKE, 0, 3), mark(9 * S)]
    found, counts = run(recording_of(rows, [(0, 3, MOVABLE), (64, 3, MOVABLE)]), call_time=10)
    assert [(pfn, order) for _, pfn, order, _ in found] == [(64, 3)]
    assert counts["recalled"] == 1
    assert counts["doubtful"] == 0


def test_an_allocation_takes_from_the_front_and_its_rest_is_listed_first():
    rows = [mark(0), (S, TAKE, 0, 3), mark(9 * S)]
    # Of the block of order 5 are left 8 (order 3) and 16 (order 4), each before what was on its list.
    blocks = [(0, 5, MOVABLE), (64, 3, MOVABLE), (96, 4, MOVABLE)]
    found = blocks_told(recording_of(rows, blocks), capacity=1)
    assert found == [(8, 3), (64, 3), (16, 4), (96, 4)]


def test_below_the_two_largest_orders_a_block_that_is_likely_to_merge_goes_behind():
    kernel = {"max_order": 6}  # so that order 3 is below
    rows = [mark(0), (S, GIVE, 0, 3), mark(9 * S)]
    # 0 would merge with 8 to a block whose buddy, 16, is free.
    likely = recording_of(rows, [(16, 4, MOVABLE), (64, 3, MOVABLE)], **kernel)
    unlikely = recording_of(rows, [(64, 3, MOVABLE)], **kernel)
    assert blocks_told(likely, capacity=1)[:2] == [(64, 3), (0, 3)]
    assert blocks_told(unlikely, capacity=1)[:2] == [(0, 3), (64, 3)]


def test_a_pageblock_that_gets_another_type_has_its_blocks_behind_those_of_the_type():
    rows = [mark(0), (S, Operation.SET_TYPE, 0, 3, RECLAIMABLE), mark(9 * S)]
    blocks = [(0, 3, MOVABLE), (64, 3, MOVABLE), (128, 3, RECLAIMABLE)]
    assert blocks_told(recording_of(rows, blocks), capacity=1) == [(64, 3), (128, 3), (0, 3)]


def test_the_recorded_clock_moves_the_worker_where_the_recording_has_it():
    rows = [mark(0), (4 * S, Operation.ISOLATE, 0, 3), (4 * S + 7, Operation.PUTBACK, 0, 3, 1, 1), mark(9 * S)]
    recording = recording_of(rows, [(0, 3, MOVABLE)])
    found = Linux(clock="recorded", capacity=2).decide(recording).reports
    assert [(int(r["time"]), int(r["position"]), int(r["pfn"])) for r in found] == [(4 * S + 7, 2, 0)]
    own = Linux(clock="own", capacity=2).decide(recording).reports
    assert int(own["time"][0]) == 2016000000  # the first turn of the wheel that is not before


def test_lists_that_contradict_what_is_free_are_refused():
    good = recording_of([mark(0)], [(0, 3, MOVABLE), (64, 4, MOVABLE)])
    for change, message in (
        (lambda b: b[:1], "3 granules of order 3 are free, but the free lists have 1 of them"),
        (lambda b: np.concatenate([b, b[:1]]), "PFN 0, order 3, migratetype 1 is on a free list"),
        (lambda b: np.array([(8, 3, 1)], LISTED_DTYPE), "PFN 8, order 3"),
        (lambda b: np.array([(0, 3, 99)], LISTED_DTYPE), "migratetype 99"),
        (lambda b: np.array([(2**40, 3, 1)], LISTED_DTYPE), f"PFN {2**40}"),
    ):
        bad = Recording.of(good.operations, good.free, zones=good.zones, blocks=change(good.blocks), begin=0, **SMALL)
        with pytest.raises(ph.BadPageError, match=message):
            Linux().decide(bad)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="clock must be"):
        Linux(clock="mine")
    recording = recording_of([mark(0)], [(0, 3, MOVABLE)])
    with pytest.raises(ValueError, match="capacity must be from 1 to 1024"):
        Linux(capacity=0).decide(recording)
    with pytest.raises(ValueError, match="a delay must be from 0"):
        Linux(delay=-1).decide(recording)


# ---- the series of 2019, and its faults


def told_2019(recording, max_pages):
    reports = Series2019(max_pages).decide(recording).reports
    return [(int(r["pfn"]), int(r["order"])) for r in reports]


def test_what_was_free_before_and_what_stays_below_the_threshold_is_never_reported():
    rows = [mark(0), (S, GIVE, 0, 3), mark(9 * S)]
    assert told_2019(recording_of(rows, [(64, 5, MOVABLE)]), 2) == []
    assert told_2019(recording_of(rows, [(64, 5, MOVABLE)]), 1) == [(0, 3)]


def test_one_page_freed_reports_the_whole_block_again():
    rows = [mark(0), (S, TAKE, 0, 0), (2 * S, GIVE, 0, 0), (3 * S, TAKE, 9, 0), (4 * S, GIVE, 9, 0), mark(9 * S)]
    assert told_2019(recording_of(rows, [(0, 5, MOVABLE)]), 1) == [(0, 5), (0, 5)]


def test_a_split_loses_the_other_half():
    rows = [mark(0), (S, GIVE, 0, 4), (2 * S, TAKE, 0, 3), (3 * S, GIVE, 64, 3), mark(9 * S)]
    assert told_2019(recording_of(rows, [(128, 3, MOVABLE)]), 2) == [(64, 3)]  # 8 is free, and nobody knows


def test_an_allocation_leaves_its_bit_so_the_count_is_of_what_may_be_free():
    rows = [mark(0), (S, GIVE, 0, 3), (2 * S, TAKE, 0, 3), (3 * S, GIVE, 64, 3), mark(9 * S)]
    assert told_2019(recording_of(rows, [(128, 3, MOVABLE)]), 2) == [(64, 3)]  # two bits, one block


def test_a_refused_isolation_eats_the_hint():
    rows = [mark(0), (S, GIVE, 0, 3), (2 * S, GIVE, 16, 3), (3 * S, GIVE, 32, 3), mark(9 * S)]
    decisions = Series2019(1).decide(recording_of(rows, [(64, 3, MOVABLE)], least=72))
    assert [int(r["pfn"]) for r in decisions.reports] == [16, 32]  # at the first there was too little memory
    assert decisions.counts["refused"] == 1
