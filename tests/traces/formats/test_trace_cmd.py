"""trace-cmd's own files, by the real libtracecmd. Made here: a real one has a megabyte of the kernel's symbols."""

from __future__ import annotations

import ctypes.util
import gzip
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from trace_dat import FORMATS, PAGE, Dat, event, mark, page
from tracer_lines import row_of

import pagehint as ph
from pagehint.traces import NO_PFN, NO_PID, Event, Flag, TraceError
from pagehint.traces.formats.trace_cmd import TraceCmdFile

with_library = pytest.mark.skipif(
    ctypes.util.find_library("tracecmd") is None and "CI" not in os.environ, reason="libtracecmd is not installed"
)
SYMBOLS = {
    0xFFFFFFFF81000000: "_stext",
    0xFFFFFFFF81200000: "__isolate_free_page",
    0xFFFFFFFF81300000: "page_reporting_process",
    0xFFFFFFFF81400000: "isolate_freepages_block",
    0xFFFFFFFF81500000: "split_free_page",
    0xFFFFFFFF81600000: "_etext",
}
S = 10**9

# An event as the kernel writes it, and its row.
EVENTS = {
    "alloc": (
        event("mm_page_alloc", 7, pfn=0x5ABC, order=1, migratetype=2),
        row_of(Event.ALLOC, pid=7, pfn=0x5ABC, order=1, migratetype=2),
    ),
    "failed": (
        event("mm_page_alloc", 7, pfn=NO_PFN, order=9, migratetype=1),
        row_of(Event.ALLOC_FAILED, pid=7, order=9, migratetype=1),
    ),
    "pfn 0": (
        event("mm_page_alloc", 7, pfn=0),
        row_of(Event.ALLOC, pid=7, pfn=0, order=0, migratetype=0),
    ),
    "free": (event("mm_page_free", 7, pfn=3, order=9), row_of(Event.FREE, pid=7, pfn=3, order=9)),
    "batched": (event("mm_page_free_batched", 7, pfn=3), row_of(Event.FREE_BATCHED, pid=7, pfn=3, order=0)),
    "locked": (
        event("mm_page_alloc_zone_locked", 7, pfn=3, order=0, migratetype=1, percpu_refill=1),
        row_of(Event.ZONE_LOCKED, pid=7, pfn=3, order=0, migratetype=1, flags=Flag.PERCPU_REFILL),
    ),
    "drain": (
        event("mm_page_pcpu_drain", 7, pfn=3, order=3, migratetype=1),
        row_of(Event.PCPU_DRAIN, pid=7, pfn=3, order=3, migratetype=1),
    ),
    "extfrag": (
        event("mm_page_alloc_extfrag", 7, pfn=512, fallback_order=10, fallback_migratetype=1, change_ownership=1),
        row_of(
            Event.EXTFRAG,
            pid=7,
            pfn=512,
            order=0,
            migratetype=0,
            fallback_order=10,
            fallback_migratetype=1,
            flags=Flag.CHANGE_OWNERSHIP,
        ),
    ),
    "bulk": (event("kp_bulk_alloc", 7, pfn=261860), row_of(Event.BULK_ALLOC, pid=7, pfn=261860, order=0)),
    "direct": (
        event("kp_free_direct", 7, pfn=3, order=4, mt=1, fpi=2),
        row_of(Event.FREE_DIRECT, pid=7, pfn=3, order=4, migratetype=1, value=2),
    ),
    "isolate": (event("kp_isolate", 7, pfn=512, order=9), row_of(Event.ISOLATE, pid=7, pfn=512, order=9)),
    **{
        f"isolate_ret, {flag}": (
            event("kp_isolate_ret", 7, __probe_func=0xFFFFFFFF81200000, __probe_ret_ip=caller, ret=512),
            row_of(Event.ISOLATE_RET, pid=7, value=512, flags=flag),
        )
        for caller, flag in (
            (0xFFFFFFFF813002A1, Flag.BY_REPORTING),
            (0xFFFFFFFF81400261, Flag.BY_COMPACTION),
            (0xFFFFFFFF81500001, Flag.BY_OTHER),
            (1, 0),
        )
    },
    "putback": (
        event("kp_putback", 7, pfn=512, order=9, mt=1),
        row_of(Event.PUTBACK, pid=7, pfn=512, order=9, migratetype=1),
    ),
    "steal": (
        event("kp_steal", 7, pfn=512, alloc_flags=0x801, start_type=2, whole_block=1),
        row_of(Event.STEAL, pid=7, pfn=512, value=0x801, migratetype=2, flags=Flag.WHOLE_BLOCK),
    ),
    "move": (
        event("kp_move_block", 7, pfn=512, old_mt=0, new_mt=1),
        row_of(Event.MOVE_BLOCK, pid=7, pfn=512, migratetype=1, fallback_migratetype=0),
    ),
    "call": (event("kp_report_call", 7, nents=32), row_of(Event.REPORT_CALL, pid=7, value=32)),
    "call end": (event("kp_report_call_end", 7, ret=-5), row_of(Event.REPORT_CALL_END, pid=7, value=-5)),
    "notify": (event("kp_report_notify", 7), row_of(Event.REPORT_NOTIFY, pid=7)),
    "pass": (event("kp_report_pass", 7), row_of(Event.REPORT_PASS, pid=7)),
    "pass end": (event("kp_report_pass_end", 7), row_of(Event.REPORT_PASS_END, pid=7)),
}


@with_library
def test_each_event(tmp_path):
    pages = [page(S, [(S + number, data)]) for number, (data, _) in enumerate(EVENTS.values())]
    path = Dat({7: "wl"}, SYMBOLS, [pages]).write(tmp_path / "trace.dat")
    trace = ph.traces.read(path)
    expected = [(S + number, *row[1:]) for number, (_, row) in enumerate(EVENTS.values())]
    assert dict(zip(EVENTS, trace.events.tolist(), strict=True)) == dict(zip(EVENTS, expected, strict=True))
    assert trace.names == {7: ("wl",)}
    assert trace.metadata == {"format": "trace-cmd", "cpus": 1}
    assert (trace.reading.lines, trace.reading.not_understood) == (len(EVENTS), 0)


@with_library
def test_cpus_are_merged_by_time_and_lost_events_are_rows(tmp_path):
    def free(pfn):
        return event("mm_page_free", 10 + pfn, pfn=pfn)

    first = [page(1000, [(1000, free(1)), (3000, free(3))]), page(10**10, [(10**10, free(6))], lost=-1)]
    second = [page(2000, [(2000, free(2)), (4000, free(4)), (5 * 10**9, free(5))], lost=12)]
    path = Dat({pid: f"name {pid}" for pid in range(11, 15)}, SYMBOLS, [first, second, []]).write(
        tmp_path / "trace.dat"
    )
    trace = ph.traces.read(path)
    assert [(row["time"], row["cpu"], row["pfn"]) for row in trace.events if row["event"] == Event.FREE] == [
        (1000, 0, 1), (2000, 1, 2), (3000, 0, 3), (4000, 1, 4), (5 * 10**9, 1, 5), (10**10, 0, 6)
    ]  # fmt: skip
    assert trace.lost.tolist() == [
        row_of(Event.LOST, time=2000, pid=NO_PID, cpu=1, value=12),
        row_of(Event.LOST, time=10**10, pid=NO_PID, cpu=0, value=0),
    ]
    assert trace.events["event"].tolist() == [3, 21, 3, 3, 3, 3, 21, 3]
    assert trace.names == {pid: (f"name {pid}",) for pid in range(11, 15)}


@with_library
def test_markers_other_events_and_what_cannot_be(tmp_path):
    events = [
        mark(7, "REC SNAP0"),
        event("sched_wakeup", 7),
        event("mm_page_free", 7, pfn=2**52),
        event("mm_page_free", 7, pfn=1, order=64),
        event("mm_page_alloc", 7, pfn=1, migratetype=-1),
        event("mm_page_free", 7, pfn=1)[:-4],  # shorter than its fields
        mark(7, "x" * 300),
        event("mm_page_free", 7, pfn=NO_PFN),
        mark(7, ""),
    ]
    path = Dat({7: "wl"}, SYMBOLS, [[page(S, [(S + i, data) for i, data in enumerate(events)])]]).write(tmp_path / "t")
    trace = ph.traces.read(path)
    assert trace.events["event"].tolist() == [Event.MARK] * 3
    assert trace.events["value"].tolist() == [0, 1, 2]
    assert trace.marks == ["REC SNAP0", "x" * 300, ""]
    assert trace.reading.other_events == {"sched_wakeup": 1}
    assert trace.reading.not_understood == 5
    assert trace.reading.examples[0] == "line 3: an event mm_page_free without what it should have"


@with_library
def test_an_event_that_the_file_does_not_explain(tmp_path):
    unknown = struct.pack("<HBBi", 9999, 0, 0, 7) + bytes(8)
    events = [(S, unknown), (S + 1, EVENTS["free"][0])]
    trace = ph.traces.read(Dat({7: "wl"}, SYMBOLS, [[page(S, events)]]).write(tmp_path / "t"))
    assert trace.counts == {Event.FREE: 1}
    assert trace.reading.examples == ("line 1: an event of a number that the file does not explain",)


@with_library
def test_a_file_of_no_cpu(tmp_path):
    with pytest.raises(TraceError, match="is of 0 processors"):
        ph.traces.read(Dat({7: "wl"}, SYMBOLS, []).write(tmp_path / "t"))


@with_library
def test_more_events_than_a_piece_has_rows(tmp_path, monkeypatch):
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(unpacked))
    pages, count = [], 0
    while count < 140_000:
        pages.append(page(count, [(count + i, event("mm_page_free", i, pfn=count + i)) for i in range(140)]))
        count += 140
    path = Dat({}, SYMBOLS, [pages]).write(tmp_path / "trace.dat")
    (tmp_path / "trace.dat.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    trace = ph.traces.read(path)
    assert np.array_equal(trace.events["pfn"], np.arange(count))
    assert np.array_equal(trace.events["time"], np.arange(count))
    assert np.array_equal(ph.traces.read(tmp_path / "trace.dat.gz").events, trace.events)
    assert not [*unpacked.iterdir()]


@with_library
@pytest.mark.parametrize("cut", [11, 40, 500, 2000, 4096, 5000, -1, -4096, -5000, -8192, -8193])
def test_a_cut_file_ended_the_process_in_the_library(tmp_path, cut):
    path = Dat({7: "wl"}, SYMBOLS, [[page(S, [(S, EVENTS["free"][0])])] * 2]).write(tmp_path / "trace.dat")
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(TraceError, match=r"trace\.dat is cut or damaged"):
        ph.traces.read(path)


@with_library
def test_the_calls_of_the_compiled_reader_that_would_write_elsewhere_are_refused(tmp_path):
    path = Dat({}, SYMBOLS, [[page(S, [(S, EVENTS["free"][0])])]]).write(tmp_path / "trace.dat")
    file = TraceCmdFile(str(path))
    with pytest.raises(ValueError, match="no row"):
        file.read(np.empty(64, np.uint8), 2)
    with pytest.raises(ValueError, match="no row"):
        file.read(np.empty(31, np.uint8), 0)
    assert file.read(np.empty(32, np.uint8), 0)[:2] == (1, "full")
    assert file.read(np.empty(32, np.uint8), 0)[:2] == (0, "end")
    assert file.name_of(99) in (b"", b"<...>")


@pytest.mark.parametrize(
    ("library", "message"),
    [(b"", "takes libtracecmd to read: apt install libtracecmd1"), ("libm.so.6", "has no tracecmd_open")],
)
def test_without_the_library_the_error_names_the_package(tmp_path, library, message):
    """What is first on the linker's path is no library, or another one of that name."""
    if library:
        library = next(Path(line.split()[2]) for line in loaded() if line.split()[0] == library).read_bytes()
    (tmp_path / "libtracecmd.so.1").write_bytes(library)
    (tmp_path / "trace.dat").write_bytes(b"\x17\x08\x44tracing6\0" + bytes(5000))
    program = "import pagehint as ph, sys; ph.traces.read(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path / "trace.dat")],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert message in run.stderr
    assert "PageHintError" in run.stderr


def loaded():
    return (
        subprocess.run(["ldd", sys.executable], capture_output=True, text=True, check=True).stdout.strip().splitlines()
    )


def test_the_files_of_this_test_have_all_events():
    names = {name for name, kind in ph.traces.events.KERNEL_EVENTS.items() if kind != Event.MARK}
    assert set(FORMATS) - {"sched_wakeup"} == names
    assert PAGE == 4096
