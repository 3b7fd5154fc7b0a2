"""Files of every form: the real ones of `tests/data`, one recording written in each and read again, and Parquet."""

from __future__ import annotations

import base64
import gzip
import json
import lzma
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tracer_lines import lines

import pagehint as ph
from pagehint.errors import PageHintError
from pagehint.traces import EVENT_DTYPE, NO_PID, Event, Reading, Trace, TraceError
from pagehint.traces.events import KERNEL_EVENTS
from pagehint.traces.formats.compression import PlainFile
from pagehint.traces.formats.parquet import KEY, VERSION
from pagehint.traces.formats.text_source import BPFTRACE_HEADER, TextSource

DATA = Path(__file__).parents[1] / "data"
WHOLE = DATA / "frag-2g-smp2-thp.parquet"  # a whole recording; its README has these counts


def same(one, other):
    assert np.array_equal(one.events, other.events)
    assert (one.names, one.marks, one.snapshots) == (other.names, other.marks, other.snapshots)


# ---- what tracers have written, with the real tools


@pytest.mark.parametrize(
    ("name", "form", "counts"),
    [
        ("ftrace-6.1", "ftrace", {"ALLOC": 94, "ISOLATE_RET": 57, "STEAL": 1, "EXTFRAG": 1, "MARK": 5}),
        ("ftrace-6.12", "ftrace", {"ALLOC": 414, "ISOLATE_RET": 77, "MOVE_BLOCK": 91, "FREE_DIRECT": 1, "EXTFRAG": 2}),
        ("ftrace-6.18-overwritten", "ftrace", {"ALLOC": 29, "LOST": 1}),
        ("ftrace-6.18-pipe", "ftrace", {"ALLOC": 58, "LOST": 2}),
        ("perf-6.18", "perf", {"ALLOC": 163, "FREE": 139, "ZONE_LOCKED": 20, "LOST": 5}),
        ("trace-cmd-report-6.18", "ftrace", {"ALLOC": 225, "LOST": 2}),
        ("bpftrace-6.18", "bpftrace", {"ALLOC": 420, "PCPU_DRAIN": 150, "LOST": 150}),
    ],
)
def test_recordings_by_the_real_tools(name, form, counts):
    trace = ph.traces.read(DATA / f"{name}.txt.gz")
    assert trace.metadata["format"] == form
    assert trace.reading.not_understood == 0
    assert {event: trace.counts[Event[event]] for event in counts} == counts
    text = gzip.decompress((DATA / f"{name}.txt.gz").read_bytes()).decode()
    tokens = ("mm_page_", "kp_", "tracing_mark_write:", "LOST", "DROPPED", "buffer started", "Lost ")
    assert len(trace) == sum(any(token in line for token in tokens) for line in text.splitlines())


def test_the_whole_recording_is_what_its_readme_says():
    trace = ph.traces.read(WHOLE)
    assert {event.name: count for event, count in trace.counts.items()} == {
        "ALLOC": 22693, "FREE": 22690, "FREE_BATCHED": 4661, "ZONE_LOCKED": 8167, "PCPU_DRAIN": 8714, "EXTFRAG": 3,
        "BULK_ALLOC": 58, "ISOLATE": 1521, "ISOLATE_RET": 1521, "PUTBACK": 1521, "STEAL": 3, "REPORT_NOTIFY": 2930,
        "REPORT_PASS": 28, "REPORT_PASS_END": 28, "REPORT_CALL": 50, "REPORT_CALL_END": 50, "MARK": 30,
    }  # fmt: skip
    assert (trace.marks[0], trace.marks[-1]) == ("REC SNAP0", "REC SNAP1")
    assert trace.duration == pytest.approx(81.685699)
    orders = trace.events["order"][trace.events["event"] == Event.ALLOC]
    assert np.bincount(orders).tolist() == [19717, 28, 1, 0, 0, 0, 0, 0, 0, 2947]
    putback = trace.events[trace.events["event"] == Event.PUTBACK]
    assert int((1 << putback["order"].astype(int)).sum()) * 4096 == 5882511360
    assert trace.metadata == {"format": "ftrace", "entries_in_buffer": 74668, "entries_written": 74668, "cpus": 2}
    assert trace.reading == Reading(lines=74680)
    assert len(trace.lost) == 0


# ---- one recording in every form


@pytest.fixture(scope="module")
def recording():
    """Every event there is, of three kernels, and lost ones."""
    parts = [ph.traces.read(DATA / f"{name}.txt.gz") for name in ("ftrace-6.1", "ftrace-6.12", "ftrace-6.18-pipe")]
    whole = ph.traces.read(WHOLE)
    rare = np.isin(whole.events["event"], [Event.REPORT_NOTIFY, Event.REPORT_PASS_END])
    parts.append(Trace(whole.events[rare][:300], whole.names))
    failed = parts[0].events[parts[0].events["event"] == Event.ALLOC][:3].copy()
    failed["event"], failed["pfn"] = Event.ALLOC_FAILED, 2**64 - 1
    # The markers of all parts, one list; each pid has the name that it had last.
    marks = []
    for part in parts:
        part.events["value"][part.events["event"] == Event.MARK] += len(marks)
        marks += part.marks
    events = np.concatenate([part.events for part in parts] + [failed])
    events["time"] = np.arange(len(events)) * 1000
    names = {pid: names[-1:] for part in parts for pid, names in part.names.items()}
    trace = Trace(events, names, marks)
    assert set(trace.counts) == set(Event)
    return trace


def as_read(recording, form):
    """What the form does not tell is not there."""
    events = recording.events.copy()
    before = np.maximum(np.arange(len(events)) - 1, 0)
    lost = np.flatnonzero(events["event"] == Event.LOST)
    for at in lost:  # the time is that of the row before
        events["time"][at] = events["time"][before[at]]
    if form == "bpftrace":
        events["cpu"][lost] = 65535
    return events


@pytest.mark.parametrize("form", ["ftrace", "trace-cmd", "perf", "bpftrace"])
def test_a_recording_in_each_form(tmp_path, recording, form):
    path = tmp_path / "trace"
    path.write_text("".join(lines(recording, form)))
    trace = ph.traces.read(path)
    assert trace.reading.not_understood == 0, trace.reading.examples
    expected = as_read(recording, form)
    for name in EVENT_DTYPE.names:
        wrong = np.flatnonzero(trace.events[name] != expected[name])
        assert not len(wrong), (name, trace.events[wrong[0]], expected[wrong[0]])
    assert trace.marks == recording.marks
    seen = set(recording.events["pid"].tolist()) - {NO_PID}
    assert trace.names == {pid: names for pid, names in recording.names.items() if pid in seen}
    assert trace.metadata["format"] == {"trace-cmd": "ftrace"}.get(form, form)


@pytest.mark.parametrize("piece", [1, 7, 100, 4096])
def test_pieces_that_end_anywhere_in_a_line_and_of_few_rows(tmp_path, recording, monkeypatch, piece):
    path = tmp_path / "trace"
    path.write_text("".join(lines(Trace(recording.events[:300], recording.names, recording.marks), "ftrace")))
    whole = ph.traces.read(path)
    monkeypatch.setattr("pagehint.traces.formats.compression.PIECE", piece)
    monkeypatch.setattr("pagehint.traces.formats.text_source.PIECE_ROWS", 10)
    with PlainFile(path) as file:
        source = TextSource(file, "ftrace")
        pieces = list(source.pieces())
    assert {len(rows) for rows in pieces} == {10}
    same(Trace(np.concatenate(pieces), source.names, source.marks), whole)
    assert source.reading == whole.reading


# ---- compression, and damage


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, zstd], ids=["plain", "gz", "xz", "zst"])
def test_compression_is_seen_from_the_content(tmp_path, compress):
    plain = gzip.decompress((DATA / "ftrace-6.12.txt.gz").read_bytes())
    path = tmp_path / "a name that says nothing"
    path.write_bytes(compress(plain))
    whole = ph.traces.read(path)
    same(whole, ph.traces.read(DATA / "ftrace-6.12.txt.gz"))
    half = plain.index(b"\n", len(plain) // 2) + 1
    path.write_bytes(compress(plain[:half]) + compress(plain[half:]))  # two streams in one file
    same(ph.traces.read(path), whole)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd], ids=["gz", "xz", "zst"])
def test_a_cut_file_says_where_and_gives_what_is_before(tmp_path, compress):
    plain = gzip.decompress((DATA / "ftrace-6.12.txt.gz").read_bytes()) * 20
    path = tmp_path / "trace"
    path.write_bytes(compress(plain))
    size = path.stat().st_size
    whole = ph.traces.read(path).events
    path.write_bytes(compress(plain)[: size - 9])
    trace = ph.traces.read(path)
    assert f"{size - 9}" in trace.reading.damage
    assert "cut" in trace.reading.damage
    assert len(whole) / 2 < len(trace) <= len(whole)
    assert np.array_equal(trace.events, whole[: len(trace)])


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gz", "xz"])
def test_a_damaged_file_says_where(tmp_path, compress):
    """Also what follows the compressed stream."""
    plain = gzip.decompress((DATA / "ftrace-6.12.txt.gz").read_bytes())
    raw = bytearray(compress(plain))
    path = tmp_path / "trace"
    path.write_bytes(raw + b"garbage that is longer than a header would be")
    trace = ph.traces.read(path)
    assert trace.reading.damage.startswith(f"the {'gzip' if raw[0] == 31 else 'xz'} stream is damaged before byte")
    assert len(trace) == 1757
    path.write_bytes(raw + bytes(1000))  # as a tape pads it
    assert ph.traces.read(path).reading.damage is None
    raw[-6] ^= 1  # its checksum
    path.write_bytes(raw)
    assert "damaged before byte" in ph.traces.read(path).reading.damage


def test_the_last_line_was_left_out_without_a_newline(tmp_path):
    """It is used if it is understood, and that it may be cut is said: what was cut off may have been a digit."""
    plain = gzip.decompress((DATA / "ftrace-6.1.txt.gz").read_bytes()).rstrip(b"\n")
    path = tmp_path / "trace"
    path.write_bytes(plain)
    trace = ph.traces.read(path)
    assert len(trace) == 429
    assert trace.reading.damage.startswith("the last line has no end, and may be cut: b'")
    path.write_bytes(plain[: plain.rindex(b"\n") + 20])
    trace = ph.traces.read(path)
    assert (len(trace), trace.reading.not_understood) == (428, 1)
    assert trace.reading.damage.startswith("the last line has no end, and may be cut: b'")


def test_an_empty_file_was_said_to_begin_with_nothing(tmp_path):
    for name, data in (("trace", b""), ("trace.gz", gzip.compress(b""))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ph.traces.TraceError, match=rf"{name} is empty"):
            ph.traces.read(tmp_path / name)


def test_a_line_without_end_takes_no_memory(tmp_path):
    """300 MB of it, which compressed are small."""
    good = b"wl-1 [000] 5.000000: mm_page_free: pfn=0x1 order=0\n"
    path = tmp_path / "trace.gz"
    path.write_bytes(gzip.compress(good) + gzip.compress(b"x" * (100 << 20)) * 3 + gzip.compress(b"\n" + good))
    program = (
        "import resource, sys, pagehint as ph; ph.traces.read(sys.argv[2]); begin = resource.getrusage(0).ru_maxrss\n"
        "trace = ph.traces.read(sys.argv[1]); print(resource.getrusage(0).ru_maxrss - begin, len(trace),"
        " trace.reading.not_understood)"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", program, path, DATA / "ftrace-6.12.txt.gz"],
        capture_output=True,
        text=True,
        check=True,
    )
    more, rows, not_understood = map(int, run.stdout.split())
    assert (rows, not_understood) == (2, 1)
    assert more < 50_000  # KiB


# ---- what is no recording


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello\n", "no recording of a form that is known; it begins with b'hello"),
        (bytes(10000), "no recording of a form that is known"),
        (b"PERFILE2" + bytes(100), "perf script --show-lost-events -i"),
        (b"PAR1" + bytes(100), "damaged"),
        (b"# tracer: nop\n#\n", "has no event of the page allocator's: it is empty"),
        (b"# tracer: nop\na-1 [0] 1.0: sched_switch: x\n", "has no event of the page allocator's: 1 sched_switch"),
        (b"# tracer: nop\nnonsense\n", "has no event of the page allocator's: line 2: nonsense"),
        (gzip.compress(b"# tracer: nop\n" * 999, mtime=0)[:30], "no event|no recording"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, content, message):
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message) as error:
        ph.traces.read(path)
    assert str(path) in str(error.value)
    (tmp_path / "out").write_text("what was there")
    with pytest.raises(TraceError, match=message):
        ph.traces.convert(path, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "what was there"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "trace"]


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        ph.traces.read(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        ph.traces.convert(DATA / "ftrace-6.1.txt.gz", tmp_path / "no folder" / "out")
    with pytest.raises(IsADirectoryError):
        ph.traces.read(tmp_path)


# ---- Parquet


def test_a_trace_comes_back_from_parquet(tmp_path, recording):
    trace = Trace(recording.events.copy(), recording.names, recording.marks, {"format": "ftrace", "cpus": 2})
    trace.events["time"][5] += 123  # nanoseconds are kept
    trace.snapshots = {"before": bytes(range(256)) * 10, "after": b""}
    trace.reading = Reading(5, {"sched": 3}, 2, ("line 1: x",), 4, "cut")
    trace.to_parquet(tmp_path / "t.parquet")
    again = ph.traces.read(tmp_path / "t.parquet")
    same(again, trace)
    assert (again.metadata, again.reading) == (trace.metadata, trace.reading)
    assert again.events.flags.writeable
    trace.to_parquet(tmp_path / "t.parquet")  # over what is there
    empty = Trace(np.zeros(0, EVENT_DTYPE))
    empty.to_parquet(tmp_path / "empty.parquet")
    same(ph.traces.read(tmp_path / "empty.parquet"), empty)


def test_converting_gives_what_reading_gives(tmp_path):
    for path in sorted(DATA.glob("*.txt.gz")):
        reading = ph.traces.convert(path, tmp_path / "t.parquet", snapshots={"before": b"state"})
        again, trace = ph.traces.read(tmp_path / "t.parquet"), ph.traces.read(path)
        assert again.snapshots == {"before": b"state"}
        again.snapshots = {}
        same(again, trace)
        assert (reading, again.reading, again.metadata) == (trace.reading, trace.reading, trace.metadata)
    ph.traces.convert(tmp_path / "t.parquet", tmp_path / "t.parquet")  # to itself: the snapshots stay
    assert ph.traces.read(tmp_path / "t.parquet").snapshots == {"before": b"state"}
    ph.traces.convert(tmp_path / "t.parquet", tmp_path / "u.parquet", snapshots={})
    same(ph.traces.read(tmp_path / "u.parquet"), trace)


def test_other_programs_see_a_table(tmp_path, recording):
    trace = Trace(recording.events.copy())
    trace.to_parquet(tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert np.array_equal(table["pfn"], trace.events["pfn"])
    assert np.array_equal(table["time"].to_numpy() * 1000 + table["nanoseconds"].to_numpy(), trace.events["time"])
    column = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0).column(0)
    assert (column.path_in_schema, column.compression) == ("time", "ZSTD")
    assert "DELTA_BINARY_PACKED" in column.encodings


def test_a_recording_takes_less_than_a_byte_an_event_where_memory_is_used_much(tmp_path):
    """A process that maps and unmaps 16 MiB a hundred times, as the kernel's events tell it."""
    rng = np.random.default_rng(1)
    pfns = np.concatenate([np.arange(start, start + 4096) for start in rng.integers(0, 2**20, 100)])
    events = np.zeros(2 * len(pfns), EVENT_DTYPE)
    events["pfn"] = np.concatenate([(each, each) for each in pfns.reshape(100, 4096)]).reshape(-1)
    events["event"] = np.tile(np.repeat([Event.ALLOC, Event.FREE], 4096), 100)
    events["time"] = np.cumsum(rng.integers(1, 4, len(events))) * 1000
    Trace(events).to_parquet(tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < len(events)


def stored_in(path):
    return pq.read_metadata(path).metadata


def rewritten(tmp_path, **header):
    """A file of pagehint's with another header."""
    stored = json.loads(stored_in(WHOLE)[KEY]) | header
    table = pq.read_table(WHOLE)
    path = tmp_path / "t.parquet"
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(stored)}), path)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": VERSION + 1}, f"is of version {VERSION + 1}; this pagehint reads up to {VERSION}"),
        ({"version": "x"}, "damaged: its metadata"),
        ({"rows": 5}, "its rows are not those"),
        ({"names": 3}, "damaged: its metadata"),
        ({"names": {"x": ["y"]}}, "damaged: its metadata"),
        ({"marks": []}, "a marker has no text"),
        ({"reading": {"lines": 3}}, "damaged: its metadata"),
        ({"reading": {**asdict(Reading()), "more": 3}}, "damaged: its metadata"),
    ],
)
def test_parquet_metadata_that_is_wrong_is_refused(tmp_path, header, message):
    with pytest.raises(TraceError, match=message):
        ph.traces.read(rewritten(tmp_path, **header))


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def with_value(table, name, value):
    """One value in the middle of a column is another."""
    values = table.column(name).to_numpy().copy()
    values[len(values) // 2] = value
    return with_column(table, name, pa.array(values))


def with_header(table, old, new):
    stored = table.schema.metadata
    assert old in stored[KEY]
    return table.replace_schema_metadata({**stored, KEY: stored[KEY].replace(old, new)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["pfn"]), "its columns or its rows"),
        (lambda table: table.slice(5), "its columns or its rows"),
        (lambda table: with_column(table, "event", pa.array(np.full(len(table), 22, "u1"))), "column event has 22"),
        (lambda table: with_column(table, "event", pa.array(np.zeros(len(table), "u1"))), "column event has 0"),
        (lambda table: with_column(table, "pfn", pa.array(np.zeros(len(table), "i4"))), "column pfn .* int32"),
        (lambda table: with_column(table, "pfn", pa.nulls(len(table), pa.uint64())), "column pfn has nulls"),
        (lambda table: with_column(table, "pfn", pa.array(["x"] * len(table))), "column pfn .* string"),
        (lambda table: with_value(table, "time", -1), "column time has -1"),
        (lambda table: with_value(table, "time", 2**63 // 1000), "column time has 9223372036854775"),
        (lambda table: with_value(table, "nanoseconds", 1000), "column nanoseconds has 1000"),
        (lambda table: with_value(table, "pfn", 2**52), "column pfn has 4503599627370496"),
        (lambda table: with_value(table, "order", 64), "column order has 64"),
        (lambda table: with_value(table, "order", -2), "column order has -2"),
        (lambda table: with_value(table, "fallback_order", 127), "column fallback_order has 127"),
        (lambda table: with_value(table, "migratetype", -5), "column migratetype has -5"),
        (lambda table: with_value(table, "fallback_migratetype", -128), "column fallback_migratetype has -128"),
        (lambda table: with_value(table, "pid", -2), "column pid has -2"),
        (lambda table: with_header(table, b'"cpus": 2', b'"cpus": "x"'), "damaged: its metadata"),
        (lambda table: with_header(table, b'"cpus": 2', b'"cpus": -7'), "damaged: its metadata"),
        (lambda table: with_header(table, b'"cpus": 2', b'"cpus": [1]'), "damaged: its metadata"),
        (lambda table: with_header(table, b'"cpus": 2', b'"entries_written": "x"'), "damaged: its metadata"),
        (lambda table: table.replace_schema_metadata({}), "pagehint has not written it"),
        (lambda table: table.replace_schema_metadata({KEY: b"{"}), "damaged: its metadata"),
        (
            lambda table: table.replace_schema_metadata({**table.schema.metadata, b"pagehint.snapshot.x": b"!"}),
            "damaged: its metadata",
        ),
    ],
)
def test_parquet_of_another_form_is_refused(tmp_path, change, message):
    path = tmp_path / "t.parquet"
    metadata = {key: value for key, value in stored_in(WHOLE).items() if key.startswith(b"pagehint")}
    pq.write_table(change(pq.read_table(WHOLE).replace_schema_metadata(metadata)), path)
    with pytest.raises(TraceError, match=message) as error:
        ph.traces.read(path)
    assert str(path) in str(error.value)


def test_a_damaged_parquet_file_is_refused(tmp_path):
    whole = WHOLE.read_bytes()
    path = tmp_path / "t.parquet"
    for cut in (4, 1000, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(TraceError, match="damaged"):
            ph.traces.read(path)
    rng = np.random.default_rng(2)
    for at in rng.integers(4, len(whole) - 4000, 40):  # in the pages, which have checksums
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(TraceError, match="damaged"):
            ph.traces.read(path)


def test_snapshots_are_text_in_the_file(tmp_path):
    trace = Trace(np.zeros(0, EVENT_DTYPE), snapshots={"before": b"\x00\xff"})
    trace.to_parquet(tmp_path / "t.parquet")
    assert stored_in(tmp_path / "t.parquet")[b"pagehint.snapshot.before"] == base64.b64encode(b"\x00\xff")


@pytest.mark.parametrize(("call", "what"), [("read(sys.argv[1])", "is Parquet"), ("read(sys.argv[2])", "zstd"),
                                             ("convert(sys.argv[3], '/tmp/x')", "Parquet")])  # fmt: skip
def test_without_pyarrow_the_error_names_the_extra(tmp_path, call, what):
    compressed = tmp_path / "trace.zst"
    compressed.write_bytes(zstd(b"# tracer: nop\n"))
    program = f"import sys; sys.modules['pyarrow'] = None; import pagehint as ph; ph.traces.{call}"
    paths = [WHOLE, compressed, DATA / "ftrace-6.1.txt.gz"]
    run = subprocess.run([sys.executable, "-P", "-c", program, *paths], capture_output=True, text=True)
    assert run.returncode == 1
    assert what in run.stderr
    assert "pip install 'pagehint[traces]'" in run.stderr
    assert issubclass(TraceError, PageHintError)


def test_the_script_for_bpftrace_is_installed_and_writes_what_is_read():
    script = (Path(ph.traces.__file__).parent / "record.bt").read_text()
    assert f'printf("{BPFTRACE_HEADER.decode()}\\n")' in script
    events = {name for name in KERNEL_EVENTS if name.startswith("mm_")}
    assert set(re.findall(r"^tracepoint:kmem:(\w+)$", script, re.MULTILINE)) == events
    assert set(re.findall(r"%09llu: (\w+): pfn=0x%llx", script)) == events


def test_importing_pagehint_does_not_import_traces():
    program = (
        "import sys, pagehint as ph; assert 'pagehint.traces' not in sys.modules; assert ph.traces.read; ph.nothing"
    )
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert "AttributeError: module 'pagehint' has no attribute 'nothing'" in run.stderr
