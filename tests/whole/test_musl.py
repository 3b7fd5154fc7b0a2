"""Where musl is the C library (Alpine): every module compiles, and musl's own dynamic linker loads it.

There is no Python for musl here, so what a module needs of Python is a stub. All else that it needs, musl has, or the
module does not load; nor does it with thread-local variables of the model "initial-exec", as musl keeps no room for
those of a library that is loaded later.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("pagehint/**/*.pyx"))
COMPILER = "musl-gcc"

if not SOURCES:
    pytest.skip("the sources are whole in the repository only, and this is a copy of a part", allow_module_level=True)
if shutil.which(COMPILER) is None and "CI" not in os.environ:
    pytest.skip(f"{COMPILER} is not installed (apt-get install musl-tools)", allow_module_level=True)

LOADER = """
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    int i, refused = 0;
    for (i = 1; i < argc; i++)
        if (!dlopen(argv[i], RTLD_NOW | (i == 1 ? RTLD_GLOBAL : RTLD_LOCAL))) {
            puts(dlerror());
            refused = 1;
        }
    return refused;
}
"""


def run(*command: object, cwd: Path | None = None) -> str:
    result = subprocess.run([str(word) for word in command], text=True, capture_output=True, cwd=cwd)
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


def compile_shared(source: Path, target: Path) -> Path:
    """Compile for musl, with the warnings that are errors in a wheel's build, and with no header of glibc or Linux."""
    flags = ["-std=gnu11", "-O0", "-pthread", "-D_GNU_SOURCE=1", "-Wall", "-Werror", "-Wno-unused-function"]
    flags += ["-mpopcnt"] if platform.machine() == "x86_64" else []
    flags += [f"-I{path}" for path in (sysconfig.get_paths()["include"], np.get_include(), ROOT / "pagehint")]
    run(COMPILER, "-shared", "-fPIC", *flags, "-o", target, source)
    return target


def refusals(folder: Path, *libraries: Path) -> str:
    """Load libraries into one program, beside stubs of what they need of Python.

    Returns what musl says of those that it does not load.
    """
    needed = set(re.findall(r"\bU (_?Py\w+)", run("nm", "-D", "--undefined-only", *libraries)))
    (folder / "stubs.c").write_text("".join(f"char {name}[4096];\n" for name in sorted(needed)))
    (folder / "load.c").write_text(LOADER)
    run(COMPILER, "-shared", "-fPIC", "-o", folder / "stubs.so", folder / "stubs.c")
    run(COMPILER, "-o", folder / "load", folder / "load.c")
    command = [folder / "load", folder / "stubs.so", *libraries]
    # Without LD_PRELOAD, which may name a library of glibc's.
    result = subprocess.run(command, text=True, capture_output=True, timeout=60, env={})
    assert (result.returncode, result.stderr) in ((0, ""), (1, "")), result
    return result.stdout


def test_every_module_loads_under_musl(tmp_path):
    # As a build does, and nothing if there has been one.
    run(sys.executable, "-c", "import setup; setup.generate(setup.extensions(), None)", cwd=ROOT)
    targets = [tmp_path / f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.so" for path in SOURCES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        libraries = list(pool.map(compile_shared, [path.with_suffix(".c") for path in SOURCES], targets))
    assert refusals(tmp_path, *libraries) == ""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("static __thread int mine; int *of(void) { return &mine; }", None),
        ("static __thread int mine __attribute__((tls_model(M))); int *of(void) { return &mine; }", "initial-exec TLS"),
        ("int pthread_attr_setaffinity_np(); int of(void) { return pthread_attr_setaffinity_np(); }", "setaffinity_np"),
    ],
    ids=["a call", "initial-exec", "glibc's function"],
)
def test_musl_refuses_what_these_tests_look_for(tmp_path, code, said):
    source = tmp_path / "small.c"
    source.write_text(f'#define M "initial-exec"\n{code}\n')
    found = refusals(tmp_path, compile_shared(source, tmp_path / "small.so"))
    assert said in found if said else found == ""
