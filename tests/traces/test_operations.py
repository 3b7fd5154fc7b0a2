"""What an operation is: the same for Python and for compiled code."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.build import build_module
from pagehint.traces import EVENT_DTYPE, OPERATION_DTYPE, Contradiction, Operation, OperationFlag, Operations
from pagehint.traces.views.contradictions import MOST_EXAMPLES, Cause
from pagehint.traces.views.places import MOST_ORDER, PAGEBLOCK_ORDER, PLACE_BITS, PLACE_MASK, Place

USER = """
from pagehint.traces cimport operations
from pagehint.traces.operations cimport OperationRow
from pagehint.traces.views cimport contradictions, places

def constants():
    return dict({constants})

def layout():
    cdef OperationRow row
    return sizeof(row), {{name: at - <size_t> &row for name, at in dict({offsets}).items()}}
"""
OPERATIONS = {f"OPERATION_{op.name}": int(op) for op in Operation} | {
    "OPERATION_REPORTED": int(OperationFlag.REPORTED),
    "NR_OPERATIONS": max(Operation) + 1,
}
CAUSES = {f"CAUSE_{cause.name}": int(cause) for cause in Cause} | {
    "NR_CAUSES": max(Cause) + 1,
    "MOST_EXAMPLES": MOST_EXAMPLES,
}
PLACES = {place.name: int(place) for place in Place} | {
    "MOST_ORDER": MOST_ORDER,
    "PAGEBLOCK_ORDER": PAGEBLOCK_ORDER,
    "PLACE_BITS": PLACE_BITS,
    "PLACE_MASK": PLACE_MASK,
}
CONSTANTS = {"operations": OPERATIONS, "contradictions": CAUSES, "places": PLACES}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    constants = ", ".join(f"{name}={file}.{name}" for file, names in CONSTANTS.items() for name in names)
    offsets = ", ".join(f"{name}=<size_t> &row.{name}" for name in OPERATION_DTYPE.names)
    folder = tmp_path_factory.mktemp("user")
    source = folder / "operation_user.pyx"
    source.write_text(USER.format(constants=constants, offsets=offsets))
    return build_module(source, folder)


def test_compiled_code_has_the_same_constants(compiled):
    assert compiled.constants() == OPERATIONS | CAUSES | PLACES


def test_compiled_code_has_the_same_row(compiled):
    offsets = {name: offset for name, (_, offset) in OPERATION_DTYPE.fields.items()}
    assert compiled.layout() == (OPERATION_DTYPE.itemsize, offsets)
    assert sum(OPERATION_DTYPE[name].itemsize for name in OPERATION_DTYPE.names) == 24  # no padding


def test_a_table_of_another_dtype_is_refused():
    with pytest.raises(TypeError, match="OPERATION_DTYPE"):
        Operations(np.zeros(3, EVENT_DTYPE), "all")
    with pytest.raises(TypeError, match="one-dimensional"):
        Operations(np.zeros((3, 3), OPERATION_DTYPE), "all")


def test_every_cause_has_a_label_of_its_own():
    assert len({cause.label for cause in Cause}) == len(Cause)


def test_an_operations_repr_and_a_contradiction_say_what_they_are():
    operations = Operations(np.zeros(2, OPERATION_DTYPE), "kmem", {"double free": 3})
    assert repr(operations) == "<Operations: 2, by the view 'kmem', 3 contradictions>"
    assert str(Contradiction(7, 1_500_000_000, 0x1F, 2)) == "row 7, 1.500000 s, PFN 0x1f, order 2"
