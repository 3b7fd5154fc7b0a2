"""`pagehint run`: its options, and what it refuses before the program begins."""

from __future__ import annotations

import os
import subprocess
import venv
from importlib.metadata import distribution
from pathlib import Path

import numpy
import pytest
from started import run

import pagehint
from pagehint.cli import main
from pagehint_hook import VARIABLE


def test_every_option_reaches_the_arena(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        "import numpy, pagehint as ph; arena = ph.numpy.installed()\n"
        "print(arena.size >> 20, arena.pages.min_age, arena.pages.cost, arena.hugepages)\n"
    )
    done = run("--size", "64MiB", "--min-age", "auto", "--cost=2.5", "--no-hugepages", path)
    assert (done.stdout, done.stderr) == ("64 auto 2.5 False\n", "")
    done = run("--min-age", "0.25", path)
    assert done.stdout.split()[1] == "0.25"
    assert run("--min-age", "0", path).stdout.split()[1] == "0.0"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "there is no program: name a script, or -m and a module"),
        (["--summary"], "there is no program"),
        (["--size"], "expected one argument"),
        (["--size", "potato", "x.py"], "not a memory size: 'potato'"),
        (["--size", "1EiB", "x.py"], "an arena has at most 16 TiB"),
        (["--min-age", "soon", "x.py"], "not a number of seconds: 'soon'"),
        (["--min-age", "-1", "x.py"], "seconds must be more than 0"),
        (["--min-age", "1", "--cost", "2", "x.py"], "cost"),
        (["--metrics", "9464", "x.py"], "not an address such as 127.0.0.1:9464: '9464'"),
        (["--metrics", "localhost:", "x.py"], "not an address"),
        (["--metrics", "localhost:65536", "x.py"], "not an address"),
        (["--metrics", "localhost:-1", "x.py"], "not an address"),
        (["--metrics", "::1:9464", "x.py"], "not an address"),
        (["--malloc-threshold", "1MiB", "x.py"], "--malloc-threshold is for --malloc"),
        (["--malloc", "--malloc-threshold", "4095", "x.py"], "must be at least 4 KiB, not 4095 bytes"),
        (["--trace"], "expected one argument"),
        (["--potato", "x.py"], "unrecognized arguments: --potato"),
        (["--sum", "x.py"], "unrecognized arguments: --sum"),
    ],
)
def test_what_it_refuses(args, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", *args])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.endswith(" (see pagehint run --help)\n")


@pytest.fixture
def without_hook(tmp_path):
    """A Python that has the packages by PYTHONPATH, as after pip install --target, and so finds no hook."""
    venv.create(tmp_path / "venv", with_pip=False)
    folders = [Path(module.__file__).parents[1] for module in (pagehint, numpy)]
    folders.append(Path(distribution("pagehint").locate_file("")))
    variables = {name: value for name, value in os.environ.items() if name != VARIABLE}
    (tmp_path / "program.py").write_text("print('begun')\n")

    def run_there(*options):
        return subprocess.run(
            [tmp_path / "venv/bin/python", *options, tmp_path / "program.py"],
            env={**variables, "PYTHONPATH": os.pathsep.join(map(str, folders))},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run_there


@pytest.mark.parametrize("options", [[], ["--summary"]])
def test_a_python_without_the_hook_is_refused_and_the_program_not_begun(without_hook, options):
    done = without_hook("-m", "pagehint", "run", *options)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("pagehint: error: the start-up hook does not run in ")
    assert "pip install --target" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_python_that_reads_no_hooks_is_refused(without_hook):
    done = without_hook("-S", "-m", "pagehint", "run")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == "pagehint: error: python -S runs no start-up hooks, and so no program with pagehint\n"
