"""`pagehint traces`: recordings made, checked and converted from the command line."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from recordings import DATA

import pagehint as ph
from pagehint.cli import main

NAME = "frag-2g-smp2-thp"


@pytest.mark.parametrize("tool", ["tracefs", "perf", "trace-cmd"])
def test_record_prints_a_script_that_a_shell_can_read(tool, tmp_path, capsys):
    folder = tmp_path / "it's here"
    assert main(["traces", "record", "--with", tool, "--seconds", "2.5", str(folder)]) == 0
    script = capsys.readouterr().out
    assert not folder.exists()
    assert "mm_page_pcpu_drain" in script
    assert "sleep 2.5" in script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_record_refuses_a_folder_that_exists(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main(["traces", "record", "--run", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_record_refuses_to_run_without_root(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["traces", "record", "--run", str(tmp_path / "new")]) == 1
    assert "sudo" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_check_of_a_whole_recording(capsys):
    arguments = [
        str(DATA / f"{NAME}.parquet"),
        "--snapshot",
        str(DATA / NAME / "before"),
        "--after",
        str(DATA / NAME / "after"),
    ]
    assert main(["traces", "check", *arguments]) == 0
    out = capsys.readouterr().out
    assert "no problem" in out
    assert max(map(len, out.splitlines())) <= 80
    assert main(["traces", "check", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_check_of_a_recording_with_another_ones_snapshot(capsys):
    other = str(DATA / "mixed-1g-smp2-k612" / "before")
    assert main(["traces", "check", str(DATA / f"{NAME}.parquet"), "--snapshot", other]) == 1
    assert "problem: " in capsys.readouterr().out


def test_convert_keeps_every_event(tmp_path, capsys):
    source, target = DATA / "ftrace-6.12.txt.gz", tmp_path / "trace.parquet"
    assert main(["traces", "convert", str(source), str(target)]) == 0
    assert "trace.parquet" in capsys.readouterr().out
    assert (ph.traces.read(source).events == ph.traces.read(target).events).all()


def test_traces_without_a_verb(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["traces"])
    assert caught.value.code == 2
    assert "VERB" in capsys.readouterr().err
