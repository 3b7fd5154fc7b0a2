"""Recording this machine: a shell script that does it with tracefs, perf or trace-cmd, to be read first or run at once.

What it leaves is a folder: the trace, and in ``before`` and ``after`` what /proc says of every page and zone. With
tracefs both are read while the events are recorded, between marks, so that events tell of pages that changed meanwhile.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from pagehint.errors import PageHintError
from pagehint.traces.events import KERNEL_EVENTS

EVENTS = tuple(name for name in KERNEL_EVENTS if name.startswith("mm_page_"))
"""The kernel's events of the group ``kmem`` that tell of pages."""

_BEGIN = """\
#!/bin/sh
# Records what the kernel's page allocator does, for {seconds:g} seconds. To be run as root; Ctrl-C ends it early.
set -eu
folder={folder}
[ -r /proc/kpageflags ] && [ "$(id -u)" = 0 ] || {{ echo "recording needs root, and /proc/kpageflags" >&2; exit 1; }}
mkdir "$folder" "$folder/before" "$folder/after"

# Ctrl-C ends the pause, now or when it is its turn, and nothing else.
early=
trap early=yes INT
state() {{
    (
        trap '' INT
        for file in buddyinfo iomem meminfo pagetypeinfo vmstat zoneinfo; do
            cat "/proc/$file" > "$1/$file"
        done
        cat /proc/kpageflags > "$1/kpageflags"
    )
}}
pause() {{
    [ "$early" ] || (exec sleep {seconds:g}) || true
}}
"""

_TRACEFS = """
tracing=/sys/kernel/tracing
[ -d "$tracing/instances" ] || tracing=/sys/kernel/debug/tracing
[ -d "$tracing/instances" ] || {{ echo "no tracefs: mount -t tracefs nodev /sys/kernel/tracing" >&2; exit 1; }}
# An instance has buffers of its own, and disturbs nobody else's tracing.
instance="$tracing/instances/pagehint-$$"
mkdir "$instance"
# The reader ends when it has read all, if tracing is off then. It may miss being woken for that, but not for a mark.
end() {{
    echo 0 > "$instance/events/enable"
    while kill -0 $reader 2> /dev/null; do
        echo 1 > "$instance/tracing_on"
        echo "REC END" > "$instance/trace_marker"
        echo 0 > "$instance/tracing_on"
        sleep 0.1
    done
    wait
    rmdir "$instance"
}}
echo 0 > "$instance/tracing_on"
echo {buffer_kib} > "$instance/buffer_size_kb"
for event in {events}; do
    echo 1 > "$instance/events/kmem/$event/enable"
done
(cat "$instance/trace_pipe" | gzip -1 > "$folder/trace.txt.gz") &
reader=$!
trap end EXIT
trap 'exit 1' TERM HUP
echo 1 > "$instance/tracing_on"
echo "REC SNAP0 BEGIN" > "$instance/trace_marker"
state "$folder/before"
echo "REC SNAP0" > "$instance/trace_marker"
pause
echo "REC SNAP1 BEGIN" > "$instance/trace_marker"
state "$folder/after"
echo "REC SNAP1" > "$instance/trace_marker"
"""

_PERF = """
state "$folder/before"
pause | perf record -q -a --clockid CLOCK_MONOTONIC -m 16M -e {named} -o "$folder/perf.data" -- cat
state "$folder/after"
perf script -i "$folder/perf.data" --ns -F trace:comm,tid,cpu,time,event,trace | gzip -1 > "$folder/trace.txt.gz"
rm "$folder/perf.data"
"""

_TRACE_CMD = """
state "$folder/before"
pause | trace-cmd record -q -b {buffer_kib} {each} -o "$folder/trace.dat" cat
state "$folder/after"
"""

TOOLS = {"tracefs": _TRACEFS, "perf": _PERF, "trace-cmd": _TRACE_CMD}
"""What can record: each tool, and its part of the script."""


def script(folder: str | os.PathLike[str], seconds: float = 10.0, tool: str = "tracefs", buffer: int = 64 << 20) -> str:
    """Return the shell script that records this machine, or another one.

    Parameters
    ----------
    folder : path
        Where the recording goes. The script makes it, and ends if it is there already.
    seconds : float, default 10.0
        How long, without the reading of the state of all pages before and after.
    tool : {"tracefs", "perf", "trace-cmd"}, default "tracefs"
        What records. Only tracefs marks in the trace where the states were read, so that what happened meanwhile
        is known; with the others the pages that changed meanwhile are contradictions.
    buffer : int, default 64 MiB
        Bytes of each CPU's buffer. If it overruns, events are lost, which `check` says.

    Raises
    ------
    ValueError
        If there is no such tool.
    """
    if tool not in TOOLS:
        raise ValueError(f"tool must be one of {', '.join(TOOLS)}, not {tool!r}")
    return (_BEGIN + TOOLS[tool]).format(
        folder=shlex.quote(os.fspath(folder)),
        seconds=seconds,
        buffer_kib=max(buffer >> 10, 4),
        events=" ".join(EVENTS),
        named=",".join(f"kmem:{event}" for event in EVENTS),
        each=" ".join(f"-e kmem:{event}" for event in EVENTS),
    )


def record(
    folder: str | os.PathLike[str], seconds: float = 10.0, tool: str = "tracefs", buffer: int = 64 << 20
) -> None:
    """Record this machine, as root: run what `script` returns.

    Ctrl-C ends the recording early, and what it leaves is whole.

    Parameters
    ----------
    folder, seconds, tool, buffer
        As for `script`.

    Raises
    ------
    PageHintError
        If this is not root, the folder exists, or the script fails; what it said is on the standard error.
    """
    text = script(folder, seconds, tool, buffer)
    if os.geteuid() != 0:
        raise PageHintError(
            "recording needs root: sudo pagehint traces record --run ..., or run as root what it prints"
        )
    if Path(folder).exists():
        raise PageHintError(f"{os.fspath(folder)!r} exists already; a recording makes its folder itself")
    with subprocess.Popen(["sh", "-c", text]) as shell:
        while True:
            try:
                status = shell.wait()
                break
            except KeyboardInterrupt:
                pass  # the script has had it, too, and ends
    if status:
        raise PageHintError(f"the recording failed (status {status} of its script)")
