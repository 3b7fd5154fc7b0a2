"""Fixtures of all tests, and Hypothesis's profiles. What is imported rather than asked for is in `helpers/`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
sys.path.append(str(Path(__file__).parents[1]))  # for `benchmarks`; last, as the pagehint beside it may not be built
from allocators import real
from asked import runtime_folder
from clocks import Clock
from hosts import RecordingHost

from pagehint.testing.oracle import OracleAllocator
from pagehint.traces.record import record

# Who starts the tests in the background of a script has Ctrl-C ignored in them and in whatever they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# `nightly` is 20,000 steps of each state machine; the default is for everybody's every run.
PHASES = [phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain]
hypothesis.settings.register_profile("default", max_examples=60, stateful_step_count=40, deadline=None, phases=PHASES)
hypothesis.settings.register_profile("nightly", max_examples=400, stateful_step_count=50, deadline=None, phases=PHASES)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=[real, OracleAllocator], ids=["pagehint", "oracle"])
def make(request):
    """Make an allocator: the compiled one without page sets, or the oracle in plain Python."""
    return request.param


@pytest.fixture
def host() -> RecordingHost:
    return RecordingHost()


@pytest.fixture
def few_host() -> RecordingHost:
    """Takes two blocks at a time, so that zones of a few granules are above the watermark gate."""
    return RecordingHost(max_pages=2)


@pytest.fixture
def runtime():
    """The folder for the sockets of this user's processes, with none in it."""
    with runtime_folder() as folder:
        yield folder


@pytest.fixture
def live_recording(tmp_path):
    """The folder of a recording of two seconds of this machine, where it may be recorded."""
    if os.geteuid() != 0 or not Path("/proc/kpageflags").exists():
        pytest.skip("recording needs root, and a kernel that shows its page flags")
    if not any(Path(place, "instances").is_dir() for place in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")):
        pytest.skip("no tracefs is mounted here")
    record(tmp_path / "recording", seconds=2.0)
    return tmp_path / "recording"
