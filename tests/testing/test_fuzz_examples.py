"""What the fuzzer begins with, and what it has found: kept in `fuzz/examples`, and done again here."""

from __future__ import annotations

import pytest

from fuzz.inputs import EXAMPLES, decode, encode, load
from pagehint.testing import LAYOUTS, run_operations

KEPT = sorted(EXAMPLES.glob("*.json"))


@pytest.mark.parametrize("example", KEPT, ids=lambda path: path.stem)
def test_an_example(example):
    layout, operations = load(example)
    run_operations(LAYOUTS[layout], operations)
    assert decode(encode(layout, operations)) == (layout, operations)


def test_every_machine_is_a_seed():
    assert {load(example)[0] for example in KEPT} == set(LAYOUTS)


@pytest.mark.parametrize("data", [b"", b"\x00", bytes(range(256)) * 4, b"\xff" * 1000], ids=len)
def test_any_bytes_are_an_input(data):
    layout, operations = decode(data)
    assert decode(encode(layout, operations)) == (layout, operations)
