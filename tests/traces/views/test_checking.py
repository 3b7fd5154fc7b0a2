"""What `check` says of a recording: nothing against a whole one, and something of each that was damaged on purpose."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
from kernel_model import event, trace_of
from recordings import DATA

from pagehint.traces import EVENT_DTYPE, Event, Reading, Trace, check, read, read_snapshot
from pagehint.traces.snapshots.snapshot import PAGE_PCP, PAGE_USED

NAME = "frag-2g-smp2-thp"


@pytest.fixture(scope="module")
def trace():
    return read(DATA / f"{NAME}.parquet")


@pytest.fixture(scope="module")
def before():
    return read_snapshot(DATA / NAME / "before")


@pytest.fixture(scope="module")
def after():
    return read_snapshot(DATA / NAME / "after")


def changed(trace, events=None, **more):
    return dataclasses.replace(trace, events=trace.events if events is None else events, **more)


def kernels_own(trace):
    """The recording as a machine without kprobes has it."""
    return changed(trace, trace.events[~np.isin(trace.events["event"], range(8, 20))])


def test_a_whole_recording_has_no_problem(trace, before, after):
    result = check(trace, before, after)
    assert result.ok
    assert (result.problems, result.missing) == ((), ())
    assert [view.name for view in result.views] == ["all", "kmem", "kmem, 2 passes", "user"]
    assert [view.reports.wrong_blocks for view in result.views] == [0, 0, 0, 0]
    assert result.views[0].wrong_pages_end == 0
    assert result.views[0].belief.endswith("believe it to the page.")
    assert check(kernels_own(trace), before, after).ok


def test_it_reads_well_and_goes_into_json(trace, before, after):
    result = check(trace, before, after)
    text = repr(result)
    assert max(map(len, text.splitlines())) <= 80
    assert "74,668 events in 81.686 s\nno problem\n" in text
    assert "48 x double free; first: row 156, 8.650149 s, PFN 0x6958, order 0" in text
    told = json.loads(json.dumps(result.to_dict()))
    assert told["views"][1]["contradictions"] == {"double free": 48}
    assert told["views"][1]["examples"]["double free"][0] == {"row": 156, "time": 8650149000, "pfn": 26968, "order": 0}
    assert told["views"][0]["reports"] == {"blocks": 1521, "wrong_blocks": 0, "wrong_pages": 0}
    assert told["lost"] == {"events": 0, "places": 0, "overwritten": 0}


def of_proc_alone(snapshot):
    """The snapshot as a machine records it of itself: no file of /proc tells which pages lie on the CPUs' lists."""
    pages = snapshot.known_pages().copy()
    pages[pages == PAGE_PCP] = PAGE_USED
    return dataclasses.replace(snapshot, pages=pages, pcp_lists=None, free_lists=None)


@pytest.mark.parametrize("of", [changed, kernels_own])
def test_a_machine_that_recorded_itself_had_contradictions(trace, before, after, of):
    """Of pages that came from a CPU's list, which its snapshot has for pages in use."""
    result = check(of(trace), of_proc_alone(before), of_proc_alone(after))
    assert result.ok, result.problems
    assert any("which pages lay on the CPUs' lists at the beginning" in sentence for sentence in result.missing)
    assert result.views[0].belief.endswith(("believe it to the page.", "0.05 % of the pages wrong."))
    known = check(of(trace), before, after)
    assert not any("CPUs' lists at the beginning" in sentence for sentence in known.missing)


@pytest.mark.parametrize("of", [changed, kernels_own])
def test_more_came_from_the_lists_than_lay_on_them(trace, before, after, of):
    few = [zone._replace(pcp_pages=zone.pcp_pages // 4) for zone in before.zones]
    result = check(of(trace), dataclasses.replace(of_proc_alone(before), zones=few), after)
    assert any("of what is in use: first row" in problem for problem in result.problems)
    assert not check(of(trace), of_proc_alone(after), after).ok  # of another moment


# ---- negative controls


@pytest.mark.parametrize("kind", [Event.PCPU_DRAIN, Event.ZONE_LOCKED, Event.ALLOC, Event.FREE, Event.PUTBACK])
def test_a_single_event_that_is_dropped_is_noticed(trace, before, after, kind):
    rows = np.flatnonzero(trace.events["event"] == kind)
    for row in random.Random(1).sample(rows.tolist(), 8):
        result = check(changed(trace, np.delete(trace.events, row)), before, after)
        assert not result.ok, row


def test_an_isolation_that_is_dropped_is_noticed(trace, before, after):
    row = int(np.flatnonzero(trace.events["event"] == Event.ISOLATE)[40])
    result = check(changed(trace, np.delete(trace.events, row)), before, after)
    assert any("half an isolation" in problem for problem in result.problems)


@pytest.mark.parametrize(
    "pair", [(Event.ZONE_LOCKED, Event.ALLOC), (Event.ALLOC, Event.FREE), (Event.FREE, Event.PCPU_DRAIN)]
)
def test_a_pair_that_is_swapped_is_noticed(trace, before, after, pair):
    """Two events of a page that follow each other, each at the other's time."""
    events = trace.events
    of_pages = np.flatnonzero(np.isin(events["event"], [Event.ZONE_LOCKED, Event.ALLOC, Event.FREE, Event.PCPU_DRAIN]))
    by_page = of_pages[np.argsort(events["pfn"][of_pages], kind="stable")]
    first, second = by_page[:-1], by_page[1:]
    follow = (events["pfn"][first] == events["pfn"][second]) & (events["order"][first] == events["order"][second])
    follow &= (events["event"][first] == pair[0]) & (events["event"][second] == pair[1])
    for at in random.Random(2).sample(np.flatnonzero(follow).tolist(), 8):
        swapped = events.copy()
        swapped[[first[at], second[at]]] = events[[second[at], first[at]]]
        swapped["time"] = events["time"]
        result = check(changed(trace, swapped), before, after)
        assert not result.ok, (first[at], second[at])


def test_times_that_go_back_are_noticed(trace, before, after):
    swapped = trace.events.copy()
    swapped[[5000, 6000]] = trace.events[[6000, 5000]]
    result = check(changed(trace, swapped), before, after)
    assert any("times go back at 2 rows, first at row 5001" in problem for problem in result.problems)


@pytest.mark.parametrize("moment", [f"{NAME}/after", "tmpfs-512m-smp1/before", "mixed-1g-smp2-k612/before"])
def test_a_wrong_snapshot_of_the_beginning_is_noticed(trace, after, moment):
    result = check(trace, read_snapshot(DATA / moment), after)
    assert any("it is of another moment or another machine, or events" in problem for problem in result.problems)


@pytest.mark.parametrize("moment", [f"{NAME}/before", "tmpfs-512m-smp1/after", "mixed-1g-smp2-k612/after"])
def test_a_wrong_snapshot_of_the_end_is_noticed(trace, before, moment):
    result = check(trace, before, read_snapshot(DATA / moment))
    assert any("are not as the snapshot of the end has them" in problem for problem in result.problems)


def test_without_kprobes_a_wrong_snapshot_is_noticed(trace, before, after):
    assert not check(kernels_own(trace), after, after).ok
    assert not check(kernels_own(trace), before, read_snapshot(DATA / "mixed-1g-smp2-k612/after")).ok
    users = changed(trace, trace.events[np.isin(trace.events["event"], [Event.ALLOC, Event.FREE])])
    assert not check(users, before, read_snapshot(DATA / "mixed-1g-smp2-k612/after")).ok


# ---- what is lost, and what is missing


def test_what_the_recording_says_is_lost_is_told(trace, before, after):
    events = np.insert(trace.events, 100, np.array(event(Event.LOST, value=30), EVENT_DTYPE))
    events["time"][100] = events["time"][99]
    lossy = changed(trace, events, metadata={**trace.metadata, "entries_written": 90_000, "entries_in_buffer": 80_000})
    result = check(lossy, before, after)
    assert result.lost == {"events": 30, "places": 1, "overwritten": 10_000}
    assert result.problems[0].startswith("30 events are lost, at 1 places, first at ")
    assert result.problems[1] == "10,000 of the oldest events were overwritten: the buffer was too small"
    assert result.views[0].belief == "nothing in it contradicts, but events are lost: what they did is not in it."
    assert check(trace, None, after).views[0].belief.endswith("Pages that no event names stay unknown.")


def test_what_the_reader_did_not_understand_is_told():
    reading = Reading(lines=9, not_understood=2, examples=("line 7: what",), damage="line 9: cut")
    trace = dataclasses.replace(trace_of(event(Event.ALLOC, 8, 0)), reading=reading)
    assert check(trace).problems == (
        "the file ends before its time: line 9: cut",
        "2 lines are not understood: line 7: what",
    )


def test_hidden_pfns_are_told():
    trace = trace_of(*(event(Event.ALLOC, 0, 0) for _ in range(3)))
    assert "all 3 events are of PFN 0x0: the kernel has hidden the PFNs" in check(trace).problems


def test_a_page_that_is_used_again_and_again_was_taken_for_hidden_pfns():
    assert check(trace_of(event(Event.ALLOC, 8, 0), event(Event.FREE, 8, 0))).problems == ()


def test_what_is_missing_is_told(trace):
    own = kernels_own(trace)
    missing = check(changed(own, metadata={**own.metadata, "cpus": 4})).missing
    assert any(text.startswith("a snapshot of the beginning") for text in missing)
    assert any(text.startswith("a snapshot of the end") for text in missing)
    assert any(text.startswith("no kprobes") for text in missing)
    assert "of 4 CPUs these have no event: 2, 3" in missing
    frees = check(trace_of(event(Event.FREE, 8, 0, cpu=65535), event(Event.ALLOC_FAILED, order=4, cpu=65535))).missing
    assert [text for text in frees if text.startswith("no event")] == [
        "no event mm_page_alloc",
        "no event mm_page_alloc_zone_locked",
        "no event mm_page_pcpu_drain",
    ]
    assert "memory for 1 allocations, which failed" in frees
    assert any(text.startswith("the CPU of each event") for text in frees)


def test_a_recording_with_few_kinds_of_events_has_few_views(trace, before, after):
    users = changed(trace, trace.events[np.isin(trace.events["event"], [Event.ALLOC, Event.FREE])])
    result = check(users, before, after)
    assert [view.name for view in result.views] == ["user"]
    assert result.ok
    assert 1 < 100 * result.views[0].wrong_pages_end / result.views[0].managed_pages < 2


def test_an_empty_recording_is_no_error():
    result = check(Trace(np.zeros(0, EVENT_DTYPE)))
    assert (result.events, result.seconds, result.problems) == (0, 0.0, ())
    assert len(result.missing) == 7
