"""Workers of a real cluster with the plugin."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import wait_for as wait_for_often

import pagehint as ph

if "CI" not in os.environ:
    pytest.importorskip("distributed")
import dask
from distributed import Client, LocalCluster

from pagehint.dask import PageHintNanny, PageHintWorker

MIB = 1 << 20
NAMES = {"unmanaged", "in_use", "warm", "kept", "kept_by", "files", "returned", "released", "releases", "age"}
# Nothing of Dask's own happens when a worker has much in memory.
CALM = {f"distributed.worker.memory.{name}": False for name in ("spill", "pause", "terminate")}


@contextmanager
def cluster(nr_workers=1, memory_limit="4GiB", **config):
    """A client of workers that are processes, and soon seen by it."""
    config = {"distributed.admin.system-monitor.interval": "50ms", **CALM, **config}
    with (
        dask.config.set(config),
        LocalCluster(
            n_workers=nr_workers, threads_per_worker=1, memory_limit=memory_limit, dashboard_address=None
        ) as workers,
        Client(workers) as client,
    ):
        yield client


def workers_of(client):
    """What the scheduler says of its workers. Client.scheduler_info says so, too, but at times of none."""
    return list(client.sync(client.scheduler.identity)["workers"].values())


def metrics(client):
    """What each worker says of its memory; None of one that says nothing."""
    return [each["metrics"].get("pagehint") for each in workers_of(client)]


def metric(client):
    """What the only worker says; nothing, if it says nothing."""
    [found] = metrics(client)
    return found or dict.fromkeys(NAMES, 0)


def wait_for(condition):
    wait_for_often(condition, "the cluster", every=0.05)


# ---- what workers do


def arena_size():
    """Of this process's arena, in MiB; 0 if a new array is not in it."""
    import numpy as np

    arena = ph.numpy.installed()
    array = np.ones(1 << 20)
    if arena is None or not arena.address(0) <= array.ctypes.data < arena.address(0) + arena.size:
        return 0
    return arena.size >> 20


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


pinned = []


def keep(nr_bytes):
    """Have the C heap keep so many bytes, below one that is in use; returns by how much this process has grown."""
    before = resident()
    made = [bytearray(2000) for _ in range(nr_bytes // 2000)]
    pinned.append(made.pop())
    del made
    return resident() - before


def grown_while_at_work(nr_bytes):
    """Have the C heap keep so many bytes, and wait, not idle, for most of them to go; how much is left."""
    grown, before = keep(nr_bytes), resident()
    deadline = time.monotonic() + 30
    while resident() > before - nr_bytes // 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return grown, before - resident()


def data(nr_bytes):
    import numpy as np

    return np.ones(nr_bytes // 8)


# ---- tests


def test_each_worker_has_an_arena_also_one_that_comes_later_or_again():
    with cluster() as client:
        client.register_plugin(PageHintWorker("96MiB"))
        assert set(client.run(arena_size).values()) == {96}
        client.cluster.scale(2)
        client.wait_for_workers(2)
        assert list(client.run(arena_size).values()) == [96, 96]
        before = set(client.run(os.getpid).values())
        client.restart()
        assert list(client.run(arena_size).values()) == [96, 96]
        assert not before & set(client.run(os.getpid).values())


def test_freed_arrays_go_back_and_small_memory_when_the_worker_is_idle():
    with cluster() as client:
        client.register_plugin(PageHintWorker(idle=1.0))
        [before] = client.run(resident).values()
        future = client.submit(data, 300 * MIB)
        future.result()
        [held] = client.run(resident).values()
        assert held > before + 250 * MIB
        assert client.submit(keep, 200 * MIB).result() > 150 * MIB
        del future
        wait_for(lambda: max(client.run(resident).values()) < before + 100 * MIB)
        wait_for(lambda: metric(client)["released"] >= 100 * MIB)
        wait_for(lambda: metric(client)["returned"] >= 250 * MIB)


def test_once_in_each_idle_phase():
    """One that has given back is left alone until it has worked again."""
    with cluster() as client:
        client.register_plugin(PageHintWorker(idle=0.5))
        wait_for(lambda: metric(client)["releases"] == 1)
        time.sleep(2)
        assert metric(client)["releases"] == 1
        client.submit(os.getpid).result()
        wait_for(lambda: metric(client)["releases"] == 2)


def test_a_worker_near_its_memory_target_gives_back_while_it_works():
    with cluster(memory_limit="1GiB", **{"distributed.worker.memory.target": 0.3}) as client:
        client.register_plugin(PageHintWorker(idle=None))
        grown, less = client.submit(grown_while_at_work, 300 * MIB).result()
        assert grown > 250 * MIB
        assert less > 100 * MIB


def test_a_worker_that_is_neither_idle_nor_near_its_target_keeps_what_it_has():
    with cluster() as client:
        assert client.submit(keep, 200 * MIB).result() > 150 * MIB
        client.register_plugin(PageHintWorker(idle=None))
        wait_for(lambda: metric(client)["kept"] > 150 * MIB)
        time.sleep(1)
        assert metric(client)["kept_by"]["C heap"] > 150 * MIB
        assert metric(client)["releases"] == 0


def test_the_parts_of_unmanaged_memory():
    with cluster() as client:
        client.register_plugin(PageHintWorker(idle=None, min_age=3600))
        held, freed = client.submit(data, 200 * MIB), client.submit(data, 300 * MIB, pure=False)
        client.gather([client.submit(len, held), client.submit(len, freed)])
        assert client.submit(keep, 100 * MIB).result() > 80 * MIB
        del freed
        wait_for(lambda: workers_of(client)[0]["metrics"]["managed_bytes"] < 250 * MIB)
        client.register_plugin(PageHintWorker(idle=None))  # which looks anew, and leaves the arena
        wait_for(lambda: metric(client)["warm"] > 250 * MIB)
        found = metric(client)
        assert set(found) == NAMES
        assert found["unmanaged"] == found["in_use"] + found["warm"] + found["kept"] + found["files"]
        assert found["kept"] == sum(found["kept_by"].values())
        assert found["kept_by"]["C heap"] > 80 * MIB
        assert min(value for name, value in found.items() if name != "kept_by") >= 0
        assert found["in_use"] < 150 * MIB  # what is held is Dask's, and managed
        [worker] = workers_of(client)
        process, managed = worker["metrics"]["memory"], worker["metrics"]["managed_bytes"]
        assert managed >= 200 * MIB
        assert abs(process - managed - found["unmanaged"]) < 50 * MIB


def install_another():
    ph.numpy.install("32MiB")


def test_a_worker_with_an_arena_of_its_own_says_so_and_works_on():
    with cluster() as client:
        client.run(install_another)
        with pytest.raises(ph.PageHintError, match=r"another arena is installed for NumPy, of 32 MiB"):
            client.register_plugin(PageHintWorker("96MiB"))
        assert client.submit(sum, [1, 2]).result() == 3
        assert metrics(client) == [None]
        client.cluster.scale(2)
        client.wait_for_workers(2)
        assert sorted(client.run(arena_size).values()) == [32, 96]


def test_an_end_and_another_beginning():
    with cluster() as client:
        client.register_plugin(PageHintWorker("96MiB"))
        wait_for(lambda: metrics(client) != [None])
        held = client.submit(data, MIB)
        client.unregister_worker_plugin("pagehint")
        wait_for(lambda: metrics(client) == [None])
        assert set(client.run(arena_size).values()) == {96}
        client.register_plugin(PageHintWorker("64MiB"))
        assert set(client.run(arena_size).values()) == {64}
        client.register_plugin(PageHintWorker())
        assert set(client.run(arena_size).values()) == {64}
        assert held.result().sum() == MIB // 8
        client.run(install_another)  # who does not know of the plugin's
        assert set(client.run(arena_size).values()) == {32}


def test_workers_that_are_threads(tmp_path):
    """The cluster is not closed: it ends with the interpreter, in silence."""
    program = tmp_path / "program.py"
    program.write_text(
        "import time, pagehint as ph\n"
        "from distributed import Client\n"
        "from pagehint.dask import PageHintWorker\n"
        "client = Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None)\n"
        "client.register_plugin(PageHintWorker('96MiB', idle=0))\n"
        "while not all('pagehint' in each['metrics'] for each in client.scheduler_info()['workers'].values()):\n"
        "    time.sleep(0.05)\n"
        "print(ph.numpy.installed().size >> 20)\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("96\n", "", 0)


def test_dask_is_imported_for_its_plugins_only():
    code = "import sys, pagehint, pagehint.memory; sys.exit('distributed' in sys.modules or 'dask' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)


def test_without_dask_the_error_names_the_extra():
    code = "import sys; sys.modules['distributed'] = None; import pagehint.dask"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("pagehint.dask needs Dask: pip install 'pagehint[dask]'")


@pytest.mark.parametrize("plugin", [PageHintWorker, PageHintNanny])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"size": 0}, ValueError),
        ({"size": "much"}, ValueError),
        ({"size": 1 << 63}, ValueError),
        ({"size": 1.5}, TypeError),
        ({"min_age": -1}, ValueError),
        ({"min_age": float("nan")}, ValueError),
        ({"min_age": "soon"}, TypeError),
        ({"min_age": []}, TypeError),
        ({"cost": 0}, ValueError),
        ({"cost": "1"}, TypeError),
        ({"min_age": 1.0, "cost": 1.0}, ValueError),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_where_they_are_made(plugin, options, error):
    with pytest.raises(error):
        plugin(**options)


@pytest.mark.parametrize(
    ("idle", "error"),
    [(-1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ("5s", TypeError), (True, TypeError)],
)
def test_a_time_that_cannot_be_is_refused(idle, error):
    with pytest.raises(error, match="idle must be a number of seconds"):
        PageHintWorker(idle=idle)


@pytest.mark.parametrize(
    ("malloc", "error"), [(0, ValueError), (4095, ValueError), ("much", ValueError), (1.5, TypeError)]
)
def test_a_threshold_that_cannot_be_is_refused(malloc, error):
    with pytest.raises(error):
        PageHintNanny(malloc)
