"""Who holds a process's memory: each owner has what it was given, and all come to what the kernel counts."""

from __future__ import annotations

import pytest
from owner_processes import in_process, needed, preloaded

# ---- the sum, in real processes


def test_a_plain_process() -> None:
    in_process("""
        found = sound()
        assert found.owners["unknown"].in_use < 0.05 * found.anonymous_rss, found
        assert "pyarrow" not in sys.modules
        assert not [name for name in found.owners if name.startswith("Arrow")]
        figures = found.to_dict()
        assert json.loads(found.to_json()) == figures
        assert figures["anonymous_rss"] == found.anonymous_rss
        assert all(set(each) == {"in_use", "kept", "returned"} for each in figures["owners"].values())
        assert "unknown" in figures["owners"]
    """)


@pytest.mark.parametrize("backend", ["mimalloc", "jemalloc", "system"])
def test_pandas_strings_and_groups(backend: str) -> None:
    needed("pandas")
    needed("pyarrow")
    in_process(
        f"""
        import pandas as pd, pyarrow as pa
        if {backend!r} in pa.supported_memory_backends():
            pool = getattr(pa, "{backend}_memory_pool")()
            pa.set_memory_pool(pool)
            keys = np.char.add("key-", np.random.default_rng(1).integers(0, 1000, 600_000).astype(str))
            frame = pd.DataFrame({{"key": pd.Series(keys, dtype="string[pyarrow]"), "value": np.arange(600_000.0)}})
            del keys
            found = sound()
            sums = frame.groupby("key").value.sum()
            upper = frame.key.str.upper()
            found = sound()
            assert found.owners["unknown"].in_use < 0.1 * found.anonymous_rss, found
            owner = found.owners["Arrow {backend}"]
            if {backend!r} == "system":
                assert owner.in_use == owner.kept == 0
                assert "malloc" in owner.note
            else:
                assert owner.in_use <= pool.bytes_allocated()
            name = "C heap" if {backend!r} == "system" else "Arrow {backend}"
            unknown = 8 * MIB if {backend!r} == "jemalloc" else MIB  # it does not say where it has memory
            with growing(name, 64 * MIB, kept=None, unknown=unknown):
                buffer = pa.allocate_buffer(64 * MIB)
                np.frombuffer(buffer, np.uint8)[:] = 1
            del frame, upper, buffer
            assert sound()
            released()
            assert sound()
        """
    )


def test_numpy_with_the_arena_installed() -> None:
    in_process("""
        arena = ph.numpy.install("1GiB", min_age=1000.0, reserve_age=0)
        with growing("arenas", 128 * MIB):
            arrays = [np.ones(MIB) for _ in range(16)]
        with growing("arenas", -64 * MIB, 64 * MIB):
            del arrays[::2]
        found = sound()
        assert found.owners["unknown"].in_use < 0.05 * found.anonymous_rss, found
        arena.trim()
        found = sound().owners["arenas"]
        near(found.in_use, 64 * MIB)
        near(found.kept, 0)
        near(found.returned, 64 * MIB)
    """)


def test_all_at_once_is_counted_once() -> None:
    needed("pyarrow")
    in_process("""
        import pyarrow as pa
        arena = ph.Arena("256MiB")
        sound()
        pa.allocate_buffer(64)
        before = sound().owners
        kept = arena.empty(20 * MIB, "u1"), np.ones(30 * MIB, "u1"), pa.allocate_buffer(40 * MIB)
        mapping = touched_mapping(50 * MIB)
        kept[0][:] = 1
        np.frombuffer(kept[2], np.uint8)[:] = 1
        blocks = malloced(25 * MIB, 50_000)
        floats = [0.5 + i for i in range(500_000)]
        after = sound().owners
        grown = {name: owner.in_use - (before[name].in_use if name in before else 0) for name, owner in after.items()}
        near(grown["arenas"], 20 * MIB)
        near(grown["C heap"], 55 * MIB + 500_000 * 8, spare=3 * MIB)
        near(grown[f"Arrow {pa.default_memory_pool().backend_name}"], 40 * MIB, spare=3 * MIB)
        near(grown["Python objects"], 500_000 * 32, spare=2 * MIB)
        near(grown["unknown"], 50 * MIB)
    """)


def test_what_two_claim_is_the_first_ones() -> None:
    in_process("""
        from pagehint.memory.address_space import AddressSpace
        mapping = touched_mapping(16 * MIB)
        start = np.frombuffer(mapping, np.uint8).ctypes.data
        space = AddressSpace()
        for first, last in ((4, 8), (6, 10), (0, 16), (2, 12)):
            space.claim([(start + first * MIB, start + last * MIB)])
        for resident, wanted in zip(space.resident(), (4, 2, 10, 0), strict=True):
            near(resident, wanted * MIB, spare=64 << 10)
        assert not [each for each in space.unclaimed() if start <= each[0] < start + 16 * MIB]
    """)


# ---- each owner


def test_the_heap_knows_what_is_free() -> None:
    in_process("""
        with growing("C heap", 64 * MIB):
            blocks = malloced(64 * MIB, 100_000)
        with growing("C heap", -32 * MIB, 32 * MIB):
            free(blocks[::2])
        libc.malloc_trim(0)
        near(sound().owners["C heap"].kept, 0, spare=4 * MIB)
        near(sound().owners["C heap"].returned, 32 * MIB, 0.1)
    """)


def test_large_requests_are_found_beside_each_other() -> None:
    in_process("""
        with growing("C heap", 200 * MIB):
            arrays = [np.ones(4 * MIB, "u1") for _ in range(50)]
        with growing("C heap", -100 * MIB):
            del arrays[::2]
        with growing("C heap", 64 * MIB):
            libc.aligned_alloc.restype = ctypes.c_void_p
            ctypes.memset(libc.aligned_alloc(4096, 64 * MIB), 1, 64 * MIB)
    """)


def test_what_was_never_touched_is_nobodys() -> None:
    in_process("""
        with growing("C heap", 0):
            array = np.empty(1 << 30, "u1")
        with growing("arenas", 0):
            arena = ph.Arena("1GiB")
            large = arena.empty(512 * MIB, "u1")
    """)


def test_heaps_of_threads() -> None:
    in_process("""
        held, go_on, done = [], threading.Event(), threading.Barrier(5)
        def work():
            held.append(malloced(10 * MIB, 60_000))
            done.wait()
            go_on.wait()
        with growing("C heap", 40 * MIB, spare=2 * MIB):
            threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            done.wait()
        go_on.set()
        for thread in threads:
            thread.join()
    """)


def test_python_objects_are_those_that_python_counts() -> None:
    in_process("""
        with growing("Python objects", 1_000_000 * 32, spare=2 * MIB):
            numbers = [None] * 1_000_000
            for i in range(1_000_000):
                numbers[i] = i + 0.5
        with growing("Python objects", -500_000 * 32, 500_000 * 32, spare=2 * MIB):
            del numbers[::2]
    """)


def test_heaps_of_a_thread_that_lie_side_by_side() -> None:
    """They are one mapping, and only the first one's head was looked at."""
    in_process("""
        held = []
        with growing("C heap", 300 * MIB, spare=8 * MIB):
            thread = threading.Thread(target=lambda: held.extend(malloced(300 * MIB, 2000)))
            thread.start()
            thread.join()
    """)


def test_stacks_of_threads() -> None:
    in_process("""
        threading.stack_size(64 * MIB)
        deep, go_on = threading.Event(), threading.Event()
        def recurse(levels):
            if not levels:
                deep.set()
                go_on.wait()
                return 0
            return max([1], key=lambda _: recurse(levels - 1))
        with growing("thread stacks", 0):
            pass
        before = sound().owners["thread stacks"].in_use
        unknown = sound().owners["unknown"].in_use
        thread = threading.Thread(target=recurse, args=(200,))
        thread.start()
        deep.wait()
        after = sound().owners
        go_on.set()
        thread.join()
        assert after["thread stacks"].in_use - before > 60_000, after
        near(after["unknown"].in_use, unknown, spare=50_000)
    """)


def test_a_mapping_of_nobody_is_unknown() -> None:
    in_process("""
        with growing("unknown", 64 * MIB):
            mapping = touched_mapping(64 * MIB)
    """)


def test_pythonmalloc_says_that_there_are_no_pools() -> None:
    in_process(
        """
        found = sound().owners["Python objects"]
        assert found.in_use == found.kept == 0
        assert "PYTHONMALLOC" in found.note
        assert "PYTHONMALLOC" in repr(sound())
        """,
        PYTHONMALLOC="malloc",
    )


@pytest.mark.parametrize(("library", "owner"), [("libjemalloc.so.2", "jemalloc"), ("libmimalloc.so.2*", "mimalloc")])
def test_another_malloc(library: str, owner: str) -> None:
    in_process(
        f"""
        with growing("{owner}", 128 * MIB, spare=8 * MIB):
            arrays = [np.ones(100_000, "u1") for _ in range(128 * MIB // 100_000)]
        assert sound().owners["C heap"].in_use < MIB
        arrays = arrays[:10]
        gc.collect()
        came_back = released().returned["{owner}"]
        assert came_back > 64 * MIB, came_back
        near(sound().owners["{owner}"].kept, 0, spare=4 * MIB)
        """,
        MALLOC_CONF="dirty_decay_ms:-1,muzzy_decay_ms:-1",  # jemalloc gives nothing back by itself
        **preloaded(library),
    )


# ---- arenas that end, and processes that begin


def test_closed_arenas_and_those_whose_object_has_gone() -> None:
    in_process("""
        with ph.Arena("64MiB") as arena:
            array = arena.empty(20 * MIB, "u1")
            array[:] = 1
            del array
        assert sound().owners["arenas"].in_use == 0
        array = ph.Arena("64MiB").empty(20 * MIB, "u1")
        array[:] = 1
        gc.collect()
        near(sound().owners["arenas"].in_use, 20 * MIB, spare=0)
        ph.memory.release()
        assert array.sum() == array.size
        del array, arena
        gc.collect()
        assert "arenas" not in sound().owners
    """)


def test_a_forked_child_has_its_own_figures() -> None:
    in_process("""
        from processes import in_child
        arena = ph.numpy.install("256MiB", min_age=1000.0, reserve_age=0)
        array = np.ones(4 * MIB)
        sound()
        def child():
            with growing("arenas", 64 * MIB):
                more = np.ones(8 * MIB)
            del more
            assert released().returned["arenas"] > 60 * MIB
        in_child(child)
        near(sound().owners["arenas"].in_use, 32 * MIB)
    """)


def test_threads_that_allocate_meanwhile() -> None:
    in_process("""
        stop = threading.Event()
        def work():
            while not stop.is_set():
                arrays = [np.ones(300_000, "u1") for _ in range(20)]
                numbers = [i + 0.5 for i in range(10_000)]
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            found = ph.memory.owners()
            assert sum(owner.in_use + owner.kept for owner in found.owners.values()) == found.anonymous_rss
            assert all(min(owner.in_use, owner.kept, owner.returned) >= 0 for owner in found.owners.values()), found
        ph.memory.release()
        stop.set()
        for thread in threads:
            thread.join()
    """)


# ---- what the kernel or a sandbox refuses


def test_proc_that_cannot_be_read_is_said() -> None:
    in_process("""
        import resource
        ph.memory.owners()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
        for call in (ph.memory.owners, ph.memory.release, ph.memory.watch().__enter__):
            try:
                call()
            except ph.PageHintError as error:
                assert "/proc/self/smaps cannot be read" in str(error), error
            else:
                raise AssertionError("nothing was said")
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        sound()
    """)


def test_a_sandbox_without_process_vm_readv_costs_time_only() -> None:
    in_process("""
        import errno
        from sandbox import refuse
        refuse("process_vm_readv", errno.EPERM)
        found = sound()
        assert found.owners["unknown"].in_use < 0.05 * found.anonymous_rss, found
        with growing("C heap", 64 * MIB):
            array = np.ones(64 * MIB, "u1")
    """)


def test_a_sandbox_without_mincore_says_what_is_missing() -> None:
    in_process("""
        import errno
        from sandbox import refuse
        array = np.ones(64 * MIB, "u1")
        refuse("mincore", errno.EPERM)
        found = sound()
        assert "mincore" in found.owners["unknown"].note
        assert "mincore" in repr(found)
    """)


# ---- how it is shown


def test_the_table() -> None:
    in_process("""
        array = np.ones(32 * MIB, "u1")
        found = ph.memory.owners()
        title, first, *_ = repr(found).splitlines()
        assert title.split() == ["in", "use", "kept", "returned"]
        assert first.startswith("C heap"), found
        html = found._repr_html_()
        assert html.startswith("<table><tr><th")
        assert "NumPy&#x27;s small blocks: " in html
    """)
