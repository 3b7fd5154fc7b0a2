"""A world in use, and what a refused call must leave alone in it."""

from __future__ import annotations

import numpy as np

import pagehint as ph
from pagehint.traces import OPERATION_DTYPE

MIB = 1 << 20


class World:
    """A machine in use, with hinting on where that is needed, and an arena with an array in it."""

    def __init__(self, hinting=True):
        # With pages of 1 MiB a section has 128 pages.
        zones = [ph.ZoneSpec("DMA", 1, 1023, holes=[(500, 10)]), ph.ZoneSpec("Normal", 1024, 1024, node=1)]
        self.pages = ph.PageAllocator(zones, page_size=MIB, max_page_order=9, min_order=4, pcp=False)
        self.block = self.pages.alloc_pages(3)
        self.run = self.pages.alloc_pages_exact(70)
        self.bulk = self.pages.alloc_pages_bulk(5, 2)
        self.pages.offline(1024 + 512, 128)
        self.callbacks = ph.PageHintingCallbacks(lambda blocks: None, 4)
        if hinting:
            self.pages.enable_hinting(self.callbacks, workqueue="manual", delay=None, min_age="auto", clock=0.0)
        self.arena = ph.Arena("4MiB")
        self.array = self.arena.empty(1000)
        self.table = np.arange(4, dtype=np.uint64)
        self.operations = np.zeros(2, OPERATION_DTYPE)  # takes, of pages that are free
        self.operations["op"], self.operations["pfn"] = 1, (1000, 1001)
        self.ops = np.array([(0, 0, ph.OP_ALLOC), (1, 1, ph.OP_ALLOC), (0, 0, ph.OP_FREE)], ph.OP_DTYPE)

    def state(self):
        """Everything that a refused call must leave alone. Looking is what changes the counts of locks."""
        found = []
        for pages in (self.pages, self.arena.pages):
            pages.verify()
            stats = pages.stats().to_dict()
            del stats["lock_acquired"], stats["lock_contended"]
            found += [stats, pages.hinting_enabled, repr(pages.last_error), pages.pagetypeinfo(), pages.zoneinfo()]
            found += [(zone.free_blocks().tolist(), zone.hint_bitmap.tolist()) for zone in pages.zones]
            if pages.hinting_enabled:
                found += [pages.max_pages, pages.threshold, pages.delay, pages.min_age, pages.cost]
        return [
            *found,
            self.arena.limit,
            self.arena.live_arrays,
            self.arena.closed,
            self.table.tolist(),
            self.ops.tolist(),
        ]
