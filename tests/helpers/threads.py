"""Threads that work until the time is over, and what they write to memory to see whether it stays theirs."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import numpy as np

import pagehint as ph

SECONDS = float(os.environ.get("PAGEHINT_CANARY_SECONDS", "3"))


def native_threads(name):
    """Threads of this process that a debugger shows by this name, as folders of /proc."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text() == f"{name}\n":
                found.append(task)
        except OSError:
            continue  # it has ended meanwhile
    return found


def in_threads(functions, seconds=SECONDS):
    """Run each in a thread until the time is over; the first error of any is raised here."""
    stop = threading.Event()
    errors = []

    def call(function, seed):
        try:
            function(stop, random.Random(seed))
        except BaseException as error:
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=call, args=(function, seed)) for seed, function in enumerate(functions)]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def keeper_of_canaries(arena, most, checked):
    """Return what a thread does: what it has written must be there when it looks again; each look goes to `checked`."""

    def work(stop, rng):
        mine = []
        while not stop.is_set():
            if len(mine) > most or (mine and rng.random() < 0.4):
                array, canary = mine.pop(rng.randrange(len(mine)))
                assert (array == canary).all(), "somebody else has written here, or the page was given back"
                checked.append(len(array))
            try:
                array = arena.empty(rng.choice([100, 4096, 100_000, 1_000_000, 2 << 20, 5 << 20]) // 8, np.uint64)
            except ph.OutOfMemoryError:
                mine[: most // 2] = []
                continue
            canary = rng.getrandbits(63)
            array[:] = canary
            mine.append((array, canary))
        for array, canary in mine:
            assert (array == canary).all()

    return work
