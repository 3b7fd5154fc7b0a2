"""Tables of operations: made by hand, or at random with the free set that they make sense with."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pagehint.policies import Recording
from pagehint.traces import OPERATION_DTYPE, Operation

TAKE, GIVE = Operation.TAKE, Operation.GIVE
SMALL = {"granule_order": 3, "max_order": 5, "pageblock_order": 3}  # a kernel of eight pages to a granule
SMALL_PAGES = 128


def table_of(*rows):
    """A table of (time, op, pfn, order), and a migratetype and flags if they matter."""
    table = np.zeros(len(rows), OPERATION_DTYPE)
    for number, row in enumerate(rows):
        time, op, pfn, order, migratetype, flags = (*row, 1, 0)[:6] if len(row) == 4 else (*row, 0)[:6]
        table[number] = (time, pfn, number, op, order, migratetype, flags)
    return table


@st.composite
def recordings(draw, granule_order=3):
    """A small recording that contradicts itself nowhere: what is taken was free, what is given was not."""
    free = np.array(draw(st.lists(st.booleans(), min_size=SMALL_PAGES // 4, max_size=SMALL_PAGES // 4))).repeat(4)
    if draw(st.booleans()):
        free[:] = True
    pages, rows, time = free.copy(), [], 0
    for _ in range(draw(st.integers(0, 40))):
        order = draw(st.sampled_from([0, 1, 2, 3, 3, 4, 5]))
        pfn = draw(st.integers(0, (SMALL_PAGES >> order) - 1)) << order
        block = pages[pfn : pfn + (1 << order)]
        time += draw(st.sampled_from([0, 1, 10, 10**8, 10**9, 3 * 10**9]))
        if block.all() or not block.any():
            rows.append((time, TAKE if block.all() else GIVE, pfn, order))
            block[:] = not block[0]
    kernel = SMALL | {"granule_order": granule_order}
    begin = draw(st.sampled_from([None, 0, 10**9]))
    return Recording.of(table_of(*rows), free, begin=begin, **kernel)
