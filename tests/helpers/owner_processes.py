"""Tests of a process's memory run in processes of their own: nothing else takes or frees any."""

from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path

import pytest
from processes import PYTHON

HELPERS = Path(__file__).parent
BEGIN = f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
import ctypes, gc, json, os, threading
import numpy as np
import pagehint as ph
from owners import MIB, free, growing, kernel_figure, libc, malloced, near, released, sound, touched_mapping
"""


def in_process(code: str, **environment: str) -> str:
    """Run code that must end well, in a process of its own; returns what it prints."""
    process = subprocess.run(
        [*PYTHON, "-c", BEGIN + textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (process.returncode, process.stderr) == (0, ""), process.stderr
    return process.stdout


def needed(package: str) -> None:
    """Skip without a package, but not in CI."""
    if "CI" not in os.environ:
        pytest.importorskip(package)


def preloaded(library: str) -> dict[str, str]:
    """The environment with another allocator in malloc's place; skip without it, but not in CI."""
    found = sorted(Path("/usr/lib").glob(f"*/{library}"))
    if not found and "CI" not in os.environ:
        pytest.skip(f"no {library}")
    return {"LD_PRELOAD": str(found[0])}
