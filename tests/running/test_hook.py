"""The start-up hook: it costs a Python without the variable nothing, and breaks none that has it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from started import SETTINGS, environment, installed_hook, python

import pagehint_hook
from pagehint.running import settings
from pagehint_hook import VARIABLE

PTH = Path(pagehint_hook.__file__).with_name("pagehint.pth")
USES = "import numpy as np; print(np.ones(1 << 20).sum())"
SUM = "1048576.0\n"


def hooked(code, text=SETTINGS, pythons=(), **more):
    """Run code in a Python that finds the hook, and the variable."""
    variables = more.pop("variables", {})
    return python(*pythons, "-c", code, env=environment(**{VARIABLE: text}, **variables), **more)


def one_line(said, *words):
    assert said.count("\n") == 1, said
    assert said.startswith("pagehint: not installed in process ")
    for word in words:
        assert word in said


def test_the_hook_is_installed_with_the_package():
    """The real one, which an uninstallation removes."""
    if not installed_hook() and "CI" not in os.environ:
        pytest.skip("the package of the source tree is not installed")
    assert installed_hook()
    files = {str(path): path for path in distribution("pagehint").files}
    assert "pagehint.pth" in files
    assert Path(files["pagehint.pth"].locate()).read_text() == PTH.read_text()


def test_the_hook_is_one_line_and_names_the_variable():
    """Python runs lines of such a file that begin with "import", and takes others for folders."""
    [line] = PTH.read_text().splitlines()
    assert line.startswith("import os, sys; ")
    assert f'"{VARIABLE}" in os.environ and' in line
    assert settings.VARIABLE == VARIABLE


def test_without_the_variable_nothing_is_imported():
    code = "import os, sys; before = {*sys.modules}; exec(open(sys.argv[1]).read()); print({*sys.modules} - before)"
    environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = python("-S", "-c", code, PTH, env=environ)
    assert (done.stdout, done.stderr, done.returncode) == ("set()\n", "", 0)


def test_with_the_variable_nothing_of_ours_is_imported_before_numpy():
    done = hooked("import sys; print([name for name in sys.modules if name.split('.')[0] in ('numpy', 'pagehint')])")
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)


def test_the_hook_leaves_after_numpy_and_the_loader_is_as_it_was():
    done = hooked(
        "import sys, importlib.machinery, numpy, pagehint_hook as hook\n"
        "assert not any(isinstance(finder, hook.ImportsEnd) for finder in sys.meta_path)\n"
        "assert 'exec_module' not in vars(numpy.__loader__)\n"
        "assert type(numpy.__loader__) is importlib.machinery.SourceFileLoader\n"
        "import pagehint as ph; assert ph.numpy.installed() is not None"
    )
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    "code",
    [
        "import numpy, pagehint as ph",
        "import pagehint as ph, numpy",
        "import pagehint.numpy as _; import pagehint as ph",
        "import numpy.linalg, pagehint as ph",
        "import importlib.util as u; assert u.find_spec('numpy'); import numpy, pagehint as ph",
        "import threading as t\nthreads = [t.Thread(target=__import__, args=[name]) for name in ('numpy', 'pagehint')]"
        "\n[thread.start() for thread in threads]; [thread.join() for thread in threads]\nimport pagehint as ph",
        "import sys, importlib.util as u\nspec = u.find_spec('numpy'); spec.loader = u.LazyLoader(spec.loader)\n"
        "numpy = sys.modules['numpy'] = u.module_from_spec(spec); spec.loader.exec_module(numpy)\n"
        "numpy.ones(3)\nimport pagehint as ph",
        "import gevent.monkey as m; m.patch_all(); import numpy, pagehint as ph",
        "import eventlet as e; e.monkey_patch(); import numpy, pagehint as ph",
    ],
    ids=[
        "numpy",
        "pagehint first",
        "a room first",
        "a part",
        "looked for",
        "two threads",
        "lazily",
        "gevent",
        "eventlet",
    ],
)
def test_each_way_to_import_numpy(code):
    done = hooked(f"{code}\nprint(ph.numpy.installed().size >> 20)", pythons=["-W", "ignore"])
    assert (done.stdout, done.stderr, done.returncode) == ("1024\n", "", 0)


def test_numpy_imported_by_an_earlier_hook(tmp_path):
    """By a `.pth` file or a sitecustomize that comes first."""
    code = f"import numpy, os; exec(open({str(PTH)!r}).read())\nimport pagehint as ph; print(ph.numpy.installed().size)"
    done = python("-c", "import os, sys\n" + code, env={**environment(), VARIABLE: SETTINGS})
    assert (done.stdout, done.stderr, done.returncode) == ("1073741824\n", "", 0)


def test_a_venv_reads_the_hook_twice_and_the_second_one_asked_the_first_for_ever():
    line = f"exec(open({str(PTH)!r}).read())"
    done = hooked(
        f"{line}\n{line}\nimport sys, pagehint_hook as hook\n"
        "print(sum(isinstance(finder, hook.ImportsEnd) for finder in sys.meta_path))\n"
        "import numpy, pagehint as ph; print(ph.numpy.installed().size >> 20)"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1\n1024\n", "", 0)


def test_another_finder_that_asks_all_others():
    done = hooked("""if True:
        import sys
        class Other:
            asked = 0
            def find_spec(self, name, path=None, target=None):
                if name != "numpy" or self.asked > 5:
                    return None
                self.asked += 1
                specs = [finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self]
                return next(filter(None, specs), None)
        other = Other()
        sys.meta_path.insert(1, other)
        import numpy, pagehint as ph
        print(ph.numpy.installed().size >> 20, other.asked)
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("1024 1\n", "", 0)


def test_numpy_that_cannot_be_imported_fails_as_ever_and_the_next_time_counts(tmp_path):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise ImportError('broken')\n")
    done = hooked(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "try:\n    import numpy\nexcept ImportError as error:\n    print(error)\n"
        "del sys.path[0]\nimport numpy, pagehint as ph; print(ph.numpy.installed().size >> 20)"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("broken\n1024\n", "", 0)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no settings"),
        ("nonsense", "no settings"),
        ("[" * 100_000, "no settings"),
        ("[1]", "no settings"),
        ("{}", "no settings"),
        ('{"version": true}', "no settings"),
        ('{"version": 2, "size": 4096}', "version 2"),
        ('{"version": 1, "sizes": 4096}', "sizes"),
        ('{"version": 1, "size": "1GiB"}', "size"),
        ('{"version": 1, "size": true}', "size"),
        ('{"version": 1, "size": -1}', "positive"),
        ('{"version": 1, "size": 1e300}', "size"),
        ('{"version": 1, "size": 1000000000000000000000000}', "at most"),
        ('{"version": 1, "min_age": "soon"}', "min_age"),
        ('{"version": 1, "min_age": NaN}', "min_age"),
        ('{"version": 1, "cost": -1}', "cost"),
        ('{"version": 1, "hugepages": 1}', "hugepages"),
        ('{"version": 1, "malloc": 4095}', "at least 4 KiB"),
        ('{"version": 1, "accounts": null}', "accounts"),
        ("\udcff\n\x1b[31m", "no settings"),
    ],
)
def test_nonsense_in_the_variable_is_one_line_and_the_program_goes_on(text, word):
    done = hooked(USES, text)
    assert (done.stdout, done.returncode) == (SUM, 0)
    one_line(done.stderr, word)


def test_accounts_that_nobody_keeps_any_more(tmp_path):
    done = hooked(USES, f'{{"version": 1, "accounts": "{tmp_path}/gone"}}')
    assert (done.stdout, done.stderr, done.returncode) == (SUM, "", 0)


@pytest.mark.parametrize("content", ["raise ImportError('broken\\nin two lines')", "1 / 0", "def :"], ids=str)
def test_a_broken_package(tmp_path, content):
    (tmp_path / "pagehint").mkdir()
    (tmp_path / "pagehint" / "__init__.py").write_text(content)
    done = hooked(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {USES}")
    assert (done.stdout, done.returncode) == (SUM, 0)
    one_line(done.stderr)


@pytest.mark.parametrize("content", ["raise ImportError('broken')", "1 / 0", "def :", ""], ids=str)
def test_a_broken_hook(tmp_path, content):
    (tmp_path / "pagehint_hook.py").write_text(content)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); exec(open({str(PTH)!r}).read()); {USES}"
    done = python("-S", "-c", code.replace(USES, "print(1)"), env={**os.environ, VARIABLE: SETTINGS})
    assert (done.stdout, done.returncode) == ("1\n", 0)
    one_line(done.stderr)


def test_no_memory_for_an_arena():
    code = """if True:
        import os, resource, sys
        import numpy as np, pagehint, pagehint.running.start, pagehint_hook
        array = np.ones(1 << 20)
        used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used, used))
        pagehint_hook.install(sys.argv[1])
        print(int(array.sum()), pagehint.numpy.installed()) # NumPy takes 46 KiB to print a float, and aborts without
    """
    done = python("-c", code, SETTINGS)
    assert (done.stdout, done.returncode) == ("1048576 None\n", 0), done.stderr
    one_line(done.stderr)


def test_no_standard_error():
    code = f"import os; os.execv({sys.executable!r}, [{sys.executable!r}, '-c', {USES!r}])"
    done = hooked(f"import os; os.close(2); {code}", "nonsense")
    assert (done.stdout, done.returncode) == (SUM, 0)


@pytest.mark.parametrize("flags", [["-W", "error"], ["-X", "dev"], ["-O"], ["-OO"], ["-v"]], ids=" ".join)
def test_options_of_python(flags):
    done = hooked(f"{USES}; import pagehint as ph; assert ph.numpy.installed().size", pythons=flags)
    if "-OO" not in flags and "-O" not in flags and "-v" not in flags:
        assert done.stderr == ""
    assert (done.stdout, done.returncode) == (SUM, 0)
    assert "not installed" not in done.stderr


def test_a_subinterpreter_goes_on_without():
    """The compiled modules, and NumPy's, are loaded in one interpreter of a process only."""
    code = """if True:
        import sys
        try:
            import _interpreters as interpreters
            new = interpreters.create("legacy")
        except ImportError:
            import _xxsubinterpreters as interpreters
            new = interpreters.create(isolated=False)
        import numpy, pagehint
        uses = "try:\\n import numpy\\nexcept ImportError:\\n pass\\nprint('fine', flush=True)"
        ended = interpreters.run_string(new, uses)
        interpreters.destroy(new)
        print(ended)
    """
    done = hooked(code, pythons=["-W", "ignore"])
    assert (done.stdout, done.returncode) == ("fine\nNone\n", 0), done.stderr
    assert done.stderr.count("\n") <= 1


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_a_chroot_after_the_imports(tmp_path):
    done = hooked(f"import os, numpy; os.chroot({str(tmp_path)!r}); os.chdir('/'); {USES}")
    assert (done.stdout, done.stderr, done.returncode) == (SUM, "", 0)
