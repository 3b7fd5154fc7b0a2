"""The table at the end: what is known of each process of a program, and of which it is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from started import environment, run

from pagehint.running.account import Balance, balance_of, processes
from pagehint.running.sample import Process
from pagehint.running.summary import summary

MIB = 1 << 20
WORK = """
    import os, sys, time
    import numpy as np
    def work(mebibytes):
        array = np.ones(mebibytes << 17)
        time.sleep(0.3)
        del array
        end = time.monotonic() + 20
        while time.monotonic() < end and resident() > 150 << 20:
            time.sleep(0.05)
    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
"""
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@pytest.fixture
def table(tmp_path):
    """Run a program with a summary; return what it printed, and the table's rows by process, in bytes."""

    def rows(text, *options):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(WORK) + textwrap.dedent(text))
        done = run("--summary", *options, path)
        lines = done.stderr[done.stderr.index("process ") :].splitlines()
        found = {}
        for line in lines[1:-3]:
            name, *figures = line.replace(" (program)", "*").split()
            values = []
            while figures:
                value = figures.pop(0)
                values.append(None if value == "?" else float(value) * UNITS[figures.pop(0)])
            found[name] = dict(zip(("peak", "mean", "last", "given_back", "again"), values, strict=True))
        return done, found

    return rows


def test_the_program_and_a_process_that_it_starts(table):
    done, rows = table(
        """
        import multiprocessing
        if __name__ == "__main__":
            print(os.getpid())
            process = multiprocessing.get_context("spawn").Process(target=work, args=[300])
            process.start()
            print(process.pid)
            process.join()
            work(200)
        """,
        "--min-age=0.01",
    )
    assert done.returncode == 0
    program, child = done.stdout.split()
    assert list(rows) == [f"{program}*", child]
    for row, size in ((rows[f"{program}*"], 200), (rows[child], 300)):
        assert size * MIB <= row["peak"] <= (size + 200) * MIB
        assert row["mean"] < row["peak"]
        assert row["last"] < row["peak"] - 100 * MIB
        assert (size - 70) * MIB <= row["given_back"] <= (size + 50) * MIB
        assert row["again"] is None  # no age is learnt


def test_what_is_handed_out_again_soon_is_told(table):
    done, rows = table(
        """
        for _ in range(3):
            work(300)
            import pagehint as ph
            ph.numpy.installed().trim()
        """
    )
    [row] = rows.values()
    assert done.returncode == 0
    assert 300 * MIB <= row["again"] <= row["given_back"]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_multiprocessing_say_what_they_did(table, method):
    """They leave by `os._exit`, which runs nothing that was registered with atexit."""
    done, rows = table(
        f"""
        import multiprocessing
        if __name__ == "__main__":
            process = multiprocessing.get_context("{method}").Process(target=work, args=[300])
            process.start()
            print(process.pid)
            process.join()
        """
    )
    assert done.returncode == 0
    assert rows[done.stdout.strip()]["given_back"] >= 200 * MIB


def test_a_child_does_not_claim_what_its_parent_had_given_back(table):
    _, rows = table(
        """
        import multiprocessing
        if __name__ == "__main__":
            work(400)
            process = multiprocessing.get_context("fork").Process(target=work, args=[1])
            process.start()
            print(process.pid)
            process.join()
        """
    )
    program, child = rows.values()
    assert program["given_back"] >= 300 * MIB
    assert child["given_back"] <= 150 * MIB


def test_a_process_that_leaves_without_a_word(table):
    """Its memory was seen; what it gave back it alone knew."""
    done, rows = table("work(300); os._exit(5)")
    [row] = rows.values()
    assert done.returncode == 5
    assert row["peak"] >= 300 * MIB
    assert row["given_back"] is row["again"] is None


def test_a_program_without_numpy(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("print('fine')\n")
    done = run("--summary", path)
    assert (done.stdout, done.returncode) == ("fine\n", 0)
    assert done.stderr == "pagehint: no process of the program has imported NumPy, so none had an arena\n"


def test_a_program_that_empties_the_folder_for_temporary_files_ended_the_watch(tmp_path):
    """Its accounts are gone, and whatever else happens it runs to its end."""
    path = tmp_path / "program.py"
    path.write_text(
        "import os, shutil, sys, time, numpy\ntime.sleep(0.3)\nfolder = os.environ['TMPDIR']\n"
        "shutil.rmtree(folder)\ntime.sleep(0.3)\nprint('fine', flush=True)\nsys.exit(4)\n"
    )
    (tmp_path / "temporary").mkdir()
    done = run("--summary", path, env=environment(TMPDIR=str(tmp_path / "temporary")))
    assert (done.stdout, done.returncode) == ("fine\n", 4)
    assert "(program)" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_file_is_left(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("import numpy, os; print(os.listdir(os.environ['TMPDIR']))\n")
    done = run("--summary", path, env=environment(TMPDIR=str(tmp_path)))
    assert "pagehint-run-" in done.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["program.py"]


def test_a_process_is_never_taken_for_another_with_its_number():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        process = Process(other.pid)
        process.sample(0.0)
        assert process.last > 0
        assert process.mean is None
        process.sample(2.0)
        assert process.mean > 0
        other.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        last = process.last
        process.sample(4.0)
        assert process.last == last
    process.sample(6.0)
    assert process.last == last


def test_accounts_are_read_with_suspicion(tmp_path):
    (tmp_path / "1").touch()
    (tmp_path / "2").write_text(json.dumps({"given_back": 5, "again": None}))
    (tmp_path / "3").write_text("[]")
    (tmp_path / "4").write_text('{"given_back": "many", "again": 0}')
    (tmp_path / "other").touch()
    assert sorted(processes(tmp_path)) == [1, 2, 3, 4]
    assert [balance_of(tmp_path, pid) for pid in range(1, 6)] == [None, Balance(5, None), None, None, None]


def test_the_program_comes_first():
    others = [Process(pid) for pid in (30, 20, 10)]
    lines = summary([(process, None) for process in others], 20).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["20", "30", "10"]
