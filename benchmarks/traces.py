"""Mixed operations, as arrays for `PageAllocator.run_ops`."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

import pagehint as ph

Ops = NDArray[np.void]


def orders_that_fit(nr_pages: int, max_order: int = 10) -> NDArray[np.intp]:
    """Orders 0 to 9, each as often, in random sequence: as many blocks as fit into a zone of so many pages."""
    orders = np.random.default_rng(4).integers(0, 10, nr_pages // 64)
    return orders[np.cumsum(1 << orders) <= nr_pages - (1 << max_order)]


def traces(orders: NDArray[np.intp], operations: int) -> Iterator[Ops]:
    """A trace without end, over a slot for each order: fill them all, empty half, then toggle random ones.

    About half of them stay full: the more are, the likelier the next operation is a free.
    """
    rng = random.Random(4)
    full = [False] * len(orders)

    def toggle(slots: list[int]) -> Ops:
        ops = np.zeros(len(slots), ph.OP_DTYPE)
        ops["slot"] = slots
        ops["order"] = orders[slots]
        kinds = []
        for slot in slots:
            kinds.append(ph.OP_FREE if full[slot] else ph.OP_ALLOC)
            full[slot] = not full[slot]
        ops["op"] = kinds
        return ops

    yield toggle(list(range(len(orders))))
    yield toggle(rng.sample(range(len(orders)), len(orders) // 2))
    while True:
        yield toggle(rng.choices(range(len(orders)), k=operations))
