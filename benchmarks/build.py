"""Compile the compiled consumer and the yardsticks, with the machine's C compiler (`CC`, else `cc`)."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

import pagehint as ph
from pagehint import _core

HERE = Path(__file__).parent


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "cc"))


def compiler_version() -> str:
    result = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[0]


def compile_shared(source: Path, target: Path, *flags: str) -> Path:
    subprocess.run([*compiler(), "-shared", "-fPIC", *flags, "-o", target, source], check=True)
    return target


def build_consumer(directory: Path) -> Any:
    """Build `consumer.pyx`, and import it."""
    return build_module(HERE / "consumer.pyx", directory)


def build_module(source: Path, directory: Path) -> Any:
    """Build a Cython module against the pagehint that is imported here, and import it.

    The flags are those of pagehint's own setup.py, so that what is inlined is the same code; then `CFLAGS`, as there.
    """
    generated = directory / f"{source.stem}.c"
    parent = Path(ph.__file__).parents[1]
    cython = [sys.executable, "-m", "cython", "-3", "-I", str(parent), "-o", str(generated), str(source)]
    subprocess.run(cython, check=True, cwd=directory)
    flags = ["-std=gnu11", "-O3", "-g1", "-pthread", "-D_GNU_SOURCE=1"]
    flags += ["-fno-inline-functions-called-once", "--param=inline-unit-growth=300"]
    flags += ["--param=max-inline-insns-single=250"]
    flags += ["-mpopcnt"] if platform.machine() == "x86_64" else []
    flags += ["-DPAGEHINT_DEBUG=1"] if _core.DEBUG else []
    flags += [f"-I{path}" for path in (sysconfig.get_paths()["include"], np.get_include(), ph.get_include())]
    target = directory / f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
    compile_shared(generated, target, *flags, *shlex.split(os.environ.get("CFLAGS", "")))
    return load_module(target)


def load_module(target: Path) -> Any:
    """Import what `build_module` has built."""
    spec = importlib.util.spec_from_file_location(target.name.partition(".")[0], target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_leaf_buddy(directory: Path, cached: bool) -> Path:
    """Build `leaf_buddy.c` with a lock, and with its caches or without."""
    target = directory / f"leaf_buddy{'_cached' if cached else ''}.so"
    return compile_shared(
        HERE / "leaf_buddy.c", target, "-O3", "-Wall", "-Werror", "-DLOCK", *(["-DCACHE"] if cached else [])
    )


def build_linked_list(directory: Path) -> Path:
    """Build `linked_list_buddy.c`."""
    return compile_shared(HERE / "linked_list_buddy.c", directory / "linked_list_buddy.so", "-O3", "-Wall", "-Werror")
