"""`pagehint traces`: recordings made, checked and converted from the command line."""

from __future__ import annotations

import json
import os
import shutil
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


def test_converting_a_folder_lost_its_states(tmp_path, capsys):
    """They go into the Parquet file, which then is the whole recording."""
    folder, target = tmp_path / NAME, tmp_path / "whole.parquet"
    shutil.copytree(DATA / NAME, folder)
    shutil.copy(DATA / f"{NAME}.parquet", folder / "trace.parquet")
    assert main(["traces", "convert", str(folder), str(target)]) == 0
    capsys.readouterr()
    found = []
    for place in (folder, target):
        assert main(["replay", str(place), "--policy", "linux", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out) | {"recording": ""})
    assert found[0] == found[1]
    assert found[0]["wrong_pages_end"] == 0
    before, kept = ph.traces.read_snapshot(folder / "before"), ph.traces.read_recording(target).before
    assert {name: array.tobytes() for name, array in kept.arrays().items()} == {
        name: array.tobytes() for name, array in before.arrays().items()
    }
    assert (kept.zones, kept.page_size, kept.ram) == (before.zones, before.page_size, before.ram)
    # Another state is taken before that in the file.
    assert main(["replay", str(target), "--policy", "linux", "--json", "--after", str(folder / "before")]) == 0
    assert json.loads(capsys.readouterr().out)["wrong_pages_end"] > 0


def test_a_state_in_a_parquet_file_that_is_none(tmp_path, capsys):
    target = tmp_path / "t.parquet"
    ph.traces.convert(DATA / f"{NAME}.parquet", target, snapshots={"before": b"something"})
    assert main(["traces", "check", str(target)]) == 1
    assert f"{target}, before: cut, or no .npz file" in capsys.readouterr().err
