"""The fuzzer's target: operations on the compiled allocator, with the oracle as the judge. `fuzz/run` starts it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import atheris

sys.path.append(str(Path(__file__).parents[1]))

from fuzz.decode import decode
from pagehint.testing import run_operations


def one_input(data: bytes) -> None:
    """Whatever this raises is a finding."""
    run_operations(*decode(data))


if __name__ == "__main__":
    logging.disable()  # hosts that fail are what it is about
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
