"""`pagehint demo`: what it refuses before any work begins, and what it says then."""

from __future__ import annotations

import sys

import pytest
from guests import without_qemu

from pagehint.cli import main


@pytest.mark.parametrize(
    "args",
    [
        ["--size", "0"],
        ["--size", "1MiB"],
        ["--size", "potato"],
        ["--size", "1EiB"],
        ["--seconds", "-1"],
        ["--seconds", "nan"],
        ["--advice", "maybe"],
        ["--host", "xen"],
        ["--host", "qemu", "--advice", "free"],
        pytest.param(["--host", "qemu", "--size", "64MiB"], marks=without_qemu),
        ["--plot", "/nowhere/at/all.png"],
        ["--plot", "picture.potato"],
        ["--colour"],
    ],
)
def test_bad_arguments_give_one_line_and_status_2(args, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demo", *args])
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pagehint: error: ")
    assert said.err.endswith(" (see pagehint demo --help)\n")
    assert said.err.count("\n") == 1


def test_without_qemu_it_says_where_it_is_to_be_had(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["demo", "--host", "qemu"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "apt install qemu-system-x86" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "args", "extra"),
    [
        ("rich", ["demo"], "demo"),
        ("rich", ["soak"], "demo"),
        ("matplotlib", ["demo", "--plot", "rss.png"], "demo"),
        ("qemu.qmp", ["demo", "--host", "qemu"], "qemu"),
    ],
)
def test_without_the_extra_the_error_names_it(module, args, extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(args) == 1
    said = capsys.readouterr()
    assert f"pip install 'pagehint[{extra}]'" in said.err
    assert said.err.count("\n") == 1
