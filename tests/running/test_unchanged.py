"""A program does the same under `pagehint run` as without: what it sees of itself, what it says, and how it ends."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile

import pytest
from started import environment, python, run

SEEN = """
    import os, sys
    import numpy as np
    print(sys.argv, sys.path[0], __name__, sys.flags, sys.warnoptions, sys._xoptions, sys.executable, sys.prefix)
    print({name: value for name, value in globals().items() if name in ("__file__", "__package__", "__cached__")})
    print(__spec__ and __spec__.name, sys.modules["__main__"].__dict__ is globals(), sys.orig_argv)
    print(sorted(threading.name for threading in __import__("threading").enumerate()), os.getcwd(), sys.stdin.read())
"""
ENDS = {
    "a status": "sys.exit(7)",
    "a text": "sys.exit('it does not work')",
    "none": "sys.exit()",
    "an exception": "def f():\n    1 / 0\nf()",
    "in an import": "import no_such_module",
    "a syntax error": "def :",
    "_exit": "os._exit(9)",
    "a signal": "os.kill(os.getpid(), signal.SIGTERM)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "Ctrl-C": "os.kill(os.getpid(), signal.SIGINT); time.sleep(10)",
    "Ctrl-C, caught": "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('caught')",
    "at exit": "atexit.register(print, 'the last'); print('first')",
}


def both(*program, pythons=(), options=(), **more):
    """Run a program as Python does, and by `pagehint run`: both end, and say, the same."""
    more = {"input": "what is typed", "start_new_session": True, **more}
    plain = python(*pythons, *program, **more)
    ours = python(*pythons, "-m", "pagehint", "run", *options, *program, **more)
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    assert ours.stderr == plain.stderr or options
    return plain, ours


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "folder" / "program.py"
    path.parent.mkdir()
    path.write_text(textwrap.dedent(SEEN))
    return path


def test_a_script(script):
    plain, _ = both(script, "a", "--size", "--", "-m", "--summary", "")
    assert plain.returncode == 0
    assert f"{script.parent}" in plain.stdout


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["--s"], ["--version"], ["-m"], ["--"], ["-"]], ids=" ".join)
def test_arguments_of_the_program_that_pagehint_has_too(script, args):
    plain, _ = both(script, *args)
    assert str(args) in plain.stdout.replace(f"'{script}', ", "")


def test_a_module_of_a_package(script):
    (script.parent / "__init__.py").touch()
    plain, _ = both("-m", "folder.program", "-m", "x", cwd=script.parents[1])
    assert plain.returncode == 0
    assert "folder.program" in plain.stdout
    both("-mfolder.program", "x", cwd=script.parents[1])


def test_a_folder_and_an_archive(script, tmp_path):
    main = script.rename(script.with_name("__main__.py"))
    assert both(script.parent, "x")[0].returncode == 0
    with zipfile.ZipFile(tmp_path / "program.zip", "w") as archive:
        archive.write(main, "__main__.py")
    assert both(tmp_path / "program.zip", "x")[0].returncode == 0


def test_standard_input():
    plain, _ = both("-", "x", input="import sys, numpy; print(sys.argv, sys.path[0]); 1 / 0")
    assert "ZeroDivisionError" in plain.stderr


@pytest.mark.parametrize("program", [["no_such.py"], ["-m", "no_such_module"], ["-m"], ["/"]], ids=" ".join)
def test_what_is_not_there(program, tmp_path):
    plain, _ = both(*program, cwd=tmp_path)
    assert plain.returncode != 0


@pytest.mark.parametrize("options", [(), ("--summary",)], ids=["plain", "summary"])
@pytest.mark.parametrize("end", ENDS)
def test_the_end(tmp_path, end, options):
    path = tmp_path / "program.py"
    path.write_text(f"import atexit, os, signal, sys, time\nimport numpy as np\nnp.ones(1 << 20)\n{ENDS[end]}\n")
    plain, ours = both(path, options=options)
    assert ours.stderr.startswith(plain.stderr)


@pytest.mark.parametrize(
    "pythons",
    [["-X", "dev"], ["-O", "-B", "-u"], ["-W", "error::ResourceWarning"], ["-X", "utf8=0", "-Xfaulthandler"], ["-sP"]],
    ids=" ".join,
)
def test_options_of_python_itself(script, pythons):
    assert both(script, "x", pythons=pythons)[0].returncode == 0


def test_an_option_of_python_in_one_word_with_m(script):
    plain = python("-OP", script, input="")
    ours = python("-OPm", "pagehint", "run", script, input="")
    assert (ours.returncode, ours.stdout, ours.stderr) == (0, plain.stdout, plain.stderr)


def test_the_process_is_the_same():
    """No process of ours stands between a shell and the program: the program has the one that was started."""
    command = [sys.executable, "-m", "pagehint", "run", "-"]
    with subprocess.Popen(
        command, env=environment(), cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        out, _ = process.communicate(b"import os; print(os.getpid())", timeout=60)
    assert int(out) == process.pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_a_program_with_a_summary(tmp_path, number):
    path = tmp_path / "program.py"
    path.write_text(
        "import signal, sys, time, numpy\n"
        "def handler(number, frame):\n    print('got', number, flush=True)\n    sys.exit(3)\n"
        f"signal.signal({int(number)}, handler)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-m", "pagehint", "run", "--summary", str(path)]
    with subprocess.Popen(
        command,
        env=environment(),
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        if number == signal.SIGINT:  # as a terminal does, to all
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, said = process.communicate(timeout=60)
    assert (out, process.returncode) == (f"got {int(number)}\n", 3), said
    assert "(program)" in said


def test_what_a_program_sets_before_it_imports_numpy(tmp_path):
    """The number of BLAS's threads, say, which is read once: the hook must not have imported NumPy before."""
    path = tmp_path / "program.py"
    path.write_text(
        "import os, sys, time\nassert 'numpy' not in sys.modules\n"
        "os.environ['OPENBLAS_NUM_THREADS'] = '1'\nimport numpy\n"
        "end = time.monotonic() + 10\nnames = []\n"
        "while names.count('python') != 1 and time.monotonic() < end:\n"  # a new thread has its name in a moment
        "  names = [open(f'/proc/self/task/{task}/comm').read().strip() for task in os.listdir('/proc/self/task')]\n"
        "print(sorted(names))\n"
    )
    done = run(path)
    plain = python(path)
    assert (done.returncode, done.stderr) == (0, "")
    others = [name for name in ast.literal_eval(done.stdout) if not name.startswith("pagehint")]
    assert others == ast.literal_eval(plain.stdout)
