"""A host in Python that owns what it is told of, takes its time, and fails in every way."""

from __future__ import annotations

import random
import time
from typing import Any

import pagehint as ph
from pagehint.soak.finding import FindingError
from pagehint.soak.shared import HOST, Shared


class DeliberateError(Exception):
    """What the host fails with."""


class FailingHost:
    """The host. Hinting is switched on with its `callbacks`."""

    def __init__(self, shared: Shared, rng: random.Random) -> None:
        self._shared = shared
        self._rng = rng

    def callbacks(self) -> ph.PageHintingCallbacks:
        """Return what calls this host, with a batch of any size."""
        return ph.PageHintingCallbacks(self._hint_pages, self._rng.choice((1, 4, 16)), self._prepare, self._cleanup)

    def _hint_pages(self, blocks: Any) -> list[bool] | None:
        told = [(pfn, 1 << order) for pfn, order, _ in blocks.tolist()]
        try:
            for pfn, nr_pages in told:
                self._shared.claim(pfn, nr_pages, HOST)
            time.sleep(0.003 if self._rng.random() < 0.1 else 0)
            for pfn, nr_pages in told:
                self._shared.release(pfn, nr_pages, HOST)
        except FindingError as finding:
            self._shared.found(finding)
        fail = self._rng.random()
        if fail < 0.1:
            raise DeliberateError
        if fail < 0.7:
            return None
        if fail < 0.95:
            return [self._rng.random() < 0.8 for _ in told]
        return [True] * 99  # more answers than blocks

    def _prepare(self) -> int | None:
        if self._rng.random() < 0.05:
            raise DeliberateError
        return -1 if self._rng.random() < 0.05 else None

    def _cleanup(self) -> None:
        if self._rng.random() < 0.1:
            raise DeliberateError
