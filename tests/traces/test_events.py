"""What a row is: the same for Python and for compiled code."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.build import build_module
from pagehint.traces import EVENT_DTYPE, NO_CPU, NO_ORDER, NO_PFN, NO_PID, NO_TYPE, Event, Flag, Trace, events

USER = """
from pagehint.traces cimport events
from pagehint.traces.events cimport EventRow

def constants():
    return dict(NO_ORDER=events.NO_ORDER, NO_TYPE=events.NO_TYPE, NO_PID=events.NO_PID, NO_CPU=events.NO_CPU,
                NO_PFN=events.NO_PFN, NR_EVENTS=events.NR_EVENTS, {constants})

def layout():
    cdef EventRow row
    return sizeof(row), {{name: at - <size_t> &row for name, at in dict({offsets}).items()}}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    names = [f"EVENT_{event.name}" for event in Event] + [f"FLAG_{flag.name}" for flag in Flag]
    constants = ", ".join(f"{name}=events.{name}" for name in names)
    offsets = ", ".join(f"{name}=<size_t> &row.{name}" for name in EVENT_DTYPE.names)
    folder = tmp_path_factory.mktemp("user")
    source = folder / "row_user.pyx"
    source.write_text(USER.format(constants=constants, offsets=offsets))
    return build_module(source, folder)


def test_compiled_code_has_the_same_constants(compiled):
    constants = compiled.constants()
    for event in Event:
        assert constants.pop(f"EVENT_{event.name}") == event
    for flag in Flag:
        assert constants.pop(f"FLAG_{flag.name}") == flag
    none = {"NO_ORDER": NO_ORDER, "NO_TYPE": NO_TYPE, "NO_PID": NO_PID, "NO_CPU": NO_CPU, "NO_PFN": NO_PFN}
    assert constants == {**none, "NR_EVENTS": max(Event) + 1}


def test_compiled_code_has_the_same_row(compiled):
    assert compiled.layout() == (
        EVENT_DTYPE.itemsize,
        {name: offset for name, (_, offset) in EVENT_DTYPE.fields.items()},
    )
    assert EVENT_DTYPE.itemsize == 32
    assert sum(EVENT_DTYPE[name].itemsize for name in EVENT_DTYPE.names) == 32  # no padding


def test_the_docstring_says_of_each_event_what_its_columns_mean():
    assert set(re.findall(r"^`Event\.(\w+)`", events.__doc__, re.MULTILINE)) == {event.name for event in Event}
    assert set(re.findall(r"`Flag\.(\w+)`", events.__doc__)) == {flag.name for flag in Flag}


def test_a_table_of_another_dtype_is_refused():
    with pytest.raises(TypeError, match="EVENT_DTYPE"):
        Trace(np.zeros(3, [("time", "i8")]))
    with pytest.raises(TypeError, match="one-dimensional"):
        Trace(np.zeros((3, 3), EVENT_DTYPE))
    assert repr(Trace(np.zeros(0, EVENT_DTYPE))) == "<Trace of 0 events in 0.000 s, of no file>"
