"""What a block of code left behind, and with whom."""

from __future__ import annotations

from owner_processes import in_process


def test_a_block_that_leaves_a_list_an_array_and_free_memory() -> None:
    in_process("""
        arena = ph.Arena("256MiB")
        ph.memory.owners()
        with ph.memory.watch() as left:
            array = np.ones(32 * MIB, "u1")
            in_arena = arena.empty(64 * MIB, "u1")
            in_arena[:] = 1
            del in_arena
            assert "has not ended" in repr(left)
            assert "has not ended" in left._repr_html_()
        figures = left.to_dict()
        near(figures["owners"]["C heap"]["in_use"], 32 * MIB)
        near(figures["owners"]["arenas"]["kept"], 64 * MIB)
        near(figures["owners"]["arenas"]["in_use"], 0)
        near(figures["anonymous_rss"], 96 * MIB)
        assert json.loads(left.to_json()) == figures
        assert list(figures["owners"])[:2] == ["arenas", "C heap"]
        first = repr(left).splitlines()[1].split()
        assert first[0] == "arenas"
        assert first[-2] + first[-1] == "+64MiB", first
        assert left._repr_html_().startswith("<table>")
    """)


def test_a_block_that_raises_is_watched_and_raises() -> None:
    in_process("""
        try:
            with ph.memory.watch() as left:
                array = np.ones(32 * MIB, "u1")
                raise KeyError("mine")
        except KeyError:
            pass
        near(left.to_dict()["owners"]["C heap"]["in_use"], 32 * MIB)
    """)


def test_one_that_has_not_ended_has_no_figures() -> None:
    in_process("""
        left = ph.memory.watch()
        for _ in range(2):
            try:
                left.to_dict()
            except ph.PageHintError as error:
                assert "when it has ended" in str(error)
            else:
                raise AssertionError("figures of nothing")
            left.__enter__()
    """)


def test_what_is_given_back_is_less_than_nothing() -> None:
    in_process("""
        array = np.ones(32 * MIB, "u1")
        ph.memory.owners()
        with ph.memory.watch() as left:
            del array
        near(left.to_dict()["owners"]["C heap"]["in_use"], -32 * MIB)
        assert "-32" in repr(left) or "-31" in repr(left), left
    """)
