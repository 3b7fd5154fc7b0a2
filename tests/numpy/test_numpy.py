"""NumPy's own arrays in an arena: what goes there, how long it stays, and what becomes of it."""

from __future__ import annotations

import contextvars
import ctypes
import gc
import mmap
import multiprocessing
import pickle
import random
import shutil
import threading
import tracemalloc

import numpy as np
import pytest
from processes import in_child, survives
from threads import in_threads

import pagehint as ph
from pagehint.qemu.process import BINARY

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")

MIB = 1 << 20
PAGE = mmap.PAGESIZE
MADV_PAGEOUT = 21  # Linux's


def inside(array, arena):
    """Whether an array's data lie in an arena."""
    return 0 <= array.__array_interface__["data"][0] - arena.address(0) < arena.size


def mapped(address):
    """Whether there is any mapping at an address."""
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        ranges = [line.split()[0].split("-") for line in maps]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


def nothing_left(arena):
    gc.collect()
    assert arena.live_arrays == 0
    assert arena.pages.stats().allocated_pages == 0
    arena.pages.verify()


@pytest.fixture
def arena():
    made = ph.Arena("64MiB")
    yield made
    nothing_left(made)


# ---- where requests go


def test_large_arrays_are_in_the_arena_and_small_ones_in_the_c_heap(arena):
    before = arena.numpy_counts
    with arena.numpy() as same:
        assert same is arena
        large = [np.empty(65536, "u1"), np.zeros(100_000), np.ones((300, 300)), np.arange(1e5), np.full(10**5, 7)]
        small = [np.empty(65535, "u1"), np.zeros(10), np.ones(()), np.empty(0)]
    after = [np.empty(1 << 20), np.zeros(1 << 20)]
    assert all(inside(array, arena) for array in large)
    assert not any(inside(array, arena) for array in small + after)
    assert arena.live_arrays == len(large)
    counts = arena.numpy_counts
    assert counts.arena - before.arena == len(large)
    assert counts.heap - before.heap >= len(small)
    assert counts.full == before.full
    assert not large[1].any()


def test_whole_pages_and_no_more(arena):
    for nr_bytes in (MIB, MIB + 1, 3 * MIB - PAGE, 5 * MIB + 17, 65 * PAGE, 37 * PAGE - 1):
        with arena.numpy():
            array = np.empty(nr_bytes, "u1")
        array[:] = 1
        assert arena.pages.stats().allocated_pages == -(-nr_bytes // PAGE)
        del array
        assert arena.pages.stats().allocated_pages == 0


def test_what_the_arena_has_no_room_for_is_in_the_c_heap(arena):
    with arena.numpy():
        most = np.ones(60 * MIB, "u1")
        more = [np.ones(8 * MIB, "u1"), np.zeros(8 * MIB, "u1"), np.ones(100 * MIB, "u1")]
        fits = np.ones(4 * MIB, "u1")
    assert inside(most, arena)
    assert inside(fits, arena)
    assert not any(inside(array, arena) for array in more)
    assert not more[1].any()
    assert arena.numpy_counts.full == len(more)
    with arena.numpy(), pytest.raises(MemoryError):
        np.empty(1 << 62, "u1")
    del more, most
    assert fits.all()


def test_the_handler_is_the_context_s_only(arena):
    other = ph.Arena("16MiB")

    def work():
        arrays.append(np.empty(MIB, "u1"))

    arrays = []
    with arena.numpy():
        with other.numpy():
            arrays.append(np.empty(MIB, "u1"))
        arrays.append(np.empty(MIB, "u1"))
        with pytest.raises(ZeroDivisionError), other.numpy():
            arrays.append(np.empty(MIB // 0, "u1"))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        arrays.append(np.empty(MIB, "u1"))
    arrays.append(np.empty(MIB, "u1"))
    assert [inside(array, other) for array in arrays] == [True, False, False, False, False]
    assert [inside(array, arena) for array in arrays] == [False, True, False, True, False]
    arrays.clear()
    nothing_left(other)
    other.close()


def test_an_interrupt_leaves_no_handler_behind(arena):
    """Ctrl-C again and again, wherever it comes: what was before is there again."""
    survives("""
        import signal
        import numpy as np
        import pagehint as ph
        name = np._core.multiarray.get_handler_name
        arena, came = ph.Arena("16MiB"), 0
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        while came < 2000:
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-5)
                while True:
                    with arena.numpy():
                        pass
            except KeyboardInterrupt:
                came += 1
                assert name() == "default_allocator", "the arena's handler stayed"
    """)


def test_a_context_is_entered_once(arena):
    context = arena.numpy()
    with context, pytest.raises(ph.PageHintError, match="entered before"), context:
        pass
    with pytest.raises(ph.PageHintError, match="entered before"), context:
        pass
    assert np._core.multiarray.get_handler_name() == "default_allocator"


def test_refused_arenas():
    closed = ph.Arena("2MiB")
    closed.close()
    with pytest.raises(ValueError, match="closed"), closed.numpy():
        pass
    with pytest.raises(ValueError, match="closed"):
        ph.numpy.install(closed)


@pytest.mark.skipif(shutil.which(BINARY) is None, reason=f"{BINARY} is not installed")
def test_a_guest_s_ram_is_refused():
    with ph.qemu.Host("256MiB", timeout=5) as host:
        with pytest.raises(ph.PageHintError, match="share"), host.arena().numpy():
            pass
        with pytest.raises(ph.PageHintError, match="share"):
            ph.numpy.install(host.arena())
        assert host.arena().live_arrays == 0
        assert host.arena().numpy_counts == (0, 0, 0, 0, 0)


# ---- the whole process


@pytest.fixture
def installed():
    made = ph.Arena("64MiB")
    ph.numpy.install(made)
    yield made
    ph.numpy.uninstall()
    nothing_left(made)


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
    mixed[0].resize(400_000, refcheck=False)  # nobody to grow into but the C heap
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


def test_an_age_for_an_arena_that_is_not_made_here_is_refused(arena):
    with pytest.raises(ValueError, match="made here"):
        ph.numpy.install(arena, min_age=1.0)
    with pytest.raises(ValueError, match="min_age"):
        ph.numpy.install(min_age=-1.0)
    assert ph.numpy.installed() is None
    made = ph.numpy.install(min_age=2.5)
    try:
        assert made.pages.min_age == 2.5
        with pytest.raises(ValueError, match="made here"):
            ph.numpy.install(min_age=2.5)
        assert ph.numpy.install() is made
    finally:
        ph.numpy.uninstall()


def test_numpy_s_own_name_stays(installed):
    assert np._core.multiarray.get_handler_name() == "default_allocator"


# ---- zeros


def allocate(arena, how, rng):
    """Some pages, in one of the ways to get them, and how to free them; none if there is no room."""
    pages, order = arena.pages, rng.choice([0, 3, 6, 8, 9, 10])
    if how == "alloc_pages":
        pfn = pages.alloc_pages(order)
        return [(pfn, 1 << order)], lambda: pages.free_pages(pfn, order)
    if how == "alloc_pages_bulk":
        pfns = pages.alloc_pages_bulk(rng.randrange(1, 80), order % 6)
        return [(pfn, 1 << order % 6) for pfn in pfns.tolist()], lambda: pages.free_pages_bulk(pfns, order % 6)
    if how == "alloc_pages_at":
        pfn = rng.randrange(arena.size // PAGE) >> order << order
        pages.alloc_pages_at(pfn, order)
        return [(pfn, 1 << order)], lambda: pages.free_pages(pfn, order)
    if how == "alloc_pages_exact":
        n = rng.randrange(1, 3000)
        pfn = pages.alloc_pages_exact(n)
        return [(pfn, n)], lambda: pages.free_pages_exact(pfn, n)
    if how == "run_ops":
        table = np.zeros(1, np.uint64)
        pages.run_ops(np.array([(0, order, ph.OP_ALLOC)], ph.OP_DTYPE), table)
        free = np.array([(0, order, ph.OP_FREE)], ph.OP_DTYPE)
        return [(int(table[0]), 1 << order)], lambda: pages.run_ops(free, table)
    array = arena.empty(rng.randrange(1, 6 * MIB), "u1")
    if how == "numpy":
        with arena.numpy():
            array = np.empty(rng.randrange(65536, 6 * MIB), "u1")
        if not inside(array, arena):
            raise ph.OutOfMemoryError
    else:
        assert how == "empty"
    pfn = (array.__array_interface__["data"][0] - arena.address(0)) // PAGE
    return [(pfn, -(-array.nbytes // PAGE))], [array].clear


WAYS = ["alloc_pages", "alloc_pages_bulk", "alloc_pages_at", "alloc_pages_exact", "run_ops", "empty", "numpy"]


def scribble(arena, runs):
    for pfn, n in runs:
        ctypes.memset(arena.address(pfn), 0xAB, n * PAGE)


def zeros(arena, nr_bytes):
    with arena.numpy():
        array = np.zeros(nr_bytes, "u1")
    assert not array.any(), "stale bytes"
    return array


def flush(arena, advice):
    with arena.hinting(advice, workqueue="manual", max_pages=4):
        arena.pages.flush_hinting()


def test_fresh_memory_is_not_cleared_and_not_touched(arena):
    with arena.numpy():
        array = np.zeros(40 * MIB, "u1")
    assert inside(array, arena)
    assert arena.numpy_counts[3:] == (0, 40 * MIB)
    assert arena.resident_bytes == 0
    assert not array.any()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("before", ["fresh", "dontneed", "free"])
def test_memory_that_anybody_has_written_is_cleared(arena, how, before):
    """Stale bytes would be there for all to see: nothing is reported between the writing and the zeros."""
    rng = random.Random(how)
    if before != "fresh":
        array = arena.empty(arena.size, "u1")
        array[:] = 0xCD
        del array
        flush(arena, before)
    for _ in range(20):
        try:
            runs, free = allocate(arena, how, rng)
        except ph.BadPageError:
            continue
        scribble(arena, runs)
        free()
    counts = arena.numpy_counts
    array = zeros(arena, arena.size)
    assert inside(array, arena)
    assert arena.numpy_counts.cleared > counts.cleared
    assert (arena.numpy_counts.spared > counts.spared) == (before != "free")
    array[:] = 1
    del array


@pytest.mark.parametrize("advice", ["dontneed", "free"])
def test_what_was_reported_is_cleared_only_if_it_may_keep_old_contents(arena, advice):
    array = arena.empty(arena.size, "u1")
    array[:] = 0xCD
    del array
    flush(arena, advice)
    array = zeros(arena, 40 * MIB)
    assert arena.numpy_counts[3:] == ((0, 40 * MIB) if advice == "dontneed" else (40 * MIB, 0))
    array[:] = 0xEF
    del array
    array = zeros(arena, 40 * MIB)  # not reported again in between
    assert arena.numpy_counts.cleared >= 40 * MIB
    del array


def test_fresh_memory_stays_known_through_reports_of_either_kind(arena):
    arrays = []
    for advice in ("free", "dontneed", "free"):
        flush(arena, advice)
        arrays.append(zeros(arena, 8 * MIB))
    assert arena.numpy_counts[3:] == (0, 24 * MIB)
    arrays.clear()


def test_a_part_of_a_granule_is_not_known_once_another_part_was_used(arena):
    first = zeros(arena, MIB)
    assert arena.numpy_counts[3:] == (0, MIB)
    first[:] = 0xAB
    second = zeros(arena, MIB)  # the other half of the same granule
    third = zeros(arena, 3 * MIB)
    assert arena.numpy_counts[3:] == (MIB, 4 * MIB)
    second[:] = third[:] = 0xAB
    del first
    first = zeros(arena, MIB)
    first[:] = 0xAB
    del second, third
    assert first.all()
    whole = zeros(arena, arena.size - 2 * MIB)
    del first, whole


def test_a_host_that_writes_into_what_is_reported_to_it(arena):
    def hint_pages(blocks):
        scribble(arena, [(int(block["pfn"]), 1 << int(block["order"])) for block in blocks])

    with arena.pages.hinting(ph.PageHintingCallbacks(hint_pages, 4), workqueue="manual"):
        arena.pages.flush_hinting()
    assert arena.pages.stats().blocks_reported > 0
    array = zeros(arena, arena.size)
    del array


def test_a_report_that_the_kernel_refuses_is_no_zero(arena):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlock.argtypes = libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    if libc.mlock(arena.address(4096), 4 * MIB):
        pytest.skip("this process may not lock memory")
    array = arena.empty(arena.size, "u1")
    array[:] = 0xCD
    del array
    flush(arena, "dontneed")
    assert arena.pages.stats().blocks_failed > 0
    array = zeros(arena, arena.size)
    assert 0 < arena.numpy_counts.cleared < arena.size
    libc.munlock(arena.address(4096), 4 * MIB)
    del array


@pytest.mark.parametrize("seed", range(6))
def test_zeros_are_zero_whatever_came_before(arena, seed):
    """Everybody writes what is no zero into all that is theirs, and it is reported now and then, either way."""
    rng = random.Random(seed)
    mine = []
    for _ in range(400):
        choice = rng.random()
        if choice < 0.45:
            try:
                runs, free = allocate(arena, rng.choice(WAYS), rng)
            except (ph.OutOfMemoryError, ph.BadPageError):
                continue
            scribble(arena, runs)
            mine.append(free)
        elif choice < 0.6:
            array = zeros(arena, rng.randrange(65536, 12 * MIB))
            array[:] = 0xAB
            mine.append([array].clear)
            del array
        elif choice < 0.65:
            flush(arena, rng.choice(["dontneed", "free"]))
        elif mine:
            mine.pop(rng.randrange(len(mine)))()
    for free in mine:
        free()
    counts = arena.numpy_counts
    assert counts.cleared > 0
    assert counts.spared > 0


def test_zeros_in_a_forked_child(arena):
    """Its parent's knowledge, and memory, are its own from the fork on."""
    array = arena.empty(arena.size, "u1")
    array[:] = 0xCD
    del array
    flush(arena, "dontneed")

    def child():
        array = zeros(arena, 8 * MIB)
        assert arena.numpy_counts.cleared == 0
        array[:] = 0xAB
        del array
        zeros(arena, arena.size)

    in_child(child)
    array = zeros(arena, 8 * MIB)
    assert arena.numpy_counts.cleared == 0
    del array


# ---- sizes change


def test_resizing_keeps_contents_and_whole_pages(arena):
    with arena.numpy():
        array = np.arange(20_000)
        for n in (30_000, 1_000_000, 20_001, 9_000, 400_000, 3, 100_000):
            before = array.copy()
            array.resize(n, refcheck=False)
            kept = min(n, len(before))
            assert (array[:kept] == before[:kept]).all()
            assert not array[kept:].any()
            del before
    del array


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("pages", [16, 17, 64, 100, 512, 1000, 1500])
def test_growing_where_the_next_pages_are_free(arena, pages):
    with arena.numpy():
        array = np.full(pages * PAGE, 7, "u1")
        start = address(array)
        for now in (pages + 1, pages + 5, 3 * pages, 3 * pages + 1, 4 * pages):
            array.resize(now * PAGE - 5, refcheck=False)
            assert address(array) == start
            assert arena.pages.stats().allocated_pages == now
            arena.pages.verify()
        assert (array[: pages * PAGE] == 7).all()
        assert not array[pages * PAGE :].any()
        behind = arena.pages.alloc_pages_at((start - arena.address(0)) // PAGE + 4 * pages)
        array.resize(5 * pages * PAGE, refcheck=False)
        assert address(array) != start
        assert (array[: pages * PAGE] == 7).all()
        assert arena.pages.stats().allocated_pages == 5 * pages + 1
        arena.pages.verify()
    arena.pages.free_pages(behind)
    del array


@pytest.mark.parametrize("pages", [16, 17, 64, 100, 512, 1024, 5000])
def test_shrinking_gives_the_tail_back(arena, pages):
    with arena.numpy():
        array = np.full(pages * PAGE, 7, "u1")
        start = address(array)
        for now in (pages - 1, pages // 2 + 1, pages // 2, 3, 1):
            array.resize(now * PAGE, refcheck=False)
            assert address(array) == start
            assert arena.pages.stats().allocated_pages == now
            assert array.all()
            arena.pages.verify()
    array.resize(0, refcheck=False)
    assert arena.live_arrays == 1
    del array


def test_a_tail_that_was_given_back_is_reported_and_its_zeros_are_known(arena):
    with arena.hinting(workqueue="manual", max_pages=4), arena.numpy():
        array = np.full(40 * MIB, 7, "u1")
        arena.pages.flush_hinting()
        array.resize(MIB, refcheck=False)
        zero = np.zeros(10 * MIB, "u1")  # not reported yet, but for what was there beyond the 40 MiB
        assert not zero.any()
        assert arena.numpy_counts.cleared > 0
        del zero
        arena.pages.flush_hinting()
        assert arena.resident_bytes <= 4 * MIB
        array.resize(20 * MIB, refcheck=False)
        assert array[:MIB].all()
        assert not array[MIB:].any()
        array[:] = 9
        counts = arena.numpy_counts
        rest = np.zeros(40 * MIB, "u1")
        assert arena.numpy_counts.cleared == counts.cleared
        assert not rest.any()
    del array, rest


def test_growing_from_the_middle_of_a_leaf_over_its_end_broke_the_free_lists(arena):
    """An allocation in more than one leaf of 64 pages is known by its first leaf, so it must begin with one."""
    with arena.numpy():
        first = np.ones(20 * PAGE, "u1")
        array = np.full(16 * PAGE, 7, "u1")
        assert (address(array) - arena.address(0)) // PAGE % 64 != 0
        for n in (20, 33, 64, 200):
            array.resize(n * PAGE, refcheck=False)
            arena.pages.verify()
            assert (array[: 16 * PAGE] == 7).all()
        assert first.all()
    assert arena.pages.stats().allocated_pages == 220
    del first, array


@pytest.mark.parametrize("seed", range(8))
def test_sizes_that_change_at_random(arena, seed):
    """Against copies in the C heap; the allocator's own check after each step."""
    rng = random.Random(seed)
    pairs = []
    for step in range(300):
        with arena.numpy():
            if len(pairs) < 6:
                pairs.append([np.full(rng.randrange(65536, 4 * MIB), step % 251 + 1, "u1"), None])
                pairs[-1][1] = bytearray(pairs[-1][0].tobytes())
            index = rng.randrange(len(pairs))
            array, copy = pairs[index]
            if rng.random() < 0.3:
                del pairs[index]
            else:
                n = rng.choice([1, PAGE, 65536, rng.randrange(1, 6 * MIB), len(copy) + rng.randrange(9 * PAGE)])
                array.resize(n, refcheck=False)
                copy[n:] = b""
                copy.extend(bytes(n - len(copy)))
            assert array.tobytes() == copy
        del array, copy
        arena.pages.verify()
    assert all(array.tobytes() == copy for array, copy in pairs)
    pairs.clear()


def test_growing_does_not_take_pages_that_are_isolated(arena):
    with arena.numpy():
        array = np.full(2 * MIB, 7, "u1")
        start = address(array)
        arena.pages.set_migratetype(512, 1024, "isolate")
        assert start == arena.address(0)
        array.resize(3 * MIB, refcheck=False)
        assert address(array) != start
        arena.pages.set_migratetype(512, 1024, "movable")
        assert array[: 2 * MIB].all()
        del array


def test_an_array_that_outgrows_the_arena_moves_to_the_c_heap(arena):
    with arena.numpy():
        array = np.arange(5 * MIB)
        keep = np.ones(20 * MIB, "u1")
        array.resize(6 * MIB, refcheck=False)
    assert not inside(array, arena)
    assert (array[: 5 * MIB] == np.arange(5 * MIB)).all()
    assert arena.live_arrays == 1
    assert keep.all()
    del keep


def test_text_is_read_into_an_array_that_grows_without_the_gil(arena):
    text = " ".join(map(str, range(100_000)))
    with arena.numpy():
        array = np.fromstring(text, sep=" ")
        listed = np.fromiter(range(100_000), int)
    assert (array == np.arange(100_000)).all()
    assert (listed == np.arange(100_000)).all()
    assert arena.numpy_counts.arena > 0
    del array, listed


def test_freed_by_its_own_length_when_other_code_has_changed_the_shape(arena):
    """C code may write into an array's dimensions; NumPy then says another size when it frees."""
    with arena.numpy():
        array = np.ones(300_000)
    # PyArrayObject: reference count, type, data, nd, dimensions.
    dimensions = ctypes.cast(ctypes.c_void_p.from_address(id(array) + 32).value, ctypes.POINTER(ctypes.c_ssize_t))
    assert dimensions[0] == 300_000
    dimensions[0] = 100
    assert array.shape == (100,)
    del array
    assert arena.pages.stats().allocated_pages == 0


# ---- what people do with arrays


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


# ---- how long it lives


def test_arrays_outlive_the_context_the_arena_and_the_thread():
    def work():
        arena = ph.Arena("64MiB")
        with arena.numpy():
            array = np.arange(MIB)
        made.append((array, arena.address(0)))

    made = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    gc.collect()
    array, start = made.pop()
    view = array[1:]
    del array
    assert mapped(start)
    assert (view == np.arange(1, MIB)).all()
    view[:] = 3
    del view
    gc.collect()
    assert not mapped(start)


def test_the_arena_is_freed_though_a_context_has_used_it():
    arena = ph.Arena("64MiB")
    start = arena.address(0)
    with arena.numpy():
        pass
    assert mapped(start)
    del arena
    gc.collect()
    assert not mapped(start)


def test_closing_is_refused_while_numpy_has_arrays_there():
    arena = ph.Arena("64MiB")
    with arena.numpy():
        array = np.ones(MIB, "u1")
        with pytest.raises(ph.PageHintError, match="1 array in the arena"):
            arena.close()
        assert not arena.closed
        again = np.ones(MIB, "u1")
        assert inside(again, arena)
        del array, again
        arena.close()
        array = np.ones(MIB, "u1")  # the C heap's
    assert arena.closed
    assert arena.numpy_counts.full == 1
    assert array.all()


def test_an_interrupted_close_leaves_the_arena_open_or_closed_and_not_half():
    """Once its memory has gone back, no interrupt may have NumPy's requests served from it again."""
    survives("""
        import signal
        import numpy as np
        import pagehint as ph
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        for n in range(3000):
            arena = ph.Arena("2MiB")
            try:
                with arena.numpy():
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + n % 100))
                        arena.close()
                        while True:
                            pass
                    except KeyboardInterrupt:
                        pass
                    array = np.ones(1 << 16)
                    served = 0 <= array.__array_interface__["data"][0] - arena._mapping.address < arena.size
                    assert served == (not arena.closed)
                    assert array.all()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    """)


def test_arrays_made_and_dropped_while_the_arena_closes():
    survives("""
        import sys, threading
        import numpy as np
        import pagehint as ph
        sys.setswitchinterval(1e-6)
        def work(arena, go):
            with arena.numpy():
                go.set()
                while not arena.closed:
                    np.ones(1 << 17, "u1")
                    [np.ones(10) for _ in range(50)]  # else there would hardly be a moment without an array
                np.ones(1 << 17, "u1")
        for _ in range(10):
            arena, go = ph.Arena("16MiB"), threading.Event()
            worker = threading.Thread(target=work, args=(arena, go))
            arena.hinting(delay=0.0).__enter__()
            worker.start()
            go.wait()
            while not arena.closed:
                try:
                    arena.close()
                except ph.PageHintError:
                    pass
            worker.join()
            arena.pages.verify()
            assert arena.pages.stats().allocated_pages == 0
    """)


@pytest.mark.parametrize("kept", ["array", "array, arena", "array, arena, context"])
def test_the_interpreter_ends_cleanly_with_live_arrays(kept):
    survives(f"""
        import numpy as np
        import pagehint as ph
        def make():
            arena = ph.Arena("64MiB")
            context = arena.numpy()
            context.__enter__()
            arena.hinting(delay=0.0).__enter__()
            array = np.ones(1 << 20)
            return {kept},
        kept = make()
        class Late:
            array = np.ones(1 << 20)
            def __del__(self):
                self.array[:] = 2
                self.array = None
        late = Late()
    """)


@pytest.mark.parametrize("last", ["pass", "ph.numpy.uninstall()", "del arena; ph.numpy.uninstall()"])
def test_the_interpreter_ends_cleanly_with_an_installed_arena(last):
    survives(f"""
        import threading
        import numpy as np
        import pagehint as ph
        arena = ph.Arena("64MiB")
        ph.numpy.install(arena)
        arena.hinting(delay=0.0).__enter__()
        arrays = [np.ones(1 << 18) for _ in range(8)]
        class Late:
            array = np.ones(1 << 20)
            def __del__(self):
                self.array[:] = 2
                self.array = None
        late = Late()
        def work():
            while True:
                np.ones(1 << 18)
        threading.Thread(target=work, daemon=True).start()
        {last}
    """)


# ---- forks and threads


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


def take_back(arena):
    """Have the kernel take what MADV_FREE has offered, as when memory is short. What is in use stays: no swap."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.madvise(arena.address(0), arena.size, MADV_PAGEOUT)


@pytest.mark.parametrize("others", ["threads", "forks"])
@pytest.mark.parametrize("advice", ["dontneed", "free"])
def test_canaries(advice, others):
    """What a thread has written is there when it looks again, and zeros are zero, while all the rest is given back."""
    arena = ph.Arena("256MiB")
    checked = [0]

    def canaries(rng, rounds):
        mine = []
        for _ in range(rounds):
            if len(mine) > 8 or (mine and rng.random() < 0.4):
                array, canary = mine.pop(rng.randrange(len(mine)))
                assert (array == canary).all(), "somebody else has written here, or the page was given back"
                checked[0] += 1
            n, canary = rng.choice([100, 8192, 12_500, 125_000, 262_144, 655_360]), rng.getrandbits(62) | 1
            if rng.random() < 0.3:
                array = np.zeros(n, np.uint64)
                assert not array.any(), "stale bytes"
                array[:] = canary
            else:
                array = np.full(n, canary, np.uint64)
            if rng.random() < 0.3:
                array.resize(rng.randrange(1, 2 * n), refcheck=False)
                array[n:] = canary
            mine.append((array, canary))
        for array, canary in mine:
            assert (array == canary).all()

    def work(stop, rng):
        while not stop.is_set():
            canaries(rng, 50)

    def forks(stop, rng):
        while not stop.wait(0.05):
            array = np.full(100_000, rng.getrandbits(62), np.uint64)
            canary = array[0]

            def child():
                canaries(rng, 20)
                assert (array == canary).all()  # noqa: B023
                array[:] = 5  # noqa: B023
                arena.pages.verify()

            in_child(child)
            assert (array == canary).all()

    def texts(stop, rng):
        text = " ".join(map(str, range(30_000)))
        while not stop.is_set():
            assert np.fromstring(text, sep=" ")[-1] == 29_999  # grows without the GIL

    def installs(stop, rng):
        while not stop.wait(0.01):
            ph.numpy.uninstall()
            ph.numpy.install(arena)

    def trims(stop, rng):
        while not stop.wait(0.01):
            arena.limit = rng.choice([None, 1, 64 * MIB])
            assert arena.trim() >= 0
            take_back(arena)

    ph.numpy.install(arena)
    try:
        with arena.hinting(advice, delay=0.001, max_pages=4, threshold=2):
            in_threads([work, work, work, texts, installs, trims, *[forks] * (others == "forks")])
            assert arena.pages.stats().blocks_reported > 0
            assert arena.pages.last_error is None
    finally:
        ph.numpy.uninstall()
    counts = arena.numpy_counts
    assert checked[0] > 0
    assert counts.arena > 0
    assert counts.cleared > 0
    assert (counts.spared > 0) or advice == "free"
    nothing_left(arena)
    arena.close()
