"""Policies compared on a recording: names, what is not known, and what each reported in which interval."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from recordings import DATA

import pagehint as ph
from pagehint.policies import SECOND
from pagehint.policies.comparison import replay
from pagehint.policies.reports import first_reports, of_free_memory
from pagehint.policies.rules import Age
from pagehint.policies.table import as_text
from pagehint.sizes import format_size
from pagehint.traces import Event, Flag

NAME = "frag-2g-smp2-thp"


@pytest.fixture(scope="module")
def trace():
    return ph.traces.read(DATA / f"{NAME}.parquet")


@pytest.fixture(scope="module")
def whole(trace):
    before, after = (ph.traces.read_snapshot(DATA / NAME / moment) for moment in ("before", "after"))
    return replay(trace, ["recorded", "linux", "age:300ms"], before=before, after=after, name=NAME)


def test_policies_go_by_the_names_they_are_asked_for(trace):
    assert [score.policy for score in replay(trace, "age:300ms").scores] == ["age:300ms"]
    assert [score.policy for score in replay(trace, Age(0.25)).scores] == ["age:0.25s"]


def test_of_two_policies_of_one_name_one_was_lost(trace):
    with pytest.raises(ValueError, match=r"policies need names of their own, not age:0\.25s, age:0\.25s, linux"):
        replay(trace, [Age(0.25), "linux", Age(0.25)])


def test_break_even_ages_were_used_up_by_the_first_policy(trace):
    found = replay(trace, ["age:300ms", "age:1s"], break_evens=iter([0.5]))
    assert [list(score.cost) for score in found.scores] == [[0.5], [0.5]]


def test_progress_is_told_and_may_end_it(trace, capfd):
    told = []
    replay(trace, ["age:300ms", "delay"], progress=lambda *step: told.append(step))
    assert told == [("operations", 0, 4), ("age:300ms", 1, 4), ("delay", 2, 4), ("allocator", 3, 4)]
    with pytest.raises(ZeroDivisionError):
        replay(trace, "age:300ms", progress=lambda step, done, total: 1 / done)
    replay(trace, "age:300ms", progress=True)  # no terminal, no bar
    assert capfd.readouterr().err == ""
    with pytest.raises(TypeError, match="progress must be callable, True or None, not int"):
        replay(trace, "age:300ms", progress=1)


def test_a_recording_without_snapshots(trace, whole):
    """What is not known is said, and the figures are near those of the whole recording."""
    alone = replay(trace, ["age:300ms"])
    assert alone.replayed is None
    assert alone.wrong_pages_end is None
    assert "not known, without a snapshot" in repr(alone)
    known = whole.scores[2]
    assert alone.scores[0].reported == pytest.approx(known.reported, rel=0.1)


def test_a_snapshot_of_the_beginning_alone(trace):
    before = ph.traces.read_snapshot(DATA / NAME / "before")
    found = replay(trace, ["age:300ms"], before=before)
    assert found.wrong_pages_end is None
    assert found.replayed.contradictions == {}
    assert found.to_dict()["wrong_pages_end"] is None


def test_first_reports_against_a_loop(whole):
    recording = whole.recording
    table = recording.intervals.table
    order = recording.granule_order
    for decisions in whole.decisions.values():
        wanted = np.full(len(table), -1)
        by_granule = {}
        for report in decisions.reports:
            first = int(report["pfn"]) >> order
            for granule in range(first, first + (1 << (int(report["order"]) - order))):
                by_granule.setdefault(granule, []).append((int(report["position"]), int(report["time"])))
        for number, interval in enumerate(table):
            for position, time in by_granule.get(int(interval["pfn"]) >> order, ()):
                if interval["start_position"] <= position <= interval["end_position"]:
                    wanted[number] = time
                    break
        assert (first_reports(recording.intervals, decisions.reports) == wanted).all()


def test_reports_of_memory_in_use_are_found(whole):
    reports = whole.decisions["recorded"].reports
    assert of_free_memory(whole.recording.intervals, reports).all()
    moved = reports.copy()
    moved["pfn"][::7] = 0  # of the kernel's image, never free
    assert (of_free_memory(whole.recording.intervals, moved) == (np.arange(len(moved)) % 7 != 0)).all()


def reporting(order):
    """A recording whose kernel reports blocks of an order, `page_reporting_order`, and more."""
    nothing = ph.traces.NO_PFN, -1
    rows = [
        (Event.PCPU_DRAIN, 0, 9, 0, 0),
        (Event.PCPU_DRAIN, 1024, order, 0, 0),
        (Event.ISOLATE, 1024, order, 0, 0),
        (Event.ISOLATE_RET, *nothing, 1 << order, Flag.BY_REPORTING),
        (Event.ISOLATE, 0, 9, 0, 0),
        (Event.ISOLATE_RET, *nothing, 512, Flag.BY_REPORTING),
        (Event.REPORT_CALL, *nothing, 2, 0),
        (Event.REPORT_CALL_END, *nothing, 0, 0),
        (Event.PUTBACK, 0, 9, 0, 0),
        (Event.PUTBACK, 1024, order, 0, 0),
        (Event.MARK, *nothing, 0, 0),
    ]
    events = np.zeros(len(rows), ph.traces.EVENT_DTYPE)
    events[["event", "pfn", "order", "value", "flags"]] = rows
    events["time"] = np.arange(len(rows)) * SECOND
    events["migratetype"] = 1
    return ph.traces.Trace(events, marks=["end"])


@pytest.mark.parametrize("order", [0, 5, 9])
def test_a_kernel_that_reports_smaller_blocks_than_huge_pages_was_refused(order):
    """What is compared is in granules of what the recorded kernel reported, the least of it."""
    found = replay(reporting(order), ["recorded", "linux", "age:1s", "threshold", "v10"])
    assert found.recording.granule_order == order
    assert found.scores[0].reported == (512 + (1 << order)) * 4096
    assert f"granules of {format_size(4096 << order)}" in repr(found)


def test_granules_are_huge_pages_whatever_larger_blocks_were_reported(whole):
    assert whole.recording.granule_order == 9
    assert replay(reporting(9), "recorded", granule_order=8).recording.granule_order == 8


def test_a_balloon_that_was_loaded_before_the_recording_began_ended_the_replay(trace):
    """Its mark lies outside of what is replayed: policies are on from the beginning then."""
    balloon = next(number for number, mark in enumerate(trace.marks) if "load balloon" in mark)
    events = trace.events
    early = events[(events["event"] != Event.MARK) | (events["value"] != balloon)]
    assert len(early) == len(events) - 1
    found = replay(dataclasses.replace(trace, events=early), "age:1s")
    assert found.recording.begin == events["time"][0]
    with pytest.raises(ValueError, match="no mark of the recording has 'load balloon'"):
        replay(dataclasses.replace(trace, events=early), "age:1s", begin="load balloon")


def test_recorded_blocks_that_are_smaller_than_a_granule_are_left_out():
    found = replay(reporting(5), "recorded", granule_order=9)
    assert found.scores[0].reported == 512 * 4096
    assert found.decisions["recorded"].counts == {"not_free": 0, "smaller": 1}


def test_what_is_lost_was_not_said_beside_the_figures(trace, whole):
    """The figures of a recording with lost events, a cut end and times that go back look like any others."""
    assert whole.problems == ()
    assert "problem" not in repr(whole)
    events = trace.events.copy()
    lost = events[:1].copy()
    lost[["event", "pfn", "value", "cpu"]] = Event.LOST, ph.traces.NO_PFN, 123, 3
    events["time"][5000] = 0
    spoilt = dataclasses.replace(
        trace,
        events=np.insert(events, 6000, lost),
        reading=dataclasses.replace(trace.reading, damage="the gzip stream is cut"),
    )
    found = replay(spoilt, "age:1s")
    for each in ("123 events are lost, at 1 places", "the gzip stream is cut", "times go back"):
        assert any(each in problem for problem in found.to_dict()["problems"])
        assert each in " ".join(repr(found).split())
    assert max(map(len, repr(found).splitlines())) <= 80


@pytest.mark.parametrize(("name", "scale"), [("threshold", 1 << 13), ("optimum:100ms", 1)])
def test_the_table_of_a_large_machine_was_wider_than_eighty_columns(whole, name, scale):
    """Of a terabyte for a day."""
    large = [
        dataclasses.replace(
            score, policy=name, reported=score.reported * scale, again=score.again * scale,
            reused=dict.fromkeys(score.reused, score.reported * scale), free_charged=score.free_charged * scale,
            free_charged_whole=score.free_charged_whole * scale, cost={age: c * scale for age, c in score.cost.items()},
        )
        for score in whole.scores
    ]  # fmt: skip
    text = as_text([], large)
    assert max(map(len, text.splitlines())) <= 80
    assert f" {large[0].reported / 2**20 / (1000 if scale > 1 else 1):,.0f}" in text
