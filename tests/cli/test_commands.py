"""The command line: its table of commands, what a command has to be, and how the main program ends."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest

import pagehint as ph
from pagehint.cli import commands, main


def python(*args):
    return subprocess.run([sys.executable, "-P", *args], capture_output=True, text=True, timeout=60, check=False)


class Hello:
    """A command as somebody would add it."""

    name = "hello"
    help = "greet somebody"

    def arguments(self, parser):
        parser.add_argument("who")
        parser.add_argument("--fail", choices=("ctrl-c", "host", "file", "memory"))

    def check(self, parser, args):
        if args.who == "nobody":
            parser.error("there must be somebody")

    def run(self, args):
        if args.fail == "ctrl-c":
            raise KeyboardInterrupt
        if args.fail == "host":
            raise ph.HostError("the host has gone")
        if args.fail == "file":
            raise FileNotFoundError(2, "No such file", "greeting.txt")
        if args.fail == "memory":
            np.zeros(1 << 62, np.uint8)
        print(f"hello, {args.who}")
        return 3


@pytest.fixture
def hello(monkeypatch):
    monkeypatch.setattr(commands, "COMMANDS", [*commands.COMMANDS, Hello()])


def test_every_command_is_listed_and_has_help(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == listed
    for command in commands.COMMANDS:
        assert f"    {command.name} " in listed
        with pytest.raises(SystemExit) as caught:
            main([command.name, "--help"])
        assert caught.value.code == 0
        own = capsys.readouterr().out
        assert own.startswith(f"usage: pagehint {command.name} ")
        assert "examples:" in own


def test_names_are_unique():
    names = [command.name for command in commands.COMMANDS]
    assert len(names) == len(set(names))


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pagehint {ph.__version__}\n"


@pytest.mark.usefixtures("hello")
def test_a_command_is_one_class_and_one_line_in_the_table(capsys):
    assert main(["hello", "world"]) == 3
    assert capsys.readouterr().out == "hello, world\n"
    main([])
    assert "greet somebody" in capsys.readouterr().out


@pytest.mark.usefixtures("hello")
@pytest.mark.parametrize(
    ("args", "where"),
    [
        (["potato"], "pagehint --help"),
        (["--potato"], "pagehint --help"),
        (["hello"], "pagehint hello --help"),
        (["hello", "nobody"], "pagehint hello --help"),
        (["hello", "world", "--potato"], "pagehint hello --help"),
        (["hello", "world", "--fail", "potato"], "pagehint hello --help"),
        (["demo", "--size", "potato"], "pagehint demo --help"),
        (["soak", "potato"], "pagehint soak --help"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_right_help(args, where, capsys):
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pagehint: error: ")
    assert said.err.endswith(f" (see {where})\n")
    assert said.err.count("\n") == 1


@pytest.mark.usefixtures("hello")
@pytest.mark.parametrize(
    ("fail", "status", "line"),
    [
        ("ctrl-c", 130, "pagehint: interrupted\n"),
        ("host", 1, "pagehint: error: the host has gone\n"),
        ("file", 1, "pagehint: error: [Errno 2] No such file: 'greeting.txt'\n"),
        (
            "memory",
            1,
            "pagehint: error: not enough memory: Unable to allocate 4.00 EiB for an array with shape"
            " (4611686018427387904,) and data type uint8\n",
        ),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_status(fail, status, line, capsys):
    assert main(["hello", "world", "--fail", fail]) == status
    assert capsys.readouterr() == ("", line)


def test_minutes_that_are_none(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["soak", "--minutes", "abc"])
    assert caught.value.code == 2
    assert "not a number of minutes: 'abc'" in capsys.readouterr().err


@pytest.mark.parametrize("start", [["-m", "pagehint"], ["-c", "import pagehint_command; pagehint_command.main()"]])
def test_each_way_to_start_it(start):
    done = python(*start, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pagehint {ph.__version__}\n", "")


def test_python_m_pagehint_soak_is_pagehint_soak():
    ours, same = python("-m", "pagehint.soak", "--help"), python("-m", "pagehint", "soak", "--help")
    assert (ours.returncode, ours.stderr) == (0, "")
    assert ours.stdout == same.stdout
    assert "--minutes" in ours.stdout
    assert "--seed" in ours.stdout


def test_a_start_imports_nothing_that_an_extra_installs():
    done = python("-c", "import sys, pagehint.cli; print(*{'rich', 'matplotlib', 'qemu', 'IPython'} & {*sys.modules})")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_ctrl_c_while_the_package_is_imported_was_a_traceback():
    [script] = entry_points(group="console_scripts", name="pagehint")
    module, _, function = script.value.partition(":")
    code = f"""if True:
        import sys
        class Interrupting:
            def find_spec(self, name, path, target=None):
                if name == "numpy":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupting())
        from {module} import {function} as main
        sys.exit(main())
    """
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pagehint: interrupted\n")


@pytest.mark.usefixtures("hello")
@pytest.mark.parametrize(
    ("args", "where", "named"),
    [
        (["--potato", "demo"], "pagehint --help", "--potato"),
        (["--potato", "hello", "world"], "pagehint --help", "--potato"),
        (["hello", "world", "--potato"], "pagehint hello --help", "--potato"),
        (["demo", "potato"], "pagehint demo --help", "potato"),
        (["demo", "--seconds", "potato"], "pagehint demo --help", "potato"),
        (["soak", "--minutes", "abc"], "pagehint soak --help", "not a number of minutes: 'abc'"),
    ],
)
def test_a_mistake_before_the_command_is_the_main_program_s_and_one_after_it_the_command_s(args, where, named, capsys):
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.endswith(f" (see {where})\n")


@pytest.mark.parametrize(
    "args",
    [
        ["demo", "--size", "64MiB", "--seconds", "1"],
        ["demo", "--size", "64MiB", "--seconds", "1", "--json"],
        ["soak", "--minutes", "0.01"],
        [],
        ["--help"],
        ["demo", "--help"],
        ["soak", "--help"],
        ["demo", "--size", "\N{GREEK SMALL LETTER PI}"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_an_ascii_terminal_ended_a_command_with_a_traceback(args, terminal):
    if args[:1] in (["demo"], ["soak"]):
        pytest.importorskip("rich")
    command = [sys.executable, "-P", "-m", "pagehint", *args]
    if terminal:
        command = [sys.executable, "-P", "-c", f"import pty, sys; sys.exit(pty.spawn({command!r}) >> 8)"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == (2 if "--size" in args and args[-1] == "\N{GREEK SMALL LETTER PI}" else 0), said
    assert b"Traceback" not in said
    assert said.isascii()


def test_output_that_nobody_reads_any_more_is_no_error(tmp_path):
    command = f"{sys.executable} -P -m pagehint traces record {tmp_path / 'new'} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")  # 0: all of it was in the pipe before head ended
    closed = f"{sys.executable} -P -m pagehint traces record {tmp_path / 'new'} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", f"sleep 0.2; {closed}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "141\n"
