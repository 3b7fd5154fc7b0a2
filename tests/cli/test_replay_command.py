"""`pagehint replay`: a real recording, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from recordings import DATA

from pagehint.cli import main

NAME = "frag-2g-smp2-thp"
ARGUMENTS = ("replay", str(DATA / f"{NAME}.parquet"), "--snapshot", str(DATA / NAME / "before"), "--after",
             str(DATA / NAME / "after"))  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """The recording as a folder, which `record` would have left."""
    (tmp_path / NAME).mkdir()
    for path in [*(DATA / NAME).iterdir(), DATA / f"{NAME}.parquet"]:
        (tmp_path / NAME / (path.name if path.suffix != ".parquet" else "trace.parquet")).symlink_to(path)
    return tmp_path / NAME


def test_replay_prints_one_object(capsys):
    assert main([*ARGUMENTS, "--policy", "linux", "--policy", "age:1s", "--policy", "recorded", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["wrong_pages_end"] == found["wrong_pages_at_reports"] == 0
    assert found["contradictions"] == {}
    assert found["managed_pages"] > 500_000 > found["operations"] > 10_000
    assert list(found["optimum"]) == ["0.1", "1", "5"]
    assert list(found["policies"]) == ["linux", "age:1s", "recorded"]
    for figures in found["policies"].values():
        assert figures.keys() >= {
            "reported_mib",
            "again_mib",
            "reused_1s_mib",
            "reused_5s_mib",
            "free_charged_gib_s",
            "cost",
        }
        assert all(figures["cost"][age] >= found["optimum"][age] * (1 - 1e-9) for age in found["optimum"])
    # What Linux is predicted to report is nearly what it did.
    linux, recorded = found["policies"]["linux"], found["policies"]["recorded"]
    assert linux["reported_mib"] == pytest.approx(recorded["reported_mib"], rel=0.01)
    predicted = found["linux_predicted"]
    assert predicted["same"] > 1500
    assert len(predicted["missing"]) + len(predicted["extra"]) < 10
    assert recorded["again_mib"] > 100 > found["policies"]["age:1s"]["again_mib"]


def test_replay_of_a_folder_reads_in_eighty_columns(folder, capsys):
    assert main(["replay", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"{NAME}: " in out
    assert "wrong pages at the end: 0 of" in out
    for policy in ("recorded", "linux", "v10", "threshold", "age:1s", "best"):
        assert f"\n{policy} " in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("events", ["kmem", "user"])
def test_a_weaker_view_says_how_wrong_it_is(events, capsys):
    assert main([*ARGUMENTS, "--events", events, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["view"] == events
    share = found["wrong_pages_end"] / found["managed_pages"]
    assert share <= (0.0005 if events == "kmem" else 0.06)


def test_replay_writes_a_page_and_pictures(tmp_path, capsys):
    page, picture = tmp_path / "page.html", tmp_path / "picture.svg"
    assert main([*ARGUMENTS, "--html", str(page), "--plot", str(picture)]) == 0
    assert "data:image/png;base64," in page.read_text()
    assert "age:1s" in page.read_text()
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--policy", "nothing"], "no policy 'nothing'; there are linux"),
        (["--policy", "age:soon"], "policy 'age:soon'"),
        (["--plot", "picture.nope"], "no picture can be written as .nope"),
    ],
)
def test_replay_refuses_what_cannot_end_well(more, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*ARGUMENTS, *more])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--plot", "--html"])
def test_replay_told_only_at_its_end_that_a_picture_cannot_be_written(option, tmp_path, capsys):
    for place in (tmp_path / "nowhere" / "x.png", tmp_path / "folder.png"):
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        with pytest.raises(SystemExit) as caught:
            main([*ARGUMENTS, option, str(place)])
        assert caught.value.code == 2
        assert f"{option} {place}: cannot be written" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_recording_of_one_moment_has_pictures(tmp_path, capsys):
    trace = tmp_path / "trace.txt"
    trace.write_text("  a-1 [000] ..... 1.000000: mm_page_alloc: page=1 pfn=0x1 order=0 migratetype=1 gfp_flags=G\n")
    assert main(["replay", str(trace), "--plot", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_replay_of_what_is_no_recording(tmp_path, capsys):
    assert main(["replay", str(tmp_path)]) == 1
    assert "no trace in this folder; it would be named trace.parquet" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "missing.parquet")]) == 1
    assert "missing.parquet" in capsys.readouterr().err
    assert main([*ARGUMENTS, "--begin", "no such mark"]) == 1
    assert "no mark of the recording has 'no such mark'" in capsys.readouterr().err


def in_terminal(*more):
    """Run the command with its standard error on a terminal; returns its output, and what the terminal was sent."""
    ours, terminal = os.openpty()
    command = [sys.executable, "-P", "-m", "pagehint", *ARGUMENTS, *more]
    shown = b""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env={**os.environ, "TERM": "xterm"}) as run:
        os.close(terminal)
        try:
            while data := os.read(ours, 1 << 16):
                shown += data
        except OSError:  # the other end is closed
            pass
        output = run.stdout.read()
    os.close(ours)
    assert run.returncode == 0
    return output.decode(), shown.decode()


def test_a_long_replay_showed_nothing_until_its_end():
    output, shown = in_terminal("--policy", "age:1s", "--policy", "linux")
    for step in ("recording", "operations", "age:1s", "linux", "allocator"):
        assert step in shown
    assert "\x1b[2K" in shown  # it takes itself away in the end
    assert "\x1b" not in output
    assert "\nage:1s " in output


def test_json_has_no_progress_bar_beside_it():
    output, shown = in_terminal("--policy", "age:1s", "--json")
    assert list(json.loads(output)["policies"]) == ["age:1s"]
    assert shown == ""


def test_a_replay_without_a_terminal_shows_no_bar(capfd):
    assert main([*ARGUMENTS, "--policy", "age:1s"]) == 0
    assert capfd.readouterr().err == ""


def test_a_replay_on_a_terminal_without_rich_does_without_a_bar(tmp_path, monkeypatch):
    (tmp_path / "rich.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    output, shown = in_terminal("--policy", "age:1s")
    assert "\nage:1s " in output
    assert shown == ""
