"""A program that installs an arena itself does not know of the one that it has already."""

from __future__ import annotations

import pytest
from started import run

WORKS = "\nfirst = arena.address(0); a = np.ones(1 << 20); assert first <= a.ctypes.data < first + arena.size"


@pytest.mark.parametrize(
    ("code", "mebibytes"),
    [
        ("arena = ph.numpy.install('64MiB')", 64),
        ("arena = ph.numpy.install(ph.Arena('64MiB'))", 64),
        ("arena = ph.numpy.install(size='1GiB')", 1024),
        ("arena = ph.numpy.install()", 1024),
        ("arena = ph.numpy.install(min_age=0.5); assert arena.pages.min_age == 0.5", 1024),
        ("arena = ph.numpy.install('64MiB', hugepages=False); assert not arena.hugepages", 64),
        ("old = np.ones(1 << 20); arena = ph.numpy.install('64MiB'); assert old.sum() == 1 << 20", 64),
        ("ph.numpy.uninstall(); arena = ph.numpy.install('64MiB')", 64),
    ],
)
def test_a_program_that_installs_an_arena_was_refused(tmp_path, code, mebibytes):
    program = tmp_path / "program.py"
    program.write_text(f"import numpy as np, pagehint as ph\n{code}{WORKS}\nprint(arena.size >> 20)")
    done = run("--size", "1GiB", program)
    assert (done.stdout, done.stderr, done.returncode) == (f"{mebibytes}\n", "", 0)


def test_the_programs_own_arena_gives_way_to_none(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import numpy, pagehint as ph\n"
        "ph.numpy.install('64MiB')\n"
        "try:\n    ph.numpy.install('128MiB')\nexcept ph.PageHintError as error:\n    print(error)\n"
    )
    done = run("--size", "1GiB", program)
    assert done.stdout == "another arena is installed for NumPy, of 64 MiB; uninstall it first\n"


def test_what_cannot_be_made_leaves_the_first_one_in_place(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import numpy as np, pagehint as ph\n"
        "try:\n    ph.numpy.install('64MiB', min_age=-1)\nexcept ValueError:\n    arena = ph.numpy.installed()" + WORKS
    )
    done = run("--size", "1GiB", program)
    assert (done.stderr, done.returncode) == ("", 0)
