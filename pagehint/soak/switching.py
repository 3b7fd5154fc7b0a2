"""A thread that switches hinting on and off, and changes its settings while it is on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any

import pagehint as ph
from pagehint.soak.failing_host import FailingHost
from pagehint.soak.shared import Shared


def switch_hinting(shared: Shared, rng: random.Random, me: int) -> Iterator[int]:
    """Switch hinting on in the arena, or in the model with a host that fails, and off after a while."""
    while not shared.stop.is_set():
        in_arena = rng.random() < 0.5
        pages = shared.arena.pages if in_arena else shared.model
        try:
            with _hinting(shared, in_arena, rng):
                for _ in range(rng.randrange(20)):
                    if shared.stop.is_set():
                        break
                    pages.max_pages = rng.choice((1, 2, 16, 64))
                    pages.delay = rng.choice((None, 0.0, 0.01))
                    pages.threshold = rng.choice((None, 1, 20))
                    with suppress(ValueError):  # a learnt age stays what it is
                        pages.min_age = rng.choice((None, 0.0, 0.001, 1.0))
                    time.sleep(rng.random() * 0.02)
                    if rng.random() < 0.2:
                        pages.flush_hinting()
                    yield 3
        except (ph.HintingActiveError, ph.HintingInactiveError):
            yield 1  # another thread switches it, too


def _hinting(shared: Shared, in_arena: bool, rng: random.Random) -> AbstractContextManager[Any]:
    settings: dict[str, Any] = {
        "delay": rng.choice((None, 0.0, 0.001, 0.1)),
        "threshold": rng.choice((None, 1, 2, 50)),
        "mark_free": rng.random() < 0.7,
        **rng.choice(({}, {}, {"min_age": "auto", "cost": 0.05})),
    }
    if in_arena:
        return shared.arena.hinting(rng.choice(("dontneed", "free")), **settings)
    return shared.model.hinting(FailingHost(shared, rng).callbacks(), **settings)
