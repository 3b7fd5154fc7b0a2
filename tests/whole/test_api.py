"""The public API: its names, types, docstrings and signatures, and what importing it costs."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import pytest

import pagehint as ph
from pagehint import observing

HERE = Path(__file__).parent
INSTALLED = Path(ph.__file__).parent
PYPROJECT = HERE.parents[1] / "pyproject.toml"

MODULE = {
    "BLOCK_DTYPE",
    "OP_ALLOC",
    "OP_DTYPE",
    "OP_FREE",
    "Arena",
    "ArenaClosedError",
    "BadPageError",
    "Explanation",
    "HintingActiveError",
    "HintingInactiveError",
    "HostError",
    "HostTimeoutError",
    "LockStats",
    "OutOfMemoryError",
    "PageAllocator",
    "PageHintError",
    "PageHintingCallbacks",
    "Regret",
    "SnapshotError",
    "Stats",
    "Watermarks",
    "Zone",
    "ZoneSpec",
    "get_include",
    "memory",
    "policies",
    "qemu",
    "replay",
    "traces",
    "virtio",
}

MODULES = {"memory", "policies", "qemu", "traces", "virtio"}

FUNCTIONS = {
    ph.replay: "(trace, policies=('linux', 'threshold', 'age:1s'), *, before=None, after=None, events=None, begin=None,"
    " resident=False, name='recording', break_evens=(0.1, 1.0, 5.0), progress=None, **options)",
    ph.get_include: "()",
    ph.memory.owners: "()",
    ph.memory.release: "()",
    ph.memory.watch: "()",
    observing.answer: "()",
}

METHODS = {
    ph.PageAllocator: {
        "x86_64": "(memory, nodes=1, *, watermarks='linux', **options)",
        "from_snapshot": "(snapshot, *, min_order=None, pcp=False)",
        "alloc_pages": "(self, order=0, migratetype='movable', zone=None)",
        "free_pages": "(self, pfn, order=0)",
        "split_pages": "(self, pfn, order)",
        "alloc_pages_bulk": "(self, count, order=0, migratetype='movable', zone=None)",
        "free_pages_bulk": "(self, pfns, order=0)",
        "run_ops": "(self, ops, pfns, migratetype='movable', zone=None)",
        "alloc_pages_at": "(self, pfn, order=0)",
        "alloc_pages_at_bulk": "(self, pfns, nr_pages, order=0)",
        "alloc_pages_exact": "(self, nr_pages, migratetype='movable', zone=None)",
        "free_pages_exact": "(self, pfn, nr_pages)",
        "drain_pcp": "(self)",
        "offline": "(self, pfn, nr_pages)",
        "online": "(self, pfn, nr_pages)",
        "set_migratetype": "(self, pfn, nr_pages, migratetype)",
        "free_bitmap": "(self)",
        "free_block_at": "(self, pfn)",
        "set_watermarks": "(self, zone, watermarks)",
        "buddyinfo": "(self)",
        "pagetypeinfo": "(self)",
        "zoneinfo": "(self)",
        "verify": "(self)",
        "enable_hinting": "(self, callbacks, *, workqueue='thread', threshold=None, delay=2.0, max_report_order=None,"
        " mark_free=True, min_age=None, cost=None, reserve=None, reserve_age=1.5, clock=None)",
        "flush_hinting": "(self)",
        "disable_hinting": "(self)",
        "hinting": "(self, callbacks, **options)",
        "mark_free": "(self, pfn=None, nr_pages=None)",
        "run_pending": "(self)",
        "run_until": "(self, seconds)",
        "replay": "(self, operations, *, strict=False, host_latency=0.0, host_rate=None, progress=None)",
        "stats": "(self, locks=False)",
        "explain": "(self)",
    },
    ph.Zone: {"reported_bitmap": "(self)", "free_blocks": "(self)", "free_bitmap": "(self)"},
    ph.Stats: {"to_dict": "(self)"},
    ph.Explanation: {"to_dict": "(self)"},
    ph.Arena: {
        "address": "(self, pfn)",
        "empty": "(self, shape, dtype=<class 'float'>, order='C')",
        "hinting": "(self, advice='dontneed', *, max_pages=None, pressure=False, **options)",
        "enable_hinting": "(self, advice='dontneed', *, max_pages=None, pressure=False, **options)",
        "disable_hinting": "(self)",
        "numpy": "(self)",
        "status": "(self)",
        "trim": "(self)",
        "close": "(self)",
    },
}

CONSTRUCTORS = {
    ph.PageAllocator: "(memory, *, page_size=4096, max_page_order=10, min_order=None, pcp=True, watermarks=None)",
    ph.PageHintingCallbacks: "(hint_pages, max_pages=16, prepare=None, cleanup=None, is_dropped=None)",
    ph.ZoneSpec: "(name, start_pfn, spanned_pages, node=0, holes=(), span_limit=4294967296)",
    ph.Watermarks: "(min, low, high)",
    ph.Arena: "(size=None, hugepages=True)",
    observing.Collector: "(look=None)",
}

PROPERTIES = {
    ph.PageAllocator: {
        "zones",
        "hinting_enabled",
        "last_error",
        "now",
        "next_due",
        "max_pages",
        "threshold",
        "delay",
        "min_age",
        "cost",
        "reserve",
        "reserve_age",
        "page_size",
        "max_page_order",
        "min_order",
    },
    ph.Zone: {
        "name",
        "node",
        "index",
        "start_pfn",
        "spanned_pages",
        "present_pages",
        "managed_pages",
        "free_pages",
        "nr_free",
        "watermarks",
        "metadata_bytes",
        "hint_base_pfn",
        "hint_bitmap",
    },
    ph.PageHintingCallbacks: {"max_pages"},
    ph.Arena: {
        "size",
        "closed",
        "live_arrays",
        "numpy_counts",
        "populated_bytes",
        "pressure",
        "resident_bytes",
        "limit",
    },
    ph.ZoneSpec: {"end_pfn"},
}

STATS = [
    "managed_pages",
    "free_pages",
    "pcp_pages",
    "reporting_pages",
    "allocated_pages",
    "nr_free",
    "hints_pending",
    "hints_set",
    "hints_cleared_by_alloc",
    "work_queued",
    "work_runs",
    "scans",
    "blocks_isolated",
    "isolation_refused",
    "reports",
    "blocks_reported",
    "pages_reported",
    "blocks_failed",
    "report_errors",
    "prepare_errors",
    "blocks_returned",
    "lock_acquired",
    "lock_contended",
]

ERRORS = {
    ph.PageHintError: (Exception,),
    ph.OutOfMemoryError: (ph.PageHintError, MemoryError),
    ph.ArenaClosedError: (ph.PageHintError, ValueError),
    ph.BadPageError: (ph.PageHintError, ValueError),
    ph.HintingActiveError: (ph.PageHintError, RuntimeError),
    ph.HintingInactiveError: (ph.PageHintError, RuntimeError),
    ph.HostError: (ph.PageHintError, OSError),
    ph.HostTimeoutError: (ph.HostError, TimeoutError),
}

CLASSES = [value for value in vars(ph).values() if inspect.isclass(value)]

# Fields that are plain data descriptors: of named tuples, and `cdef readonly` attributes, which can have no docstring.
# They are described in their class's docstring instead.
READONLY = {"hint_pages", "prepare", "cleanup", "is_dropped", "memory"}


def untyped(signature: inspect.Signature) -> str:
    """A signature as text, without annotations, which Python and Cython write differently, as they do `self`."""
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(inspect.Signature(parameters)).replace("(self, /", "(self")


def members(kind):
    """The names a class has by itself or by a base of this package, public ones only."""
    ours = [base for base in reversed(kind.__mro__) if base.__module__.startswith("pagehint")]
    return {name: value for base in ours for name, value in vars(base).items() if not name.startswith("_")}


def run(*command):
    """Run Python on the installed package, wherever that is; fail with what it printed."""
    environment = {**os.environ, "MYPYPATH": str(INSTALLED.parent)} if "site-packages" not in INSTALLED.parts else None
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=HERE, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_module_has_these_names():
    assert set(ph.__all__) == MODULE
    assert all(hasattr(ph, name) for name in MODULE)
    public = {name for name, value in vars(ph).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public - {"version", "Path", "load_ipython_extension"} == MODULE - MODULES - {"replay"}
    assert (INSTALLED / "pagehint.h").is_file()
    assert ph.get_include() == str(INSTALLED)
    assert (INSTALLED / "py.typed").is_file()
    assert np.dtype([("pfn", np.uint64), ("order", np.uint32), ("zone", np.uint32)]) == ph.BLOCK_DTYPE


@pytest.mark.parametrize(
    ("kind", "name", "signature"),
    [(kind, name, signature) for kind, methods in METHODS.items() for name, signature in methods.items()],
    ids=lambda value: value.__name__ if inspect.isclass(value) else None,
)
def test_methods_and_their_signatures(kind, name, signature):
    assert untyped(inspect.signature(getattr(kind, name))) == signature


@pytest.mark.parametrize(
    ("kind", "signature"), CONSTRUCTORS.items(), ids=lambda value: getattr(value, "__name__", None)
)
def test_constructors_and_their_signatures(kind, signature):
    assert untyped(inspect.signature(kind)) == signature


@pytest.mark.parametrize(
    ("function", "signature"), FUNCTIONS.items(), ids=lambda value: getattr(value, "__name__", None)
)
def test_functions_and_their_signatures(function, signature):
    assert untyped(inspect.signature(function)) == signature
    assert function.__doc__


@pytest.mark.parametrize(("kind", "names"), PROPERTIES.items(), ids=lambda value: getattr(value, "__name__", None))
def test_properties(kind, names):
    found = {
        name
        for name, value in members(kind).items()
        if isinstance(value, property) or inspect.isgetsetdescriptor(value)
    }
    assert found - READONLY == names


def test_the_plugins_for_dask():
    if "CI" not in os.environ:
        pytest.importorskip("distributed")
    from pagehint import dask

    assert dask.__all__ == ["PageHintNanny", "PageHintWorker"]
    signatures = {name: untyped(inspect.signature(getattr(dask, name))) for name in dask.__all__}
    assert signatures == {
        "PageHintNanny": "(malloc=False, size=None, min_age=None, cost=None, hugepages=None)",
        "PageHintWorker": "(size=None, min_age=None, cost=None, hugepages=None, *, idle=5.0)",
    }
    for kind in (dask.PageHintNanny, dask.PageHintWorker):
        assert {*members(kind)} <= {"name", "restart", "setup", "teardown"}
        assert all(value.__doc__ for value in (kind, kind.setup, kind.teardown))


def test_nothing_else_is_public():
    for kind in (ph.PageAllocator, ph.Zone, ph.PageHintingCallbacks, ph.Arena):
        extra = set(members(kind)) - set(METHODS.get(kind, ())) - PROPERTIES[kind] - READONLY
        assert extra <= {"figures"}, f"{kind.__name__}: {extra}"


def test_attributes_of_instances():
    callbacks = ph.PageHintingCallbacks(print, 3, prepare=list, cleanup=dict)
    assert (callbacks.hint_pages, callbacks.max_pages, callbacks.prepare, callbacks.cleanup) == (print, 3, list, dict)
    assert ph.Watermarks._fields == ("min", "low", "high")
    assert [field.name for field in dataclasses.fields(ph.ZoneSpec)] == [
        "name",
        "start_pfn",
        "spanned_pages",
        "node",
        "holes",
        "span_limit",
    ]
    with ph.Arena("2MiB") as arena:
        assert isinstance(arena.pages, ph.PageAllocator)
        assert isinstance(arena.hugepages, bool)


def test_the_fields_of_stats():
    fields = [field.name for field in dataclasses.fields(ph.Stats)]
    assert fields == [*STATS, "page_size", "locks", "regret"]
    stats = ph.PageAllocator("4MiB").stats()
    assert list(stats.to_dict()) == STATS
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.reports = 1
    assert "managed_pages" in repr(stats)
    assert stats._repr_html_().startswith("<table>")


@pytest.mark.parametrize(("error", "bases"), ERRORS.items(), ids=lambda value: getattr(value, "__name__", None))
def test_errors_and_their_bases(error, bases):
    assert error.__bases__ == bases


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_everything_public_has_a_docstring(kind):
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}("), "the signature is still part of the text"
    for name, value in members(kind).items():
        described = isinstance(value, property | classmethod | staticmethod) or inspect.isgetsetdescriptor(value)
        if (described or inspect.isroutine(value)) and name not in READONLY:
            doc = inspect.getdoc(getattr(kind, name))
            assert doc, f"{kind.__name__}.{name} has no docstring"
            assert not doc.startswith(f"{name}("), f"{kind.__name__}.{name}: the signature is part of the text"
    assert ph.__doc__
    assert ph.get_include.__doc__


def test_importing_needs_numpy_and_nothing_else():
    optional = {"qemu", "rich", "matplotlib", "scipy", "hypothesis", "IPython", "pandas"}
    loaded = run("-c", "import sys, pagehint; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert "numpy" in loaded
    assert not optional & set(loaded)


def test_importing_brought_what_reads_recordings():
    """A leftover of a merge did: tens of milliseconds of every program's start, for what most never use."""
    asked = "import sys, pagehint; print(*[name for name in sys.modules if name.startswith('pagehint.')])"
    rooms = {name.split(".")[1] for name in run("-c", asked).split()}
    assert "_core" in rooms
    assert not {"dask", "memory", "policies", "traces"} & rooms
    assert run("-c", "import pagehint; print(pagehint.replay is pagehint.policies.replay)") == "True\n"


def test_a_numpy_without_what_is_used_was_allowed():
    """`numpy.trapezoid` is new in 2.0, and so is what the compiled modules are built with."""
    [needed] = [line for line in requires("pagehint") if re.match(r"numpy\b", line)]
    assert needed == "numpy>=2.0"


def test_the_typed_program_runs():
    import typing_api

    typing_api.main()


def test_the_typed_program_passes_mypy(tmp_path):
    out = run("-m", "mypy", "--strict", "--cache-dir", tmp_path, "--config-file", os.devnull, HERE / "typing_api.py")
    assert "Success" in out


def test_the_stubs_are_those_of_the_compiled_modules(tmp_path):
    run("-m", "mypy.stubtest", "pagehint", "--concise", "--allowlist", HERE / "stubtest-allowlist.txt")


def test_a_star_import_rebound_numpy():
    names = {}
    exec("import numpy\nfrom pagehint import *", names)
    assert names["numpy"] is np
    assert names["Arena"] is ph.Arena
    assert not {"numpy", "np", "typing", "version", "Path"} & set(ph.__all__)


@pytest.mark.parametrize("missing", ["*.so", "_core*.so", "handler*.so", "split_queue*.so"])
def test_importing_sources_that_are_not_compiled_said_circular_import(tmp_path, missing):
    """In the folder of the sources, which hides the installed package; and where a module has come since the build."""
    package = tmp_path / "pagehint"
    for file in INSTALLED.rglob("*"):
        if file.suffix in (".py", ".so") and not file.match(missing):
            copy = package / file.relative_to(INSTALLED)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for module in INSTALLED.rglob("*.so"):  # an installed package has no sources
        folder = package / module.relative_to(INSTALLED).parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{module.name.partition('.')[0]}.pyx").touch()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", "import pagehint"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    [said] = [line for line in done.stderr.splitlines() if line.startswith("ImportError: ")]
    assert said.startswith(f"ImportError: {package} holds the sources of pagehint, of which ")
    assert "leave this folder" in said
    assert "build it in place: pip install -e ." in said
    assert "circular" not in done.stderr
