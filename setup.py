"""Build of the compiled modules; everything else stands in pyproject.toml."""

import os
import platform

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

# A debug build checks that locks are held where the code says so, and aborts where they are not.
debug = os.environ.get("PAGEHINT_DEBUG", "0") not in ("", "0")

# For tools that name lines (.ci/sanitize, .ci/coverage): those of the Cython source, each with code of its own.
lines = os.environ.get("PAGEHINT_LINES", "0") not in ("", "0")

# The slow paths have one caller each; inlined there, they would take registers from the fast ones. And without room to
# grow, the compiler leaves calls in what should be one piece.
hot_flags = ["-fno-inline-functions-called-once", "--param=inline-unit-growth=300"]
# Without it every count of bits is a function call. x86-64 processors have had the instruction since 2008.
machine_flags = ["-mpopcnt"] if platform.machine() == "x86_64" else []

extensions = [
    Extension(
        f"pagehint.{name}",
        [f"pagehint/{name.replace('.', '/')}.pyx"],
        include_dirs=["pagehint", numpy.get_include()],
        define_macros=[
            ("_GNU_SOURCE", "1"),
            ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
            ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"),
        ]
        + ([("PAGEHINT_DEBUG", "1")] if debug else []),
        extra_compile_args=["-std=gnu11", "-Og" if lines else "-O3", *hot_flags, *machine_flags, "-g1", "-pthread"],
        extra_link_args=["-pthread"],
        depends=["pagehint/pagehint.h"],
    )
    for name in (
        "hinting.callbacks",
        "hinting.report",
        "hinting.engine",
        "allocator.fork",
        "allocator.memory",
        "allocator.refusal",
        "_core",
        "arena.mapping",
        "arena.heap",
        "numpy.handler",
        "virtio.undisturbed",
        "virtio.split_queue",
    )
]

setup(
    ext_modules=cythonize(
        extensions, emit_linenums=lines, compiler_directives={"language_level": 3, "warn.unused": False}
    ),
    options={"build_ext": {"parallel": os.cpu_count()}},
)
