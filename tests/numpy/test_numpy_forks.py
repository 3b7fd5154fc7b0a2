"""Forks: each process has its own memory in the arena."""

from __future__ import annotations

import gc
import multiprocessing
import textwrap

import numpy as np
import pytest
from numpy_arrays import MIB, inside, installed_arena
from processes import in_child, run_code
from threads import in_threads

import pagehint as ph

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
installed = pytest.fixture(installed_arena)


def doubled(array):
    """What a child computes, its own arrays in the arena it has inherited."""
    [arena] = [each for each in gc.get_objects() if type(each) is ph.Arena and not each.closed and each.live_arrays]
    result = array * 2
    assert inside(result, arena) == (array.nbytes >= 65536)
    return result


def test_a_forked_child_has_arrays_of_its_own(installed):
    array = np.ones(MIB)
    other = np.ones(MIB)

    def child():
        array[:] = 2
        more = np.zeros(MIB)
        assert inside(more, installed)
        assert not more.any()
        more[:] = 3
        array.resize(2 * MIB, refcheck=False)
        installed.pages.verify()
        with installed.hinting(workqueue="manual", max_pages=4):
            installed.pages.flush_hinting()
        assert (other == 1).all()
        ph.numpy.uninstall()
        assert not inside(np.ones(MIB), installed)

    in_child(child)
    assert (array == 1).all()
    other = np.zeros(MIB)  # in the place of the ones
    assert not other.any()
    zero = np.zeros(MIB)
    assert not zero.any()
    assert (array == 1).all()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_sends_arrays_both_ways(installed, method):
    context = multiprocessing.get_context(method)
    function = doubled if method == "fork" else np.negative
    arrays = [np.arange(n * 10_000) for n in (1, 5, 50)]
    with context.Pool(2) as pool:
        results = pool.map(function, arrays)
    for array, result in zip(arrays, results, strict=True):
        assert (result == array * (2 if method == "fork" else -1)).all()
    del array, result, results, arrays


def test_a_fork_while_other_threads_are_in_the_middle_of_requests(installed):
    """The child's zone is whole, whatever the others were doing to it."""

    def work(stop, rng):
        while not stop.is_set():
            array = np.zeros(rng.randrange(65536, 2 * MIB), "u1")
            array.resize(rng.randrange(65536, 2 * MIB), refcheck=False)

    def forks(stop, rng):
        for _ in range(20):
            in_child(child)
        stop.set()

    def child():
        installed.pages.verify()
        array = np.zeros(4 * MIB, "u1")
        assert not array.any()
        del array
        installed.pages.verify()

    in_threads([forks, work, work], 100)


FORKED = """
    import os, signal, sys, time
    import numpy as np
    import pagehint as ph
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20
    def peak(arena):
        '''300 MiB, freed at once; what is left a moment later. Before and after 64 MiB, the reserve, may be warm.'''
        before = resident()
        array = np.ones(300 << 17)
        assert arena.address(0) <= array.ctypes.data < arena.address(0) + arena.size
        assert resident() >= before + 220
        del array
        for _ in range(400):
            if resident() < before + 90:
                return
            time.sleep(0.02)
        raise AssertionError(f"{resident() - before} MiB are left")
    def falls():
        '''Its parent has just freed 300 MiB; the first free here has them given back here, too.'''
        np.ones(1 << 17)
        for _ in range(400):
            if resident() < 150:
                return
            time.sleep(0.02)
        raise AssertionError(f"{resident()} MiB are left")
    def in_child(function):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                function()
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
    arena = ph.numpy.install()
"""


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("a child", "in_child(lambda: peak(arena))"),
        ("a child of a parent that has had its peak", "peak(arena); in_child(lambda: peak(arena)); peak(arena)"),
        ("a fork of a fork", "in_child(lambda: (in_child(lambda: peak(arena)), peak(arena)))"),
        ("a daemon, forked twice", "in_child(lambda: (os.setsid(), in_child(lambda: peak(arena))))"),
        ("a second fork of a child that was at work", "in_child(lambda: (peak(arena), in_child(lambda: peak(arena))))"),
        ("what the parent has freed just before", "array = np.ones(300 << 17); del array; in_child(falls)"),
        ("an arena of one's own", "ph.numpy.uninstall(); arena = ph.numpy.install(ph.Arena('1GiB'));"
         " arena.hinting(min_age=0.01, threshold=1).__enter__(); in_child(lambda: peak(arena))"),
        ("a flush with no free before", "in_child(lambda: arena.pages.flush_hinting())"),
        ("on, off and on in the child", "in_child(lambda: (arena.pages.disable_hinting(),"
         " arena.hinting(min_age=0.01, threshold=1).__enter__(), peak(arena)))"),
        ("many forks while the worker reports",
         "[(np.ones(300 << 17), in_child(lambda: peak(arena))) for _ in range(5)]"),
    ],
)  # fmt: skip
def test_a_child_of_an_installed_arena_keeping_its_peak_for_ever(case, code):
    """Hinting was off there. It is on again by itself, with a worker of its own as soon as there is work for it."""
    assert run_code(FORKED + "    " + code) == (0, "", "")


def test_a_child_of_an_installed_arena_keeping_its_reserve_for_ever():
    """What both have of the parent's, and what it has freed itself."""
    code = """
    def child():
        np.ones(48 << 17)
        for _ in range(400):
            if resident() < before + 20:
                return
            time.sleep(0.02)
        raise AssertionError(f"{resident() - before} MiB are left")
    before = resident()
    np.ones(48 << 17)
    in_child(child)
    """
    assert run_code(FORKED + code) == (0, "", "")


def test_a_child_has_no_worker_before_it_needs_one():
    code = """
    from pathlib import Path
    def child():
        assert arena.pages.hinting_enabled
        assert len(list(Path("/proc/self/task").iterdir())) == 1
        peak(arena)
        assert [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text() == "pagehint\\n"]
    in_child(child)
    """
    assert run_code(FORKED + code) == (0, "", "")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_multiprocessing_keeping_their_peaks(method, tmp_path):
    """A module that installs at its top, as a service does."""
    (tmp_path / "service.py").write_text(
        textwrap.dedent(FORKED) + "def work(_):\n    peak(ph.numpy.installed())\n    return os.getpid()\n"
    )
    code = f"""
        import multiprocessing, sys
        sys.path.insert(0, {str(tmp_path)!r})
        import service
        context = multiprocessing.get_context({method!r})
        if {method!r} == "forkserver":
            context.set_forkserver_preload(["service"])
        with context.Pool(2) as pool:
            assert len(pool.map(service.work, range(6), 1)) == 6
    """
    assert run_code(code) == (0, "", "")


def test_the_hinting_of_an_arena_that_is_not_installed_is_off_in_a_child():
    code = """
    ph.numpy.uninstall()
    def child():
        assert not arena.pages.hinting_enabled
        array = arena.empty(1 << 20)
        del array
        arena.pages.verify()
    in_child(child)
    """
    assert run_code(FORKED + code) == (0, "", "")


def test_an_arena_dropped_in_a_child_was_never_unmapped():
    """The parent's worker referred to it, and does not exist there."""
    code = """
    ph.numpy.uninstall()
    del arena
    arena = ph.Arena("1GiB")
    arena.hinting().__enter__()
    array = arena.empty(256 << 20, "u1")
    array[:] = 1
    def child():
        global arena, array
        before = resident()
        del array, arena
        assert resident() < before - 250, (resident(), before)
    in_child(child)
    """
    assert run_code(FORKED + code) == (0, "", "")
