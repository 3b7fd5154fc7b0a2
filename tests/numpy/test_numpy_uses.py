"""What programs do with arrays: copies, views, pickles, subclasses, files, and tracing of memory."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
from numpy_arrays import MIB, empty_at_the_end, inside

arena = pytest.fixture(empty_at_the_end)


class Temperatures(np.ndarray):
    unit = "K"


def test_copies_views_pickles_subclasses_and_mapped_files(arena, tmp_path):
    with arena.numpy():
        array = np.random.default_rng(5).random((500, 500))
        expected = array.tolist()
        copy, view, cast = np.copy(array), array[::2, 1:], array.astype("f4")
        fortran = np.array(array, order="F")
        loaded = pickle.loads(pickle.dumps(array))
        out_of_band = []
        rebuilt = pickle.loads(pickle.dumps(array, 5, buffer_callback=out_of_band.append), buffers=out_of_band)
        temperatures = np.ones((300, 300)).view(Temperatures)
        own = Temperatures((300, 300))
        on_disk = np.memmap(tmp_path / "file", "f8", "w+", shape=(500, 500))
        on_disk[:] = array
        saved = tmp_path / "array.npy"
        np.save(saved, array)
        read = np.load(saved)
        objects = np.array([["a"] * 10_000, [None] * 10_000], object)
        ordered = np.sort(array, axis=None)
        records = np.zeros(10_000, [("a", "f8"), ("b", "O")])
        text = np.array(["x" * 20] * 10_000)
    for same in (copy, fortran, loaded, rebuilt, on_disk, read):
        assert np.array_equal(same, expected)
    assert np.allclose(cast, expected)
    assert (np.diff(ordered) >= 0).all()
    assert all(inside(each, arena) for each in (array, copy, fortran, own, read, objects, ordered, text))
    assert np.shares_memory(array, view)
    assert not inside(on_disk, arena)
    assert isinstance(temperatures * 2, Temperatures)
    assert not records["a"].any()
    assert objects[0, 0] == "a"
    del array, copy
    assert np.array_equal(view, np.array(expected)[::2, 1:])
    del fortran, loaded, rebuilt, out_of_band, read, same


def test_tracemalloc_sees_the_arrays(arena):
    domain = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)

    def traced():
        return [trace.size for trace in tracemalloc.take_snapshot().filter_traces([domain]).traces if trace.size > MIB]

    with arena.numpy():
        tracemalloc.start()
        try:
            array = np.ones(3 * MIB, "u1")
            zeros = np.zeros(5 * MIB, "u1")
            assert sorted(traced()) == [3 * MIB, 5 * MIB]
            array.resize(7 * MIB, refcheck=False)
            del zeros
            assert traced() == [7 * MIB]
            del array
            assert traced() == []
        finally:
            tracemalloc.stop()
