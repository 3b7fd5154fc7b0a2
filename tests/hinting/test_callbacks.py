"""Callbacks: their order, their answers, what they raise, and what they may not call."""

from __future__ import annotations

import ctypes
import logging

import numpy as np
import pytest
from allocators import real
from hosts import RecordingHost

import pagehint as ph


def test_wrong_answers_are_failures(few_host):
    pages = real("32MiB")
    pages.enable_hinting(few_host.callbacks, workqueue="manual")
    for answer, kind in (
        ([True], TypeError),
        (np.ones(3, bool), TypeError),
        (np.ones(2, int), TypeError),
        ("yes", TypeError),
        (object(), TypeError),
        (False, ph.PageHintError),
        ([True, False], ph.PageHintError),
        (KeyError("x"), KeyError),
    ):
        few_host.answer = answer
        before = pages.stats()
        pages.flush_hinting()
        after = pages.stats()
        assert isinstance(pages.last_error, kind)
        assert after.report_errors > before.report_errors
        assert after.hints_pending > 0
        pages.verify()
    few_host.answer = True
    pages.flush_hinting()
    few_host.answer = [True, True]
    pages.alloc_pages_at(0, 10), pages.alloc_pages_at(1024, 10)
    pages.free_pages(0, 10), pages.free_pages(1024, 10)
    pages.flush_hinting()
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_cleanup_runs_after_every_successful_prepare(make, few_host):
    pages = make("16MiB")
    pages.enable_hinting(few_host.callbacks, workqueue="manual")
    few_host.answer = RuntimeError("broken")
    pages.flush_hinting()
    assert few_host.calls == ["prepare", "hint_pages", "hint_pages", "hint_pages", "hint_pages", "cleanup"]
    few_host.take()
    few_host.prepare_answer = -5
    pages.flush_hinting()
    assert few_host.calls == ["prepare"]
    few_host.take()
    few_host.prepare_answer = few_host.answer = None
    pages.flush_hinting()
    assert few_host.calls == ["prepare", "hint_pages", "hint_pages", "hint_pages", "hint_pages", "cleanup"]
    few_host.take()
    pages.flush_hinting()
    assert few_host.calls == []  # nothing to report, nobody called
    pages.disable_hinting()


def test_a_burst_of_failures_is_logged_once(few_host, caplog):
    pages = real("16MiB")
    few_host.answer = OSError("the host is gone")
    with caplog.at_level(logging.WARNING, "pagehint"), pages.hinting(few_host.callbacks, workqueue="manual"):
        for _ in range(5):
            pages.flush_hinting()
        assert len(caplog.records) == 1
        assert "the host is gone" in caplog.text
        few_host.answer = None
        pages.flush_hinting()
        few_host.answer = OSError("gone again")
        pages.free_pages(pages.alloc_pages(10), 10)
        pages.flush_hinting()
        assert len(caplog.records) == 2


@pytest.mark.parametrize("workqueue", ["thread", "manual"])
def test_from_inside_a_callback_nothing_waits_for_itself(workqueue):
    pages = real("64MiB")
    errors = []

    def hint_pages(blocks):
        for call in (
            pages.disable_hinting,
            pages.flush_hinting,
            lambda: pages.enable_hinting(RecordingHost().callbacks),
            *([pages.run_pending] if workqueue == "manual" else []),
        ):
            try:
                call()
            except ph.HintingActiveError as error:
                errors.append(error)

    with pages.hinting(ph.PageHintingCallbacks(hint_pages, 16), workqueue=workqueue, mark_free=False):
        pages.free_pages(pages.alloc_pages(9), 9)
        pages.flush_hinting()
    assert len(errors) == (4 if workqueue == "manual" else 3)
    assert pages.last_error is None


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError])
def test_the_worker_survives_what_a_callback_raises(kind):
    pages = real("64MiB")
    answers = [kind("stop")]

    def hint_pages(blocks):
        if answers:
            raise answers.pop()

    with pages.hinting(ph.PageHintingCallbacks(hint_pages)):
        pages.flush_hinting()
        assert isinstance(pages.last_error, kind)
        pages.flush_hinting()
        assert pages.stats().hints_pending == 0
    pages.verify()


def test_an_interrupt_on_the_callers_thread_reaches_the_caller(few_host):
    pages = real("64MiB")
    few_host.answer = KeyboardInterrupt()
    with pages.hinting(few_host.callbacks, workqueue="manual"):
        with pytest.raises(KeyboardInterrupt):
            pages.flush_hinting()
        assert few_host.calls == ["prepare", "hint_pages", "cleanup"]
        assert pages.stats().reporting_pages == 0
        assert pages.stats().hints_pending == 32
        few_host.answer = None
        pages.flush_hinting()
        assert pages.stats().hints_pending == 0
    pages.verify()


def test_a_logging_filter_that_raises_does_not_take_the_worker_with_it():
    def refuse(record):
        raise KeyError("in a filter")

    def hint_pages(blocks):
        raise RuntimeError("not taken")

    log = logging.getLogger("pagehint")
    log.addFilter(refuse)
    try:
        pages = ph.PageAllocator("64MiB", pcp=False)
        with pages.hinting(ph.PageHintingCallbacks(hint_pages, 1), delay=None):
            pages.flush_hinting()
            assert isinstance(pages.last_error, RuntimeError)
            pages.flush_hinting()
    finally:
        log.removeFilter(refuse)
    pages.verify()


def test_a_subclass_that_says_another_max_pages_lost_its_hints():
    """The size of a batch is the one that was checked, not an attribute that a subclass gives."""

    class Callbacks(ph.PageHintingCallbacks):
        max_pages = 0

    reported = []
    pages = ph.PageAllocator("64MiB", pcp=False)
    with pages.hinting(Callbacks(reported.append, 4), workqueue="manual"):
        pages.flush_hinting()
        assert pages.stats().hints_pending == 0
    assert max(len(blocks) for blocks in reported) == 4


@pytest.mark.parametrize(
    "function",
    [
        ctypes.CDLL(None).puts,
        ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda blocks: 0),
        ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda blocks: 0),
        ctypes.pythonapi.PyObject_Length,
    ],
    ids=["of a library", "CFUNCTYPE", "PYFUNCTYPE", "pythonapi"],
)
def test_a_bare_c_function_was_taken_and_failed_when_it_was_called(function):
    with pytest.raises(TypeError, match=r"bare C function.*LowLevelCallable.*Python function"):
        ph.PageHintingCallbacks(function)
    ph.PageHintingCallbacks(lambda blocks: function(len(blocks)))
    ph.PageHintingCallbacks(print, prepare=function, cleanup=function)  # these are called without arguments


def test_a_bare_function_of_cffi_is_refused_as_well():
    cffi = pytest.importorskip("cffi")
    ffi = cffi.FFI()
    ffi.cdef("int puts(const char *);")
    with pytest.raises(TypeError, match="bare C function"):
        ph.PageHintingCallbacks(ffi.dlopen(None).puts)
