"""What a process says of its arenas is what they say themselves; and what others say is read with suspicion."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest
from asked import MIB
from processes import in_child

import pagehint as ph
from pagehint.errors import PageHintError
from pagehint.observing.answering import figures
from pagehint.observing.holdings import Holdings

SIZE = 54 * MIB  # of no other arena


def holding(*, brief=False):
    """Of the arena of that size."""
    [found] = [each for each in Holdings.from_answer(figures(brief)).arenas if each.size == SIZE]
    return found


def states(explanation):
    """The sizes of all states; those of "reported" are one."""
    sizes = {reason.name: reason.bytes for reason in explanation}
    sizes["reported"] += sizes.pop("reported or unmarked")
    return sizes


def same(arena, found):
    status = arena.status()
    assert found.used == status.used_bytes
    assert found.warm == status.warm_bytes == arena.pages.explain().warm.bytes
    assert found.resident == status.resident_bytes
    assert found.fragmented == status.fragmented_bytes
    assert found.given_back == status.given_back
    assert found.hinting == status.hinting
    assert states(found.free) == states(arena.pages.explain())
    assert not found.estimated


@pytest.fixture
def arena():
    with ph.Arena(SIZE) as arena:
        yield arena


def test_an_arena_that_nothing_was_done_with(arena):
    same(arena, holding())
    assert holding().resident == 0


@pytest.mark.parametrize("hinting", [False, True])
def test_in_use_warm_beside_others_and_given_back(arena, hinting):
    if hinting:
        arena.enable_hinting(workqueue="manual", threshold=1, mark_free=False)
    arrays = [arena.empty(MIB // 2, np.uint8) for _ in range(64)]
    for array in arrays:
        array[:] = 1
    del array
    del arrays[20:41], arrays[1::2]
    same(arena, holding())
    assert holding().warm >= 8 * MIB
    assert holding().fragmented >= 2 * MIB
    assert holding(brief=True).warm == holding().warm
    assert (holding(brief=True).resident is None) == hinting  # without hints every granule is looked at
    arena.trim()
    same(arena, holding())
    assert holding().given_back >= 8 * MIB
    assert holding().warm == 0
    del arrays
    arena.close()
    with pytest.raises(ValueError, match="not enough values"):
        holding()


@pytest.mark.parametrize("hinting", [False, True])
def test_an_arena_of_several_lock_rounds(hinting):
    """Each is 1 GiB."""
    with ph.Arena("3GiB", hugepages=False) as arena:
        if hinting:
            arena.enable_hinting(workqueue="manual", threshold=1, mark_free=False)
        large, small = arena.empty(1500 * MIB, np.uint8), arena.empty(1100 * MIB, np.uint8)
        last = arena.empty(3 * MIB + 5000, np.uint8)
        for array in (large, small, last):
            array[:: 300 << 10] = 1
        del array, large
        [found] = [each for each in Holdings.from_answer(figures()).arenas if each.size == 3 << 30]
        same(arena, found)
        assert found.warm >= 1400 * arena.pages.page_size
        [brief] = [each for each in Holdings.from_answer(figures(True)).arenas if each.size == 3 << 30]
        assert brief.warm == found.warm
        del small, last


def test_arenas_that_come_and_go_and_forks_meanwhile():
    """Nobody is kept from either, and no memory is looked at that has gone."""
    ends, answers = threading.Event(), []

    def ask():
        while not ends.is_set():
            answers.append(Holdings.from_answer(figures()))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for number in range(60):
            with ph.Arena((200 + number) * MIB) as arena:
                array = arena.empty(100 * MIB, np.uint8)
                array[:: 1 << 20] = 1
                if number % 10 == 0:
                    in_child(lambda: Holdings.from_answer(figures()))
                del array
    finally:
        ends.set()
        thread.join()
    assert len(answers) > 10
    assert {each.pid for each in answers} == {os.getpid()}


def test_why_it_is_not_given_back(arena):
    arena.enable_hinting(workqueue="manual", threshold=4, delay=None, min_age=1000, mark_free=False)
    array = arena.empty(10 * MIB, np.uint8)
    array[:] = 1
    del array
    same(arena, holding())
    assert holding().free["too young"].bytes == 10 * MIB
    arena.pages.min_age = 0
    same(arena, holding())
    assert holding().free["pending"].bytes == 10 * MIB
    arena.pages.threshold = 6
    same(arena, holding())
    assert holding().free["below threshold"].bytes == 10 * MIB


def test_memory_that_is_handed_out_again_is_counted(arena):
    arena.enable_hinting(workqueue="manual", threshold=1, min_age="auto", cost=1000, mark_free=False)
    assert holding().again == 0
    for _ in range(3):
        array = arena.empty(10 * MIB, np.uint8)
        array[:] = 1
        del array
        arena.trim()
    regret = arena.pages.stats().regret
    assert holding().again == sum(regret.too_soon) * regret.granule_bytes == 20 * MIB
    arena.disable_hinting()
    assert holding().again is None


def test_what_is_no_memory_of_this_process_is_left_out():
    before = len(Holdings.from_answer(figures()).arenas)
    pages = ph.PageAllocator("1TiB")
    assert len(Holdings.from_answer(figures()).arenas) == before
    del pages


def test_more_arenas_than_there_is_room_for():
    arenas = [ph.Arena("2MiB") for _ in range(300)]
    found = Holdings.from_answer(figures())
    assert found.pid == os.getpid()
    assert 31 <= len(found.arenas) < len(arenas)
    assert found.resident > MIB


ARENA = {
    "page_size": 4096, "min_order": 9, "size": SIZE, "given_back": 0, "memory_short": False, "managed_pages": 512,
    "free_pages": 512, "reporting_pages": 0, "pcp_pages": 0, "hints_pending": 0, "hints_in_isolation": 0,
    "hints_too_young": 0, "threshold": 1, "gate": 0, "hinting": True, "warm": 0, "estimated": False,
    "nr_free": [0] * 9 + [1],
}  # fmt: skip
ANSWER = {"version": 1, "pid": 5, "resident_pages": 7, "arenas": [ARENA]}


def test_an_answer_is_read():
    found = Holdings.from_answer(json.dumps(ANSWER).encode())
    assert (found.pid, len(found.arenas)) == (5, 1)
    assert found.total("given_back") == 0
    assert found.total("resident") is None
    assert found.to_dict()["arenas"][0]["free"] == {"reported or unmarked": 2 * MIB}
    assert Holdings(5, 7, ()).total("warm") is None


@pytest.mark.parametrize(
    "changes",
    [{name: value} for name in ANSWER for value in (None, -1, "x", 1.5, True, {}, 10**30) if name != "version"]
    + [{"arenas": [{**ARENA, name: None}]} for name in ARENA if type(ARENA[name]) is int]
    + [{"arenas": [{key: value for key, value in ARENA.items() if key != name}]} for name in ARENA]
    + [{"arenas": [{**ARENA, "nr_free": value}]} for value in (None, 5, "ab", [None], [-1], [0] * 1000, {})]
    + [{"arenas": [{**ARENA, "page_size": value}]} for value in (-1, 2**200, 4096.0, "4096")],
)
def test_what_is_no_answer_is_refused(changes):
    with pytest.raises(PageHintError, match="what it answers cannot be read"):
        Holdings.from_answer(json.dumps({**ANSWER, **changes}).encode())


@pytest.mark.parametrize("answer", [b"", b"\xff", b"[]", b"5", b"[" * 100000, b'{"version": 1}', b"null"])
def test_nonsense_is_refused(answer):
    with pytest.raises(PageHintError, match="what it answers cannot be read"):
        Holdings.from_answer(answer)


def test_an_answer_of_another_version_is_named():
    with pytest.raises(PageHintError, match="an answer of version 2; this pagehint knows 1"):
        Holdings.from_answer(json.dumps({**ANSWER, "version": 2}).encode())
