"""Real recordings: the one that is shipped, and those in the folder that PAGEHINT_TRACES names."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import pagehint as ph
from pagehint.policies import SECOND, Linux, Recorded, Recording, compare, evaluate, floor_of, sweep
from pagehint.policies.rules import lists_of, worker_steps
from pagehint.traces import Event, Operation, Operations

if not os.environ.get("CI"):  # there it is installed, and a test without it fails
    pytest.importorskip("pyarrow")

DATA = Path(__file__).parents[1] / "data"
SHIPPED = "frag-2g-smp2-thp"
FOLDER = os.environ.get("PAGEHINT_TRACES")
MORE = sorted(path.parent.name for path in Path(FOLDER).glob("*/trace.txt.gz")) if FOLDER else []
BALLOON = "load balloon"

# MiB reported, again, reused within 1 s and 5 s; GiB s free and charged, and of it in whole granules. Computed once,
# by another program, and in print beside the recordings.
IN_PRINT = {
    ("tmpfs-512m-smp1", "recorded"): (882, 18, 0, 0, 3.70, 2.63),
    ("tmpfs-512m-smp1", "v10"): (492, 20, 0, 0, 8.04, 6.88),
    ("mixed-1g-smp2-k612", "recorded"): (1052, 42, 2, 58, 5.37, 4.24),
    ("mixed-1g-smp2-k612", "v10"): (382, 42, 120, 120, 26.0, 24.9),
    ("pressure-1g-smp2-k612", "recorded"): (1588, 50, 2, 576, 12.05, 5.94),
    ("pressure-1g-smp2-k612", "v10"): (1050, 120, 164, 164, 14.4, 8.3),
}


@cache
def recording_of(name, view="all"):
    file = DATA / f"{name}.parquet" if name == SHIPPED else Path(FOLDER) / name / "trace.txt.gz"
    folder = DATA / name if name == SHIPPED else Path(FOLDER) / name
    before, after = (ph.traces.read_snapshot(folder / moment) for moment in ("before", "after"))
    trace = ph.traces.read(file)
    operations = ph.traces.operations_of(trace, view, before, after)
    calls = trace.events[trace.events["event"] == Event.REPORT_CALL]["value"]
    return Recording.of_snapshot(operations, before, begin=BALLOON, name=name, resident=None), calls


def as_operations(recording):
    return Operations(recording.operations, "all")


@pytest.fixture(params=[SHIPPED, *(name for name in MORE if name != SHIPPED)])
def recorded(request):
    recording, calls = recording_of(request.param)
    if not (recording.operations["op"] == Operation.ISOLATE).any():
        pytest.skip("recorded without kprobes: it does not say what the kernel reported")
    return recording, calls


def test_the_blocks_that_linux_reports_are_those_that_were_recorded_each_in_its_place(recorded):
    """When the worker moved is given, and not which blocks it took: those are predicted from the order of the lists."""
    recording, calls = recorded
    predicted, seen = Linux(clock="recorded").decide(recording), Recorded().decide(recording)
    found = compare(predicted, seen)
    assert found.in_order == len(seen.reports) > 0
    assert (found.missing, found.extra) == ([], [])
    assert predicted.counts["doubtful"] == 0
    assert np.bincount(predicted.reports["call"]).tolist() == calls.tolist()


@pytest.mark.parametrize("order", [0, 5, 9])
def test_the_free_lists_end_as_the_kernels_own_in_their_order(recorded, order):
    """Followed from one order on, with blocks of order 9 reported: each block's list, place and flag in the end."""
    recording, _ = recorded
    folder = DATA / recording.name if recording.name == SHIPPED else Path(FOLDER) / recording.name
    before = ph.traces.read_snapshot(folder / "before")
    steps, begins = worker_steps(recording)
    of_all = Recording.of_snapshot(
        as_operations(recording), before, begin=recording.begin, granule_order=order, resident=None
    )
    lists = lists_of(of_all)
    lists.linux(of_all.begin_position, of_all.begin, min_order=recording.granule_order, capacity=32, delay=2 * SECOND,
                wheel=0, phase=0, call_time=0, steps=steps, begins=begins)  # fmt: skip
    with np.load(folder / "buddy_after.npz") as arrays:
        wanted = {tuple(row) for row in arrays["lists"].tolist() if row[1] >= order}
    found = set(lists.listed())
    assert {row[:3] + row[4:] for row in found} == {row[:3] + row[4:] for row in wanted}
    compacted = recording.name.startswith("pressure")  # compaction moves blocks within lists, and no event says so
    assert len(found & wanted) >= len(wanted) - (8 if compacted and order < 9 else 0)


def test_by_its_own_rules_of_time_linux_reports_nearly_all_of_them(recorded):
    recording, _ = recorded
    seen = Recorded().decide(recording)
    for clock in ("fitted", "own"):
        found = compare(Linux(clock=clock).decide(recording), seen)
        assert found.same >= 0.99 * len(seen.reports)
        assert len(found.extra) <= 0.02 * len(seen.reports)


def test_every_recorded_report_was_of_free_memory_and_the_optimum_is_below_all(recorded):
    recording, _ = recorded
    assert recording.intervals.doubtful_pages == 0
    for found in evaluate(recording, ["recorded", "linux", "v10", "threshold", "age:1s", "delay", "optimum:1s"]):
        assert all(found.optimum[age] <= cost + 1e-9 for age, cost in found.cost.items())
        assert found.free_charged >= floor_of(recording).fragmented - 1e-9


@pytest.mark.parametrize(("name", "policy"), IN_PRINT, ids="-".join)
def test_the_figures_in_print(name, policy):
    if name not in MORE:
        pytest.skip("PAGEHINT_TRACES has no such recording")
    [found] = evaluate(recording_of(name)[0], [policy])
    sizes = [found.reported, found.again, found.reused[1.0], found.reused[5.0]]
    expected = IN_PRINT[name, policy]
    assert tuple(size / 2**20 for size in sizes) == expected[:4]
    digits = 0.005 if expected[4] < 14 else 0.05
    assert [found.free_charged, found.free_charged_whole] == pytest.approx(expected[4:], abs=digits + 0.02)


@pytest.mark.parametrize("name", ["tmpfs-512m-smp1", "pressure-1g-smp2-k612"])
def test_who_begins_from_what_the_host_had_sees_reports_of_what_it_never_gave(name):
    if name not in MORE:
        pytest.skip("PAGEHINT_TRACES has no such recording")
    recording, _ = recording_of(name)
    before = ph.traces.read_snapshot(Path(FOLDER) / name / "before")
    resident = Recording.of_snapshot(as_operations(recording), before, begin=recording.begin)
    [of_all], [of_resident] = evaluate(recording, ["recorded"]), evaluate(resident, ["recorded"])
    assert of_all.uncharged == 0
    assert 1 / 3 < of_resident.uncharged / of_resident.reported < 1 / 2
    assert of_resident.free_charged < of_all.free_charged
    [best] = evaluate(resident, ["optimum:1s"])
    assert best.uncharged == 0
    assert best.cost[1.0] == pytest.approx(best.optimum[1.0])


def test_with_the_kernels_own_events_alone_the_policies_fare_the_same():
    names = ["linux", "v10", "threshold", "age:1s"]
    every, kmem = (evaluate(recording_of(SHIPPED, view)[0], names) for view in ("all", "kmem"))
    for one, other in zip(every, kmem, strict=True):
        assert other.reported == pytest.approx(one.reported, rel=0.01)
        assert other.free_charged == pytest.approx(one.free_charged, rel=0.01)


def test_one_dropped_free_is_noticed_by_which_blocks_are_reported():
    """A negative control: the prediction is one only if a single operation that is missing spoils it."""
    recording, _ = recording_of(SHIPPED)
    gives = np.flatnonzero((recording.operations["op"] == Operation.GIVE) & (recording.operations["order"] == 9))
    kept = np.delete(recording.operations, gives[len(gives) // 8])
    spoilt = Recording.of(
        kept, recording.free, zones=recording.zones, blocks=recording.blocks, types=recording.types,
        begin=recording.begin, isolate_type=recording.isolate_type,
    )  # fmt: skip
    predicted = Linux(clock="recorded").decide(spoilt)
    found = compare(predicted, Recorded().decide(recording))
    assert predicted.counts["doubtful"] > 0
    assert found.in_order < len(predicted.reports)


def test_a_sweep_of_the_shipped_recording(tmp_path):
    if not os.environ.get("CI"):
        pytest.importorskip("joblib")
    from pyarrow import parquet

    recording_of(SHIPPED)[0].save(tmp_path / SHIPPED)
    output = sweep([tmp_path / SHIPPED], ["recorded", "linux", "age:1s"], tmp_path / "out.parquet", jobs=2)
    rows = parquet.read_table(output).to_pylist()
    assert [row["policy"] for row in rows] == ["recorded", "linux", "age:1s"]
    assert rows[0]["reported"] == 5610 << 20


@pytest.mark.parametrize(("break_even", "most"), [(0.1, 1.03), (1.0, 1.04), (5.0, 1.04)])
def test_the_learnt_age_is_near_the_offline_optimum_where_memory_stays_free(break_even, most):
    recording, _ = recording_of(SHIPPED)
    [found] = evaluate(recording, [f"auto:{break_even}s"], break_evens=[break_even])
    assert found.cost[break_even] <= most * found.optimum[break_even]
