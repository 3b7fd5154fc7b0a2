"""Real recordings: a replay ends with the kernel's free blocks, and finds free what the kernel reported."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hosts import RecordingHost
from recordings import DATA

import pagehint as ph
from pagehint.traces import operations_of, read, read_snapshot

# The one that is shipped, without its text; and all that are in the folder PAGEHINT_TRACES.
SHIPPED = "frag-2g-smp2-thp"
MORE = {path.parent for path in Path(os.environ.get("PAGEHINT_TRACES", "/nonexistent")).glob("*/buddy_after.npz")}
RECORDINGS = {SHIPPED: (DATA / f"{SHIPPED}.parquet", DATA / SHIPPED)} | {
    f"{folder.name}, whole": (folder / "trace.txt.gz", folder) for folder in sorted(MORE)
}
every_recording = pytest.mark.parametrize("name", RECORDINGS)


@cache
def recorded(name):
    trace, folder = RECORDINGS[name]
    before, after = (read_snapshot(folder / moment) for moment in ("before", "after"))
    return operations_of(read(trace), "all", before, after), before


def kernel_s(folder):
    """The kernel's own free blocks at the end."""
    with np.load(folder / "buddy_after.npz") as arrays:
        return sorted(zip(arrays["lists"][:, 4].tolist(), arrays["lists"][:, 1].tolist(), strict=True))


def started(name, **options):
    operations, before = recorded(name)
    pages, host = ph.PageAllocator.from_snapshot(before), RecordingHost()
    clock = operations.table["time"][0] / 1e9
    pages.enable_hinting(host.callbacks, workqueue="manual", clock=clock, **options)
    return operations, pages, host


@every_recording
@pytest.mark.parametrize("options", [{}, {"min_age": 1.0}, {"threshold": 1, "delay": None}], ids=str)
@pytest.mark.parametrize("host", [{}, {"host_latency": 0.05, "host_rate": "256MiB"}], ids=["quick", "slow"])
def test_the_end_is_the_kernel_s_whatever_is_reported_and_however_slowly(name, options, host):
    operations, pages, told = started(name, **options)
    result = pages.replay(operations, strict=True, **host)
    assert [block for zone in pages.zones for block in zone.free_blocks().tolist()] == kernel_s(RECORDINGS[name][1])
    assert (result.contradictions, result.wrong_pages_at_reports, result.bytes_again) == ({}, 0, 0)
    assert result.operations == len(operations.table)
    assert result.counts["isolate"] > 0
    assert result.bytes_reported == sum(4096 << order for _, order in told.blocks) > 0
    assert (result.waits > 0) <= bool(host)
    pages.verify()


@every_recording
def test_a_replay_in_pieces_reports_the_same(name):
    operations, pages, host = started(name)
    pages.replay(operations, strict=True)
    whole = host.take()
    operations, pages, host = started(name)
    for piece in np.array_split(operations.table, 7):
        pages.replay(piece, strict=True)
    assert host.take() == whole


@every_recording
def test_negative_controls(name):
    """What is not the recording, or not its start, is found."""
    operations, before = recorded(name)
    table = operations.table
    gives = np.flatnonzero(table["op"] == 2)
    for wrong in (np.delete(table, gives[len(gives) // 3]), swapped(table)):
        result = ph.PageAllocator.from_snapshot(before).replay(wrong)
        assert result.contradictions
    after = read_snapshot(RECORDINGS[name][1] / "after")
    result = ph.PageAllocator.from_snapshot(after).replay(table)
    assert sum(result.contradictions.values()) > 100


def swapped(table):
    """A page's GIVE and the TAKE after it change places."""
    table, last = table.copy(), {}
    for i, row in enumerate(table):
        if row["op"] == 2:
            last[int(row["pfn"])] = i
        elif (
            row["op"] == 1 and table[last.get(int(row["pfn"]), i)]["order"] == row["order"] and int(row["pfn"]) in last
        ):
            j = last[int(row["pfn"])]
            table[j], table[i] = table[i].copy(), table[j].copy()
            return table
    raise LookupError("no page is given and taken again")
