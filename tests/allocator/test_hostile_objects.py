"""Objects that are not what they seem: made without a constructor, copied, of another machine, or a senseless clock."""

from __future__ import annotations

import copy
import pickle

import pytest
from hostile import (
    INF,
    NAN,
    Angry,
)
from processes import survives
from worlds import World

import pagehint as ph


def test_objects_made_without_their_constructor_have_nothing_to_read():
    """A zone that `__new__` alone had made was read from address zero."""
    survives("""
        import inspect
        import pagehint as ph
        for name in ph.__all__:
            kind = getattr(ph, name)
            if not inspect.isclass(kind):
                continue
            for maker in (lambda: kind.__new__(kind), lambda: object.__new__(kind), lambda: type("Sub", (kind,), {})()):
                try:
                    made = maker()
                except TypeError:
                    continue
                for member in dir(made):
                    try:
                        value = getattr(made, member)
                        if member in ("verify", "figures", "free_blocks", "close", "__repr__", "_repr_html_"):
                            value()
                    except (AttributeError, TypeError):
                        pass
                    except ValueError as error:  # it can be made without arguments, and has been closed just now
                        assert "the arena is closed" in str(error)
    """)


def test_copies_are_as_good_as_the_original_or_refused():
    world = World()
    pickled = lambda value: pickle.loads(pickle.dumps(value))  # noqa: E731
    for original in (world.pages, world.pages.zones[0], world.callbacks, world.arena._mapping):
        for duplicate in (copy.copy, copy.deepcopy, pickled):
            with pytest.raises(TypeError):
                duplicate(original)
    for original in (world.pages.stats(True), ph.ZoneSpec("a", 1, 9, 0, [(2, 3)]), ph.Watermarks(1, 2, 3)):
        for duplicate in (copy.copy, copy.deepcopy, pickled):
            assert duplicate(original) == original


def test_somebody_elses_self_is_refused():
    """A method asked of the class took whatever it was called with for an allocator."""
    survives("""
        import inspect
        import pagehint as ph
        callbacks = ph.PageHintingCallbacks(print)
        for kind in (getattr(ph, name) for name in ph.__all__):
            for name, method in vars(kind).items() if inspect.isclass(kind) else ():
                if not inspect.isroutine(method) or name in ("__new__", "__init_subclass__"):
                    continue
                for stranger in (object(), None, callbacks, ph):
                    if type(stranger) is kind:
                        continue
                    try:
                        method(stranger)
                    except (TypeError, AttributeError):
                        pass
    """)


def test_a_zone_of_another_machine_is_refused():
    world, other = World(), World()
    before = world.state()
    for call in (world.pages.alloc_pages, world.pages.alloc_pages_exact, world.pages.alloc_pages_bulk):
        with pytest.raises(ValueError, match="no such zone"):
            call(1, zone=other.pages.zones[0])
    assert world.state() == before


@pytest.mark.parametrize("says", [NAN, INF, -INF, 1e300, 10**400, "now", None, [], Angry()])
def test_a_clock_that_says_nonsense_stands_still(says):
    clock = [1.0]
    world = World(hinting=False)
    world.pages.enable_hinting(world.callbacks, workqueue="manual", delay=1.0, clock=lambda: clock[0])
    clock[0] = says
    assert world.pages.run_pending() in (0, 1)
    assert world.pages.last_error is not None
    clock[0] = 100.0
    world.pages.run_pending()
    assert world.pages.stats().hints_pending == 0
    world.pages.disable_hinting()
