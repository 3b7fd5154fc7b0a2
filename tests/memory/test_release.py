"""What owners give back is what they say, and one that fails does not stop the others."""

from __future__ import annotations

from owner_processes import in_process, needed


def test_the_heap_gives_back_its_holes() -> None:
    in_process("""
        blocks = malloced(64 * MIB, 100_000)
        free(blocks[::2])
        kept = sound().owners["C heap"].kept
        found = released()
        near(found.returned["C heap"], kept, 0.05)
        assert kept > 30 * MIB
        assert found.errors == {}
        assert json.loads(found.to_json()) == found.to_dict() == {"returned": dict(found.returned), "errors": {}}
        assert repr(found).splitlines()[-1].split()[0] == "all"
        assert found._repr_html_().startswith("<table>")
    """)


def test_arenas_give_back_what_is_free() -> None:
    in_process("""
        arenas = [ph.Arena("128MiB") for _ in range(2)]
        arrays = [arena.empty(8 * MIB, "u1") for arena in arenas for _ in range(8)]
        for array in arrays:
            array[:] = 1
        del arrays[::2], array
        kept = sound().owners["arenas"].kept
        near(kept, 64 * MIB)
        near(released().returned["arenas"], kept, 0.05)
        near(sound().owners["arenas"].kept, 0)
        near(sound().owners["arenas"].returned, 64 * MIB)
        assert all((array == 1).all() for array in arrays)
    """)


def test_a_pool_of_arrow_gives_back() -> None:
    needed("pyarrow")
    in_process("""
        import pyarrow as pa
        pool = pa.mimalloc_memory_pool()
        buffers = [pa.allocate_buffer(200_000, memory_pool=pool) for _ in range(400)]
        for buffer in buffers:
            np.frombuffer(buffer, np.uint8)[:] = 1
        del buffer, buffers[1:]
        before = sound().owners["Arrow mimalloc"]
        came_back = released().returned["Arrow mimalloc"]
        after = sound().owners["Arrow mimalloc"]
        near(before.kept - after.kept, came_back, 0.05)
        assert came_back > 30 * MIB, (before, came_back)
    """)


def test_an_owner_that_fails_is_named_and_the_others_go_on() -> None:
    in_process("""
        import logging
        logging.getLogger("pagehint").setLevel(logging.CRITICAL)  # it says what was not taken
        arena, other = ph.Arena("16MiB"), ph.Arena("64MiB")
        array = arena.empty(4 * MIB, "u1")
        array[:] = 1
        address = array.ctypes.data
        assert libc.mlock(ctypes.c_void_p(address), 2 * MIB) == 0
        del array
        spare = other.empty(32 * MIB, "u1")
        spare[:] = 1
        del spare
        blocks = malloced(32 * MIB, 100_000)
        free(blocks[::2])
        found = released()
        assert list(found.errors) == ["arenas"]
        assert "not everything was given back" in found.errors["arenas"]
        assert "not everything was given back" in repr(found)
        assert found.returned["arenas"] > 30 * MIB, found
        assert found.returned["C heap"] > 14 * MIB, found
    """)


def test_nothing_is_imported_and_nothing_is_there() -> None:
    in_process("""
        found = released()
        assert set(found.returned) == {"C heap"}, found
        assert "pyarrow" not in sys.modules
    """)
