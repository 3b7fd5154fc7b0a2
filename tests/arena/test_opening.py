"""An arena's memory is opened in steps: nothing counts what it has only reserved, and limits of the process hold."""

from __future__ import annotations

import ctypes
import gc
import itertools
import mmap
import os
import random
import textwrap
from pathlib import Path

import numpy as np
import pytest
from processes import in_child, run_code
from threads import in_threads, keeper_of_canaries

import pagehint as ph
from benchmarks.build import compile_shared

MIB = 1 << 20
pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")

PRELUDE = """
    import ctypes, logging, os, resource
    import numpy as np
    import pagehint as ph
    MIB, GIB = 1 << 20, 1 << 30
    logging.disable()  # locked memory cannot be given back, which is said
    def figure(name):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) >> 10 for line in file if line.startswith(name + ":"))
    def install(size):
        arena = ph.Arena(size)
        arena.hinting(min_age=0.01, threshold=1, delay=None).__enter__()
        return ph.numpy.install(arena)
    def refused(work):
        try:
            work()
        except MemoryError:
            return True
        return False
    def lock_all(flags):
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mlockall(flags) == 0, os.strerror(ctypes.get_errno())
"""


@pytest.mark.parametrize(
    ("case", "code"),
    [
        (
            "a limit on address space, set later",
            """
            arena = install("24GiB")
            resource.setrlimit(resource.RLIMIT_AS, (2 * GIB, -1))
            bytes(100 * MIB)
            assert refused(lambda: np.empty(3 * GIB, "u1"))
            array = np.ones(GIB // 8)
            assert arena.live_arrays == 1
            del array
            bytes(100 * MIB)
            """,
        ),
        (
            "ulimit -v of 1 GiB, from the start",
            """
            resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))
            arena = ph.numpy.install(ph.Arena("24GiB"))
            for _ in range(20):
                np.ones(200 * MIB // 8)
            assert arena.numpy_counts.arena == 20 and arena.numpy_counts.full == 0, arena.numpy_counts
            assert refused(lambda: np.empty(2 * GIB, "u1"))
            ph.PageAllocator("1GiB").verify()
            """,
        ),
        (
            "a limit on data",
            """
            arena = install("24GiB")
            resource.setrlimit(resource.RLIMIT_DATA, (GIB, -1))
            np.ones(512 * MIB, "u1")
            bytes(100 * MIB)
            assert refused(lambda: np.empty(3 * GIB, "u1"))
            """,
        ),
        (
            "memory that is locked before: MCL_CURRENT | MCL_FUTURE",
            """
            lock_all(3)
            before = figure("VmRSS")
            arena = install("24GiB")
            array = np.ones(16 * MIB, "u1")
            assert figure("VmRSS") < before + 48, (before, figure("VmRSS"))
            """,
        ),
        (
            "memory that is locked later",
            """
            arena = install("24GiB")
            lock_all(3)
            before = figure("VmRSS")
            array = np.ones(64 * MIB, "u1")
            assert figure("VmRSS") < before + 100, (before, figure("VmRSS"))
            """,
        ),
        (
            "what debuggers, profilers and core dumps see",
            """
            before = figure("VmSize"), figure("VmData")
            arena = ph.Arena("1TiB")
            small = ph.Arena("64MiB")
            assert figure("VmSize") < before[0] + 1700 and figure("VmData") < before[1] + 150, before
            array = arena.empty(100 * MIB, "u1")
            assert figure("VmData") < before[1] + 300
            """,
        ),
    ],
)  # fmt: skip
def test_what_is_merely_reserved_counting_in_full(case, code):
    assert run_code(textwrap.dedent(PRELUDE) + textwrap.dedent(code)) == (0, "", "")


def test_an_arena_that_cannot_grow_is_full_and_the_c_heap_serves():
    """Another mapping stands where the next step would be; it stays."""
    arena = ph.Arena("1GiB")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    place = arena.address(0) + arena._mapping.open_bytes
    fixed_noreplace = 0x100000
    got = libc.mmap(place, mmap.PAGESIZE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_noreplace, -1, 0)
    assert got == place
    ctypes.memset(got, 7, mmap.PAGESIZE)
    with pytest.raises(ph.OutOfMemoryError, match="zone"):
        arena.empty(4 * MIB, "u1")
    with arena.numpy():
        array = np.ones(4 * MIB, "u1")
    assert array.all()
    assert arena.numpy_counts.full == 1
    arena.pages.verify()
    del array
    arena.close()
    assert ctypes.string_at(got, mmap.PAGESIZE) == b"\7" * mmap.PAGESIZE
    libc.munmap(ctypes.c_void_p(got), mmap.PAGESIZE)
    assert arena.numpy_counts.full == 1


def test_a_step_is_opened_by_every_way_to_take_pages():
    takes = np.zeros(20, ph.OP_DTYPE)
    takes["order"], takes["slot"] = 12, np.arange(20)
    ways = [
        lambda pages: pages.free_pages(pages.alloc_pages(14), 14),
        lambda pages: pages.free_pages_exact(pages.alloc_pages_exact(70_001), 70_001),
        lambda pages: pages.free_pages_bulk(pages.alloc_pages_bulk(70_000)),
        lambda pages: pages.free_pages_bulk(pages.alloc_pages_bulk(200, 9), 9),
        lambda pages: pages.free_pages(pages.alloc_pages_at(100_000, 4), 4),
        lambda pages: pages.run_ops(takes, np.zeros(20, np.uint64)),
    ]  # fmt: skip
    for way in ways:
        arena = ph.Arena("1GiB")
        assert arena.pages.zones[0].spanned_pages == 512
        way(arena.pages)
        assert arena.pages.zones[0].spanned_pages > 512
        arena.pages.verify()


def test_a_page_behind_the_arena_is_refused_and_opens_nothing():
    arena = ph.Arena("1GiB")
    for pfn, order in ((1 << 18, 0), ((1 << 18) - 2, 2), (1 << 40, 3)):
        with pytest.raises(ph.BadPageError, match=f"PFN {pfn:#x}"):
            arena.pages.alloc_pages_at(pfn, order)
    assert arena._mapping.open_bytes == 2 * MIB


def test_an_array_fills_the_arena_to_its_last_page():
    arena = ph.Arena("300MiB")
    small = arena.empty(10_000)
    del small
    whole = arena.empty(300 * MIB, "u1")
    whole[::4096] = 1
    with pytest.raises(ph.OutOfMemoryError):
        arena.empty(1)
    del whole
    arena.pages.verify()
    assert arena.pages.stats().free_pages == 300 * MIB // mmap.PAGESIZE


def test_an_array_at_the_end_grows_in_place_into_what_was_not_open():
    arena = ph.Arena("1GiB")
    with arena.numpy():
        array = np.ones(MIB)
        at = array.ctypes.data
        array.resize(20 * MIB, refcheck=False)
        assert array.ctypes.data == at
        assert (array[:MIB] == 1).all()
    del array
    arena.pages.verify()


def test_a_batch_going_out_with_most_of_what_is_open_in_use():
    """The gate counts what can be opened as free: memory is not short."""
    arena = ph.Arena("1GiB")
    with arena.hinting(max_pages=16):
        arrays = [arena.empty(2 * MIB, "u1") for _ in range(40)]
        for array in arrays:
            array[:] = 1
        del arrays[10:12], array
        arena.pages.flush_hinting()
        assert arena.resident_bytes == 38 * 2 * MIB
        assert arena.pages.stats().isolation_refused == 0
        del arrays


def test_what_was_opened_and_never_used_is_not_reported():
    arena = ph.Arena("1GiB")
    with arena.hinting():
        array = arena.empty(100 * MIB, "u1")
        assert arena.pages.stats().hints_pending == 0
        arena.pages.flush_hinting()
        assert arena.pages.stats().blocks_reported == 0
        del array


def test_the_age_of_granules_that_are_opened_later():
    arena = ph.Arena("1GiB")
    with arena.hinting(min_age=0.0, threshold=1):
        for step in range(1, 8):
            array = arena.empty(step * 100 * MIB, "u1")
            array[:: 2 * MIB] = 1
            del array
        arena.pages.flush_hinting()
        arena.pages.verify()
        assert arena.resident_bytes == 0


def test_threads_and_forks_while_the_arena_grows():
    for _ in range(6):
        arena = ph.Arena("2GiB")
        checked = []

        def forks(stop, rng, arena=arena):
            while not stop.is_set():
                in_child(lambda: (arena.empty(rng.randrange(1, 1000) * 4096, "u1"), arena.pages.verify()))

        with arena.hinting(delay=0.0):
            in_threads([keeper_of_canaries(arena, 60, checked), keeper_of_canaries(arena, 60, checked), forks], 1.0)
        assert checked
        arena.pages.verify()


def test_mappings_that_are_given_back_with_the_arena():
    def size():
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[0]) * mmap.PAGESIZE

    gc.collect()
    before = size()
    for _ in range(50):
        arena = ph.Arena("1GiB")
        array = arena.empty(random.randrange(1, 200 * MIB), "u1")
        cycle = [arena, array]
        cycle.append(cycle)
        del arena, array, cycle
        gc.collect()
    assert size() < before + 8 * MIB


def test_many_arenas_side_by_side():
    arenas = [ph.Arena("100GiB") for _ in range(400)]  # more than there are places for
    addresses = sorted(arena.address(0) for arena in arenas)
    assert all(b - a >= 100 << 30 for a, b in itertools.pairwise(addresses))
    arrays = [arena.empty(5 * MIB, "u1") for arena in arenas]
    for i, array in enumerate(arrays):
        array[::4096] = i & 255
    for i, array in enumerate(arrays):
        assert (array[::4096] == i & 255).all()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Run code with `elsewhere.c` before the C library; `library` is it."""
    source = Path(__file__).parents[1] / "helpers" / "elsewhere.c"
    file = compile_shared(source, tmp_path_factory.mktemp("elsewhere") / "elsewhere.so", "-O1", "-Wall", "-Werror")
    # A sanitizer, which comes by the same way, has to be the first.
    environment = {**os.environ, "LD_PRELOAD": " ".join([*os.environ.get("LD_PRELOAD", "").split(), str(file)])}
    prelude = f"import ctypes\nlibrary = ctypes.CDLL({str(file)!r})\n"
    return lambda code: run_code(prelude + textwrap.dedent(code), env=environment)


def test_an_array_of_the_c_heap_where_the_arena_is_not_open_yet_was_taken_for_its_own(elsewhere):
    """A malloc that hints its addresses may place blocks there. Freeing one crashed: its pages have no notes."""
    assert elsewhere("""
        import numpy as np
        import pagehint as ph
        arena = ph.Arena("64GiB")
        place = arena.address(0) + (32 << 30)
        ctypes.c_void_p.in_dll(library, "block_hint").value = place
        of_c_heap = np.ones(40 << 20, "u1")
        assert 0 <= of_c_heap.ctypes.data - place < 1 << 20
        ph.numpy.install(arena)
        of_arena = np.ones(50 << 20, "u1")
        assert arena.live_arrays == 1
        del of_c_heap
        assert of_arena.all()
        arena.pages.verify()
    """) == (0, "", "")


def test_a_step_that_was_opened_while_the_arena_went_was_left_behind(elsewhere):
    """Two threads ask for room: one is opening a step, and the other waits for that, when the arena goes."""
    assert elsewhere("""
        import threading, time
        import pagehint as ph
        arena = ph.Arena("4GiB", hugepages=False)
        pages, first = arena.pages, arena.address(0)
        ctypes.c_int.in_dll(library, "step_takes").value = 200_000
        outcome = []
        def work(nr_pages):
            try:
                pages.alloc_pages_exact(nr_pages)
                outcome.append("served")
            except ph.OutOfMemoryError:
                outcome.append("refused")
        threads = [threading.Thread(target=work, args=(nr_pages,)) for nr_pages in (100_000, 300_000)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        del arena
        for thread in threads:
            thread.join()
        assert outcome[0] == "served"  # the other, too, if it was before the arena's end
        with open("/proc/self/maps") as maps:
            starts = [int(line.split("-")[0], 16) for line in maps]
        assert not [start for start in starts if first <= start < first + (4 << 30)]
    """) == (0, "", "")
