"""Memory that is made resident ahead of its owner's writing: never without the owner, nor after it, nor on one CPU."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from processes import in_child, survives
from threads import in_threads

import pagehint as ph

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it takes another CPU"),
    pytest.mark.skipif(
        tuple(map(int, os.uname().release.split(".")[:2])) < (5, 14), reason="Linux has MADV_POPULATE_WRITE since 5.14"
    ),
]

MIB = 1 << 20
GRANULE = 2 * MIB
AHEAD = 8 * GRANULE  # of an owner who has touched one granule
PATIENCE = 60  # seconds until something that other threads do must have happened


@pytest.fixture(params=["arena.empty", "numpy"])
def how(request):
    return request.param


@pytest.fixture
def numpy_arena():
    yield from made_arena()


@pytest.fixture
def arena(how):
    yield from made_arena()


def trust_nobody():
    """An array that is gone untouched: the first window of the next one has a probe."""
    ph.Arena("64MiB").empty(60 * MIB, "u1")


def made_arena():
    trust_nobody()
    made = ph.Arena("256MiB")
    if not made.hugepages:
        pytest.skip("this kernel has no transparent huge pages")
    with made.numpy():
        yield made
    gc.collect()
    assert made.live_arrays == 0
    made.pages.verify()


def empty(arena, how, nr_bytes):
    return arena.empty(nr_bytes, "u1") if how == "arena.empty" else np.empty(nr_bytes, "u1")


def until(condition):
    """Try something again until it is true: an owner who is too slow, as on a busy machine, is not followed."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def populated(arena, how, nr_bytes, touched=(), seconds=0.1):
    """Bytes made resident ahead in an array, some time after some of it was written to; then its memory is gone."""
    before = arena.populated_bytes
    array = empty(arena, how, nr_bytes)
    array[list(touched)] = 1
    time.sleep(seconds)
    resident = arena.resident_bytes
    del array  # waits for a granule under way, which is resident before it is counted
    count = arena.populated_bytes - before
    assert resident <= count + len(touched) * GRANULE
    arena.trim()
    assert arena.resident_bytes == 0
    return count


def trust(arena, how):
    """An array that is written to: the first window of the next one comes at once."""
    until(lambda: populated(arena, how, 60 * MIB, [0], 0.01) > 0)


def test_what_nobody_touches_costs_nothing(arena, how):
    assert populated(arena, how, 100 * MIB) == 0


def test_after_an_array_that_was_written_to_the_first_window_comes_at_once_and_no_more(arena, how):
    def came() -> bool:
        trust(arena, how)
        count = populated(arena, how, 100 * MIB)
        assert count <= AHEAD
        return count == AHEAD

    until(came)


def test_after_one_that_nobody_came_to_nothing_comes(arena, how):
    def looked_at() -> bool:
        """Long enough to be given up."""
        trust(arena, how)
        return populated(arena, how, 100 * MIB, seconds=0.3) > 0

    until(looked_at)
    assert populated(arena, how, 100 * MIB) == 0
    trust(arena, how)
    empty(arena, how, 100 * MIB)  # gone at once
    arena.trim()
    assert populated(arena, how, 100 * MIB) == 0


def test_one_that_was_written_to_and_gone_before_anybody_looked_is_no_reason_for_distrust(arena, how):
    def trusted() -> bool:
        trust(arena, how)
        empty(arena, how, 3 * GRANULE)[:] = 1
        arena.trim()
        return populated(arena, how, 100 * MIB) == AHEAD

    until(trusted)


def test_one_that_was_written_to_in_part_is_no_reason_for_distrust(arena, how):
    def trusted() -> bool:
        populated(arena, how, 100 * MIB, [0], 0.2)  # until it is given up
        return populated(arena, how, 100 * MIB) == AHEAD

    until(trusted)


def test_a_granule_of_which_the_array_has_only_the_first_part_is_populated_too(arena, how):
    def came() -> bool:
        trust(arena, how)
        count = populated(arena, how, GRANULE + MIB)
        assert count <= GRANULE
        return count == GRANULE

    until(came)


def test_each_window_is_twice_as_large_as_the_one_before(arena, how):
    def followed() -> bool:
        trust_nobody()
        count = populated(arena, how, 140 * MIB, [0, GRANULE, 10 * GRANULE])  # its probes but the last
        assert count <= (8 + 16 + 32) * GRANULE
        return count == (8 + 16 + 32) * GRANULE

    until(followed)


def test_a_free_of_the_rest_of_the_last_granule_is_not_the_owners(arena, how):
    def followed() -> bool:
        before = arena.populated_bytes
        array = empty(arena, how, 20 * GRANULE + MIB)
        neighbour = empty(arena, how, MIB)
        assert neighbour.ctypes.data == array.ctypes.data + len(array)
        del neighbour
        array[0] = 1
        time.sleep(0.01)
        del array
        arena.trim()
        return arena.populated_bytes > before

    until(followed)


def test_the_owner_is_waited_for_while_he_is_in_what_is_warm(arena, how):
    """A hundred granules, each of which has its millisecond."""

    def followed() -> bool:
        empty(arena, how, 100 * GRANULE)
        before = arena.populated_bytes
        array = empty(arena, how, 120 * GRANULE)
        time.sleep(0.08)
        array[100 * GRANULE] = 1
        time.sleep(0.02)
        populated = arena.populated_bytes - before
        del array
        arena.trim()
        return populated > 0

    until(followed)


def test_arrays_that_nobody_comes_to_have_one_window_between_them(arena, how):
    """Each had one: the next came before the one before it was given up."""

    def came() -> bool:
        trust(arena, how)
        before = arena.populated_bytes
        arrays = []
        for _ in range(5):
            arrays.append(empty(arena, how, 40 * MIB))
            time.sleep(0.01)
        populated = arena.populated_bytes - before
        assert populated <= AHEAD
        assert arena.resident_bytes <= AHEAD
        del arrays
        arena.trim()
        return populated > 0

    until(came)


@pytest.mark.parametrize("pause", [0, 0.1])
def test_small_pages_are_a_reason_for_distrust(pause):
    """Where huge pages are switched off, 16 MiB came for each byte that was written."""
    survives(f"""
        import ctypes, time
        import numpy as np
        import pagehint as ph
        arena = ph.Arena("256MiB")

        def touch(pause):
            array = arena.empty(60 << 20, "u1")
            array[0] = 1
            time.sleep(pause)
            resident = arena.resident_bytes
            del array
            arena.trim()
            return resident

        if arena.hugepages:
            while not arena.populated_bytes:
                touch(0.01)
            PR_SET_THP_DISABLE = 41
            assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
            touch({pause})
            assert touch(0.1) < 1 << 20
    """)


def test_every_granule_is_counted_that_of_an_array_replaced_meanwhile_too(arena, how):
    rng, replaced = random.Random(4), itertools.count(1)

    def counted() -> bool:
        trust(arena, how)
        before = arena.populated_bytes
        first = empty(arena, how, 60 * MIB)
        time.sleep(0.002 * rng.random())
        second = empty(arena, how, 100 * MIB)
        del first, second  # which waits for what is under way
        populated = arena.populated_bytes - before
        assert arena.resident_bytes == populated
        arena.trim()
        return 0 < populated < AHEAD and next(replaced) >= 10

    until(counted)


def test_what_comes_after_a_touch_is_there_before_it_is_touched_and_no_more(arena, how):
    def touched() -> bool:
        trust_nobody()  # nor the array of the round before, which was written to
        before = arena.populated_bytes
        array = empty(arena, how, 100 * MIB)
        array[0] = 1
        time.sleep(0.05)
        populated = arena.populated_bytes - before
        assert populated <= AHEAD
        assert arena.resident_bytes <= GRANULE + AHEAD
        assert array[0] == 1
        assert not array[1:].any()
        del array
        assert arena.trim() >= GRANULE
        return populated == AHEAD

    until(touched)


def test_the_owner_is_followed_whatever_else_comes_and_goes(arena, how):
    """Most of an array is there before its owner comes to it, who has temporaries besides, cold ones among them."""

    def followed() -> bool:
        others = [empty(arena, how, GRANULE) for _ in range(20)]
        cold = [empty(arena, how, 2 * GRANULE) for _ in range(2)]
        before = arena.populated_bytes
        array = empty(arena, how, 140 * MIB)
        for start in range(0, len(array), GRANULE):
            array[start : start + GRANULE] = 7
            if start % (7 * GRANULE) == 0:
                del others[-1:], cold[-1:]
                empty(arena, how, 3 * GRANULE)[0] = 1
            time.sleep(0.001)
        assert (array == 7).all()
        del array, others, cold
        populated = arena.populated_bytes - before
        arena.trim()
        assert arena.resident_bytes == 0
        return populated > 100 * MIB

    until(followed)


def test_never_more_than_two_windows_ahead(arena, how):
    """Of 33 granules, probe included."""
    array = empty(arena, how, 250 * MIB)
    for at in range(0, 100 * MIB, GRANULE):
        array[at] = 1
        time.sleep(0.003)
        assert arena.resident_bytes <= at + GRANULE + 2 * 33 * GRANULE
    del array


def test_an_owner_who_comes_late_is_not_waited_for(arena, how):
    array = empty(arena, how, 100 * MIB)
    time.sleep(0.5)
    array[0] = 1
    time.sleep(0.1)
    assert arena.populated_bytes == 0
    del array


def test_zeros_that_are_read_stay_out_of_memory(numpy_arena):
    def rss() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = rss()
    array = np.zeros(100 * MIB, "u1")
    assert not array.any()
    time.sleep(0.1)
    assert numpy_arena.populated_bytes == 0
    assert rss() - before < 50 * MIB
    del array


def test_nothing_comes_after_the_array_is_gone(arena, how):
    """A granule that was populated after its free would be in memory, and noted as not."""
    rng, rounds = random.Random(1), itertools.count(1)

    def gone() -> bool:
        array = empty(arena, how, 64 * MIB)
        array[:: rng.choice([GRANULE, 100 * MIB])] = 1
        time.sleep(0.002 * rng.random())
        del array
        arena.trim()
        assert arena.resident_bytes == 0
        return next(rounds) >= 200 and arena.populated_bytes > 5 * AHEAD

    until(gone)
    time.sleep(0.01)
    assert arena.resident_bytes == 0


def test_nothing_comes_after_a_tail_is_given_back(numpy_arena):
    rng, rounds = random.Random(2), itertools.count(1)

    def given_back() -> bool:
        array = np.empty(64 * MIB, "u1")
        array[[0, GRANULE]] = 1  # the first is there already, of the array before
        time.sleep(0.002 * rng.random())
        array.resize(GRANULE, refcheck=False)
        numpy_arena.trim()
        assert numpy_arena.resident_bytes == GRANULE
        return next(rounds) >= 200 and numpy_arena.populated_bytes > 5 * AHEAD

    until(given_back)


def test_the_array_of_which_most_is_left_is_followed(arena, how):
    first, second, small = (empty(arena, how, nr_bytes * MIB) for nr_bytes in (60, 64, 20))
    first[0] = small[0] = 1
    time.sleep(0.05)
    assert arena.resident_bytes == 2 * GRANULE
    del first, second, small


def test_nothing_comes_after_an_array_that_another_has_replaced_is_gone(arena, how):
    """One granule of it may still be under way."""
    rng, rounds = random.Random(3), itertools.count(1)

    def gone() -> bool:
        first = empty(arena, how, 60 * MIB)
        first[0] = 1
        time.sleep(0.0005 * rng.random())
        second = empty(arena, how, 100 * MIB)
        del second
        del first
        arena.trim()
        assert arena.resident_bytes == 0
        return next(rounds) >= 300 and arena.populated_bytes > 5 * AHEAD

    until(gone)
    time.sleep(0.01)
    assert arena.resident_bytes == 0


def test_without_huge_pages_memory_is_counted_to_the_page():
    arena = ph.Arena("64MiB", hugepages=False)
    array = arena.empty(40 * MIB, "u1")
    array[:GRANULE] = 1
    time.sleep(0.05)
    assert arena.populated_bytes == 0
    assert arena.resident_bytes == GRANULE
    del array


def test_a_forked_child_has_a_thread_of_its_own(arena, how):
    def populates() -> None:
        def filled() -> bool:
            before = arena.populated_bytes
            array = empty(arena, how, 64 * MIB)
            array[:] = 3
            assert (array == 3).all()
            del array
            arena.trim()
            return arena.populated_bytes > before

        until(filled)

    populates()
    in_child(populates)
    populates()


def test_forks_while_a_thread_is_populating(arena, how):
    """Whatever it is doing, the child has a state of its own, and nothing of the parent's to wait for."""
    arrays = []

    def child() -> None:
        arrays.clear()  # which in the parent may be under way
        more = empty(arena, how, 64 * MIB)
        more[::GRANULE] = 2
        assert more.sum() == 64
        del more

    for _ in range(12):
        arrays.append(empty(arena, how, 64 * MIB))
        arrays[0][0] = 1
        in_child(child)
        assert arrays[0][0] == 1
        arrays.clear()


def test_no_signal_comes_to_the_thread(arena, how):
    array = empty(arena, how, 64 * MIB)
    array[0] = 1
    statuses = [task.joinpath("status").read_text() for task in Path("/proc/self/task").iterdir()]
    ours = [status for status in statuses if "Name:\tpagehint-ahead\n" in status]
    assert len(ours) == 1
    blocked = int(ours[0].split("SigBlk:")[1].split()[0], 16)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:  # the C library keeps some for itself
        assert blocked >> (number - 1) & 1, number
    del array


def test_the_thread_of_a_pinned_worker_runs_where_the_main_thread_may():
    survives("""
        import errno, os, threading, time
        import numpy as np
        import pagehint as ph
        arena = ph.Arena("256MiB")

        def pinned():
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            try:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            except OSError as error:
                assert error.errno == errno.ENOSYS      # musl knows of no policies
            while not arena.populated_bytes:
                arena.empty(64 << 17)[:] = 1
                arena.trim()

        worker = threading.Thread(target=pinned)
        worker.start()
        worker.join()
        ours = [int(task) for task in os.listdir("/proc/self/task")
                if open(f"/proc/self/task/{task}/comm").read() == "pagehint-ahead\\n"]
        assert len(ours) == 1
        assert os.sched_getaffinity(ours[0]) == os.sched_getaffinity(os.getpid())
        policy = open(f"/proc/self/task/{ours[0]}/stat").read().rsplit(")", 1)[1].split()[38]
        assert int(policy) == os.SCHED_OTHER
    """)


def test_without_a_thread_the_owner_does_it_himself():
    survives("""
        import os, resource
        import numpy as np
        import pagehint as ph
        arena = ph.Arena("256MiB")
        if os.getuid() == 0:
            os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        for i in range(10):
            array = arena.empty(64 << 20, "u1")
            array[:] = i
            assert (array == i).all()
            del array
            arena.trim()
        assert arena.populated_bytes == 0
    """)


def test_on_one_cpu_there_is_no_such_thread():
    survives("""
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import numpy as np
        import pagehint as ph
        arena = ph.numpy.install()
        for _ in range(20):
            np.ones(64 << 17)
        assert arena.populated_bytes == 0
        assert "pagehint-ahead" not in [open(f"/proc/self/task/{task}/comm").read().strip()
                                        for task in os.listdir("/proc/self/task")]
    """)


@pytest.mark.parametrize("advice", ["dontneed", "free"])
def test_what_is_written_stays_whatever_is_populated(advice):
    """Owners write forwards, backwards and at random, while all that is free goes back at once."""
    arena = ph.Arena("512MiB")
    checked = [0]

    def work(stop, rng):
        while not stop.is_set():
            with arena.numpy():
                n = rng.randrange(1, 48) * GRANULE // 8
                array, canary = np.empty(n, np.uint64), rng.getrandbits(62) | 1
            starts = list(range(0, n, GRANULE // 16))
            rng.choice([list.sort, list.reverse, rng.shuffle])(starts)
            for start in starts:
                array[start : start + GRANULE // 16] = canary
            assert (array == canary).all()
            checked[0] += 1
            if rng.random() < 0.3:
                array.resize(rng.randrange(1, n + 1), refcheck=False)
                assert (array == canary).all()
            if rng.random() < 0.3:
                with arena.numpy():
                    assert not np.zeros(n).any(), "stale bytes"
            del array

    with arena.hinting(advice, delay=0.001, max_pages=4, threshold=1):
        in_threads([work, work])
    assert checked[0] > 0
    # What MADV_FREE has taken may still be there, so it is never cold.
    assert arena.populated_bytes > 0 or advice == "free"
    gc.collect()
    arena.pages.verify()
    arena.close()


def test_an_arena_ends_while_its_arrays_are_followed():
    """The last array frees the mapping, at once, from whichever thread."""
    for _ in range(50):
        arena = ph.Arena("64MiB")
        array = arena.empty(60 * MIB, "u1")
        array[0] = 1
        del arena
        thread = threading.Thread(target=array.fill, args=(5,))
        thread.start()
        thread.join()
        del array, thread
        gc.collect()
