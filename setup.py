"""Build of the compiled modules; everything else stands in pyproject.toml."""

import os
import platform

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# A debug build checks that locks are held where the code says so, and aborts where they are not.
debug = os.environ.get("PAGEHINT_DEBUG", "0") not in ("", "0")

# For tools that name lines (.ci/sanitize, .ci/coverage): those of the Cython source, each with code of its own.
lines = os.environ.get("PAGEHINT_LINES", "0") not in ("", "0")

# For CI: whatever the compiler warns of is an error.
warnings = os.environ.get("PAGEHINT_WARNINGS", "0") not in ("", "0")

# Whether a module has fast paths. The others (hotplug, forks, checks of arguments, queues to a host) are compiled with
# -O1, which takes a third of the time. The longest come first, so that all processors are busy until the end.
MODULES = {
    "_core": True,
    "arena.mapping": True,
    "hinting.engine": True,
    "numpy.handler": True,
    "malloc.serving": True,
    "replaying.replay": True,
    "traces.views.derive": True,
    "allocator.memory": False,
    "traces.formats.text": True,
    "traces.formats.trace_cmd": True,
    "arena.heap": False,
    "virtio.split_queue": False,
    "virtio.encoding": True,
    "hinting.report": True,
    "allocator.fork": False,
    "allocator.refusal": False,
    "allocator.restore": False,
    "hinting.callbacks": False,
    "policies.simulation": True,
    "policies.learning": True,
    "policies.scoring": True,
    "traces.intervals.find": True,
    "virtio.undisturbed": False,
    "qemu.guest_blocks": True,
    "qemu.guest_file": False,
    "available_memory": False,
    "pressure.watcher": False,
    "observing.answering": False,
}
# The slow paths have one caller each; inlined there, they would take registers from the fast ones. And without room to
# grow, in all and for each function, the compiler leaves calls in what should be one piece.
HOT_FLAGS = [
    "-fno-inline-functions-called-once",
    "--param=inline-unit-growth=300",
    "--param=max-inline-insns-single=250",
]
# Without it every count of bits is a function call. x86-64 processors have had the instruction since 2008.
MACHINE_FLAGS = ["-mpopcnt"] if platform.machine() == "x86_64" else []
# What debuggers and profilers know without -g1 are the functions; it takes a tenth of the time.
COMMON_FLAGS = ["-std=gnu11", "-pthread", "-g1" if debug or lines else "-g0"]
if warnings:
    COMMON_FLAGS += ["-Wall", "-Werror", "-Wno-unused-function"]  # Cython leaves functions that nobody calls


def optimization(hot: bool) -> str:
    """Return the level of optimization."""
    if lines:
        return "-Og"
    return "-O3" if hot and not debug else "-O1"


# For the dynamic linker, and not for Python, so that it needs nothing of ours and is no module.
PRELOADED = "pagehint.malloc.libpagehint_malloc"


def preloaded() -> Extension:
    """Return the library that takes the place of malloc."""
    return Extension(
        PRELOADED,
        ["pagehint/malloc/preload.c"],
        define_macros=[("_GNU_SOURCE", "1")],
        # The compiler knows malloc, and would make a call of one of these functions out of the code of another.
        extra_compile_args=[*COMMON_FLAGS, "-O2", "-fno-builtin", "-fvisibility=hidden"],
        extra_link_args=["-pthread", "-ldl"],
        depends=["pagehint/malloc/preload.h"],
    )


def extensions() -> list[Extension]:
    """Return the modules to build."""
    return [
        Extension(
            f"pagehint.{name}",
            [f"pagehint/{name.replace('.', '/')}.pyx"],
            include_dirs=["pagehint", "pagehint/malloc", numpy.get_include()],
            define_macros=[
                ("_GNU_SOURCE", "1"),
                ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
                ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"),
            ]
            + ([("PAGEHINT_DEBUG", "1")] if debug else []),
            extra_compile_args=[*COMMON_FLAGS, optimization(hot), *HOT_FLAGS, *MACHINE_FLAGS],
            extra_link_args=["-pthread"],
            depends=["pagehint/pagehint.h", "pagehint/malloc/preload.h"],
        )
        for name, hot in MODULES.items()
    ]


def generate(modules: list[Extension], processes: int | None) -> list[Extension]:
    """Run Cython on them, and return what the C compiler is to build."""
    return cythonize(
        modules,
        nthreads=processes or 0,
        emit_linenums=lines,
        compiler_directives={"language_level": 3, "warn.unused": False},
    )


class BuildExt(build_ext):
    """Generates the C code just before it is compiled: neither an sdist nor a package's metadata needs it."""

    def get_ext_filename(self, ext_name: str) -> str:
        """Return where a module goes. The preloaded library has no name that Python would import."""
        filename: str = super().get_ext_filename(ext_name)
        at, is_preloaded = filename.rfind("/") + 1, ext_name.endswith(PRELOADED.rpartition(".")[2])
        return f"{filename[:at]}{PRELOADED.rpartition('.')[2]}.so.1" if is_preloaded else filename

    def build_extensions(self) -> None:
        """Run Cython on all processors, then the C compiler."""
        for extension, generated in zip(self.extensions, generate(self.extensions, self.parallel), strict=True):
            extension.sources, extension.depends = generated.sources, generated.depends
        super().build_extensions()


HOOK = "pagehint.pth"  # beside the package, among the installed ones, where each Python reads it when it starts


class BuildPy(build_py):
    """Puts the hook into the root of the wheel, whose RECORD then has it, so that an uninstallation removes it.

    An editable wheel is made of what its build puts where `install` would: there nothing else is copied.
    """

    def run(self) -> None:
        """Copy the package, and the hook."""
        super().run()
        folder = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        self.copy_file(HOOK, f"{folder}/{HOOK}", preserve_mode=False)


if __name__ == "__main__":  # Cython's processes may import this file, too
    setup(
        ext_modules=[*extensions(), preloaded()],
        cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
        options={"build_ext": {"parallel": os.cpu_count()}},
    )
