"""Rows of a recording as lines of text, in the forms of the tracers: what the readers take apart, put together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pagehint.traces import NO_CPU, NO_ORDER, NO_TYPE, Event, Flag, Trace
from pagehint.traces.events import KERNEL_EVENTS

NAMES = {event: name for name, event in KERNEL_EVENTS.items()} | {Event.ALLOC_FAILED: "mm_page_alloc"}
CALLERS = {
    Flag.BY_REPORTING: "page_reporting_process",
    Flag.BY_COMPACTION: "isolate_freepages_block",
    Flag.BY_OTHER: "split_free_page",
    Flag(0): "ffffffff81234567",
}
BY = Flag.BY_REPORTING | Flag.BY_COMPACTION | Flag.BY_OTHER
PFN_KEYS = {Event.ISOLATE, Event.PUTBACK, Event.BULK_ALLOC, Event.STEAL}  # which print it as a decimal


def fields(row: np.void, marks: list[str]) -> str:
    """What stands behind the colon, as the kernel prints it."""
    event, flags = Event(row["event"]), Flag(int(row["flags"]))
    pfn, order, value = int(row["pfn"]), int(row["order"]), int(row["value"])
    mt, old_mt = int(row["migratetype"]), int(row["fallback_migratetype"])
    place = "(function+0x0/0x50)"
    page = f"page=ffffea{pfn % 2**32 * 64:010x} pfn={pfn:#x}"
    match event:
        case Event.ALLOC:
            return f"{page} order={order} migratetype={mt} gfp_flags=GFP_KERNEL|__GFP_ZERO"
        case Event.ALLOC_FAILED:
            return f"page={0:016x} pfn=0x0 order={order} migratetype={mt} gfp_flags=GFP_ATOMIC"
        case Event.FREE | Event.FREE_BATCHED:
            return f"{page} order={order}"
        case Event.ZONE_LOCKED:
            refill = int(Flag.PERCPU_REFILL in flags)
            return f"{page} order={order} migratetype={mt} percpu_refill={refill}"
        case Event.PCPU_DRAIN:
            return f"{page} order={order} migratetype={mt}"
        case Event.EXTFRAG:
            return (
                f"{page} alloc_order={order} fallback_order={row['fallback_order']} pageblock_order={value}"
                f" alloc_migratetype={mt} fallback_migratetype={old_mt} fragmenting={int(Flag.FRAGMENTING in flags)}"
                f" change_ownership={int(Flag.CHANGE_OWNERSHIP in flags)}"
            )
        case Event.BULK_ALLOC:
            return f"{place} pfn={pfn}"
        case Event.FREE_DIRECT:
            return f"{place} pfn={pfn:#x} order={order}{f' mt={mt}' if mt != NO_TYPE else ''} fpi={value}"
        case Event.ISOLATE:
            return f"{place} pfn={pfn} order={order}"
        case Event.ISOLATE_RET:
            return f"({CALLERS[flags & BY]}+0x2a1/0x570 <- __isolate_free_page) ret={value}"
        case Event.PUTBACK:
            return f"{place} pfn={pfn} order={order} mt={mt}"
        case Event.STEAL:
            whole = int(Flag.WHOLE_BLOCK in flags)
            return f"{place} pfn={pfn} alloc_flags={value:#x} start_type={mt} whole_block={whole}"
        case Event.MOVE_BLOCK:
            old = f" old_mt={old_mt}" if old_mt != NO_TYPE else ""
            return f"{place} pfn={pfn:#x}{old} new_mt={mt}"
        case Event.REPORT_CALL:
            return f"{place} nents={value}"
        case Event.REPORT_CALL_END:
            return f"(page_reporting_process+0x237/0x570 <- virtballoon_free_page_report) ret={value}"
        case Event.MARK:
            return marks[value]
        case Event.REPORT_NOTIFY | Event.REPORT_PASS | Event.REPORT_PASS_END:
            return place
    raise ValueError(event)


def lines(trace: Trace, form: str) -> Iterator[str]:
    """The recording as "ftrace", "trace-cmd", "perf" or "bpftrace" writes it; the times lose their nanoseconds."""
    yield {"ftrace": "# tracer: nop\n#\n", "trace-cmd": "cpus=2\n", "bpftrace": "# pagehint record.bt 1\n"}.get(
        form, ""
    )
    for row in trace.events:
        if row["event"] == Event.LOST:
            yield lost(row, form)
            continue
        name = trace.names.get(int(row["pid"]), ("<...>",))[-1]
        time = f"{row['time'] // 10**9}.{row['time'] % 10**9 // 1000:06}"
        event, text = NAMES[Event(row["event"])], fields(row, trace.marks)
        if form == "perf":
            yield f"{name:>16} {row['pid']:5} [{row['cpu']:03}] {time}: {'kmem:' + event:>30}: {text}\n"
        elif form == "trace-cmd":
            yield f"{name:>16}-{row['pid']:<5} [{row['cpu']:03}] {time}: {event + ':':<21} {text}\n"
        elif form == "bpftrace":
            yield f"{name}-{row['pid']} [{row['cpu']:03}] {time}000: {event}: {text}\n"
        else:
            yield f"{name:>16}-{row['pid']:<7} [{row['cpu']:03}] d..1. {time:>12}: {event}: {text}\n"


def lost(row: np.void, form: str) -> str:
    count, cpu = int(row["value"]), int(row["cpu"])
    if form == "bpftrace":
        return f"Lost {count} events\n"
    if form == "perf":
        return f"{'perf':>16} {1:5} [{cpu:03}] 1.000000: PERF_RECORD_LOST lost {count}\n"
    if form == "trace-cmd":
        return f"CPU:{cpu} [{f'{count} ' if count else ''}EVENTS DROPPED]\n"
    return f"CPU:{cpu} [LOST{f' {count}' if count else ''} EVENTS]\n"


def row_of(event: Event, **columns: int) -> tuple[int, ...]:
    """A row as a tuple: what is not given is as the readers leave it."""
    default = {"time": 0, "pfn": 2**64 - 1, "pid": 1, "value": 0, "cpu": 0, "event": int(event), "flags": 0}
    default |= dict.fromkeys(("order", "migratetype", "fallback_order", "fallback_migratetype"), NO_ORDER)
    assert set(columns) <= set(default), columns
    assert columns.get("cpu", 0) <= NO_CPU
    return tuple((default | columns).values())
