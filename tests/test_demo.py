"""The command line and its main job, on this machine's real memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest


def pagehint(*args, **options):
    return subprocess.run(
        [sys.executable, "-P", "-m", "pagehint", *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_memory_comes_back_with_hinting_and_not_without(tmp_path):
    plot = tmp_path / "rss.png"
    done = pagehint("demo", "--size", "256MiB", "--seconds", "5", "--json", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    kept = {}
    for name in ("off", "on"):
        run = figures[name]
        assert set(run) == {"rss_start", "rss_peak", "rss_end", "rss_mean", "work_seconds"}
        assert run["rss_peak"] - run["rss_start"] > 128 << 20
        kept[name] = (run["rss_end"] - run["rss_start"]) / (run["rss_peak"] - run["rss_start"])
    assert kept["off"] > 0.9
    assert kept["on"] < 0.03
    assert figures["blocks_reported"] >= figures["reports"] > 0
    assert figures["bytes_reported"] > 128 << 20
    assert figures["overhead"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_table_for_people():
    done = pagehint("demo", "--size", "64MiB", "--seconds", "1")
    assert done.returncode == 0, done.stderr
    for words in ("RSS peak", "RSS at the end", "RSS mean", "seconds of work", "hinting on"):
        assert words in done.stdout


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
        ["--plot", "/nowhere/at/all.png"],
        ["--plot", "picture.potato"],
        ["--colour"],
    ],
)
def test_bad_arguments_give_one_line_and_status_2(args):
    done = pagehint("demo", *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pagehint: error: ")
    assert done.stderr.count("\n") == 1


def test_help():
    assert "demo" in pagehint("--help").stdout
    assert "--advice" in pagehint("demo", "--help").stdout
    assert pagehint().returncode == 0
    assert pagehint("--version").stdout.startswith("pagehint ")


def test_ctrl_c_ends_it_cleanly():
    command = [sys.executable, "-P", "-m", "pagehint", "demo", "--size", "64MiB", "--seconds", "60", "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # CI may have started us with it ignored
    )
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, err) == ("", "pagehint: interrupted\n")


def test_without_the_extra_the_error_names_it():
    code = "import sys; sys.modules['rich'] = None; from pagehint.cli import main; main(['demo'])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "pip install 'pagehint[demo]'" in done.stderr
