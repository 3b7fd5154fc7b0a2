"""Programs whose malloc is pagehint's, and the C code that they load."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

from started import run

STRESS = Path(__file__).parents[1] / "malloc" / "stress.c"

# What a program begins with: C's functions as Python's, and whether an address is in the arena.
BEGINNING = """
import ctypes, os, sys
from ctypes import c_char, c_int, c_size_t, c_void_p, byref
import numpy as np, pagehint as ph
arena = ph.numpy.installed()
first = arena.address(0)
c = ctypes.CDLL(None, use_errno=True)
for name, kinds in dict(
    malloc=[c_size_t], calloc=[c_size_t] * 2, realloc=[c_void_p, c_size_t], reallocarray=[c_void_p] + [c_size_t] * 2,
    memalign=[c_size_t] * 2, aligned_alloc=[c_size_t] * 2, valloc=[c_size_t], pvalloc=[c_size_t],
).items():
    function = getattr(c, name)
    function.argtypes, function.restype = kinds, c_void_p
c.free.argtypes, c.free.restype = [c_void_p], None
c.posix_memalign.argtypes = [c_void_p, c_size_t, c_size_t]
c.malloc_usable_size.argtypes, c.malloc_usable_size.restype = [c_void_p], c_size_t
K, M = 1 << 10, 1 << 20
def in_arena(p):
    return first <= p < first + arena.size
def at(p, size):
    return (c_char * size).from_address(p)
def live():
    return arena.live_arrays
"""


def compile_c(source: Path, target: Path, *options: str) -> Path:
    """Compile C code with warnings as errors: a shared library, unless the options say otherwise."""
    kind = options or ("-shared", "-fPIC")
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-pthread", *kind, "-o", target, source], check=True, timeout=120)
    return target


def run_code(folder: Path, code: str, *options: str, before: str = "", **more) -> subprocess.CompletedProcess[str]:
    """Run a program by `pagehint run --malloc`, in an arena of 1 GiB; `before`: what it does before that is there."""
    program = folder / "program.py"
    program.write_text(before + BEGINNING + textwrap.dedent(code))
    return run("--malloc", "--size", "1GiB", *options, program, **more)
