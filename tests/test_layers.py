"""The rooms of `pagehint/` lie one above the other: no import goes up, none goes round, and no room is too large."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from imports import Import, circles, imports_of
from sources import functions_of, source_files, without_prose

ROOT = Path(__file__).parents[1]
PACKAGE, COMMAND, HOOK = "pagehint", "pagehint_command", "pagehint_hook"

# From the ground up: rooms, and files that are in none. Each floor may use those below it. Files of one room may use
# each other, and so may the files of the lowest floor.
FLOORS = (
    (
        "sizes",
        "columns",
        "numbers",
        "errors",
        "extras",
        "refusals",
        "layout",
        "process_memory",
        "available_memory",
        HOOK,
    ),
    ("sync",),
    ("zone",),
    ("hinting",),
    ("allocator",),
    ("pressure",),
    ("stats",),
    ("traces",),
    ("replaying",),
    ("_core",),
    ("policies",),
    ("arena",),
    ("numpy", "malloc"),
    ("observing",),
    ("running",),
    ("memory",),
    ("dask",),
    ("virtio",),
    ("qemu",),
    ("notebook",),
    ("__init__",),  # the face: what a user imports
    ("demo",),
    ("soak",),
    ("testing",),
    ("cli",),
    ("__main__", "soak/__main__", COMMAND),
)

# Functions that may import what lies above them, or leads back to them: (room, function, room that it imports).
DOORS = {
    ("arena", "Arena.numpy", "numpy"),  # a method of the lower room that is a context of the upper one
    ("__init__", "load_ipython_extension", "notebook"),  # IPython is optional
    (HOOK, "install", "running"),  # every Python imports the hook at its start, and few need the package then
}

MOST_FILES, MOST_LINES, MOST_LINES_OF_FUNCTION = 20, 600, 60
LONG_FILES = {"pagehint/_core.pyx"}  # the extension types, which Cython wants whole in one file
POLICY = re.compile(r"\w*(?<!page)(?:hint|report)\w*", re.IGNORECASE)


# ---- the rules; each returns what breaks it


def room_of(module: str) -> str:
    """The name in `FLOORS` of a module, such as "pagehint/zone/buddy"."""
    inside = module.removeprefix(f"{PACKAGE}/")
    return inside if any(inside in floor for floor in FLOORS) else inside.split("/")[0]


def floor_of(module: str) -> int:
    """The number of a module's floor, from below. What is in no list is above all, so that importing it goes up."""
    return next((number for number, floor in enumerate(FLOORS) if room_of(module) in floor), len(FLOORS))


def is_door(each: Import) -> bool:
    return (room_of(each.module), each.function, room_of(each.target)) in DOORS


def without_floor(modules: Iterable[str]) -> list[str]:
    return sorted(module for module in modules if not any(room_of(module) in floor for floor in FLOORS))


def going_up(imports: Iterable[Import]) -> list[str]:
    return [str(each) for each in imports if floor_of(each.target) > floor_of(each.module) and not is_door(each)]


def going_round(imports: Iterable[Import]) -> list[str]:
    """Imports that only type checkers see count, too: a type that both need belongs below both."""
    return ["\n".join(map(str, circle)) for circle in circles(each for each in imports if not is_door(each))]


def knowing_of_hinting(root: Path) -> list[str]:
    """Code of `zone/` that names policy. Prose may, to say what a mechanism is for."""
    return [
        f"{path.relative_to(root)}:{number}: {word}"
        for path in source_files(root / PACKAGE / "zone")
        for number, line in enumerate(without_prose(path.read_text()).splitlines(), 1)
        for word in POLICY.findall(line)
    ]


def rooms(root: Path) -> list[Path]:
    return sorted({path.parent for path in source_files(root / PACKAGE)} - {root / PACKAGE})


def without_a_sign(root: Path) -> list[str]:
    """Rooms whose `__init__.py` does not say what lives there, where to begin reading, and what the room uses."""
    found = []
    for room in rooms(root):
        face = room / "__init__.py"
        sign = (ast.get_docstring(ast.parse(face.read_text())) or "") if face.exists() else ""
        if not re.search(r"\A\S.*\bBegin with .*\bUses\b", sign, re.DOTALL):
            found.append(str(face.relative_to(root)))
    return found


def crowded(root: Path) -> list[str]:
    """Rooms with too many files; `engine.pxd`, `engine.pyx` and `engine.pyi` are one."""
    counts = {room: len({path.stem for path in source_files(room) if path.parent == room}) for room in rooms(root)}
    return [f"{room.relative_to(root)}: {count} files" for room, count in counts.items() if count > MOST_FILES]


def long_files(root: Path, folder: str) -> list[str]:
    lengths = {
        path.relative_to(root).as_posix(): len(path.read_text().splitlines()) for path in source_files(root / folder)
    }
    return [f"{name}: {n} lines" for name, n in lengths.items() if n > MOST_LINES and name not in LONG_FILES]


def long_functions(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{function.line}: {function.name}: {function.nr_lines} lines"
        for path in source_files(root / PACKAGE)
        for function in functions_of(path)
        if function.nr_lines > MOST_LINES_OF_FUNCTION
    ]


# ---- the rules, kept


def none_of(findings: list[str]) -> None:
    if findings:
        pytest.fail("\n".join(findings), pytrace=False)


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return imports_of(ROOT, PACKAGE, COMMAND, HOOK)


def test_every_file_has_a_floor(imports: list[Import]) -> None:
    files = {path.relative_to(ROOT).with_suffix("").as_posix() for path in source_files(ROOT / PACKAGE)}
    none_of(without_floor(files))
    none_of(without_floor(each.module for each in imports))


def test_no_import_goes_up(imports: list[Import]) -> None:
    none_of(going_up(imports))


def test_no_import_goes_round(imports: list[Import]) -> None:
    none_of(going_round(imports))


def test_the_mechanism_knows_nothing_of_hinting() -> None:
    none_of(knowing_of_hinting(ROOT))


def test_every_room_has_a_sign() -> None:
    none_of(without_a_sign(ROOT))


def test_no_room_is_crowded() -> None:
    none_of(crowded(ROOT))


@pytest.mark.parametrize("folder", [PACKAGE, "tests"])
def test_no_file_is_too_long(folder: str) -> None:
    none_of(long_files(ROOT, folder))


def test_no_function_is_too_long() -> None:
    none_of(long_functions(ROOT))


# ---- each rule, broken once


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files of a package, and the empty face of each room."""
    for name, text in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return root


SOUND = {
    "__init__.py": "from pagehint._core import PageAllocator\nfrom pagehint.arena.arena import Arena\n",
    "sizes.py": "from pagehint import errors\n",
    "errors.py": "",
    "sync/lock.pxd": "cdef extern from '<pthread.h>' nogil:\n    int a\n",
    "zone/leaf.pxd": '"""A leaf: granules that are reported have one."""\nfrom libc.stdint cimport uint64_t\n',
    "zone/buddy.pxd": "from pagehint.zone.leaf cimport (A,  # a hint\n    B)\nfrom pagehint.sync cimport lock\n",
    "hinting/worker.pyx": "from pagehint.zone.buddy cimport C, \\\n    D\nfrom . cimport batch\n",
    "hinting/batch.pxd": "cimport pagehint.zone.leaf as leaf\n",
    "_core.pyx": "def late():\n    from pagehint.hinting import worker\n",
    "arena/arena.py": "class Arena:\n    def numpy(self):\n        from pagehint.numpy.handler import Heap\n",
    "numpy/handler.pyx": "from pagehint._core import PageAllocator\n",
    "numpy/handler.pyi": "from pagehint.arena.arena import Arena\n",
    "demo/demo.py": "import pagehint as ph\nfrom ..numpy.handler import Heap\nfrom pagehint import numpy\n",
}


def edges(root: Path) -> set[tuple[str, str]]:
    return {
        (each.module.removeprefix(f"{PACKAGE}/"), each.target.removeprefix(f"{PACKAGE}/"))
        for each in imports_of(root, PACKAGE)
    }


def test_every_kind_of_import_is_read(tmp_path: Path) -> None:
    assert edges(tree(tmp_path, SOUND)) == {
        ("__init__", "_core"),
        ("__init__", "arena/arena"),
        ("sizes", "errors"),
        ("zone/buddy", "zone/leaf"),
        ("zone/buddy", "sync/lock"),
        ("hinting/worker", "zone/buddy"),
        ("hinting/worker", "hinting/batch"),
        ("hinting/batch", "zone/leaf"),
        ("_core", "hinting/worker"),
        ("arena/arena", "numpy/handler"),
        ("numpy/handler", "_core"),
        ("numpy/handler", "arena/arena"),
        ("demo/demo", "__init__"),
        ("demo/demo", "numpy/handler"),
        ("demo/demo", "numpy/__init__"),
    }


def test_an_import_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"zone/leaf\.pxd:1: no file for from pagehint\.sunk\.lock cimport Lock"):
        edges(tree(tmp_path, {"zone/leaf.pxd": "from pagehint.sunk.lock cimport Lock\n"}))


def test_a_sound_tree_breaks_no_rule_of_imports(tmp_path: Path) -> None:
    found = imports_of(tree(tmp_path, SOUND), PACKAGE)
    assert going_up(found) == []
    assert going_round(found) == []
    assert knowing_of_hinting(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("zone/leaf.pxd", "from pagehint._core cimport (\n    A,\n    B)\n", 1),
        ("zone/leaf.pxd", "cdef inline int f():\n    cdef int a = 1\n    from pagehint.arena import arena\n", 3),
        ("sizes.py", "def f():\n    if True:\n        import pagehint.zone.leaf\n", 3),
        ("sizes.py", "import typing\nif typing.TYPE_CHECKING:\n    from pagehint._core import A\n", 3),
        ("arena/arena.py", "class Arena:\n    def other(self):\n        from pagehint.numpy.handler import Heap\n", 3),
        ("arena/arena.py", "import pagehint as ph\n", 1),
        ("demo/demo.py", "import pagehint_command\n", 1),
        ("hinting/worker.pyi", "from pagehint._core import PageAllocator\n", 1),
    ],
    ids=[
        "cimport",
        "lazy in Cython",
        "lazy",
        "for types",
        "beside the door",
        "of the face",
        "of the command",
        "in a stub",
    ],
)
def test_an_import_that_goes_up_is_named(tmp_path: Path, name: str, text: str, line: int) -> None:
    tree(tmp_path, {**SOUND, name: text})
    (tmp_path / f"{COMMAND}.py").write_text("from pagehint import cli\n")
    [finding] = going_up(imports_of(tmp_path, PACKAGE, COMMAND))
    assert finding.startswith(f"pagehint/{name}:{line}: ")
    assert "import" in finding


def test_a_circle_of_three_files_is_named(tmp_path: Path) -> None:
    files = {
        "zone/leaf.pxd": "from pagehint.zone.run cimport A\n",
        "zone/buddy.pxd": "from pagehint.zone.leaf cimport B\n",
        "zone/run.pyx": "def f():\n    from pagehint.zone.buddy import C\n",
        "zone/outside.pxd": "from pagehint.zone.run cimport A\n",
    }
    [finding] = going_round(imports_of(tree(tmp_path, files), PACKAGE))
    assert finding.splitlines() == [
        "pagehint/zone/buddy.pxd:1: from pagehint.zone.leaf cimport B",
        "pagehint/zone/leaf.pxd:1: from pagehint.zone.run cimport A",
        "pagehint/zone/run.pyx:2: from pagehint.zone.buddy import C",
    ]


def test_a_file_outside_all_floors_is_named() -> None:
    assert without_floor(["pagehint/zone/leaf", "pagehint/attic/chest", "pagehint/loose"]) == [
        "pagehint/attic/chest",
        "pagehint/loose",
    ]


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("from pagehint.hinting.batch cimport A\n", ["1: hinting"]),
        ("# a hint\n\ncdef int f():\n    '''Hints.'''\n    return NO_HINTS  # reports\n", ["5: NO_HINTS"]),
        ("cdef struct Zone:\n    int blocks_reported\n", ["2: blocks_reported"]),
        ('def f():\n    raise ValueError(\n        "a hint")\n', ["3: hint"]),
        ('cdef extern from *:\n    """\n    #define REPORT 1\n    """\n', ["3: REPORT"]),
        ("from pagehint.zone.leaf cimport A\n", []),
    ],
    ids=["cimport", "identifier", "field", "message", "C", "the package's name"],
)
def test_a_file_of_the_mechanism_that_knows_of_hinting_is_named(tmp_path: Path, text: str, findings: list[str]) -> None:
    root = tree(tmp_path, {"zone/buddy.pxd": text})
    assert knowing_of_hinting(root) == [f"pagehint/zone/buddy.pxd:{finding}" for finding in findings]


def test_a_room_without_a_sign_or_with_too_many_files_is_named(tmp_path: Path) -> None:
    tree(tmp_path, {f"zone/part_{number}.pxd": "" for number in range(20)})
    tree(tmp_path, {"sync/lock.pxd": ""})
    (tmp_path / PACKAGE / "sync/__init__.py").write_text('"""Locks.\n\nBegin with `lock.pxd`. Uses nothing.\n"""\n')
    assert without_a_sign(tmp_path) == ["pagehint/zone/__init__.py"]
    assert crowded(tmp_path) == ["pagehint/zone: 21 files"]


def test_what_is_too_long_is_named(tmp_path: Path) -> None:
    docstring = '    """What it does\n\n    and why.\n    """\n'
    signature = "cdef inline int taken(int a,\n                       int b) noexcept nogil:\n"
    right = signature + docstring + "    a += 1\n" * 57 + "    # said once\n"
    wrong = right.replace("taken", "wrong").replace("# said", "a += 1  # said")
    python = "class A:\n    @property\n    def f(self):\n    " + docstring.replace("\n    ", "\n        ").rstrip(" ")
    root = tree(
        tmp_path,
        {
            "zone/run.pxd": f"{right}\ncdef int declared(int a)\n\n{wrong}" + "        b += a\n",
            "sizes.py": python + "        self.a += 1\n" * 60,
            "_core.pyx": "\n" * 700,
            "_core.pyi": "\n" * 601,
            "layout.py": "\n" * 600,
        },
    )
    assert long_functions(root) == ["pagehint/sizes.py:3: f: 61 lines", "pagehint/zone/run.pxd:68: wrong: 61 lines"]
    assert long_files(root, PACKAGE) == ["pagehint/_core.pyi: 601 lines"]
