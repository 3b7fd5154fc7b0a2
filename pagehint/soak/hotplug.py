"""A thread that takes memory from the model and puts it back, under the threads that allocate in it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import suppress

import pagehint as ph
from pagehint.soak.shared import MAX_PAGE_ORDER, OFFLINE, SECTION, Shared

BLOCK = 1 << MAX_PAGE_ORDER


def hotplug(shared: Shared, rng: random.Random, me: int) -> Iterator[int]:
    """Take sections offline and online, isolate pageblocks for a while, grow a zone, empty the page sets."""
    model = shared.model
    while not shared.stop.is_set():
        section = rng.randrange(2, 32) * SECTION
        with suppress(ph.BadPageError):  # in use, or in no zone
            model.offline(section, SECTION)
            shared.claim(section, SECTION, OFFLINE)
            time.sleep(rng.random() * 0.01)
            shared.release(section, SECTION, OFFLINE)
            model.online(section, SECTION)
        block = rng.randrange(2 * SECTION, 14 * SECTION) // BLOCK * BLOCK
        model.set_migratetype(block, BLOCK, "isolate")
        time.sleep(rng.random() * 0.01)
        model.set_migratetype(block, BLOCK, "movable")
        if rng.random() < 0.1:
            model.drain_pcp()
        if rng.random() < 0.01 and section >= 25 * SECTION:  # above the last zone, which grows by it
            with suppress(ph.BadPageError):
                model.online(section, SECTION)
        yield 4
