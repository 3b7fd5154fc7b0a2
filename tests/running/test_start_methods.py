"""Every Python that a program starts has the arena."""

from __future__ import annotations

import textwrap

import pytest
from started import hook_folder, python, run

# What each process says of itself: its arena's size. It fails where there is none, or an array is not in it.
TOLD = """
    import sys
    import numpy as np
    def told(number=0):
        import pagehint as ph
        arena = ph.numpy.installed()
        array = np.ones(1 << 20)
        assert arena.address(0) <= array.ctypes.data < arena.address(0) + arena.size
        return arena.size >> 20, number
"""


@pytest.fixture
def script(tmp_path):
    def write(text, name="program.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(TOLD) + textwrap.dedent(text))
        return path

    return write


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(script, method):
    path = script(f"""
        import multiprocessing
        if __name__ == "__main__":
            print(told())
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                print(pool.map(told, range(3)))
    """)
    done = run("--size", "96MiB", path)
    assert (done.stdout, done.returncode) == ("(96, 0)\n[(96, 0), (96, 1), (96, 2)]\n", 0), done.stderr


def test_a_python_by_subprocess_and_its_own(script):
    path = script("""
        import subprocess
        depth = int(sys.argv[1])
        print(told(depth), flush=True)
        if depth:
            subprocess.run([sys.executable, __file__, str(depth - 1)], check=True)
    """)
    done = run("--size", "96MiB", path, 2)
    assert (done.stdout, done.stderr, done.returncode) == ("(96, 2)\n(96, 1)\n(96, 0)\n", "", 0)


def test_loky(script):
    path = script("""
        import joblib
        if __name__ == "__main__":
            print(joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(told)(number) for number in range(3)))
    """)
    done = run("--size", "96MiB", path)
    assert (done.stdout, done.returncode) == ("[(96, 0), (96, 1), (96, 2)]\n", 0), done.stderr


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_an_initializer_of_joblibs_workers(script, backend):
    """What docs/services.md says, without `pagehint run`."""
    path = script(f"""
        import joblib, pagehint as ph
        if __name__ == "__main__":
            with joblib.parallel_config(backend="{backend}", initializer=ph.numpy.install, initargs=("96MiB",)):
                print(joblib.Parallel(n_jobs=2)(joblib.delayed(told)(number) for number in range(3)))
    """)
    done = python(path)
    assert (done.stdout, done.returncode) == ("[(96, 0), (96, 1), (96, 2)]\n", 0), done.stderr


def test_a_child_by_fork(script):
    path = script("""
        import os
        if os.fork() == 0:
            print(told(), flush=True)
            os._exit(0)
        os.wait()
    """)
    done = run("--size", "96MiB", path)
    assert (done.stdout, done.returncode) == ("(96, 0)\n", 0), done.stderr


def test_memory_goes_back_in_a_child(script):
    path = script("""
        import multiprocessing, os, time
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20
        def work(number):
            before = resident()
            array = np.ones(300 << 17)
            assert resident() > before + 250
            del array
            for _ in range(500):
                if resident() < before + 30:
                    return "gone"
                time.sleep(0.02)
            return resident() - before
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(work, range(2)))
    """)
    done = run("--min-age", "0", path)
    assert (done.stdout, done.returncode) == ("['gone', 'gone']\n", 0), done.stderr


@pytest.mark.parametrize(("flags", "there"), [(["-I"], True), (["-E"], True), (["-S"], False), (["-s", "-P"], True)])
def test_options_of_a_python_that_is_started(script, flags, there):
    """With -S Python reads no hooks, and so none of its own packages either."""
    if hook_folder() is not None and flags in (["-I"], ["-E"]):
        pytest.skip("the hook is found by PYTHONPATH here, which these options ignore")
    code = "import sys; print('pagehint_hook' in sys.modules)"
    path = script(f"""
        import subprocess
        subprocess.run([sys.executable, *{flags}, "-c", {code!r}], check=True)
    """)
    done = run(path)
    assert (done.stdout, done.stderr, done.returncode) == (f"{there}\n", "", 0)
