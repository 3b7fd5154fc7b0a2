"""Real memory: what an arena hands out, keeps, and gives back."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import threading

import numpy as np
import pytest
from processes import run_code, survives
from threads import native_threads

import pagehint as ph
from pagehint.arena.mapping import Mapping

MIB = 1 << 20


def test_a_file_that_may_not_be_written_is_no_arena(tmp_path):
    file = tmp_path / "ram"
    file.write_bytes(bytes(2 * MIB))
    with file.open("rb") as ram, pytest.raises(MemoryError, match="bytes of a file for an arena: Permission denied"):
        Mapping(2 * MIB, 2 * MIB, False, ram.fileno(), [(0, 0, 2 * MIB)])


def test_single_pages_of_a_mapping_that_notes_no_zeroes_go_back():
    """Any allocator may report to a mapping, blocks of any size."""
    mapping = Mapping(2 * MIB, 2 * MIB, False)
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 0, 512)], min_order=0, pcp=False)
    pages.alloc_pages_bulk(512)
    ctypes.memset(mapping.address, 1, 2 * MIB)
    freed = list(range(0, 512, 2))
    with pages.hinting(mapping.callbacks("dontneed", 4), workqueue="manual", threshold=1):
        pages.free_pages_bulk(freed)
        pages.flush_hinting()
    assert mapping.given_back_bytes == mapping.dropped_bytes == 256 * mmap.PAGESIZE
    left = ctypes.string_at(mapping.address, 2 * MIB)
    assert [page for page in range(512) if not left[page * mmap.PAGESIZE]] == freed


def test_arrays_live_in_the_arena():
    with ph.Arena("64MiB") as arena:
        a = arena.empty((1000, 1000), dtype="f8")
        start = a.__array_interface__["data"][0]
        assert arena.address(0) <= start < arena.address(0) + arena.size
        assert a.shape == (1000, 1000)
        assert a.flags.writeable
        assert a.flags.c_contiguous
        a[:] = 3.5
        assert arena.live_arrays == 1
        assert arena.pages.stats().allocated_pages == -(-a.nbytes // mmap.PAGESIZE)
        b = arena.empty(10, "u1", order="F")
        view = a[::2].T
        del a
        gc.collect()
        assert arena.live_arrays == 2  # the view keeps it
        assert float(view.sum()) == 3.5 * 500_000
        del view, b
        gc.collect()
        assert arena.live_arrays == 0
        assert arena.pages.stats().allocated_pages == 0
        arena.pages.verify()


def test_shapes():
    with ph.Arena("16MiB") as arena:
        assert arena.empty(()).shape == ()
        assert arena.empty(0).nbytes == 0
        assert arena.empty((0, 5)).shape == (0, 5)
        assert arena.empty((2, 3), order="F").flags.f_contiguous
        assert arena.empty(np.int64(7), np.int16).nbytes == 14
        assert arena.empty(3, [("a", "f4"), ("b", "i2")]).dtype.names == ("a", "b")
        for bad in (-1, (2, -2)):
            with pytest.raises(ValueError, match="negative"):
                arena.empty(bad)
        with pytest.raises(TypeError, match="Python objects"):
            arena.empty(3, object)
        with pytest.raises(ph.OutOfMemoryError):
            arena.empty(17 * MIB, "u1")
        with pytest.raises(ph.OutOfMemoryError):
            arena.empty(1 << 60, "u1")
        assert arena.live_arrays == 0


def test_one_array_can_fill_the_arena():
    for size in (2 * MIB, 6 * MIB, 100 * MIB):
        with ph.Arena(size) as arena:
            for _ in range(2):
                a = arena.empty(arena.size, "u1")
                a[::4096] = 1
                assert arena.pages.stats().free_pages == 0
                del a
            assert arena.pages.stats().allocated_pages == 0


@pytest.mark.parametrize("hugepages", [True, False])
def test_freed_memory_goes_back_and_is_zero_when_used_again(hugepages):
    with ph.Arena("128MiB", hugepages) as arena:
        a = arena.empty(96 * MIB, "u1")
        a[:] = 7
        assert arena.resident_bytes >= 96 * MIB
        keep = arena.empty(4 * MIB, "u1")
        keep[:] = 9
        del a
        assert arena.resident_bytes >= 100 * MIB  # hinting is off
        with arena.hinting(delay=0.0):
            arena.pages.flush_hinting()
            assert arena.resident_bytes <= 6 * MIB
            stats = arena.pages.stats()
            assert stats.blocks_failed == 0
            assert arena.pages.last_error is None
            assert stats.reports < stats.blocks_reported
            a = arena.empty(96 * MIB, "u1")
            assert not a.any()
            assert (keep == 9).all()
        del a, keep


def test_advice_free_keeps_pages_until_the_system_wants_them():
    with ph.Arena("64MiB") as arena:
        a = arena.empty(32 * MIB, "u1")
        a[:] = 1
        del a
        with arena.hinting("free", delay=0.0):
            arena.pages.flush_hinting()
            assert arena.pages.stats().blocks_failed == 0
            assert arena.pages.stats().hints_pending == 0
        with pytest.raises(ValueError, match="dontneed"):
            arena.hinting("maybe")


def test_resident_bytes_are_the_kernels():
    with ph.Arena("32MiB", hugepages=False) as arena:
        assert arena.resident_bytes == 0
        a = arena.empty(32 * MIB, "u1")
        a[: 100 * mmap.PAGESIZE] = 1
        assert arena.resident_bytes == 100 * mmap.PAGESIZE
        del a


def test_closing_with_live_arrays_is_refused():
    arena = ph.Arena("16MiB")
    arrays = [arena.empty(100), arena.empty(100)]
    with pytest.raises(ph.PageHintError, match="2 arrays"):
        arena.close()
    arrays[0][:] = 1  # still good
    arrays.pop()
    with pytest.raises(ph.PageHintError, match="1 array"):
        arena.close()
    arrays.clear()
    arena.close()
    arena.close()
    assert arena.closed
    for call in (lambda: arena.empty(1), lambda: arena.resident_bytes, lambda: arena.address(0), arena.hinting):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert repr(arena) == "<Arena, closed>"


def test_closing_ends_hinting():
    arena = ph.Arena("16MiB")
    arena.enable_hinting()
    arena.close()
    assert not arena.pages.hinting_enabled
    assert not native_threads("pagehint")


def test_arrays_outlive_the_arena():
    arena = ph.Arena("16MiB")
    arena.enable_hinting(delay=0.0)
    a = arena.empty(1000)
    a[:] = 2.0
    del arena
    gc.collect()
    assert float(a.sum()) == 2000.0
    thread = threading.Thread(target=lambda held: held.clear(), args=([a],))
    del a
    thread.start()
    thread.join()


def test_addresses():
    with ph.Arena("16MiB") as arena:
        assert arena.address(3) - arena.address(0) == 3 * mmap.PAGESIZE
        assert arena.address(0) % (2 * MIB) == 0
        for bad in (-1, arena.size // mmap.PAGESIZE):
            with pytest.raises(ValueError, match="not in the arena"):
                arena.address(bad)
    assert ph.Arena("1MiB").size == 2 * MIB
    for bad in ("0", "x", -5):
        with pytest.raises(ValueError, match=r".+"):
            ph.Arena(bad)


def test_a_kernel_that_refuses_is_a_failed_report():
    """Locked pages cannot be dropped with MADV_DONTNEED: counted, kept as last_error, hinted again."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlock.argtypes = libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with ph.Arena("64MiB") as arena:
        arena.empty(arena.size, "u1")[::4096] = 1  # what was never used is not reported to the kernel
        if libc.mlock(arena.address(4096), 4 * MIB):
            pytest.skip("this process may not lock memory")
        with arena.hinting(delay=None, workqueue="manual", max_pages=4):
            arena.pages.flush_hinting()
            stats = arena.pages.stats()
            assert stats.blocks_failed > 0
            assert stats.hints_pending > 0
            assert "were not taken" in str(arena.pages.last_error)
            arena.pages.verify()
            libc.munlock(arena.address(4096), 4 * MIB)
            arena.pages.flush_hinting()
            assert arena.pages.stats().hints_pending == 0


def test_a_context_of_a_closed_arena_wiped_what_was_mapped_there_next():
    """A reporting function may be called late: until it has gone, its addresses are used for no other mapping."""
    arena = ph.Arena("64MiB")
    late = arena.hinting(workqueue="manual")
    callbacks = ph.PageHintingCallbacks(arena._mapping.advise_capsule("dontneed"))
    pages, start, end = arena.pages, arena.address(0), arena.address(0) + arena.size
    arena.close()
    others = [ph.Arena("64MiB") for _ in range(3)]
    for other in others:
        assert other.address(0) + other.size <= start or other.address(0) >= end
    with pytest.raises(ValueError, match="closed"):
        late.__enter__()
    assert not pages.hinting_enabled
    arrays = [other.empty(other.size, "u1") for other in others]
    for array in arrays:
        array[:] = 1
    with pages.hinting(callbacks, workqueue="manual"):
        pages.flush_hinting()
    assert all(array.all() for array in arrays)
    del array, arrays
    for other in others:
        other.close()


def test_memory_goes_back_when_the_arena_is_closed_and_not_when_it_is_collected():
    arena = ph.Arena("64MiB")
    late = arena.hinting()
    array = arena.empty(arena.size, "u1")
    array[:] = 1
    start = arena.address(0)
    del array
    arena.close()
    with open("/proc/self/smaps") as maps:  # noqa: PTH123
        kept = [block for block in maps.read().split("VmFlags") if f"{start:x}-" in block]
    assert all("Rss:                   0 kB" in block for block in kept)
    with pytest.warns(RuntimeWarning, match="never entered"):
        del late


def test_an_array_made_while_the_arena_closes_is_refused():
    survives("""
        import threading
        import pagehint as ph
        arena = ph.Arena("64MiB")
        inside, go_on = threading.Event(), threading.Event()
        def hint_pages(blocks):
            inside.set()
            go_on.wait()
        arena.pages.enable_hinting(ph.PageHintingCallbacks(hint_pages), delay=0.0)
        inside.wait()
        closing = threading.Thread(target=arena.close)
        closing.start()
        while not arena.closed:
            pass
        try:
            arena.empty(100)[:] = 1
        except ValueError as error:
            assert "closed" in str(error)
        else:
            raise AssertionError("an array in a closing arena")
        go_on.set()
        closing.join()
        assert arena.closed
    """)


def test_arrays_made_and_dropped_while_the_arena_closes():
    survives("""
        import sys, threading
        import pagehint as ph
        sys.setswitchinterval(1e-6)
        def work(arena, go):
            go.wait()
            try:
                while True:
                    array = arena.empty(1 << 16)
                    array[:] = 1
                    del array
            except ValueError as error:
                assert "closed" in str(error), error
        for _ in range(40):
            arena, go = ph.Arena("16MiB"), threading.Event()
            arena.enable_hinting(delay=0.0)
            worker = threading.Thread(target=work, args=(arena, go))
            worker.start()
            go.set()
            while not arena.closed:
                try:
                    arena.close()
                except ph.PageHintError:
                    pass
            worker.join()
            arena.pages.verify()
            assert arena.pages.stats().allocated_pages == 0
    """)


def test_a_close_that_is_refused_leaves_the_arena_open(few_host):
    arena = ph.Arena("64MiB")
    refused = []

    def hint_pages(blocks):
        with pytest.raises(ph.HintingActiveError) as error:
            arena.close()
        refused.append(error)

    with arena.pages.hinting(ph.PageHintingCallbacks(hint_pages, 1), workqueue="manual"):
        arena.pages.flush_hinting()
    assert refused
    assert not arena.closed
    arena.empty(10)[:] = 1
    arena.close()


def test_closing_after_an_exception_hid_the_exception():
    arena = ph.Arena("16MiB")

    def use(arena, divisor):
        with arena, arena.hinting():
            arrays.append(arena.empty(10))
            return 1 / divisor

    arrays = []
    with pytest.raises(ZeroDivisionError):
        use(arena, 0)
    assert not arena.pages.hinting_enabled
    arrays[0][:] = 1  # still good: the mapping goes with the last of its arrays
    with pytest.raises(ph.PageHintError, match="1 array"):
        use(ph.Arena("16MiB"), 1)
    arrays.clear()


@pytest.mark.parametrize(("size", "used"), [("24MiB", 2), ("2MiB", 0), ("256MiB", 230)])
def test_a_small_or_nearly_full_arena_never_reported(size, used):
    """A batch of sixteen blocks is more than such an arena can spare, so that its zone was under the gate for ever."""
    with ph.Arena(size, hugepages=False) as arena, arena.hinting():
        array = arena.empty(arena.size - used * MIB, "u1")
        keep = arena.empty(used * MIB, "u1") if used else None
        array[:] = 1
        del array
        arena.pages.flush_hinting()
        assert arena.pages.stats().hints_pending == 0
        assert arena.resident_bytes <= 4 * MIB
        del keep


def test_arguments_of_the_wrong_kind():
    with ph.Arena("16MiB") as arena:
        assert arena.empty([3, 4]).shape == (3, 4)
        assert arena.empty(np.array([3, 4])).shape == (3, 4)
        for bad in (3.5, (3, 1.5), "3", None):
            with pytest.raises(TypeError, match="shape"):
                arena.empty(bad)
        with pytest.raises(TypeError, match="integer"):
            arena.address(1.5)
        for shape in ((2**40, 2**40), (2**20000,), (2**20, 2**10)):
            with pytest.raises(ph.OutOfMemoryError, match="zone Arena"):
                arena.empty(shape, "u1")
        assert arena.empty((2**40, 0)).shape == (2**40, 0)
    for size in ("32TiB", "20EiB", 2**64 - 1, 2**64):
        with pytest.raises(ValueError, match="16 TiB"):
            ph.Arena(size)


def test_an_array_collected_in_a_cycle_keeping_its_pages():
    arena = ph.Arena("64MiB")
    array = arena.empty(1000)
    cycle = [array.base]
    cycle.append(cycle)
    del array, cycle
    gc.collect()
    assert arena.live_arrays == 0
    assert arena.pages.stats().allocated_pages == 0
    arena.close()


# ---- placement


def test_an_arena_does_not_grow_beyond_its_mapping():
    arena = ph.Arena("64MiB")
    section = 32768
    with pytest.raises(ph.BadPageError, match="PFN 0x8000 is outside every zone, and those of an arena do not grow"):
        arena.pages.online(section, section)
    assert arena.pages.zones[0].spanned_pages == 16384


def test_a_closed_arena_raised_a_plain_value_error():
    """It is an error of this package, and the ValueError that a closed file raises."""
    assert issubclass(ph.ArenaClosedError, ph.PageHintError | ValueError)
    arena = ph.Arena("4MiB")
    late = arena.hinting()
    arena.close()
    for call in (
        lambda: arena.empty(1),
        lambda: arena.resident_bytes,
        lambda: arena.address(0),
        lambda: setattr(arena, "limit", "2MiB"),
        arena.hinting,
        arena.enable_hinting,
        arena.numpy,
        arena.status,
        arena.trim,
        late.__enter__,
        lambda: ph.numpy.install(arena),
    ):
        with pytest.raises(ph.ArenaClosedError, match="the arena is closed"):
            call()


@pytest.mark.parametrize("order", ["K", "A", "k", "", "CF", "\0", 1, b"C"])
def test_an_order_that_a_new_array_cannot_have_was_taken(order):
    arena = ph.Arena("4MiB")
    with pytest.raises(ValueError, match="order must be 'C' or 'F', not"):
        arena.empty((2, 3), order=order)
    assert arena.pages.stats().allocated_pages == 0


@pytest.mark.parametrize("order", ["C", "F", "c", "f", None])
def test_orders_are_those_of_numpy_s_empty(order):
    arena = ph.Arena("4MiB")
    assert arena.empty((2, 3), order=order).flags.f_contiguous == np.empty((2, 3), order=order).flags.f_contiguous


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_is_shown_of_an_arena_could_not_be_printed_in_every_encoding(encoding):
    status, out, err = run_code(
        """
        import numpy as np
        import pagehint as ph
        with ph.Arena("64MiB") as arena, arena.hinting():
            array = arena.empty(10 << 20, "u1")
            array[:] = 1
            for shown in (arena.status(), arena, arena.pages, arena.pages.stats(), arena.pages.explain()):
                print(shown)
            del array
        """,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (status, err) == (0, "")
    picture = out.splitlines()[6:8]
    assert picture == (
        ["█████···························", "█ used   ▒ warm   · given back"]
        if encoding == "utf-8"
        else ["#####...........................", "# used   + warm   . given back"]
    )
