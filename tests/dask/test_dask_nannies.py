"""Nannies of a real cluster with the plugin. They set variables of their own process, which is not the tests'."""

from __future__ import annotations

import os
import textwrap

import pytest
from started import environment, python

if "CI" not in os.environ:
    pytest.importorskip("distributed")

BEGIN = """
import os, sys, dask, pagehint as ph
from pathlib import Path
from distributed import Client, LocalCluster
from pagehint.dask import PageHintNanny, PageHintWorker
from pagehint.malloc.library import LIBRARY

VARIABLES = ("PAGEHINT_RUN", "LD_PRELOAD", "ARROW_DEFAULT_MEMORY_POOL")

def arena():
    import numpy as np
    found = ph.numpy.installed()
    array = np.ones(1 << 20)
    return found and found.address(0) <= array.ctypes.data < found.address(0) + found.size and found.size >> 20

def is_in_arena(text):
    found = ph.numpy.installed()
    return found is not None and found.address(0) <= id(text) < found.address(0) + found.size

def large_bytes():
    return is_in_arena(bytes(1 << 22)), is_in_arena(bytes(1 << 10))

def preloaded():
    return LIBRARY.name in Path("/proc/self/maps").read_text()

def child():
    import subprocess
    code = "import numpy, pagehint; print(pagehint.numpy.installed().size >> 20)"
    return int(subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout)

def variables():
    return {name: os.environ.get(name) for name in VARIABLES}

before = variables()

def everywhere(function, *args):
    [found] = {*client.run(function, *args).values()}
    return found
"""


def run(folder, code, said="", **variables):
    program = folder / "program.py"
    options = "n_workers=1, threads_per_worker=1, dashboard_address=None"
    program.write_text(
        BEGIN
        + f"if __name__ == '__main__':\n  with LocalCluster({options}) as cluster, Client(cluster) as client:\n"
        + textwrap.indent(textwrap.dedent(code), "    ")
        + "\n  assert variables() == before, variables()\n  print('done')\n"
    )
    done = python(program, env=environment(**variables))
    assert (done.stdout, done.returncode) == (f"{said}done\n", 0), done.stderr  # on which Dask says what it restarts
    assert "pagehint: not installed" not in done.stderr


def test_workers_start_with_an_arena_for_malloc_too(tmp_path):
    run(
        tmp_path,
        """
        assert everywhere(arena) is None
        client.register_plugin(PageHintNanny(malloc=True, size="96MiB"))
        assert everywhere(arena) == everywhere(child) == 96
        assert everywhere(large_bytes) == (True, False)
        assert client.submit(large_bytes).result() == (True, False)
        client.register_plugin(PageHintWorker())
        assert everywhere(arena) == 96
        cluster.scale(2)
        client.wait_for_workers(2)
        assert everywhere(large_bytes) == (True, False)
        assert client.submit(variables).result()["ARROW_DEFAULT_MEMORY_POOL"] == "system"
        assert everywhere(os.getenv, "MALLOC_TRIM_THRESHOLD_") == "65536"  # Dask's, as ever
        """,
    )


def test_a_plugin_in_the_place_of_another_and_none(tmp_path):
    run(
        tmp_path,
        """
        client.register_plugin(PageHintNanny(malloc="1MiB", size="96MiB"))
        assert everywhere(preloaded)
        client.register_plugin(PageHintNanny(size="64MiB"))
        assert everywhere(arena) == 64
        assert not everywhere(preloaded)
        assert client.submit(variables).result()["LD_PRELOAD"] == "libm.so.6"
        client.unregister_worker_plugin("pagehint", nanny=True)
        assert variables() == before
        client.restart()
        assert everywhere(arena) is None
        """,
        LD_PRELOAD="libm.so.6",
    )


def test_workers_that_are_forked_are_refused_and_go_on(tmp_path):
    run(
        tmp_path,
        """
        pid = everywhere(os.getpid)
        with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
            try:
                client.register_plugin(PageHintNanny())
            except ph.PageHintError as error:
                assert "Dask starts workers by forkserver here" in str(error)
                print("refused")
        assert everywhere(os.getpid) == pid
        assert everywhere(arena) is None
        """,
        said="refused\n",
    )
