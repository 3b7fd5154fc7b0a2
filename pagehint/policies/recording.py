"""A recording as policies need it: what happened, and the state in which it began, in arrays that can be mapped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pagehint.errors import BadPageError, PageHintError
from pagehint.traces.intervals.table import OPEN, Intervals, check_order, granule_intervals, packed
from pagehint.traces.operations import OPERATION_DTYPE, Operation, Operations

if TYPE_CHECKING:
    from pagehint.traces.snapshots.snapshot import Snapshot

ZONE_DTYPE = np.dtype(
    [
        ("start", "<u8"),  # PFN of its first page
        ("end", "<u8"),  # one more than that of its last
        ("managed", "<u8"),  # pages
        ("watermark_min", "<u8"),  # pages
        ("watermark_low", "<u8"),  # pages
    ]
)
"""The dtype of a zone."""

LISTED_DTYPE = np.dtype([("pfn", "<u8"), ("order", "<u4"), ("migratetype", "<u4")])
"""The dtype of a block on a free list. Blocks of one list stand in its order, from the front."""

CHANGE_DTYPE = np.dtype([("time", "<i8"), ("pfn", "<u8"), ("position", "<u4"), ("whole", "u1"), ("unused", "u1", 3)])
"""The dtype of a change of a granule: at `time` it became whole, or was broken; `position` operations had happened."""

ARRAYS = {
    "operations": OPERATION_DTYPE,
    "free": np.dtype(bool),
    "zones": ZONE_DTYPE,
    "blocks": LISTED_DTYPE,
    "types": np.dtype(np.uint8),
    "resident": np.dtype(bool),
}
NUMBERS = ("begin", "granule_order", "max_order", "pageblock_order", "isolate_type", "page_size")


@dataclass(frozen=True, eq=False)
class Recording:
    """What a policy is run on. Make it by `Recording.of`, or `Recording.load` what another has saved.

    Attributes
    ----------
    operations : ndarray of `OPERATION_DTYPE`
    free : ndarray of bool, shape (pages,)
        The pages on the free lists before the first operation.
    zones : ndarray of `ZONE_DTYPE`
        By address.
    blocks : ndarray of `LISTED_DTYPE`
        The free lists before the first operation, for blocks of `granule_order` and more.
    types : ndarray of uint8
        The migratetype of each pageblock then; 255 where there is no memory.
    resident : ndarray of bool, shape (pages,), or None
        The pages that the host had memory behind then. None: all of them.
    name : str
    begin : int
        Nanoseconds, by the clock of the recording: when policies are switched on.
    granule_order : int
        The least that is reported is ``2**granule_order`` pages.
    max_order, pageblock_order : int
        Of the kernel.
    isolate_type : int
        The kernel's number of the migratetype "isolate": 4, or 5 with CONFIG_CMA.
    page_size : int
        Bytes.
    """

    operations: NDArray[np.void]
    free: NDArray[np.bool_]
    zones: NDArray[np.void]
    blocks: NDArray[np.void]
    types: NDArray[np.uint8]
    resident: NDArray[np.bool_] | None
    name: str
    begin: int
    granule_order: int
    max_order: int
    pageblock_order: int
    isolate_type: int
    page_size: int

    @classmethod
    def of(
        cls,
        operations: Operations | NDArray[np.void],
        free: NDArray[np.bool_],
        *,
        zones: NDArray[np.void] | None = None,
        blocks: NDArray[np.void] | None = None,
        types: NDArray[np.uint8] | None = None,
        resident: NDArray[np.bool_] | None = None,
        name: str = "recording",
        begin: int | str | None = None,
        granule_order: int | None = None,
        max_order: int = 10,
        pageblock_order: int = 9,
        isolate_type: int = 4,
        page_size: int = 4096,
    ) -> Self:
        """Make a recording of what is known, and defaults.

        Parameters
        ----------
        operations, free, resident, name, max_order, pageblock_order, isolate_type, page_size
            As the attributes.
        granule_order : int, optional
            By default that of a pageblock, as Linux reports these and more, or the least that the recorded kernel has
            reported, if that is less: its `page_reporting_order` was set so.
        zones : ndarray of `ZONE_DTYPE`, optional
            By default one, of all pages, with watermarks of zero.
        blocks : ndarray of `LISTED_DTYPE`, optional
            Smaller blocks than a granule are passed over. By default the lists have the free blocks by address, with
            their pageblocks' types: whatever depends on their order is a guess then.
        types : ndarray of uint8, optional
            By default all are movable.
        begin : int or str, optional
            Nanoseconds, or a part of a mark's text: the first such mark of `operations`. By default the time of the
            first operation.

        Raises
        ------
        BadPageError
            If the arrays do not fit together.
        ValueError
            If an order is out of range, or no mark has the text.
        """
        table = operations.table if isinstance(operations, Operations) else operations
        if table.dtype != OPERATION_DTYPE or table.ndim != 1:
            raise TypeError(f"operations must be one-dimensional and of OPERATION_DTYPE, not {table.dtype}")
        if granule_order is None:
            isolated = table["order"][table["op"] == Operation.ISOLATE]
            granule_order = int(isolated.min(initial=pageblock_order))
        _check_orders(granule_order, pageblock_order, max_order)
        _check_resident(resident, free)
        if zones is None:
            zones = np.array([(0, max(len(free), 1), len(free), 0, 0)], ZONE_DTYPE)
        if types is None:
            types = np.ones((len(free) >> pageblock_order) + 1, np.uint8)
        if blocks is None:
            blocks = blocks_by_address(free, types, granule_order, max_order, pageblock_order)
        return cls(
            table, free, zones, blocks[blocks["order"] >= granule_order], types, resident, name,
            begin_of(operations, begin), granule_order, max_order, pageblock_order, isolate_type, page_size,
        )  # fmt: skip

    @classmethod
    def of_snapshot(cls, operations: Operations, snapshot: Snapshot, **options: Any) -> Self:
        """Make a recording that begins with a snapshot.

        Parameters
        ----------
        operations : Operations
            What happened from the moment of the snapshot on.
        snapshot : Snapshot
            With the kernel's free lists if somebody has looked there; without them their order is a guess.
        **options
            As `of` has them: `begin`, `granule_order`, `name`, or what the snapshot is wrong about.

        Raises
        ------
        SnapshotError
            If the snapshot does not say which pages are free.
        """
        pages = snapshot.known_pages()
        bits = np.unpackbits(snapshot.free_bitmap().view(np.uint8), bitorder="little")
        free = np.zeros(len(pages), bool)
        free[: len(bits)] = bits[: len(pages)]
        names = snapshot.migratetype_names
        known: dict[str, Any] = {
            "zones": np.array([(zone.start_pfn, zone.end_pfn, zone.managed_pages, *zone.watermarks[:2])
                               for zone in snapshot.zones], ZONE_DTYPE),
            "blocks": None if snapshot.free_lists is None else in_list_order(snapshot.free_lists),
            "types": snapshot.pageblocks,
            "resident": None if snapshot.resident is None else snapshot.resident == 1,
            "isolate_type": names.index("Isolate") if "Isolate" in names else 4,
            "max_order": snapshot.max_page_order,
            "pageblock_order": snapshot.pageblock_order,
            "page_size": snapshot.page_size,
        }  # fmt: skip
        return cls.of(operations, free, **(known | options))

    @cached_property
    def begin_position(self) -> int:
        """How many operations had happened when policies are switched on."""
        return int(np.searchsorted(self.operations["time"], self.begin, side="left"))

    @cached_property
    def end(self) -> int:
        """Nanoseconds: the time of the last operation."""
        return max(self.begin, int(self.operations["time"][-1])) if len(self.operations) else self.begin

    @cached_property
    def intervals(self) -> Intervals:
        """When each granule was entirely free."""
        return granule_intervals(self.operations, self.free, granule_order=self.granule_order, begin=self.begin)

    @cached_property
    def free_words(self) -> NDArray[np.uint64]:
        """`free`, a bit a page."""
        return packed(np.asarray(self.free), self.granule_order)

    @cached_property
    def charged_words(self) -> NDArray[np.uint64]:
        """`resident`, a bit a page."""
        everything = np.ones(len(self.free), bool)
        return packed(everything if self.resident is None else np.asarray(self.resident), self.granule_order)

    @cached_property
    def changes(self) -> NDArray[np.void]:
        """When granules became whole and were broken, in order: `CHANGE_DTYPE`."""
        table = self.intervals.table
        ended = table[table["end_position"] != OPEN]
        changes = np.zeros(len(table) + len(ended), CHANGE_DTYPE)
        for part, rows, time, whole in (
            (slice(0, len(table)), table, "start", True),
            (slice(len(table), None), ended, "end", False),
        ):
            changes["time"][part], changes["pfn"][part], changes["whole"][part] = rows[time], rows["pfn"], whole
        changes["position"][: len(table)] = table["start_position"]
        changes["position"][len(table) :] = ended["end_position"] + 1
        return changes[np.argsort(changes["position"], kind="stable")]

    @cached_property
    def charged_intervals(self) -> NDArray[np.bool_]:
        """For each interval, whether the host had memory behind any of it when it began: from the start, or by use."""
        table, order = self.intervals.table, self.granule_order
        granules = table["pfn"] >> order
        if self.resident is None:
            return np.ones(len(table), bool)
        nr_granules = len(self.free_words) * 64 >> order
        pages = np.zeros(nr_granules << order, bool)
        pages[: len(self.free)] = self.resident
        first_take = np.full(nr_granules, OPEN, np.uint32)
        positions = np.flatnonzero(
            (self.operations["op"] == Operation.TAKE) & (self.operations["pfn"] < nr_granules << order)
        )[::-1]  # so the first of a granule is written last
        first_take[self.operations["pfn"][positions] >> order] = positions
        for at in positions[self.operations["order"][positions] > order].tolist():
            row = self.operations[at]
            reach = slice(int(row["pfn"]) >> order, (int(row["pfn"]) + (1 << int(row["order"]))) >> order)
            first_take[reach] = np.minimum(first_take[reach], at)
        charged: NDArray[np.bool_] = np.logical_or.reduce(pages.reshape(nr_granules, 1 << order), axis=1)[granules]
        charged |= first_take[granules] < table["start_position"]
        return charged

    def save(self, folder: str | Path) -> None:
        """Write all of it into a folder, as arrays that `load` maps."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ARRAYS:
            if getattr(self, name) is not None:
                np.save(folder / f"{name}.npy", getattr(self, name))
        numbers = {name: getattr(self, name) for name in ("name", *NUMBERS)}
        (folder / "recording.json").write_text(json.dumps(numbers))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Map what `save` has written: processes that load one recording share its memory.

        Raises
        ------
        PageHintError
            If the folder does not hold a recording.
        """
        folder = Path(folder)
        try:
            return cls(**_saved_arrays(folder), **_saved_numbers(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PageHintError(f"{folder} holds no recording that Recording.save has written: {error}") from error


def _saved_arrays(folder: Path) -> dict[str, Any]:
    """Map the arrays of a folder; a ValueError if they are not those of a recording."""
    arrays: dict[str, Any] = {}
    for name, dtype in ARRAYS.items():
        path = folder / f"{name}.npy"
        arrays[name] = None if name == "resident" and not path.exists() else np.load(path, mmap_mode="r")
        if arrays[name] is not None and (arrays[name].dtype != dtype or arrays[name].ndim != 1):
            raise ValueError(f"{name} is {arrays[name].ndim}-dimensional of {arrays[name].dtype}")
    _check_resident(arrays["resident"], arrays["free"])
    return arrays


def _saved_numbers(folder: Path) -> dict[str, Any]:
    """Read the numbers of a folder; a ValueError if they cannot be those of a recording."""
    saved = json.loads((folder / "recording.json").read_text())
    numbers = {name: saved[name] for name in ("name", *NUMBERS)}
    for name in NUMBERS:
        if type(numbers[name]) is not int or not -(2**63) <= numbers[name] < 2**63:
            raise ValueError(f"{name} is {numbers[name]!r:.40}")
    if not isinstance(numbers["name"], str) or numbers["page_size"] <= 0:
        raise ValueError(f"its name is {numbers['name']!r:.40}, its page_size {numbers['page_size']}")
    _check_orders(numbers["granule_order"], numbers["pageblock_order"], numbers["max_order"])
    return numbers


def _check_orders(granule_order: int, pageblock_order: int, max_order: int) -> None:
    """Raise a ValueError for orders that no kernel has together."""
    check_order(granule_order)
    if not granule_order <= max_order < granule_order + 12 or not 0 <= pageblock_order <= max_order:
        raise ValueError(f"orders {granule_order}, {pageblock_order}, {max_order} of granule, pageblock, largest"
                         " block: out of range")  # fmt: skip


def _check_resident(resident: NDArray[np.bool_] | None, free: NDArray[np.bool_]) -> None:
    if resident is not None and len(resident) != len(free):
        raise BadPageError(f"{len(resident)} pages are said to be resident or not, but {len(free)} free or not")


def time_of_mark(operations: Operations | NDArray[np.void], text: str) -> int | None:
    """Return the time of the first mark, of those among the operations, with this in its text; None without one."""
    if not isinstance(operations, Operations):
        return None
    for row in operations.table[operations.table["op"] == Operation.MARK]:
        if int(row["pfn"]) < len(operations.marks) and text in operations.marks[int(row["pfn"])]:
            return int(row["time"])
    return None


def begin_of(operations: Operations | NDArray[np.void], begin: int | str | None) -> int:
    """Return a time given as such, by a mark, or not at all."""
    table = operations.table if isinstance(operations, Operations) else operations
    if isinstance(begin, str):
        time = time_of_mark(operations, begin)
        if time is None:
            texts = operations.marks if isinstance(operations, Operations) else []
            raise ValueError(f"no mark of the recording has {begin!r} in its text: {', '.join(texts) or 'it has none'}")
        return time
    if begin is not None:
        return int(begin)
    return int(table["time"][0]) if len(table) else 0


def in_list_order(lists: NDArray[np.void]) -> NDArray[np.void]:
    """Return a snapshot's free lists as `LISTED_DTYPE`. Zones do not overlap, so blocks of several may be mixed."""
    blocks = np.zeros(len(lists), LISTED_DTYPE)
    for column in LISTED_DTYPE.names or ():
        blocks[column] = lists[column]
    return blocks[np.argsort(lists["position"], kind="stable")]


def blocks_by_address(
    free: NDArray[np.bool_], types: NDArray[np.uint8], order: int, max_order: int, pageblock_order: int
) -> NDArray[np.void]:
    """Return the maximal free blocks of an order and more, by address."""
    nr_granules = len(free) >> order
    whole = np.logical_and.reduce(np.asarray(free)[: nr_granules << order].reshape(nr_granules, 1 << order), axis=1)
    found = []
    for of_block in range(max_order, order - 1, -1):
        unit = 1 << (of_block - order)
        of_units = whole[: len(whole) // unit * unit].reshape(-1, unit)
        for block in np.flatnonzero(of_units.all(axis=1)):
            pfn = int(block) << of_block
            found.append((pfn, of_block, min(int(types[pfn >> pageblock_order]), 2)))
            of_units[block] = False  # a view: what is in a larger block is in no smaller one
    return np.array(sorted(found), LISTED_DTYPE)
