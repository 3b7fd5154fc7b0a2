"""Recordings times policies, in processes and on a Dask client, resumed and interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from operation_tables import GIVE, SMALL, TAKE, table_of
from recordings import DATA

import pagehint as ph
from pagehint.policies import SECOND, Age, Policy, Recording, evaluate, sweep
from pagehint.traces import Operation

if not os.environ.get("CI"):  # there they are installed, and a test without them fails
    pytest.importorskip("joblib")
    pytest.importorskip("pyarrow")

S = SECOND
NAMES = ["age:1s", "delay:1s", "optimum:1s"]
pytestmark = pytest.mark.filterwarnings("default")  # of joblib's and Dask's own


def recording_of(name, second=2):
    rows = ((0, TAKE, 0, 3), (second * S, GIVE, 0, 3), (9 * S, Operation.MARK, 0, -1))
    return Recording.of(table_of(*rows), np.ones(32, bool), name=name, **SMALL)


@pytest.fixture
def folders(tmp_path):
    for number in (2, 3):
        recording_of(f"r{number}", number).save(tmp_path / f"r{number}")
    return [tmp_path / "r2", tmp_path / "r3"]


def table_in(path):
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


class Counting(Policy):
    """Leaves a file for each time that it is run."""

    def __init__(self, folder):
        self.folder = folder

    def start(self, recording):
        (Path(self.folder) / f"{recording.name}.{time.monotonic_ns()}").touch()

    def next_time(self):
        return None


def test_one_row_for_each_recording_and_policy(folders, tmp_path):
    output = sweep(folders, NAMES, tmp_path / "out.parquet", jobs=2)
    rows = table_in(output)
    assert [(row["recording"], row["policy"]) for row in rows] == [(r, p) for r in ("r2", "r3") for p in NAMES]
    for row in rows:
        [score] = evaluate(recording_of(row["recording"], int(row["recording"][1:])), [row["policy"]])
        assert {name: row[name] for name in score.to_row()} == score.to_row()


def test_recordings_need_no_folder_and_policies_no_name(tmp_path):
    output = sweep([recording_of("here")], [Age(0.5)], tmp_path / "out.parquet", jobs=1)
    [row] = table_in(output)
    assert (row["recording"], row["policy"], row["reported"]) == ("here", "age:0.5s", 4 * 8 * 4096)


def test_a_kernels_recording_was_refused(tmp_path):
    """As the command line takes it: a folder, or a trace alone."""
    name = "frag-2g-smp2-thp"
    shutil.copytree(DATA / name, tmp_path / name)
    shutil.copy(DATA / f"{name}.parquet", tmp_path / name / "trace.parquet")
    output = sweep([tmp_path / name, DATA / f"{name}.parquet"], ["linux", "age:1s"], tmp_path / "out.parquet", jobs=2)
    trace, before, after = ph.traces.read_recording(tmp_path / name)
    whole = ph.replay(trace, ["linux", "age:1s"], before=before, after=after)
    rows = table_in(output)
    assert [row["recording"] for row in rows] == [name, name, f"{name}.parquet", f"{name}.parquet"]
    assert [row["reported"] for row in rows[:2]] == [score.reported for score in whole.scores]
    assert [row["cost_1"] for row in rows[:2]] == [score.cost[1.0] for score in whole.scores]


def test_what_is_done_is_not_done_again(folders, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    output = tmp_path / "out.parquet"
    sweep(folders[:1], [Counting(str(runs))], output, jobs=1)
    assert len(list(runs.iterdir())) == 1
    sweep(folders, [Counting(str(runs)), "age:1s"], output, jobs=1)
    assert sorted(path.name.split(".")[0] for path in runs.iterdir()) == ["r2", "r3"]
    assert len(table_in(output)) == 4


def test_a_recording_that_has_changed_or_other_options_are_done_again(folders, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    output, rule = tmp_path / "out.parquet", Counting(str(runs))
    sweep(folders[:1], [rule], output, jobs=1)
    sweep(folders[:1], [rule], output, jobs=1, break_evens=[2.0])
    assert len(list(runs.iterdir())) == 2
    recording_of("r2", 5).save(folders[0])
    sweep(folders[:1], [rule], output, jobs=1)
    assert len(list(runs.iterdir())) == 3


def test_a_policy_that_fails_ends_the_sweep_and_leaves_what_is_done(folders, tmp_path):
    class Failing(Counting):
        def next_time(self):
            raise RuntimeError("no idea")

    output = tmp_path / "out.parquet"
    with pytest.raises(RuntimeError, match="no idea"):
        sweep(folders, ["age:1s", Failing(str(tmp_path))], output, jobs=1)
    assert [row["policy"] for row in table_in(output)] == ["age:1s"]


def slow_sweep(folders, output):
    """A sweep in a process of its own, whose second policy has begun, and takes a minute."""
    program = f"""if True:
        import time
        from pagehint.policies import Policy, sweep
        class Slow(Policy):
            name = "slow"
            def start(self, recording):
                print("started", flush=True)
                time.sleep(60)
        sweep({[str(each) for each in folders]}, ["age:1s", Slow()], {str(output)!r}, jobs=1)
    """
    process = subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"started\n"
    return process


def test_ctrl_c_leaves_what_is_done(folders, tmp_path):
    process = slow_sweep(folders, tmp_path / "out.parquet")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert process.returncode != 0
    assert [(row["recording"], row["policy"]) for row in table_in(tmp_path / "out.parquet")] == [("r2", "age:1s")]
    sweep(folders, ["age:1s", "delay:1s"], tmp_path / "out.parquet", jobs=1)
    assert len(table_in(tmp_path / "out.parquet")) == 4


def test_a_sweep_that_was_killed_lost_everything(folders, tmp_path):
    """As by a scheduler at its time limit, or for want of memory: no handler runs."""
    output = tmp_path / "out.parquet"
    process = slow_sweep(folders, output)
    process.kill()
    process.communicate(timeout=60)
    assert [(row["recording"], row["policy"]) for row in table_in(output)] == [("r2", "age:1s")]
    assert [each.name for each in tmp_path.glob("out*")] == ["out.parquet"]


@pytest.mark.timeout(120)
def test_on_a_dask_client(folders, tmp_path):
    if not os.environ.get("CI"):
        pytest.importorskip("distributed")
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        output = sweep(folders, NAMES, tmp_path / "out.parquet", client=client)
    assert len({(row["recording"], row["policy"]) for row in table_in(output)}) == 2 * len(NAMES)


def test_mistakes_are_refused_before_anything_runs(folders, tmp_path):
    output = tmp_path / "out.parquet"
    with pytest.raises(ValueError, match="no policy 'lru'"):
        sweep(folders, ["lru"], output)
    with pytest.raises(ValueError, match="names of their own, not age:1s, age:1s"):
        sweep(folders, ["age:1s", Age(1.0)], output)
    with pytest.raises(ValueError, match="given twice"):
        sweep([folders[0], folders[0]], ["age:1s"], output)
    with pytest.raises(ph.PageHintError, match="holds no recording"):
        sweep([tmp_path / "none"], ["age:1s"], output)
    assert not output.exists()
    output.write_text("my letters")
    with pytest.raises(ph.PageHintError, match="is no table of a sweep"):
        sweep(folders, ["age:1s"], output)
    assert output.read_text() == "my letters"


def test_without_the_extra_it_is_named(folders, tmp_path):
    program = f"""if True:
        import sys
        sys.modules["joblib"] = None
        from pagehint.policies import sweep
        sweep({[str(each) for each in folders]}, ["age:1s"], {str(tmp_path / "out.parquet")!r})
    """
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert "a sweep needs joblib: pip install 'pagehint[policies]'" in result.stderr
