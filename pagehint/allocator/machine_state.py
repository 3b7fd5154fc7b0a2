"""The state of a machine's memory, from which an allocator is built: which pages there are, and which are in use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagehint.layout import Watermarks, ZoneSpec


class MachineState(NamedTuple):
    """What `PageAllocator.from_snapshot` builds. Whoever has a snapshot of another kind returns one of these."""

    zones: tuple[ZoneSpec, ...]
    """By address. Where no memory is managed there are holes."""
    watermarks: tuple[Watermarks, ...]
    """Of each zone, in pages."""
    reserves: NDArray[np.uint64]
    """Of shape (zones, zones): pages that the first keeps from requests which prefer the second (lowmem reserve)."""
    used_pfns: NDArray[np.uint64]
    """First PFNs of the runs of pages in use, ascending, of shape (runs,). All other managed pages are free."""
    used_pages: NDArray[np.uint64]
    """Pages in each of these runs, at least one."""
    migratetypes: NDArray[np.uint8] | None
    """Of each pageblock from PFN 0 to the end of the last zone, as indices into `MIGRATETYPES`. None: all movable."""
    page_size: int = 4096
    """Bytes in a page."""
    max_page_order: int = 10
    """Largest order of a block."""
