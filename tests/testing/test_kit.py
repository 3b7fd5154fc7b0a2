"""`pagehint.testing`: that it finds what it is there to find, and nothing where there is nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
import threading

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

import pagehint as ph
from pagehint import testing
from pagehint.testing import LAYOUTS, HintingMachine, operation_lists, run_operations, zone_layouts
from pagehint.testing.manual_checker import ManualChecker
from pagehint.testing.operations import FAILURES
from pagehint.testing.threaded_checker import ThreadedChecker

THOROUGH = hypothesis.settings(
    max_examples=500,
    stateful_step_count=100,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[hypothesis.Phase.generate],  # the first finding is enough
    report_multiple_bugs=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)
BRIEF = hypothesis.settings(THOROUGH, max_examples=15)


def example():
    """The example in the module's docstring, as it stands there."""
    text = textwrap.dedent(inspect.getdoc(testing).partition("::\n")[2])
    lines = [line for line in text.splitlines() if line]
    assert len(lines) <= 10
    names = {}
    exec("\n".join(lines), names)
    return names["Host"]


def test_the_example_finds_the_fault():
    with pytest.raises(AssertionError, match="somebody has written to pages in use"):
        run_state_machine_as_test(example(), settings=THOROUGH)


def test_the_example_finds_nothing_without_the_fault():
    class Prompt(example()):
        def hint_pages(self, blocks):
            self.late = blocks
            super().hint_pages(blocks)

    run_state_machine_as_test(Prompt, settings=BRIEF)


ON = ("enable", {"batch": 2, "threshold": None, "delay": 0, "least_order": False, "mark_free": True, "at_once": True})
ALLOC = ("alloc", {"order": 3, "migratetype": "movable", "zone": None})


def test_a_thread_that_writes_after_the_report_is_found():
    done = threading.Event()
    writers = []

    def callbacks(checker):
        def write_late(pages):
            done.wait()
            checker.memory[pages] = 0

        def hint_pages(blocks):
            writers.append(threading.Thread(target=write_late, args=(checker.pages_of(blocks),)))
            writers[-1].start()

        return ph.PageHintingCallbacks(hint_pages, 4)

    def operations():
        yield ON
        yield ALLOC
        done.set()
        for writer in writers:
            writer.join()
        yield "drain", {}

    with pytest.raises(AssertionError, match="somebody has written to pages in use"):
        run_operations(LAYOUTS["one zone"], operations(), callbacks, workqueue="thread")


@pytest.mark.parametrize("workqueue", ["manual", "thread"])
def test_an_assertion_in_a_callback_is_no_failed_report(workqueue):
    def hint_pages(blocks):
        assert len(blocks) == 0, "blocks that nobody wants"

    with pytest.raises(AssertionError, match="blocks that nobody wants"):
        run_operations(
            LAYOUTS["one zone"], [ON], lambda checker: ph.PageHintingCallbacks(hint_pages), workqueue=workqueue
        )


@pytest.mark.parametrize("workqueue", ["manual", "thread"])
def test_a_wrong_answer_of_the_users_is_no_failed_report(workqueue):
    callbacks = ph.PageHintingCallbacks(lambda blocks: [True] * 3)
    with pytest.raises(AssertionError, match=r"returned \[True, True, True\] for 1 blocks"):
        run_operations(LAYOUTS["one zone"], [ON], lambda checker: callbacks, workqueue=workqueue)


def test_a_compiled_host_is_refused_as_nobody_could_look_at_it():
    callbacks = ph.PageHintingCallbacks(ph.Arena("2MiB")._mapping.advise_capsule("dontneed"))
    with pytest.raises(TypeError, match="must be a Python function"):
        run_operations(LAYOUTS["one zone"], [ON], lambda checker: callbacks)


@given(zone_layouts(), operation_lists())
def test_lists_of_operations_with_manual_work(layout, operations):
    run_operations(layout, operations)


@given(zone_layouts(), operation_lists(workqueue="thread"), st.booleans())
def test_lists_of_operations_with_a_thread(layout, operations, pcp):
    run_operations(layout, operations, workqueue="thread", pcp=pcp)


@pytest.mark.parametrize("workqueue", ["manual", "thread"])
def test_what_is_done_behind_the_checkers_back_is_found(workqueue):
    """The oracle sees a page that is freed by nobody it knows of."""
    calls = []

    def callbacks(checker):
        calls.append(checker)
        pfn, nr_pages = checker.used()[0]
        checker.pages.free_pages_exact(pfn, nr_pages)
        return ph.PageHintingCallbacks(lambda blocks: None)

    with pytest.raises(AssertionError):
        run_operations(LAYOUTS["one zone"], [ALLOC, ON], callbacks, workqueue=workqueue)
    assert calls


@pytest.mark.parametrize("workqueue", ["manual", "thread"])
@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_happens(failure, workqueue):
    checkers = set()
    told = []

    def callbacks(checker):
        checkers.add(checker)
        return ph.PageHintingCallbacks(lambda blocks: told.extend(blocks.tolist()))

    run_operations(
        LAYOUTS["single pages"],
        [("fail", {"failure": failure, "at_once": False}), ON],
        callbacks,
        workqueue=workqueue,
    )
    [checker] = checkers
    stats = checker.pages.stats()
    assert (stats.prepare_errors > 0) == failure.startswith("prepare")
    assert (stats.blocks_failed > 0) == (failure in ("raises", "raises at times", "refuses some", "wrong answer"))
    assert bool(told) == (failure in ("none", "raises at times", "refuses some", "cleanup raises"))
    assert (checker.pages.last_error is None) == (failure == "none")


def test_every_operation_is_a_rule():
    for checker in (ManualChecker, ThreadedChecker):
        for name in checker.operations:
            assert callable(getattr(checker, name))
            assert callable(vars(HintingMachine)[name])


def test_without_hypothesis_the_error_names_the_extra():
    code = "import sys; sys.modules['hypothesis'] = None; import pagehint.testing"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'pagehint[test]'" in done.stderr.splitlines()[-1]
