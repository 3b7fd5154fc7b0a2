from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import hypothesis
import pytest

import pagehint as ph

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent / "helpers"))
sys.path.append(str(Path(__file__).parents[1]))  # for `benchmarks`; last, as the pagehint beside it may not be built
from pagehint.testing.oracle import ReferenceAllocator

# `nightly` is 20,000 steps of each state machine; the default is for everybody's every run.
PHASES = [phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain]
hypothesis.settings.register_profile("default", max_examples=60, stateful_step_count=40, deadline=None, phases=PHASES)
hypothesis.settings.register_profile("nightly", max_examples=400, stateful_step_count=50, deadline=None, phases=PHASES)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def survives(code: str) -> None:
    """Run code that may crash or hang in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def in_child(function):
    """Run in a forked child; its assertion errors fail the test here."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not pytest-timeout's handler, which comes to no hung thread
        signal.alarm(60)  # ends it if it hangs
        try:
            function()
            os.write(write, b"fine")
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said == b"fine", said


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def real(memory, **options):
    return ph.PageAllocator(memory, **{"pcp": False, **options})


@pytest.fixture(params=[real, ReferenceAllocator], ids=["pagehint", "reference"])
def make(request):
    """Make an allocator: the compiled one without page sets, or the plain-Python reference."""
    return request.param


class Host:
    """Takes reports and remembers them; fails when told to."""

    def __init__(self, max_pages: int = 16) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.answer = None  # what hint_pages returns, or an exception it raises, or a function of the blocks
        self.prepare_answer = None
        self.calls: list[str] = []
        self.callbacks = ph.PageHintingCallbacks(self.hint_pages, max_pages, self.prepare, self.cleanup)

    def hint_pages(self, blocks):
        self.calls.append("hint_pages")
        self.batches.append([(int(block["pfn"]), int(block["order"])) for block in blocks])
        answer = self.answer(blocks) if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def prepare(self):
        self.calls.append("prepare")
        if isinstance(self.prepare_answer, BaseException):
            raise self.prepare_answer
        return self.prepare_answer

    def cleanup(self):
        self.calls.append("cleanup")

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Everything reported so far as (pfn, order), in turn."""
        return [block for batch in self.batches for block in batch]

    def take(self) -> list[tuple[int, int]]:
        """What has been reported since the last look."""
        blocks = self.blocks
        self.batches.clear()
        self.calls.clear()
        return blocks


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def few_host() -> Host:
    """Takes two blocks at a time, so that zones of a few granules are above the watermark gate."""
    return Host(max_pages=2)
