"""The fuzzer's target: operations on the compiled allocator, checked against the oracle. `fuzz/run` starts it."""

from __future__ import annotations

import logging
import sys

import atheris

from fuzz.inputs import decode
from pagehint.testing import LAYOUTS, run_operations


def one_input(data: bytes) -> None:
    """Whatever this raises is a finding."""
    layout, operations = decode(data)
    run_operations(LAYOUTS[layout], operations, check_every=10)


if __name__ == "__main__":
    logging.disable()  # a host that fails logs it each time
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
