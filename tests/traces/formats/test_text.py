"""Lines of tracers: each kind of line as it was seen, what must not be taken for another, and any bytes at all."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given
from tracer_lines import row_of

import pagehint as ph
from pagehint.traces import EVENT_DTYPE, NO_CPU, NO_PFN, NO_PID, Event, Flag
from pagehint.traces.formats.text import LineParser

HEADER = "# tracer: nop\n"


def read(tmp_path, text, header=HEADER):
    path = tmp_path / "trace.txt"
    path.write_bytes(header.encode() + (text if isinstance(text, bytes) else text.encode()))
    return ph.traces.read(path)


def one(tmp_path, line, header=HEADER):
    trace = read(tmp_path, line + "\n", header)
    assert trace.reading.not_understood == 0, trace.reading
    [row] = trace.events.tolist()
    return row


# Lines of the kernels that were recorded, 6.1 and 6.12.
SEEN = {
    "rec-109     [001] .....     7.976191: mm_page_alloc: page=ffffea000016af00 pfn=0x5abc order=1 migratetype=0 "
    "gfp_flags=GFP_KERNEL_ACCOUNT|__GFP_ZERO": row_of(
        Event.ALLOC, time=7976191000, pid=109, cpu=1, pfn=0x5ABC, order=1, migratetype=0
    ),
    "init-1      [000] .....     2.137885: mm_page_alloc: page=(____ptrval____) pfn=0x600e order=1 migratetype=2 "
    "gfp_flags=0": row_of(Event.ALLOC, time=2137885000, pfn=0x600E, order=1, migratetype=2),
    "workload_pressu-110 [000] ...1.  7.981513: mm_page_free: page=0000000035896bfa pfn=0xc764 order=9": row_of(
        Event.FREE, time=7981513000, pid=110, pfn=0xC764, order=9
    ),
    "wl-110 [000] ...2.  7.982105: mm_page_free_batched: page=ffffea00000a7a80 pfn=0x29ea order=0": row_of(
        Event.FREE_BATCHED, time=7982105000, pid=110, pfn=0x29EA, order=0
    ),
    "wl-114 [000] d..3. 14.091016: mm_page_alloc_zone_locked: page=ffffea0000335280 pfn=0xcd4a order=0 migratetype=1 "
    "percpu_refill=1": row_of(
        Event.ZONE_LOCKED,
        time=14091016000,
        pid=114,
        pfn=0xCD4A,
        order=0,
        migratetype=1,
        flags=Flag.PERCPU_REFILL,
    ),
    "wl-114 [000] d..3. 14.091016: mm_page_alloc_zone_locked: page=ffffea0000335280 pfn=0xcd4a order=4 "
    "migratetype=1": row_of(  # before Linux 5.19
        Event.ZONE_LOCKED, time=14091016000, pid=114, pfn=0xCD4A, order=4, migratetype=1
    ),
    "wl-114 [000] d..3. 17.999927: mm_page_pcpu_drain: page=ffffea0000ea3580 pfn=0x3a8d6 order=0 migratetype=1": row_of(
        Event.PCPU_DRAIN, time=17999927000, pid=114, pfn=0x3A8D6, order=0, migratetype=1
    ),
    "wl-114 [000] d..3. 14.728478: mm_page_alloc_extfrag: page=ffffea0000380000 pfn=0xe000 alloc_order=0 "
    "fallback_order=10 pageblock_order=9 alloc_migratetype=0 fallback_migratetype=1 fragmenting=0 "
    "change_ownership=1": row_of(
        Event.EXTFRAG,
        time=14728478000,
        pid=114,
        pfn=0xE000,
        order=0,
        migratetype=0,
        fallback_order=10,
        fallback_migratetype=1,
        value=9,
        flags=Flag.CHANGE_OWNERSHIP,
    ),
    "kworker/1:2-106 [001] ..... 10.025157: kp_report_pass: (page_reporting_process+0x0/0x570)": row_of(
        Event.REPORT_PASS, time=10025157000, pid=106, cpu=1
    ),
    "kworker/1:2-106 [001] d..1. 10.025520: kp_isolate: (__isolate_free_page+0x0/0x2b0) pfn=53760 order=9": row_of(
        Event.ISOLATE, time=10025520000, pid=106, cpu=1, pfn=53760, order=9
    ),
    "kworker/1:2-106 [001] d..1. 10.025942: kp_isolate_ret: (page_reporting_process+0x2a1/0x570 <- "
    "__isolate_free_page) ret=512": row_of(
        Event.ISOLATE_RET, time=10025942000, pid=106, cpu=1, value=512, flags=Flag.BY_REPORTING
    ),
    "kcompactd0-34 [001] d..1. 20.938783: kp_isolate_ret: (isolate_freepages_block+0x261/0x410 <- "
    "__isolate_free_page) ret=8": row_of(
        Event.ISOLATE_RET, time=20938783000, pid=34, cpu=1, value=8, flags=Flag.BY_COMPACTION
    ),
    "wl-34 [001] d..1. 20.938783: kp_isolate_ret: (compaction_alloc+0x50d/0xf60 <- __isolate_free_page) ret=0": row_of(
        Event.ISOLATE_RET, time=20938783000, pid=34, cpu=1, flags=Flag.BY_COMPACTION
    ),
    "wl-34 [001] d..1. 20.938783: kp_isolate_ret: (isolate_freepages_range+0x5/0xf <- __isolate_free_page) "
    "ret=1": row_of(Event.ISOLATE_RET, time=20938783000, pid=34, cpu=1, value=1, flags=Flag.BY_OTHER),
    "wl-34 [001] d..1. 20.938783: kp_isolate_ret: (ffffffff812a1bc0 <- ffffffff81234567) ret=1": row_of(
        Event.ISOLATE_RET, time=20938783000, pid=34, cpu=1, value=1
    ),
    "kworker/1:2-106 [001] ..... 10.026422: kp_report_call: (virtballoon_free_page_report+0x0/0x120 "
    "[virtio_balloon]) nents=32": row_of(Event.REPORT_CALL, time=10026422000, pid=106, cpu=1, value=32),
    "kworker/1:2-106 [001] ..... 10.028979: kp_report_call_end: (page_reporting_process+0x237/0x570 <- "
    "virtballoon_free_page_report) ret=-5": row_of(Event.REPORT_CALL_END, time=10028979000, pid=106, cpu=1, value=-5),
    "kworker/1:2-106 [001] d..1. 10.029039: kp_putback: (__putback_isolated_page+0x0/0x50) pfn=117760 order=10 "
    "mt=1": row_of(Event.PUTBACK, time=10029039000, pid=106, cpu=1, pfn=117760, order=10, migratetype=1),
    "kworker/1:2-106 [001] ..... 10.031345: kp_report_pass_end: (process_one_work+0x1c7/0x380 <- "
    "page_reporting_process)": row_of(Event.REPORT_PASS_END, time=10031345000, pid=106, cpu=1),
    "wl-114 [000] d..3. 18.319734: kp_report_notify: (__page_reporting_notify+0x0/0x50)": row_of(
        Event.REPORT_NOTIFY, time=18319734000, pid=114
    ),
    "wl-114 [000] d.Z2. 17.972413: kp_free_direct: (free_one_page.constprop.0+0x57/0xf0) pfn=0xe10c order=0 mt=0 "
    "fpi=2": row_of(Event.FREE_DIRECT, time=17972413000, pid=114, pfn=0xE10C, order=0, migratetype=0, value=2),
    "wl-158 [001] d.Z3.    18.308529: kp_free_direct: (free_one_page+0x42/0x80) pfn=0xbf99 order=0 fpi=0": row_of(
        Event.FREE_DIRECT, time=18308529000, pid=158, cpu=1, pfn=0xBF99, order=0
    ),
    "workload_pressu-110 [000] ...2.  7.987933: kp_bulk_alloc: (__alloc_pages_bulk+0x305/0x6b0) pfn=261860": row_of(
        Event.BULK_ALLOC, time=7987933000, pid=110, pfn=261860, order=0
    ),
    "wl-114 [000] d..3. 14.727714: kp_steal: (steal_suitable_fallback+0x0/0x320) pfn=57344 alloc_flags=0x801 "
    "start_type=0 whole_block=1": row_of(
        Event.STEAL, time=14727714000, pid=114, pfn=57344, value=0x801, migratetype=0, flags=Flag.WHOLE_BLOCK
    ),
    "wl-118 [000] d..3. 21.066553: kp_move_block: (move_freepages_block+0x0/0x250) pfn=239808 new_mt=0": row_of(
        Event.MOVE_BLOCK, time=21066553000, pid=118, pfn=239808, migratetype=0
    ),
    "kworker/1:0-28 [001] d..1. 10.453782: kp_move_block: (__move_freepages_block+0x0/0x210) pfn=0xc200 old_mt=0 "
    "new_mt=1": row_of(
        Event.MOVE_BLOCK, time=10453782000, pid=28, cpu=1, pfn=0xC200, migratetype=1, fallback_migratetype=0
    ),
    "rec-109 [001] .....     7.974594: tracing_mark_write: REC SNAP0": row_of(
        Event.MARK, time=7974594000, pid=109, cpu=1
    ),
}


@pytest.mark.parametrize(("line", "row"), SEEN.items())
def test_lines_that_were_seen(tmp_path, line, row):
    assert one(tmp_path, line) == row
    assert one(tmp_path, "   " + line + "\r") == row


ALLOC = "mm_page_alloc: page=ffffea0000000040 pfn=0x1 order=0 migratetype=0 gfp_flags=0"


@pytest.mark.parametrize(
    "name",
    ["Web Content", "a-b-1", "kworker/u8:1-ev", ".hidden.", "x [001] y", "a-1 [000] b", "[3]", "<idle>",
     "mm_page_free:", "1.5: kp_steal:", "ü", "-"],
)  # fmt: skip
def test_names_of_processes_hold_anything(tmp_path, name):
    """Two lines: a name that is known is compared with."""
    line = f"{name:>16}-77   [001] d..1. 5.000001: {ALLOC}\n"
    trace = read(tmp_path, line + line)
    assert (
        trace.events.tolist()
        == [row_of(Event.ALLOC, time=5000001000, pid=77, cpu=1, pfn=1, order=0, migratetype=0)] * 2
    )
    assert trace.names == {77: (name.strip(),)}
    perf = read(tmp_path, f"{name:>16}    77 [001] 5.000001: kmem:{ALLOC}\n" * 2, "")
    assert perf.events.tolist() == trace.events.tolist()
    assert (perf.names, perf.metadata["format"]) == (trace.names, "perf")


def test_a_pid_can_have_several_names(tmp_path):
    names = ["init", "sh", "<...>", "init", "a name that is longer than what the kernel keeps", "sh"]
    trace = read(tmp_path, "".join(f"{name}-7 [000] 5.000001: {ALLOC}\n" for name in names))
    assert trace.names == {7: ("init", "sh", names[4])}
    assert len(trace) == 6


@pytest.mark.parametrize("pid", [3, 3 + 65536])
def test_pids_that_share_a_slot_keep_their_names(tmp_path, pid):
    text = "".join(f"n{pid}-{pid} [000] 1.0: {ALLOC}\n" for pid in [3, 65539, 3, 65539])
    assert read(tmp_path, text).names[pid] == (f"n{pid}",)


def test_the_columns_that_options_of_tracers_add_or_take_away(tmp_path):
    row = row_of(Event.ALLOC, time=5000001000, pid=77, cpu=1, pfn=1, order=0, migratetype=0)
    assert one(tmp_path, f"wl-77   (     66) [001] d..1. 5.000001: {ALLOC}") == row  # record-tgid
    assert one(tmp_path, f"wl-77   (-------) [001] d..1. 5.000001: {ALLOC}") == row
    assert one(tmp_path, f"wl-77   [001] 5.000001: {ALLOC}") == row  # noirq-info
    assert one(tmp_path, f"wl-77   [001] 5.000001: {ALLOC}", "") == row
    assert one(tmp_path, f"wl 66/77 [001] 5.000001: kmem:{ALLOC}", "") == row  # perf script -F pid,tid
    nanoseconds = one(tmp_path, f"wl-77   [001] 5.000001234: {ALLOC}")  # trace-cmd report -t
    assert nanoseconds[0] == 5000001234
    perf = read(tmp_path, f"wl 77 [001] 5.0: kmem:{ALLOC}\n:-1    -1 [001] 5.0: kmem:{ALLOC}\n", "")
    assert perf.events["pid"].tolist() == [77, NO_PID]
    assert perf.names == {77: ("wl",)}


@pytest.mark.parametrize(
    "page",
    ["page=0000000000000000 pfn=0x0", "page=(null) pfn=0", "page=(nil) pfn=0x0", "page=0x0 pfn=0",
     "page=          (null) pfn=0", "page=NULL pfn=0x0",
     "pfn=0xffffffffffffffff", "pfn=18446744073709551615", "page=0000000000000000 pfn=-1"],
)  # fmt: skip
def test_a_failed_allocation_is_an_event_of_its_own(tmp_path, page):
    row = one(tmp_path, f"wl-1 [000] 1.000000: mm_page_alloc: {page} order=9 migratetype=1 gfp_flags=GFP_ATOMIC")
    assert row == row_of(Event.ALLOC_FAILED, time=10**9, pfn=NO_PFN, order=9, migratetype=1)


def test_a_genuine_pfn_0_is_a_page(tmp_path):
    row = one(tmp_path, "wl-1 [000] 1.0: mm_page_alloc: page=00000000e1145ce2 pfn=0x0 order=0 migratetype=1")
    assert row == row_of(Event.ALLOC, time=10**9, pfn=0, order=0, migratetype=1)
    assert one(tmp_path, "wl-1 [000] 1.0: mm_page_alloc: pfn=0x0 order=0 migratetype=1") == row


@pytest.mark.parametrize(
    ("line", "cpu", "count"),
    [
        ("CPU:1 [LOST 123 EVENTS]", 1, 123),
        ("CPU:0 [LOST EVENTS]", 0, 0),
        ("CPU:3 [77 EVENTS DROPPED]", 3, 77),
        ("CPU:3 [EVENTS DROPPED]", 3, 0),
        ("##### CPU 1 buffer started ####", 1, 0),
        ("Lost 12 events", NO_CPU, 12),
        (f"CPU:{10**8} [LOST {10**17} EVENTS]", NO_CPU, 2**31 - 1),
        ("            perf 15004 [001] 28846.010267: PERF_RECORD_LOST lost 119", 1, 119),
        ("            perf 15004 [001] 28846.010267: PERF_RECORD_LOST_SAMPLES lost 119", 1, 119),
    ],
)
def test_lost_events_are_rows_where_they_are_missing(tmp_path, line, cpu, count):
    event = f"wl-1 [000] 5.000000: {ALLOC}\n"
    trace = read(tmp_path, f"{line}\n{event}{line}\n{event}")
    assert trace.events["event"].tolist() == [Event.LOST, Event.ALLOC] * 2
    assert trace.lost.tolist() == [row_of(Event.LOST, time=5 * 10**9, pid=NO_PID, cpu=cpu, value=count)] * 2
    assert trace.reading.not_understood == 0


def test_what_is_known_and_no_event_is_passed_over(tmp_path):
    trace = read(
        tmp_path,
        "#\n# entries-in-buffer/entries-written: 5/77   #P:2\n#  TASK-PID\n\n"
        "cpus=2\nversion = 7\nAttaching 7 probes...\n"
        f"wl-1 [000] 5.000000: {ALLOC}\n"
        "wl-1 [000] 5.000000: sched_switch: prev_comm=a prev_pid=1\n"
        "wl-1 [000] 5.000000: kernel_stack: <stack trace>\n => __alloc_pages\n => do_exit+0x33/0x55\n"
        "\tffffffff81234567 __alloc_pages+0x55 ([kernel.kallsyms])\n",
    )
    assert len(trace) == 1
    assert trace.metadata == {"format": "ftrace", "entries_in_buffer": 5, "entries_written": 77, "cpus": 2}
    assert trace.reading.not_understood == 0
    assert trace.reading.other_events == {"calls of stacks": 3, "sched_switch": 1, "kernel_stack": 1}


BAD = [
    "nonsense",
    f"wl [000] 5.000000: {ALLOC}",
    f"wl-1 000 5.000000: {ALLOC}",
    f"wl-1 [] 5.000000: {ALLOC}",
    f"wl-1 [65535] 5.000000: {ALLOC}",
    f"wl-99999999999 [000] 5.000000: {ALLOC}",
    f"wl-1 [000] 5000000: {ALLOC}",  # a clock that counts no seconds
    f"wl-1 [000] 9223372036.0: {ALLOC}",
    f"wl-1 [000] 18446744073709551617.0: {ALLOC}",
    f"wl-1 [000] 5.1234567890: {ALLOC}",
    "wl-1 [000] 5.000000: mm_page_alloc pfn=0x1 order=0",
    "wl-1 [000] 5.000000: mm_page_alloc:",
    "wl-1 [000] 5.000000: mm_page_alloc: order=0 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=0x1 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=0x1 order=64 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=0x1 order=-1 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=0x1 order=4294967296 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=0x1 order=0 migratetype=128",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=0x10000000000000 order=0 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=0x10000000000000001 order=0 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=18446744073709551616 order=0 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=0x order=0 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=0x1z order=0 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn= order=0 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_alloc: pfn=0x1 pfn=0x2 order=0 migratetype=0",
    "wl-1 [000] 5.000000: mm_page_free: page=0000000000000000 pfn=0x0 order=0",
    "wl-1 [000] 5.000000: kp_isolate: (f+0x0/0x1) order=9",
]


@pytest.mark.parametrize("line", BAD)
def test_a_line_that_is_not_understood_is_counted_and_shown(tmp_path, line):
    good = f"wl-1 [000] 5.000000: {ALLOC}\n"
    trace = read(tmp_path, f"{good}{line}\n{good}")
    assert len(trace) == 2
    assert trace.reading.not_understood == 1
    assert trace.reading.examples == (f"line 3: {line}",)


def test_only_the_first_lines_that_are_not_understood_are_kept(tmp_path):
    good = f"wl-1 [000] 5.000000: {ALLOC}\n"
    trace = read(tmp_path, good + "".join(f"line {i}, {'x' * 1000}\n" for i in range(2000)))
    assert trace.reading.not_understood == 2000
    assert len(trace.reading.examples) == 5
    assert all(len(line) < 200 for line in trace.reading.examples)


def test_names_of_other_events_do_not_fill_the_memory(tmp_path):
    good = f"wl-1 [000] 5.000000: {ALLOC}\n"
    trace = read(tmp_path, good + "".join(f"wl-1 [000] 5.000000: event{i}: x\n" for i in range(3000)))
    assert sum(trace.reading.other_events.values()) == 3000
    assert len(trace.reading.other_events) == 1001
    assert trace.reading.other_events["..."] == 2000


def test_times_that_go_back_are_counted(tmp_path):
    times = ["5.000000", "5.000001", "5.000000", "5.000000", "4.999999", "6.000000"]
    trace = read(tmp_path, "".join(f"wl-1 [000] {time}: {ALLOC}\n" for time in times))
    assert trace.reading.backwards == 2


def test_bpftrace_lines_are_sorted_by_time_and_each_cpu_keeps_its_order(tmp_path):
    rng = np.random.default_rng(3)
    time = np.sort(rng.integers(0, 10**6, 700_000))  # more rows than wait at a time
    cpu = rng.integers(0, 4, len(time))
    text = []
    for begin in range(0, len(time), 50_000):
        for number in range(4):
            which = np.flatnonzero(cpu[begin : begin + 50_000] == number) + begin
            text += [
                f"wl-1 [{number:03}] {t // 10**9}.{t % 10**9:09}: mm_page_free: pfn={i} order=0\n"
                for i, t in zip(which.tolist(), time[which].tolist(), strict=True)
            ]
    trace = read(tmp_path, "".join(text), "Attaching 7 probes...\n# pagehint record.bt 1\n")
    assert trace.metadata["format"] == "bpftrace"
    assert trace.events["time"].tolist() == time.tolist()
    assert sorted(trace.events["pfn"].tolist()) == list(range(len(time)))
    assert trace.reading.backwards == 0
    for number in range(4):
        assert np.all(np.diff(trace.events["pfn"][trace.events["cpu"] == number].astype("i8")) > 0)


def test_bpftrace_lines_that_come_far_too_late_are_counted(tmp_path):
    late = "wl-1 [000] 0.000000001: mm_page_free: pfn=1 order=0\n"
    text = [f"wl-1 [000] 1.{t:09}: mm_page_free: pfn={t} order=0\n" for t in range(600_000)]
    trace = read(tmp_path, "".join(text) + late, "# pagehint record.bt 1\n")
    assert trace.reading.backwards == 1
    assert len(trace) == 600_001


# ---- any bytes

PIECES = st.lists(
    st.one_of(
        st.sampled_from([line.encode() for line in [*SEEN, *BAD]]),
        st.sampled_from([b"\n", b" ", b"[", b"]", b"[000]", b"-1", b"(", b")", b": ", b"=", b"pfn=0x", b"9" * 30,
                         b"f" * 30, b"\0", b"\r\n", b"order=", b"mm_page_alloc:", b"1.5:", b"kp_isolate_ret: (",
                         b"<-", b"\xff", b"-1 [1] 1.5:", b"\t", b"page=", b"CPU:0 [LOST 1 EVENTS]"]),
        st.binary(max_size=40),
    ),
    max_size=30,
)  # fmt: skip


def parsed(text, perf, room=7):
    """Parse in little pieces; return the rows and all stops, and see that nothing is written beyond the rows."""
    parser = LineParser(perf)
    out = np.empty(room + 1, EVENT_DTYPE)
    guard = bytes(range(32))
    rows, stops, begin = [], [], 0
    while begin < len(text):
        out[room:] = np.frombuffer(guard, EVENT_DTYPE)
        begin, row, what, subject, detail = parser.parse(text, begin, out[:room].view(np.uint8), 0)
        assert row <= room
        assert out[room:].tobytes() == guard
        rows += out[:row].tolist()
        stops.append((what, subject, detail))
        if what == "end":
            break
    return rows, stops


@given(PIECES, st.booleans())
@example([b"(wl-1 [0"], False)
@example([b"-1) [1] 1.5: mm_page_alloc:\n"], False)
def test_no_text_makes_a_row_that_cannot_be(pieces, perf):
    text = b"".join(pieces)
    rows, stops = parsed(text, perf)
    for row in np.array(rows, EVENT_DTYPE):
        assert row["event"] in set(Event) - {Event.LOST}
        assert row["time"] >= 0
        assert row["pfn"] < 2**52 or row["pfn"] == NO_PFN
        assert -1 <= row["order"] < 64
        assert row["pid"] >= NO_PID
    for what, subject, _ in stops:
        assert what in {"end", "full", "name", "mark", "event", "line"}
        assert subject in text
    whole = text[: text.rfind(b"\n") + 1]
    assert parsed(whole, perf, room=1000)[0] == rows


@given(st.lists(st.sampled_from([line.encode() for line in SEEN]), min_size=1, max_size=40), st.data())
def test_lines_cut_anywhere_make_no_row(lines, data):
    """A prefix of the text makes a prefix of the rows."""
    text = b"".join(line + b"\n" for line in lines)
    rows, _ = parsed(text, False)
    assert len(rows) == len(lines)
    cut = data.draw(st.integers(0, len(text)))
    fewer, _ = parsed(text[:cut], False)
    assert fewer == rows[: text[:cut].count(b"\n")]


def test_calls_that_would_read_or_write_elsewhere_are_refused():
    parser = LineParser(False)
    out = np.empty(4, EVENT_DTYPE).view(np.uint8)
    for begin, row in ((9, 0), (0, 4), (0, 2**60)):
        with pytest.raises(ValueError, match="no text to parse, or no row"):
            parser.parse(b"wl-1 [0]", begin, out, row)
    with pytest.raises((OverflowError, TypeError)):
        parser.parse(b"", -1, out, 0)
    with pytest.raises(ValueError, match="no row"):
        parser.parse(b"", 0, out[:0], 0)
    with pytest.raises(TypeError):
        parser.parse("text", 0, out, 0)
    readonly = out.copy()
    readonly.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        parser.parse(b"", 0, readonly, 0)
