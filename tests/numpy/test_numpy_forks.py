"""Forks: each process has its own memory in the arena."""

from __future__ import annotations

import gc
import multiprocessing

import numpy as np
import pytest
from numpy_arrays import MIB, inside, installed_arena
from processes import in_child
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
