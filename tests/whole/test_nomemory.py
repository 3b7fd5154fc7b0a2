"""Every allocation fails once: MemoryError or success, a consistent allocator, nothing left. See `scarcity.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.build import compile_shared

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    target = tmp_path_factory.mktemp("scarce") / "scarce.so"
    return compile_shared(HELPERS / "scarce.c", target, "-O1", "-Wall", "-Werror")


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", HELPERS / "scarcity.py", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "MALLOC_ARENA_MAX": "1", **environment},  # a second heap of glibc's would count as left over
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "nothing left" in done.stdout


@pytest.mark.parametrize(
    "work", ["build", "enable", "enable with ages", "enable a thread", "larger batch", "hotplug", "arena", "queue"]
)
def test_every_allocation_of_the_modules_fails_once(work, library):
    """Bulk calls are not among them, nor is a flush: they allocate nothing but Python's objects."""
    run("modules", work, str(library), LD_PRELOAD=str(library))


# Python itself, with no memory for the function object that a lambda or a generator expression is: 3.12.1 and 3.13.0
# release the function's code twice. So it is freed, and what makes the function again may crash.
TWICE = """
import _testcapi, sys
def make():
    return lambda: None
code = next(each for each in make.__code__.co_consts if type(each) is type(make.__code__))
before = sys.getrefcount(code)
_testcapi.set_nomemory(0, 1)
try:
    make()
except MemoryError:
    pass
_testcapi.remove_mem_hooks()
print(before - sys.getrefcount(code))
"""


@pytest.mark.parametrize("work", ["build", "enable", "bulk", "flush", "larger batch", "hotplug", "arena"])
def test_every_allocation_of_python_fails_once(work):
    if work in ("build", "enable", "arena") and subprocess.check_output([sys.executable, "-c", TWICE]) != b"0\n":
        pytest.skip("they make functions, whose code this Python releases twice where it has no memory")
    run("python", work)
