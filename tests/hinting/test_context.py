"""`hinting(...)` of allocators and arenas: checked when it is called, and not silent if it is never entered."""

from __future__ import annotations

import gc
import warnings

import pytest
from allocators import real
from hosts import RecordingHost
from processes import run_code

import pagehint as ph

BAD = [
    ({"threshhold": 1}, TypeError, "'threshhold'.*threshold"),
    ({"threshold": 0}, ValueError, "threshold"),
    ({"threshold": 1.5}, TypeError, "integer"),
    ({"delay": -1}, ValueError, "delay"),
    ({"delay": "1"}, TypeError, "str"),
    ({"min_age": float("nan")}, ValueError, "min_age"),
    ({"max_report_order": 99}, ph.BadPageError, "order"),
    ({"max_report_order": 0}, ValueError, "max_report_order"),
    ({"workqueue": "threads"}, ValueError, "workqueue"),
    ({"clock": "5"}, TypeError, "clock"),
    ({"clock": 5}, ValueError, "manual"),
    ({"clock": float}, ValueError, "manual"),
]


@pytest.mark.parametrize(("options", "error", "said"), BAD, ids=str)
@pytest.mark.parametrize("on", [False, True], ids=["off", "on"])
def test_wrong_options_were_taken_until_the_context_was_entered(options, error, said, on):
    pages, arena = real("64MiB"), ph.Arena("64MiB")
    if on:
        pages.enable_hinting(RecordingHost().callbacks)
        arena.enable_hinting()
    with pytest.raises(error, match=said):
        pages.hinting(RecordingHost().callbacks, **options)
    with pytest.raises(error, match=said):
        arena.hinting(**options)
    with pytest.raises(error, match=r".+"):
        arena.enable_hinting(**options)
    assert pages.hinting_enabled == arena.pages.hinting_enabled == on
    pages.disable_hinting()
    arena.disable_hinting()


def test_wrong_arguments_were_taken_until_the_context_was_entered():
    arena = ph.Arena("64MiB")
    with pytest.raises(ValueError, match="advice"):
        arena.hinting("willneed")
    with pytest.raises(ValueError, match="max_pages"):
        arena.hinting(max_pages=0)
    with pytest.raises(TypeError, match="callbacks"):
        real("64MiB").hinting(print)
    gc.collect()  # and none of these warns that it was never entered


def test_a_context_that_was_never_entered_was_silent():
    arena, pages = ph.Arena("64MiB"), real("64MiB")
    for make, name in (
        (arena.hinting, r"arena\.hinting\(\)"),
        (arena.numpy, r"arena\.numpy\(\)"),
        (lambda: pages.hinting(RecordingHost().callbacks), r"pages\.hinting\(\.\.\.\)"),
    ):
        with pytest.warns(RuntimeWarning, match=f"{name} was never entered") as caught:
            make()
        if make in (arena.hinting, arena.numpy):
            assert caught[0].filename == __file__  # where it was dropped
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with make():
                pass
    assert not arena.pages.hinting_enabled


@pytest.mark.parametrize("call", ["arena.hinting()", "arena.numpy()", "kept = arena.hinting()", "kept = arena.numpy()"])
def test_users_see_the_warning_without_asking_for_it(call):
    status, out, err = run_code(f"import pagehint as ph\narena = ph.Arena('64MiB')\n{call}\n")
    assert (status, out) == (0, "")
    assert "RuntimeWarning: arena." in err
    assert "was never entered" in err


def test_a_context_whose_entering_fails_is_no_silence():
    pages = real("64MiB")
    with pages.hinting(RecordingHost().callbacks):
        second = pages.hinting(RecordingHost().callbacks)
        with pytest.raises(ph.HintingActiveError):
            second.__enter__()
        del second
        gc.collect()
        assert pages.hinting_enabled


def test_an_arena_s_hinting_is_switched_on_and_off_by_hand():
    arena = ph.Arena("64MiB")
    arena.enable_hinting("free", max_pages=3, delay=None)
    assert arena.pages.hinting_enabled
    assert arena.pages.max_pages == 3
    with pytest.raises(ph.HintingActiveError):
        arena.enable_hinting()
    arena.disable_hinting()
    arena.disable_hinting()
    assert not arena.pages.hinting_enabled
    arena.enable_hinting()
    arena.close()
    assert not arena.pages.hinting_enabled
    with pytest.raises(ph.ArenaClosedError):
        arena.enable_hinting()
