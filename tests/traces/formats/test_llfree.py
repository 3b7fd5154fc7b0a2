"""LLFree's traces: made here bit by bit, as `eval/src/bin/replay.rs` lays them out."""

from __future__ import annotations

import gzip

import pytest
from tracer_lines import row_of

import pagehint as ph
from pagehint.traces import NO_PID, Event
from pagehint.traces.formats.llfree import PAGE


def entry(time_us, pfn, alloc, order, gfp, pid):
    return (time_us | pfn << 38 | alloc << 62 | order << 63 | gfp << 67 | pid << 96).to_bytes(16, "little")


def header(pages, cores, max_pfn):
    return b"".join(number.to_bytes(4, "little") for number in (pages, cores, max_pfn)).ljust(PAGE, b"\0")


def page(cpu, entries):
    return (cpu.to_bytes(16, "little") + b"".join(entries)).ljust(PAGE, b"\0")


@pytest.fixture
def path(tmp_path):
    first = [entry(2**38 - 1, 2**24 - 1, 1, 10, 0x8, 2**31 - 1), entry(5, 3, 0, 10, 2**29 - 1, 7)]
    second = [
        entry(5, 4, 1, 0, 0x10, 2**32 - 1),
        entry(6, 4, 0, 0, 0, 1),
        entry(0, 0, 0, 0, 0, 0),
        entry(9, 9, 1, 0, 0, 1),
    ]
    full = [entry(100 + i, 1 + i, 1, 9, 0, 1) for i in range(255)]
    path = tmp_path / "trace"
    path.write_bytes(header(3, 2, 2**24 - 1) + page(1, first) + page(0, second) + page(1, full))
    return path


def test_each_bit_goes_where_it_belongs(path):
    trace = ph.traces.read(path)
    rows = trace.events.tolist()
    assert rows[:3] == [
        row_of(Event.FREE, time=5000, pfn=3, pid=7, cpu=1, order=10),
        row_of(Event.ALLOC, time=5000, pfn=4, pid=NO_PID, cpu=0, order=0, migratetype=2),
        row_of(Event.FREE, time=6000, pfn=4, pid=1, cpu=0, order=0),
    ]
    assert rows[3:-1] == [
        row_of(Event.ALLOC, time=100_000 + 1000 * i, pfn=1 + i, pid=1, cpu=1, order=9, migratetype=0)
        for i in range(255)
    ]
    assert rows[-1] == row_of(
        Event.ALLOC, time=(2**38 - 1) * 1000, pfn=2**24 - 1, pid=2**31 - 1, cpu=1, order=10, migratetype=1
    )
    assert trace.metadata == {"format": "llfree", "cpus": 2, "max_pfn": 2**24 - 1}
    assert trace.reading == ph.traces.Reading(lines=259)


def test_compressed_and_cut(path, tmp_path):
    whole = ph.traces.read(path)
    raw = path.read_bytes()
    path.write_bytes(gzip.compress(raw))
    assert ph.traces.read(path).events.tolist() == whole.events.tolist()
    path.write_bytes(raw[:-1000])
    trace = ph.traces.read(path)
    assert len(trace) == 4
    assert trace.reading.damage == "the file is cut: 3096 bytes of page 3 are there"


@pytest.mark.parametrize(
    "content",
    [header(1, 0, 9) + page(0, []), header(1, 2, 9) + page(2, []), header(0, 2, 9) + page(0, []), header(1, 1, 9),
     header(1, 1, 9)[:-1] + b"x" + page(0, [])],
)  # fmt: skip
def test_what_is_not_laid_out_so_is_no_such_trace(tmp_path, content):
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(ph.traces.TraceError, match="no recording of a form that is known"):
        ph.traces.read(path)
