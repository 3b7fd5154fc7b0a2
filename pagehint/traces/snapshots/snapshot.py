"""A snapshot: the state of a kernel's page allocator at one moment, as far as files of the machine tell it.

The heart of it is a byte for each page frame, `pages`: absent, reserved, in use, free in the buddy system, or in a
per-CPU list. Zones come from zoneinfo. What only a look into the kernel's memory can tell is there if somebody has had
that look: migratetypes of pageblocks, and the free lists and per-CPU lists in their order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pagehint.allocator.machine_state import MachineState
from pagehint.errors import SnapshotError
from pagehint.layout import ZoneSpec
from pagehint.traces.snapshots.proc_files import SnapshotZone

# What `Snapshot.pages` says of a page. From PAGE_USED on it is managed. What is offline is in a balloon, or logically
# offline: the kernel does not count it as managed, but can have it back at any time.
PAGE_ABSENT: Final = 0
PAGE_RESERVED: Final = 1
PAGE_OFFLINE: Final = 2
PAGE_USED: Final = 3
PAGE_FREE: Final = 4
PAGE_PCP: Final = 5

NO_MEMORY: Final = 255  # in `Snapshot.pageblocks`
MOST_ORDER: Final = 20  # larger than that of any kernel

FREE_LIST_DTYPE: Final = np.dtype(
    [
        ("pfn", np.uint64),
        ("order", np.uint8),
        ("migratetype", np.uint8),
        ("position", np.uint32),
        ("reported", np.bool_),
    ]
)
PCP_LIST_DTYPE: Final = np.dtype(
    [("pfn", np.uint64), ("cpu", np.uint32), ("order", np.uint8), ("migratetype", np.uint8), ("position", np.uint32)]
)
FREE_BLOCK_DTYPE: Final = np.dtype([("pfn", np.uint64), ("order", np.uint32)])

# The kernel's migratetypes, and what stands for them here. Blocks of the first three merge with each other.
_TYPES: Final = {"Unmovable": 0, "Movable": 1, "Reclaimable": 2, "Isolate": 3, "HighAtomic": 0, "CMA": 1}
_MERGING: Final = ("Unmovable", "Movable", "Reclaimable")
_PAGEBLOCK_ORDER: Final = 9  # of an allocator's pageblocks


def runs_of(flags: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the runs of True begin, and how long each is."""
    edges = np.flatnonzero(np.diff(flags.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
    return edges[::2], edges[1::2] - edges[::2]


@dataclass(frozen=True, eq=False, repr=False)
class Snapshot:
    """The state of a kernel's page allocator at one moment. `read_snapshot` and `live_snapshot` make them.

    Parameters
    ----------
    zones : tuple of SnapshotZone
        Those that have memory, by address.
    max_page_order : int
        Largest order of a block.
    page_size : int
        Bytes.
    pages : ndarray of uint8, optional
        What each page is, from PFN 0 on: `PAGE_ABSENT`, `PAGE_RESERVED`, `PAGE_OFFLINE`, `PAGE_USED`, `PAGE_FREE` or
        `PAGE_PCP`. None where the files do not tell.
    pageblock_order : int
        Order of a pageblock of this kernel.
    migratetype_names : tuple of str
        The kernel's migratetypes, each at its number.
    pageblocks : ndarray of uint8, optional
        Migratetype of each pageblock from PFN 0 on; `NO_MEMORY` where there is none.
    free_lists : ndarray of `FREE_LIST_DTYPE`, optional
        The kernel's free lists: each block's place in the list of its order and migratetype, counted from the head, and
        whether it has been reported to the host.
    pcp_lists : ndarray of `PCP_LIST_DTYPE`, optional
        The per-CPU lists in the same way.
    buddyinfo : ndarray of int64, optional
        Free blocks of each zone and order, of shape (zones, orders).
    free_by_type : ndarray of int64, optional
        Free blocks of each zone, migratetype and order, from pagetypeinfo; -1 where the kernel stopped counting.
    pageblock_counts : ndarray of int64, optional
        Pageblocks of each zone and migratetype, from pagetypeinfo.
    ram : tuple of (start, end)
        System RAM in PFNs, from iomem; empty where it is not known.
    resident : ndarray of uint8, optional
        1 for each page that the host had memory of its own behind, from PFN 0 on.
    uptime : float, optional
        Seconds since the kernel was started.
    disagreements : tuple of str
        Where the files contradict each other page by page. `check_snapshot` has these, and what else contradicts.

    Raises
    ------
    SnapshotError
        If the parts do not fit together: arrays that are too short for the zones, numbers that are out of range.
    """

    zones: tuple[SnapshotZone, ...]
    max_page_order: int
    page_size: int = 4096
    pages: NDArray[np.uint8] | None = None
    pageblock_order: int = _PAGEBLOCK_ORDER
    migratetype_names: tuple[str, ...] = ()
    pageblocks: NDArray[np.uint8] | None = None
    free_lists: NDArray[np.void] | None = None
    pcp_lists: NDArray[np.void] | None = None
    buddyinfo: NDArray[np.int64] | None = None
    free_by_type: NDArray[np.int64] | None = None
    pageblock_counts: NDArray[np.int64] | None = None
    ram: tuple[tuple[int, int], ...] = ()
    resident: NDArray[np.uint8] | None = None
    uptime: float | None = None
    disagreements: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        nr_types, nr_orders = len(self.migratetype_names), self.max_page_order + 1
        for name, array in self.arrays().items():
            dtype, ndim = ARRAYS[name]
            if array.dtype != dtype or array.ndim != ndim:
                raise SnapshotError(
                    f"{name} must have {ndim} dimensions of {np.dtype(dtype)}, not {array.ndim} of {array.dtype}"
                )
        if not self.zones or not 0 <= self.max_page_order <= MOST_ORDER or not 0 <= self.pageblock_order <= MOST_ORDER:
            raise SnapshotError(
                f"{len(self.zones)} zones, max_page_order {self.max_page_order},"
                f" pageblock_order {self.pageblock_order}: this cannot be"
            )
        for name, shape in {
            "buddyinfo": (len(self.zones), nr_orders),
            "free_by_type": (len(self.zones), nr_types, nr_orders),
            "pageblock_counts": (len(self.zones), nr_types),
        }.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise SnapshotError(f"{name} has shape {array.shape}, not {shape}")
        self._check_pages()
        self._check_pageblocks(nr_types)
        for name in ("free_lists", "pcp_lists"):
            self._check_lists(name, nr_types)

    def _check_pages(self) -> None:
        if self.pages is None:
            return
        for zone in self.zones:
            if zone.end_pfn > len(self.pages):
                raise SnapshotError(
                    f"the state of pages is known up to PFN {len(self.pages):#x}, and {zone.place} ends at"
                    f" {zone.end_pfn:#x}: the file is cut"
                )
        if self.pages.max() > PAGE_PCP:
            raise SnapshotError(f"PFN {int(np.argmax(self.pages > PAGE_PCP)):#x}: state {self.pages.max()} is none")
        if self.resident is not None and len(self.resident) != len(self.pages):
            raise SnapshotError(f"residency is known of {len(self.resident)} pages, their state of {len(self.pages)}")

    def _check_pageblocks(self, nr_types: int) -> None:
        if self.pageblocks is None:
            return
        last = max(zone.end_pfn for zone in self.zones)
        if len(self.pageblocks) < -(-last >> self.pageblock_order):
            raise SnapshotError(
                f"migratetypes of {len(self.pageblocks)} pageblocks, and the last zone ends at PFN {last:#x}"
            )
        bad = (self.pageblocks >= nr_types) & (self.pageblocks != NO_MEMORY)
        if bad.any():
            block = int(np.argmax(bad))
            pfn = block << self.pageblock_order
            raise SnapshotError(f"pageblock at PFN {pfn:#x}: migratetype {self.pageblocks[block]} of {nr_types}")

    def _check_lists(self, name: str, nr_types: int) -> None:
        blocks = getattr(self, name)
        if blocks is None or not len(blocks):
            return
        if self.pages is None:
            raise SnapshotError(f"{name} are known, and the state of the pages is not")
        end = blocks["pfn"] + (np.uint64(1) << np.minimum(blocks["order"], 32).astype(np.uint64))
        bad = (blocks["order"] > self.max_page_order) | (blocks["migratetype"] >= nr_types)
        bad |= (blocks["pfn"] > len(self.pages)) | (end > len(self.pages))
        if bad.any():
            block = blocks[int(np.argmax(bad))]
            raise SnapshotError(
                f"{name}: PFN {int(block['pfn']):#x}, order {block['order']}, migratetype {block['migratetype']}:"
                " out of range"
            )

    # -- what is free

    def known_pages(self) -> NDArray[np.uint8]:
        """Return `pages`; SnapshotError if they are not known."""
        if self.pages is None:
            raise SnapshotError(
                "the snapshot does not say which pages are free: it has neither kpageflags nor buddy.npz"
            )
        return self.pages

    def span(self, zone: SnapshotZone) -> NDArray[np.uint8]:
        """Return `pages` from the zone's first to its last."""
        return self.known_pages()[zone.start_pfn : zone.end_pfn]

    def free_bitmap(self) -> NDArray[np.uint64]:
        """Return which pages are free in the buddy system of a zone, as `PageAllocator.free_bitmap` does.

        Raises
        ------
        SnapshotError
            If the files do not tell.
        """
        free = np.zeros(-(-max(zone.end_pfn for zone in self.zones) // 64) * 64, bool)
        for zone in self.zones:
            free[zone.start_pfn : zone.end_pfn] |= self.span(zone) == PAGE_FREE
        return np.packbits(free, bitorder="little").view(np.uint64)

    def free_blocks(self, zone: SnapshotZone) -> NDArray[np.void]:
        """Return the maximal free blocks of a zone by address, as the kernel merges them.

        Parameters
        ----------
        zone : SnapshotZone
            One of `zones`.

        Returns
        -------
        ndarray
            Structured, of shape (blocks,): ``pfn`` (uint64) and ``order`` (uint32). O(spanned pages).

        Notes
        -----
        Blocks of a pageblock and more do not merge if one is isolated, or of another type that the kernel keeps apart.
        """
        top, low = self.max_page_order, zone.start_pfn >> self.max_page_order << self.max_page_order
        whole = np.zeros(-(-(zone.end_pfn - low) >> top) << top, bool)
        whole[zone.start_pfn - low : zone.end_pfn - low] = self.span(zone) == PAGE_FREE
        kinds = self._merging_kinds(low, len(whole))
        found: list[tuple[NDArray[np.int64], int]] = []
        for order in range(top):
            merged = whole[::2] & whole[1::2]
            if kinds is not None and order >= self.pageblock_order:
                merged &= kinds[::2] == kinds[1::2]
                kinds = kinds[::2]
            whole = whole & ~np.repeat(merged, 2)
            found.append((low + (np.flatnonzero(whole) << order), order))
            whole = merged
        found.append((low + (np.flatnonzero(whole) << top), top))
        blocks = np.empty(sum(len(pfns) for pfns, _ in found), FREE_BLOCK_DTYPE)
        blocks["pfn"] = np.concatenate([pfns for pfns, _ in found])
        blocks["order"] = np.concatenate([np.full(len(pfns), order) for pfns, order in found])
        return np.sort(blocks, order="pfn")

    def _merging_kinds(self, low: int, nr_pages: int) -> NDArray[np.uint8] | None:
        """For each pageblock from PFN `low` on a number that is equal where free blocks merge. None: everywhere."""
        if self.pageblocks is None or self.pageblock_order >= self.max_page_order:
            return None
        first = low >> self.pageblock_order
        kinds = np.full(nr_pages >> self.pageblock_order, NO_MEMORY, np.uint8)
        known = self.pageblocks[first : first + len(kinds)]
        merging = [number for number, name in enumerate(self.migratetype_names) if name in _MERGING]
        kinds[: len(known)] = np.where(np.isin(known, merging), NO_MEMORY, known)
        return kinds

    # -- as an allocator

    def machine_state(self) -> MachineState:
        """Return what `PageAllocator.from_snapshot` needs.

        Raises
        ------
        SnapshotError
            If the files do not tell which pages are free, or two zones overlap, or a zone has no managed page.
        """
        for below, above in zip(self.zones, self.zones[1:], strict=False):
            if above.start_pfn < below.end_pfn:
                raise SnapshotError(
                    f"{below.place} and {above.place} overlap at PFN {above.start_pfn:#x}, and the files do not tell"
                    " which page is whose"
                )
        specs, starts, counts = [], [], []
        for zone in self.zones:
            span = self.span(zone)
            managed = span >= PAGE_OFFLINE
            if not managed.any():
                raise SnapshotError(f"{zone.place}: no page is managed, from PFN {zone.start_pfn:#x} on")
            holes = [(zone.start_pfn + at, n) for at, n in zip(*map(np.ndarray.tolist, runs_of(~managed)), strict=True)]
            specs.append(ZoneSpec(zone.name, zone.start_pfn, zone.spanned_pages, zone.node, holes))
            used = runs_of(managed & (span != PAGE_FREE))
            starts.append(zone.start_pfn + used[0])
            counts.append(used[1])
        return MachineState(
            tuple(specs),
            tuple(zone.watermarks for zone in self.zones),
            self._reserves(),
            np.concatenate(starts).astype(np.uint64),
            np.concatenate(counts).astype(np.uint64),
            self._migratetypes(),
            self.page_size,
            self.max_page_order,
        )

    def _reserves(self) -> NDArray[np.uint64]:
        return np.array(
            [
                [zone.protection[other.rank] if other.rank < len(zone.protection) else 0 for other in self.zones]
                for zone in self.zones
            ],
            np.uint64,
        )

    def _migratetypes(self) -> NDArray[np.uint8] | None:
        """The allocator's migratetypes of its pageblocks, from PFN 0 on."""
        if self.pageblocks is None:
            return None
        numbers = np.full(NO_MEMORY + 1, _TYPES["Movable"], np.uint8)
        numbers[: len(self.migratetype_names)] = [_TYPES.get(name, 0) for name in self.migratetype_names]
        types: NDArray[np.uint8] = numbers[self.pageblocks]
        if self.pageblock_order < _PAGEBLOCK_ORDER:
            return types[:: 1 << _PAGEBLOCK_ORDER - self.pageblock_order]
        return np.repeat(types, 1 << self.pageblock_order - _PAGEBLOCK_ORDER)

    def unrepresented(self) -> tuple[str, ...]:
        """Say in sentences what of this snapshot `PageAllocator.from_snapshot` cannot have as the kernel has it.

        Raises
        ------
        SnapshotError
            If the files do not tell which pages are free.
        """
        said, pages = [], self.known_pages()
        in_zones = np.zeros(len(pages), bool)
        for zone in self.zones:
            in_zones[zone.start_pfn : zone.end_pfn] = True
        for count, what in (
            (
                int((pages == PAGE_PCP).sum()),
                "pages in per-CPU lists are in use: the kernel's buddy does not have them",
            ),
            (int(((pages == PAGE_FREE) & ~in_zones).sum()), "free pages outside every zone are left out"),
            (int(((pages == PAGE_RESERVED) & in_zones).sum()), "reserved pages inside zones are holes"),
            (
                int(((pages == PAGE_OFFLINE) & in_zones).sum()),
                "offline pages, as those in a balloon, are in use, and managed",
            ),
        ):
            if count:
                said.append(f"{count} {what}")
        unknown = sum(zone.pcp_pages for zone in self.zones)
        if unknown and not (pages == PAGE_PCP).any():
            said.append(f"{unknown} pages in per-CPU lists, which are not told from others, are in use")
        if self.pageblocks is None:
            said.append("the migratetypes of pageblocks are not known: all are movable")
        elif self.pageblock_order < _PAGEBLOCK_ORDER:
            said.append(
                f"a pageblock has order {self.pageblock_order}: of several in 512 pages the first one's type counts"
            )
        for number, name in enumerate(self.migratetype_names):
            count = 0 if self.pageblocks is None else int((self.pageblocks == number).sum())
            if count and name not in (*_MERGING, "Isolate"):
                stand_in = ("unmovable", "movable")[_TYPES.get(name, 0)]
                said.append(f"{count} pageblocks of type {name} are {stand_in}, and merge with others")
        said.append("the free lists are in the allocator's own order")
        return tuple(said)

    # -- as text

    def __repr__(self) -> str:
        names = ", ".join(zone.name for zone in self.zones)
        managed = sum(zone.managed_pages for zone in self.zones)
        return f"<Snapshot of {names}: {managed} pages of {self.page_size} bytes managed; {', '.join(self.arrays())}>"

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that are known, by name."""
        return {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}


ARRAYS: Final[dict[str, tuple[Any, int]]] = {
    "pages": (np.uint8, 1),
    "pageblocks": (np.uint8, 1),
    "free_lists": (FREE_LIST_DTYPE, 1),
    "pcp_lists": (PCP_LIST_DTYPE, 1),
    "buddyinfo": (np.int64, 2),
    "free_by_type": (np.int64, 3),
    "pageblock_counts": (np.int64, 2),
    "resident": (np.uint8, 1),
}
"""The arrays of a snapshot: their dtypes, and how many dimensions they have."""
