"""`pagehint.numpy.install`: an arena for the whole process."""

from __future__ import annotations

import contextvars
import gc
import threading
import time
import tracemalloc

import numpy as np
import pytest
from numpy_arrays import MIB, empty_at_the_end, inside, installed_arena, mapped, nothing_left
from processes import survives
from waiting import wait_for

import pagehint as ph


@pytest.fixture
def uninstalled():
    yield
    ph.numpy.uninstall()


arena = pytest.fixture(empty_at_the_end)
installed = pytest.fixture(installed_arena)


def test_an_installed_arena_serves_every_thread(installed):
    def work():
        arrays.append(np.ones(MIB, "u1"))

    arrays = [np.ones(MIB, "u1"), np.ones(10)]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    contextvars.Context().run(work)
    assert [inside(array, installed) for array in arrays] == [True, False, True, True]
    other = ph.Arena("16MiB")
    with other.numpy():
        work()
    assert inside(arrays.pop(), other)
    work()
    assert inside(arrays.pop(), installed)
    ph.numpy.uninstall()
    work()
    assert not inside(arrays.pop(), installed)
    assert installed.live_arrays == 3
    assert all(array.all() for array in arrays)
    arrays.clear()


def test_arrays_from_before_the_installation_are_freed_where_they_are_from():
    small = [np.ones(n) for n in range(1, 200)]
    large = [np.ones(n * 20_000) for n in range(1, 20)]
    arena = ph.Arena("64MiB")
    ph.numpy.install(arena)
    large[0].resize(500_000, refcheck=False)
    assert large[0][:20_000].all()
    mixed = [np.ones(n * 20_000) for n in range(1, 20)]
    del small[::2], large[::2], mixed[::2]
    ph.numpy.uninstall()
    mixed[0].resize(400_000, refcheck=False)  # no arena is installed: only the C heap has room
    assert not inside(mixed[0], arena)
    assert mixed[0][:40_000].all()
    assert all(array.all() for array in (*small, *large, *mixed[1:]))
    del small, large, mixed
    nothing_left(arena)


def test_the_last_array_frees_an_arena_that_was_installed():
    arena = ph.Arena("64MiB")
    start = arena.address(0)
    ph.numpy.install(arena)
    del arena
    gc.collect()
    first, second = np.ones(MIB), np.ones(MIB)
    assert mapped(start)  # kept while it is installed
    ph.numpy.uninstall()
    gc.collect()
    del first
    assert mapped(start)
    assert second.all()
    thread = threading.Thread(target=second.resize, args=(10,), kwargs={"refcheck": False})
    thread.start()
    thread.join()
    del second, thread
    gc.collect()
    assert not mapped(start)


def test_one_arena_after_the_other():
    arenas = [ph.Arena("16MiB") for _ in range(4)]
    arrays = []
    for each in arenas * 2:
        ph.numpy.install(each)
        arrays.append(np.ones(MIB, "u1"))
        assert inside(arrays[-1], each)
        ph.numpy.install(each)
        for other in arenas:
            if other is not each:
                with pytest.raises(ph.PageHintError, match="another arena"):
                    ph.numpy.install(other)
        ph.numpy.uninstall()
    ph.numpy.uninstall()
    assert [each.live_arrays for each in arenas] == [2] * 4
    del arrays[1], arrays[2], arrays[0]
    assert all(array.all() for array in arrays)
    arrays.clear()
    for each in arenas:
        nothing_left(each)
        start = each.address(0)
        each.close()
    del each, other, arenas
    gc.collect()
    assert not mapped(start)


def test_closing_an_installed_arena():
    arena = ph.Arena("16MiB")
    ph.numpy.install(arena)
    array = np.ones(MIB)
    with pytest.raises(ph.PageHintError, match="1 array"):
        arena.close()
    del array
    arena.close()
    array = np.ones(MIB)
    assert array.all()
    assert arena.numpy_counts.full == 1
    ph.numpy.uninstall()
    with pytest.raises(ValueError, match="closed"):
        ph.numpy.install(arena)


def test_contexts_of_an_arena_that_was_installed(arena):
    ph.numpy.install(arena)
    with arena.numpy():
        array = np.ones(MIB)
        ph.numpy.uninstall()
        del array
        array = np.ones(MIB)
    assert inside(array, arena)
    ph.numpy.install(arena)
    ph.numpy.uninstall()
    assert array.all()


def test_an_installed_arena_keeps_a_little_warm_for_a_loop_at_any_pace():
    """100 KiB, again and again, each time after more than `min_age`: nothing is reported. Then all goes, by itself."""
    made = ph.numpy.install(min_age=0.001, reserve_age=1000.0)
    try:
        assert made.pages.reserve == ph.numpy.RESERVE == 64 * MIB
        for nr_bytes in (100 << 10, MIB, 8 * MIB, 32 * MIB):
            for _ in range(5):
                array = np.ones(nr_bytes, "u1")
                del array
                time.sleep(0.01)
        assert made.pages.stats().pages_reported == 0
        array = np.ones(128 * MIB, "u1")
        del array
        # Asking has what was kept for the loop freed, too, which makes the reserve full, and a granule beyond it go.
        wait_for(lambda: made.pages.explain()["warm"].bytes == 64 * MIB)
        assert made.pages.stats().hints_pending == 32
    finally:
        ph.numpy.uninstall()
    made.pages.disable_hinting()
    del made
    gc.collect()
    made = ph.numpy.install(reserve="16MiB", reserve_age=0.02)
    try:
        assert made.pages.reserve == 16 * MIB
        array = np.ones(32 * MIB, "u1")
        del array
        wait_for(lambda: made.pages.stats().hints_pending == 0)
        assert made.resident_bytes == 0
    finally:
        ph.numpy.uninstall()


def test_an_installed_arena_learns_how_long_to_keep_what_a_loop_uses():
    made = ph.numpy.install(min_age="auto", cost=0.3)
    try:
        assert (made.pages.min_age, made.pages.cost, made.pages.reserve) == ("auto", 0.3, ph.numpy.RESERVE)
        for _ in range(200):
            array = np.ones(8 * MIB, "u1")
            del array
            time.sleep(0.002)
        regret = made.pages.stats().regret
        assert sum(regret.short_pauses) > 100
        assert sum(regret.too_soon) < sum(regret.short_pauses) / 4
        assert ph.numpy.install(min_age="auto", cost=0.3) is made
        assert ph.numpy.install(cost=0.2).pages.cost == 0.2
        wait_for(lambda: made.resident_bytes < 2 * MIB)
    finally:
        ph.numpy.uninstall()
    made.pages.disable_hinting()


def test_ages_for_an_arena_that_is_not_made_here_are_refused(arena):
    for options in ({"min_age": 1.0}, {"reserve": "1MiB"}, {"reserve_age": 1.0}):
        with pytest.raises(ValueError, match="made here"):
            ph.numpy.install(arena, **options)
    with pytest.raises(ValueError, match="hugepages"):
        ph.numpy.install(arena, hugepages=False)
    for bad in ({"reserve": 0}, {"reserve": "much"}, {"reserve_age": -1.0}):
        with pytest.raises(ValueError, match=r"size|reserve_age"):
            ph.numpy.install(**bad)
    with pytest.raises(ValueError, match="min_age"):
        ph.numpy.install(min_age=-1.0)
    assert ph.numpy.installed() is None
    ph.numpy.install(arena)
    with pytest.raises(ValueError, match="made here"):
        ph.numpy.install(min_age=2.5)
    with pytest.raises(ValueError, match="made here"):
        ph.numpy.install(reserve="2MiB")
    ph.numpy.uninstall()


def test_installing_again_with_an_age_changes_that_of_the_arena_that_was_made(uninstalled):
    made = ph.numpy.install()
    assert made.pages.min_age == ph.numpy.MIN_AGE
    assert ph.numpy.install(min_age=2) is made
    assert made.pages.min_age == 2
    assert ph.numpy.install() is made
    assert made.pages.min_age == 2
    with pytest.raises(ValueError, match="min_age"):
        ph.numpy.install(min_age=-1)
    assert made.pages.min_age == 2
    for bad in ({"min_age": 3.0, "cost": 1.0}, {"min_age": 3.0, "reserve": "much"}, {"min_age": "auto", "cost": 0.0}):
        with pytest.raises(ValueError, match=r"cost|size"):
            ph.numpy.install(**bad)
        assert made.pages.min_age == 2
    ph.numpy.install(min_age="auto", cost=0.5)
    assert (made.pages.min_age, made.pages.cost) == ("auto", 0.5)
    ph.numpy.install(min_age=2)
    assert ph.numpy.install(reserve="16MiB", reserve_age=3) is made
    assert (made.pages.min_age, made.pages.reserve, made.pages.reserve_age) == (2, 16 * MIB, 3)
    made.disable_hinting()
    ph.numpy.install(made, min_age=3)
    assert made.pages.min_age == 3
    assert (made.pages.reserve, made.pages.reserve_age) == (ph.numpy.RESERVE, ph.numpy.RESERVE_AGE)
    ph.numpy.uninstall()
    assert ph.numpy.install(min_age=4) is not made
    assert made.pages.min_age == 3


@pytest.mark.parametrize("size", ["2GiB", 2 << 30, np.int64(2 << 30), "2048 MiB", (2 << 30) - 5])
@pytest.mark.parametrize("by_name", [False, True], ids=["first argument", "size"])
def test_a_size_in_place_of_an_arena_was_an_attribute_error(uninstalled, size, by_name):
    made = ph.numpy.install(size=size) if by_name else ph.numpy.install(size)
    assert made.size == 2 << 30
    assert made.pages.hinting_enabled
    assert made.pages.min_age == ph.numpy.MIN_AGE
    array = np.ones(MIB, "u1")
    assert inside(array, made)
    assert ph.numpy.install("2GiB", min_age=1) is made
    assert made.pages.min_age == 1
    with pytest.raises(ph.PageHintError, match="of 2 GiB; uninstall it first"):
        ph.numpy.install("1GiB")
    assert ph.numpy.installed() is made


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("much", ValueError),
        ("", ValueError),
        (0, ValueError),
        (-1, ValueError),
        ("99999TiB", ValueError),
        (1.5, TypeError),
        (True, TypeError),
        (b"2GiB", TypeError),
        (ph.Arena, TypeError),
        (set(), TypeError),
        ([], TypeError),
    ],
    ids=str,
)
def test_what_is_neither_an_arena_nor_a_size_is_refused(what, error):
    for call in (lambda: ph.numpy.install(what), lambda: ph.numpy.install(size=what)):
        with pytest.raises(error, match=r"size|arena"):
            call()
        assert ph.numpy.installed() is None


def test_an_arena_and_a_size_or_two_sizes_are_refused(arena):
    with pytest.raises(TypeError, match="has its own"):
        ph.numpy.install(arena, size="2GiB")
    with pytest.raises(TypeError, match="one size"):
        ph.numpy.install("1GiB", size="2GiB")
    ph.numpy.install(arena)
    with pytest.raises(ph.PageHintError, match="uninstall it first"):
        ph.numpy.install(arena.size)  # made by somebody else: not to be taken for one's own
    ph.numpy.uninstall()


def test_tracemalloc_sees_the_arrays_as_the_docstrings_say(installed):
    """With their sizes, and the lines that made them, in the domain of NumPy's data."""

    def traced():
        numbers = tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)])
        return sorted((trace.size, trace.traceback[0].filename) for trace in numbers.traces if trace.size >= MIB)

    tracemalloc.start()
    try:
        array = np.empty(MIB, "u1")
        other = ph.Arena("16MiB")
        with other.numpy():
            second = np.zeros(2 * MIB, "u1")
        assert inside(array, installed)
        assert inside(second, other)
        assert traced() == [(MIB, __file__), (2 * MIB, __file__)]
        del array, second
        assert traced() == []
    finally:
        tracemalloc.stop()


def test_without_huge_pages_memory_that_is_not_touched_is_not_resident():
    survives("""
        import numpy as np
        import pagehint as ph
        arena = ph.numpy.install(hugepages=False)
        assert not arena.hugepages
        arrays = [np.empty(1 << 20, "u1") for _ in range(64)]
        for array in arrays:
            array[:100] = 1
        assert arena.numpy_counts.arena == 64
        assert arena.resident_bytes <= 1 << 20
    """)


def test_numpy_s_own_name_stays(installed):
    assert np._core.multiarray.get_handler_name() == "default_allocator"
