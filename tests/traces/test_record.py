"""A recording of this machine: by the script, whole also after Ctrl-C, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pagehint as ph
from pagehint.traces.folder import read_recording

INSTANCES = Path("/sys/kernel/tracing/instances")


def test_a_recording_has_marks_states_and_leaves_no_instance(live_recording):
    trace, before, after = read_recording(live_recording)
    assert [mark for mark in trace.marks if "SNAP" in mark] == [
        "REC SNAP0 BEGIN", "REC SNAP0", "REC SNAP1 BEGIN", "REC SNAP1",
    ]  # fmt: skip
    assert before.pages is not None
    assert after.pages is not None
    assert not list(INSTANCES.glob("pagehint-*"))


@pytest.mark.usefixtures("live_recording")  # skips where none can be made
def test_ctrl_c_ends_a_recording_early_and_leaves_it_whole(tmp_path):
    folder = tmp_path / "interrupted"
    code = f"import pagehint.traces.record as r; r.record({str(folder)!r}, seconds=300)"
    with subprocess.Popen([sys.executable, "-P", "-c", code], start_new_session=True) as child:
        while not (folder / "before").exists():  # it is read from now on, and then comes the pause
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(timeout=100) == 0
    trace, _, after = read_recording(folder)
    assert "REC SNAP1" in trace.marks
    assert after.pages is not None
    assert not list(INSTANCES.glob("pagehint-*"))


def test_a_tool_that_is_none():
    with pytest.raises(ValueError, match="tool must be one of tracefs, perf, trace-cmd, not 'dtrace'"):
        ph.traces.record.script("folder", tool="dtrace")
