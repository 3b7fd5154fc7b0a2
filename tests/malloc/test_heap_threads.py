"""An arena's heap asked for memory by threads that have no GIL, without the library that takes the place of malloc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from preloaded import compile_c

import pagehint

CODE = Path(__file__).with_name("direct.c")
HEADERS = Path(pagehint.__file__).parent / "malloc"
SECONDS = float(os.environ.get("PAGEHINT_CANARY_SECONDS", "2"))

PROGRAM = """
import ctypes, sys
direct = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
import pagehint as ph
from pagehint.malloc.serving import is_preloaded, serve
assert is_preloaded()
arena = ph.Arena("1GiB")
serve(arena._numpy_heap(), arena, 4096)
assert direct.refusals()
with arena.hinting({advice!r}, min_age=0.0005, threshold=1, delay=None, {reserve}):
    wrong = direct.direct(4, ctypes.c_double({seconds}))
arena.pages.verify()
print(wrong, arena.live_arrays, arena.pages.stats().reports > 0)
"""


@pytest.mark.parametrize("reserve", ["reserve='64MiB', reserve_age=0.2", "reserve_age=0"], ids=["kept", "none kept"])
@pytest.mark.parametrize("advice", ["dontneed", "free"])
def test_threads_with_canaries(tmp_path, advice, reserve):
    """With a reserve what was freed is kept for the next request of its length."""
    library = compile_c(CODE, tmp_path / "libdirect.so", "-shared", "-fPIC", f"-I{HEADERS}")
    command = [sys.executable, "-P", "-c", PROGRAM.format(advice=advice, reserve=reserve, seconds=SECONDS), library]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 120, check=False)
    assert (done.stdout, done.returncode) == ("0 1 True\n", 0), done.stderr
