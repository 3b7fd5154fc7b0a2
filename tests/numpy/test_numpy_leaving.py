"""`Arena.numpy`, left in another order, or somewhere else, than it was entered.

What has been left serves nothing any more, wherever its handler still stands; what has not been left stays in force.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import threading
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from handlers import foreign_handler, handler_name, set_handler
from numpy_arrays import MIB, empty_at_the_end, inside, installed_arena, mapped, nothing_left
from processes import survives

import pagehint as ph

arena = pytest.fixture(empty_at_the_end)
other = pytest.fixture(empty_at_the_end)
third = pytest.fixture(empty_at_the_end)
installed = pytest.fixture(installed_arena)


@pytest.fixture(autouse=True)
def nothing_stays():
    assert handler_name() == "default_allocator"
    yield
    assert handler_name() == "default_allocator"


def served_by(*arenas):
    """The arena of those that a new array is in, or None."""
    array = np.ones(MIB, "u1")
    found = [each for each in arenas if inside(array, each)]
    return found[0] if found else None


def leave(context):
    context.__exit__(None, None, None)


def in_thread(function, *args):
    result = []
    thread = threading.Thread(target=lambda: result.append(function(*args)))
    thread.start()
    thread.join()
    [value] = result
    return value


def in_copy(function, *args):
    return contextvars.copy_context().run(function, *args)


def in_new_context(function, *args):
    return contextvars.Context().run(function, *args)


def in_task(function, *args):
    async def call():
        return function(*args)

    return asyncio.run(call())


ELSEWHERE = [in_thread, in_copy, in_new_context, in_task]


@pytest.mark.parametrize("per_batch", [False, True], ids=["entered once", "entered for each batch"])
@pytest.mark.parametrize("lengths", [(3, 5), (5, 3), (4, 4), (0, 2), (2, 0)], ids=str)
def test_interleaved_generators_left_a_handler_behind_for_ever(arena, other, lengths, per_batch):
    def batches(memory, n):
        if per_batch:
            for _ in range(n):
                with memory.numpy():
                    yield np.ones(MIB, "u1")
        else:
            with memory.numpy():
                for _ in range(n):
                    yield np.ones(MIB, "u1")

    first = True
    for x, y in zip(batches(arena, lengths[0]), batches(other, lengths[1]), strict=False):
        assert inside(y, other)
        # The arena that was entered last is in force, for the code of both generators and for this.
        assert inside(x, arena if first or per_batch else other)
        assert served_by(arena, other) is other
        first = False
        del x, y
    gc.collect()
    assert handler_name() == "default_allocator"
    assert served_by(arena, other) is None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("same_arena", [False, True], ids=["three arenas", "one arena"])
def test_contexts_left_in_any_order(arena, other, third, order, same_arena):
    arenas = [arena] * 3 if same_arena else [arena, other, third]
    contexts = [each.numpy() for each in arenas]
    for context in contexts:
        context.__enter__()
    entered = [0, 1, 2]
    for which in order:
        leave(contexts[which])
        entered.remove(which)
        assert served_by(arena, other, third) is (arenas[entered[-1]] if entered else None)
    assert handler_name() == "default_allocator"


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_contexts_left_somewhere_else(arena, other, third, order, elsewhere):
    """There, nothing has changed. Here, what is left serves no more, though no code of ours has run here since."""
    arenas = [arena, other, third]
    contexts = [each.numpy() for each in arenas]
    for context in contexts:
        context.__enter__()
    entered = [0, 1, 2]
    for which in order:
        there = elsewhere(lambda: (leave(contexts[which]), served_by(*arenas))[1])  # noqa: B023
        entered.remove(which)
        assert served_by(*arenas) is (arenas[entered[-1]] if entered else None)
        if elsewhere in (in_thread, in_new_context):
            assert there is None
    assert handler_name() == "default_allocator"


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_contexts_entered_somewhere_else(arena, other, elsewhere):
    """Left here, where they never were, they change nothing here; and there they serve no more."""
    context = arena.numpy()
    there = contextvars.copy_context()
    there.run(context.__enter__)
    with other.numpy():
        leave(context)
        assert served_by(arena, other) is other
    assert there.run(served_by, arena, other) is None
    assert there.run(handler_name) == "default_allocator"
    again = arena.numpy()
    elsewhere(again.__enter__)
    leave(again)
    assert handler_name() == "default_allocator"


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_what_is_entered_again_where_something_left_still_stands(arena, other, third, elsewhere):
    first, second = arena.numpy(), other.numpy()
    first.__enter__()
    second.__enter__()
    elsewhere(leave, second)
    with third.numpy():
        assert served_by(arena, other, third) is third
    assert served_by(arena, other, third) is arena
    elsewhere(leave, first)
    with third.numpy():
        assert served_by(arena, other, third) is third
    assert handler_name() == "default_allocator"


def test_arrays_of_every_handler_that_was_passed_on_are_freed_where_they_are(arena, other, third):
    """An array made by a handler that has been left may be in any arena below it, and outlive them all being left."""
    arenas = [arena, other, third]
    contexts = [each.numpy() for each in arenas]
    for context in contexts:
        context.__enter__()
    arrays = []
    for context in reversed(contexts):
        arrays += [np.ones(MIB, "u1"), np.zeros(MIB), np.ones(10)]
        in_thread(leave, context)
    arrays += [np.ones(MIB, "u1"), np.zeros(MIB), np.ones(10)]
    assert [each.live_arrays for each in arenas] == [2, 2, 2]
    for array in arrays:
        array.resize(3 * array.size, refcheck=False)  # where it is, or in the C heap
    for array in arrays:
        array.resize(array.size // 3, refcheck=False)
        assert array.sum() in (array.size, 0)
    arrays.clear()
    for each in arenas:
        nothing_left(each)
        each.pages.verify()


def test_below_what_was_left_somewhere_else_an_installed_arena_serves(arena, installed):
    context = arena.numpy()
    context.__enter__()
    assert served_by(arena, installed) is arena
    in_thread(leave, context)
    arrays = [np.ones(MIB, "u1"), np.zeros(MIB)]
    assert all(inside(array, installed) for array in arrays)
    arrays[0].resize(2 * MIB, refcheck=False)
    assert inside(arrays[0], installed)
    ph.numpy.uninstall()
    assert served_by(arena, installed) is None
    arrays.clear()
    nothing_left(installed)


def test_a_generator_that_the_collector_closes(arena):
    def batches():
        with arena.numpy():
            yield
            yield

    generator = batches()
    next(generator)
    assert served_by(arena) is arena
    cycle = [generator]
    cycle.append(cycle)
    del generator, cycle
    in_thread(gc.collect)
    assert served_by(arena) is None
    assert handler_name() == "default_allocator"


def test_an_exception_leaves_its_context_and_no_other(arena, other):
    @contextmanager
    def both():
        with arena.numpy(), other.numpy():
            yield

    with pytest.raises(ZeroDivisionError), both():
        1 // (served_by(arena, other) is not other)
    assert served_by(arena, other) is None
    with arena.numpy():
        with pytest.raises(ZeroDivisionError), other.numpy():
            1 // (served_by(arena, other) is not other)
        assert served_by(arena, other) is arena


def test_a_stack_of_contexts_closed_in_a_thread(arena, other):
    stack = ExitStack()
    for each in (arena, other, arena):
        stack.enter_context(each.numpy())
    in_thread(stack.close)
    assert served_by(arena, other) is None
    assert handler_name() == "default_allocator"


def test_somebody_else_s_handler_set_above_stays(arena, other):
    """Also when it puts back what it found, which has been left meanwhile."""
    context = arena.numpy()
    context.__enter__()
    found = set_handler(foreign_handler(b"foreign"))
    leave(context)
    assert handler_name() == "foreign"
    with other.numpy():
        assert served_by(arena, other) is other
    assert handler_name() == "foreign"
    set_handler(found)
    assert served_by(arena, other) is None
    assert handler_name() == "default_allocator"
    with other.numpy():
        assert served_by(arena, other) is other


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_somebody_else_s_handler_set_in_between(arena, other, order):
    contexts = [arena.numpy(), other.numpy()]
    contexts[0].__enter__()
    found = set_handler(foreign_handler(b"foreign"))
    contexts[1].__enter__()
    for n, which in enumerate(order):
        leave(contexts[which])
        assert handler_name() == ("foreign" if n or which == 1 else "pagehint")
        assert served_by(arena, other) is (None if n or which == 1 else other)
    set_handler(found)
    assert served_by(arena, other) is None
    assert handler_name() == "default_allocator"


def test_somebody_else_s_handler_set_below(arena):
    found = set_handler(foreign_handler(b"foreign"))
    try:
        with arena.numpy():
            assert served_by(arena) is arena
        assert handler_name() == "foreign"
        context = arena.numpy()
        context.__enter__()
        in_thread(leave, context)
        assert handler_name() == "foreign"
        assert served_by(arena) is None
    finally:
        set_handler(found)


def test_tasks_see_what_was_entered_where_they_were_made_until_it_is_left(arena, other):
    async def look(go_on):
        seen = [served_by(arena, other)]
        with other.numpy():
            await asyncio.sleep(0)
            seen.append(served_by(arena, other))
        seen.append(served_by(arena, other))
        await go_on.wait()
        return [*seen, served_by(arena, other)]

    async def main():
        go_on = asyncio.Event()
        with arena.numpy():
            tasks = [asyncio.create_task(look(go_on)) for _ in range(3)]
            for _ in range(5):
                await asyncio.sleep(0)
            assert served_by(arena, other) is arena
        go_on.set()
        assert await asyncio.gather(*tasks) == [[arena, other, arena, None]] * 3
        assert handler_name() == "default_allocator"

    asyncio.run(main())


def test_an_asynchronous_generator_that_its_loop_closes(arena):
    async def batches():
        with arena.numpy():
            yield
            yield

    async def main():
        generator = batches()
        await anext(generator)
        assert served_by(arena) is arena
        del generator
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)
        assert served_by(arena) is None
        assert handler_name() == "default_allocator"

    asyncio.run(main())


def test_arrays_keep_the_name_of_the_handler_that_made_them(arena):
    with arena.numpy():
        array = np.ones(MIB)
        assert handler_name() == "pagehint"
    assert handler_name(array) == "pagehint"


def test_a_context_that_is_left_twice_or_was_never_entered(arena):
    context = arena.numpy()
    with pytest.raises(ph.PageHintError, match="never entered"):
        leave(context)
    with context:
        pass
    with pytest.raises(ph.PageHintError, match="left before"):
        leave(context)


def test_a_loop_that_alternates_for_long_keeps_nothing(arena, other):
    """Each entering stands on one that is left before it is: what is left is not kept."""
    last = arena.numpy()
    last.__enter__()
    arenas = []
    for n in range(300):
        if n % 3 == 0:
            arenas = [ph.Arena("2MiB"), *arenas[:1]]
        context = arenas[0].numpy()
        context.__enter__()
        (in_thread if n % 5 == 0 else in_copy if n % 5 == 1 else lambda f, *a: f(*a))(leave, last)
        last = context
    starts = [each.address(0) for each in arenas]
    leave(last)
    del last, context, arenas
    gc.collect()
    assert not any(map(mapped, starts))


def test_a_thread_that_ends_without_leaving_keeps_no_arena():
    arena = ph.Arena("2MiB")
    start = arena.address(0)
    in_thread(arena.numpy().__enter__)
    del arena
    gc.collect()
    assert not mapped(start)


def test_threads_that_leave_one_another_s_contexts_while_arrays_are_made():
    survives("""
        import queue, sys, threading
        import numpy as np
        import pagehint as ph
        sys.setswitchinterval(1e-6)
        arenas = [ph.Arena("64MiB") for _ in range(3)]
        entered, stop = queue.SimpleQueue(), threading.Event()
        def make(n):
            for i in range(400):
                context = arenas[(n + i) % 3].numpy()
                context.__enter__()
                entered.put(context)
                kept = [np.full(1 << 17, i % 200, "u1") for _ in range(3)] + [np.full(10, i)]
                for array in kept:
                    assert (array == array[0]).all()
                kept[0].resize(1 << 18, refcheck=False)
        def leave():
            while True:
                context = entered.get()
                if context is None:
                    return
                context.__exit__(None, None, None)
        makers = [threading.Thread(target=make, args=(n,)) for n in range(3)]
        leavers = [threading.Thread(target=leave) for _ in range(2)]
        for thread in makers + leavers:
            thread.start()
        for thread in makers:
            thread.join()
        for _ in leavers:
            entered.put(None)
        for thread in leavers:
            thread.join()
        for arena in arenas:
            arena.pages.verify()
            assert arena.live_arrays == 0, arena.live_arrays
    """)
