"""What every arena does: it hands out the pages of a mapping as arrays, and gives free ones back to its host.

`Arena` does so with memory of this process, whose host is the operating system, and `pagehint.qemu.GuestArena` with the
RAM of a guest, whose host is QEMU.
"""

from __future__ import annotations

import math
import operator
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, SupportsIndex

import numpy as np

from pagehint._core import BLOCK_DTYPE, PageAllocator, PageHintingCallbacks, Zone, check_hinting
from pagehint.arena.counts import Counts
from pagehint.arena.heap import ArenaHeap
from pagehint.arena.mapping import ADVICE, Block, Mapping
from pagehint.arena.status import ArenaStatus, merged, used_by_granule
from pagehint.errors import (
    ArenaClosedError,
    HintingActiveError,
    HintingInactiveError,
    OutOfMemoryError,
    PageHintError,
)
from pagehint.hinting.context import HintingContext
from pagehint.layout import ZoneSpec
from pagehint.pressure.watcher import Pressure, heed, pressure_of
from pagehint.sizes import format_size, parse_size

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

HUGE_PAGE = 2 << 20


class BaseArena(ABC):
    """Memory that is mapped here, with an allocator over it.

    Parameters
    ----------
    mapping : Mapping
        The memory. Page 0 begins at its first byte.
    zones : sequence of ZoneSpec
        The parts of it that can be arrays, as far as they are open; their `span_limit` is all of it.

    Attributes
    ----------
    pages : PageAllocator
        The allocator over it: blocks up to the size of the largest zone, granules of 2 MiB, no per-CPU page sets.
    hugepages : bool
        Whether it has huge pages.
    """

    _place: ClassVar[str]  # where a page of it is, for messages
    _max_batch: ClassVar[int]  # blocks out at once, unless the arena is small
    _of_process: ClassVar[bool] = False  # it is memory of this process, so that it helps when that is short of memory

    def __init__(self, mapping: Mapping, zones: Sequence[ZoneSpec]) -> None:
        self._mapping = mapping
        self._limit: int | None = None
        self.hugepages = mapping.hugepages
        granule = (HUGE_PAGE // mapping.page_size).bit_length() - 1
        self._zones = zones
        self._most_pages = max(zone.span_limit for zone in zones)
        self.pages = PageAllocator(
            zones,
            page_size=mapping.page_size,
            # High enough that one array can fill a zone.
            max_page_order=max((self._most_pages - 1).bit_length(), granule),
            min_order=granule,
            pcp=False,
        )
        self.pages.memory.warm_pages = weakref.WeakMethod(self._warm_pages)
        self.pages.memory.came_back = weakref.WeakMethod(self._came_back)
        mapping.adopt(self.pages)
        self._size = sum(zone.span_limit for zone in zones) * mapping.page_size

    # -- what the kinds of arena have of their own

    @abstractmethod
    def numpy(self) -> AbstractContextManager[BaseArena]:
        """Return a context manager in which NumPy's new arrays have their memory from the arena."""

    @abstractmethod
    def _numpy_heap(self) -> ArenaHeap:
        """Return the heap that serves NumPy's requests."""

    @abstractmethod
    def _callbacks(self, advice: str, max_pages: int) -> PageHintingCallbacks:
        """Return callbacks that report to the arena's host."""

    # -- figures

    @property
    def size(self) -> int:
        """Bytes that can be arrays, used or not."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return not self._mapping.open

    @property
    def live_arrays(self) -> int:
        """Arrays whose memory is in the arena and in use, NumPy's own and its buffers included."""
        return self._mapping.live_arrays

    @property
    def numpy_counts(self) -> Counts:
        """What NumPy has asked this arena for, in contexts of `numpy` and while it was installed."""
        return Counts()

    @property
    def resident_bytes(self) -> int:
        """Bytes of the arena that are in memory at this moment, as the kernel counts them (mincore).

        Where the kernel does not say it, as in some sandboxes, what may be in memory, and a warning is logged once:
        everything but the granules (2 MiB) that were given back and not used since.

        What others make resident of free memory that was given back (mlockall, say) is not counted until the next
        `trim` or flush has found it.

        O(pages) of the granules that were used and not given back since.
        """
        self._require_open()
        _, pages, _ = self._mapping.resident()
        return int(pages.sum()) * self._mapping.page_size

    @property
    def populated_bytes(self) -> int:
        """Bytes that were made resident ahead of their first use, in all.

        When a thread writes to an array of several granules (2 MiB) that are not in memory, from its beginning on,
        another thread of the process faults in what comes next, which takes the time of another CPU. It is never more
        than 128 MiB ahead, nor than a sixteenth of what is left: of the machine's memory, and under the limits and high
        marks of the process's cgroup and those above it. With less than 64 MiB left, or if that cannot be read in /proc
        and /sys/fs/cgroup, nothing is done ahead.

        The first 16 MiB are made resident at once if the last array that was followed was written to. For an array that
        is never touched it stays at these, and for the next one nothing is done ahead. One array is followed at a time.
        Not followed are arrays of zeros and what an array grows into; and none is followed without huge pages, without
        a second CPU, on Linux before 5.14, and in a guest's RAM.
        """
        return self._mapping.populated_bytes

    def status(self) -> ArenaStatus:
        """Return what the arena holds, as figures and as a picture: used, free and warm, given back.

        O(pages) of the granules (2 MiB) in use, or used and not given back since.
        """
        self._require_open()
        arrays = self.live_arrays  # before this makes arrays itself
        granules, used, resident, estimated = self._occupancy()
        return ArenaStatus(
            size=self.size,
            arrays=arrays,
            hinting=self.pages.hinting_enabled,
            given_back=self._given_back_bytes(),
            page_size=self._mapping.page_size,
            granules=granules,
            used=used,
            resident=resident,
            estimated=estimated,
        )

    def _occupancy(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], bool]:
        """Return what holds anything: granules, their pages in use and in memory; and whether that is estimated.

        What waits in page sets is free.
        """
        self.pages.drain_pcp()
        granule = HUGE_PAGE // self._mapping.page_size
        places, pages, estimated = self._mapping.resident()
        columns = []
        before = 0  # granules in the zones so far: there may be a hole between them
        for zone in self.pages.zones:
            first, n = zone.start_pfn // granule, -(-zone.spanned_pages // granule)
            here = (places >= first) & (places < first + n)
            used_places, used = used_by_granule(zone.free_blocks(), zone.start_pfn, zone.spanned_pages, granule)
            numbers, *counts = merged(used_places, used, places[here] - first, pages[here].astype(np.int64))
            columns.append((numbers + before, *counts))
            before += n
        granules, used, resident = map(np.concatenate, zip(*columns, strict=True))
        return granules, used, np.maximum(used, resident) if estimated else resident, estimated

    def _given_back_bytes(self) -> int:
        """Return the bytes given back so far, that were in memory until then."""
        return self._mapping.given_back_bytes

    def _warm_pages(self) -> int:
        """Return the pages in memory of granules that are entirely free."""
        _, used, resident, _ = self._occupancy()
        return int(resident[used == 0].sum())

    @abstractmethod
    def _is_dropped(self, blocks: NDArray[np.void]) -> NDArray[np.bool_] | None:
        """Return which blocks the host has no memory for, or None where it does not say it."""

    def _came_back(self, zone: Zone) -> int:
        """Return how many granules were reported, and have memory again."""
        bits = np.unpackbits(zone.reported_bitmap().view(np.uint8), bitorder="little")
        granules = np.flatnonzero(bits)
        blocks = np.empty(len(granules), BLOCK_DTYPE)
        blocks["pfn"] = zone.hint_base_pfn + (granules << self.pages.min_order)
        blocks["order"], blocks["zone"] = self.pages.min_order, zone.index
        dropped = self._is_dropped(blocks)
        return 0 if dropped is None else int(np.count_nonzero(~dropped))

    # -- pages

    def address(self, pfn: SupportsIndex) -> int:
        """Return the address, in this process, of a page's first byte; ValueError if the page is not in the arena."""
        self._require_usable()
        number = operator.index(pfn)
        if not any(0 <= number - zone.start_pfn < zone.span_limit for zone in self._zones):
            raise ValueError(f"PFN {number:#x} is not {self._place} of {format_size(self.size)}")
        return self._mapping.address + number * self._mapping.page_size

    def empty(
        self, shape: SupportsIndex | Iterable[SupportsIndex], dtype: DTypeLike = float, order: Literal["C", "F"] = "C"
    ) -> NDArray[Any]:
        """Return a new array in the arena, its contents undefined; its pages are freed when it is collected.

        Parameters
        ----------
        shape : int or sequence of int
            As in `numpy.empty`.
        dtype : data-type, default float
            Any but those that hold Python objects.
        order : {"C", "F"}, default "C"
            Row-major or column-major.

        Raises
        ------
        OutOfMemoryError
            If no free run of pages is long enough.
        ValueError
            If a length is negative, or the order is another one: there is no array to keep that of.
        TypeError
            If the dtype holds Python objects, or the shape is none.
        ArenaClosedError
            If the arena is closed.

        Notes
        -----
        O(max_page_order) where a free block is large enough. Whole pages are used: no rounding to powers of two.
        """
        self._require_usable()
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"an array of dtype {kind} holds Python objects, which cannot live in an arena")
        if order is not None and (not isinstance(order, str) or order.upper() not in ("C", "F")):
            raise ValueError(f"order must be 'C' or 'F', not {order!r}")
        lengths = _lengths(shape)
        nr_bytes = math.prod(lengths) * kind.itemsize
        nr_pages = max(-(-nr_bytes // self._mapping.page_size), 1)
        if nr_pages > self._most_pages:
            zone = max(self._zones, key=lambda zone: zone.span_limit)
            raise OutOfMemoryError(f"more contiguous pages than zone {zone.name} has ({zone.span_limit})")
        pfn = self.pages.alloc_pages_exact(nr_pages)
        block = Block(self._mapping, self.pages, pfn, nr_pages, nr_bytes)
        return np.ndarray(lengths, kind, buffer=memoryview(block), order=order)

    # -- giving back

    @property
    def limit(self) -> int | None:
        """Bytes at most in use or free and warm, that is, not given back; None, the default, for no limit.

        May be set at any time, as bytes or as a size such as "512MiB". While hinting is on, and the granules (2 MiB)
        that are not all free and those that are warm come to more than the limit, warm ones go back at once, whatever
        their age and however few they are: those at the lowest addresses, and only as many blocks as it takes. The
        worker enforces it, just after the allocation or the free that goes over it (with ``workqueue="manual"`` in
        `PageAllocator.run_pending`), if a batch is free. What is in use cannot be sent away, and no allocation is
        refused: only free memory goes.

        A guest's RAM of more than 3 GiB has two zones; the limit is on what both keep together.
        """
        return self._limit

    @limit.setter
    def limit(self, limit: str | SupportsIndex | None) -> None:
        self._require_usable()
        nr_bytes = None if limit is None else parse_size(limit)
        self.pages.memory.set_limit(None if nr_bytes is None else min(nr_bytes, self.size) // self._mapping.page_size)
        self._limit = nr_bytes

    @property
    def pressure(self) -> Pressure:
        """What is known of memory pressure: whether this arena heeds it, whether memory is short, who says so.

        With ``pressure=True`` in `enable_hinting` or `hinting`, and by default with `pagehint.numpy.install`, what is
        free goes back at once while memory is short, whatever its age: `min_age`, `reserve`, `threshold` and `delay` do
        not count, and a `limit` is nothing. That is so from an alarm of the kernel's on until none has come for 5
        seconds.

        Alarms are: the tasks of this process's cgroup have waited for memory for 0.2 seconds of 2 (PSI); those of the
        machine have, and less than an eighth of its memory is left; the cgroup, or one above it, has gone over its
        limit or high mark, and without files' cached pages less than an eighth is left. In a cgroup of version 1: less
        than an eighth is left, or the kernel finds little to reclaim. Each is there if the kernel, or who made the
        container, offers it; `refused` says in words which are not.

        A thread of the process waits for them. It does nothing until one comes. What is watched is looked up when the
        first arena heeds it; in a forked child when its worker begins.
        """
        return pressure_of(self.pages.memory)

    def _heed(self, on: bool) -> None:
        """Heed memory pressure from now on, or not any more."""
        heed(self.pages.memory, on)

    def hinting(
        self, advice: str = "dontneed", *, max_pages: int | None = None, pressure: bool = False, **options: Any
    ) -> AbstractContextManager[PageAllocator]:
        """Return a context manager in which free blocks are given back to the host: `enable_hinting` until its end.

        All arguments are checked here. If it is dropped without having been entered, there is a RuntimeWarning.

        Parameters
        ----------
        advice, max_pages, pressure, **options
            As for `enable_hinting`.

        Raises
        ------
        ValueError, TypeError, BadPageError
            As `enable_hinting`.
        HintingActiveError
            When it is entered, if hinting is on already.
        ArenaClosedError
            If the arena is closed, or is when it is entered.
        """
        callbacks = self._checked_callbacks(advice, max_pages, pressure)
        check_hinting(self.pages, callbacks, **options)
        return HintingContext(
            self.pages,
            lambda: self._enable(callbacks, pressure, options),
            self.pages.disable_hinting,
            "arena.hinting()",
        )

    def enable_hinting(
        self, advice: str = "dontneed", *, max_pages: int | None = None, pressure: bool = False, **options: Any
    ) -> None:
        """Begin to give free blocks back to the host, until `disable_hinting`, `close`, or the end of the arena.

        Parameters
        ----------
        advice : {"dontneed", "free"}
            "dontneed": the pages go at once, and come back zeroed. "free": they go when the system is short of memory;
            cheaper, but they count as resident until then. A guest's arena takes "dontneed" only.
        max_pages : int, optional
            Most blocks out at once, neighbours among them in one system call. None goes out while less than so many
            times 2 MiB is free. Default: 16, in a guest's RAM 32; but at most a sixteenth of the arena's granules.
        pressure : bool, default False
            Keep nothing warm while memory is short, see `pressure`. For memory of this process only.
        **options
            Those of `PageAllocator.enable_hinting`: threshold, delay, min_age, cost, reserve, reserve_age,
            max_report_order, mark_free, workqueue, clock. With ``min_age=1.0``, say, what a loop frees and uses again
            stays in memory; with ``min_age="auto"`` for as long as it has learnt that it should; with
            ``reserve="64MiB"`` so much of it, at the lowest addresses, for 1.5 seconds.

        Raises
        ------
        HintingActiveError
            If hinting is on already.
        ValueError, TypeError, BadPageError
            If an argument is out of range, not of its type, or unknown.
        ArenaClosedError
            If the arena is closed.

        Notes
        -----
        Hinting runs on a thread of this process (but with ``workqueue="manual"``), and some system calls refuse a
        process with more than one: ``unshare(CLONE_NEWUSER)`` and ``setns`` into a user namespace fail with EINVAL, as
        they do beside any other thread, such as those of NumPy's BLAS. Make such calls before, or after
        `disable_hinting`; but the thread that `pressure` needs stays until the process ends.
        """
        self._enable(self._checked_callbacks(advice, max_pages, pressure), pressure, options)

    def disable_hinting(self) -> None:
        """Stop giving free blocks back; do nothing if hinting is off.

        Raises
        ------
        HintingActiveError
            From inside a callback, whose end it would wait for.
        """
        self.pages.disable_hinting()

    def _checked_callbacks(self, advice: str, max_pages: int | None, pressure: bool) -> PageHintingCallbacks:
        if advice not in ADVICE:
            raise ValueError(f"advice must be one of {', '.join(ADVICE)}, not {advice!r}")
        if pressure and not self._of_process:
            raise ValueError("pressure is for memory of this process, and that of a guest is its host's")
        self._require_usable()
        if max_pages is None:
            max_pages = min(max(self.size // HUGE_PAGE // 16, 1), self._max_batch)
        return self._callbacks(advice, max_pages)

    def _enable(self, callbacks: PageHintingCallbacks, pressure: bool, options: dict[str, Any]) -> None:
        self.pages.enable_hinting(callbacks, **options)
        if pressure:
            with suppress(HintingInactiveError):  # another thread has disabled it already
                self._heed(True)
        # The check comes last: a close that begins after it finds hinting on, and ends it.
        if self.closed:
            self.pages.disable_hinting()
            self._require_open()

    def trim(self) -> int:
        """Give everything that is free back to the host, now, whether hinting is on or off.

        Returns
        -------
        int
            Bytes that were in memory, and are not any more: none with advice "free", as these go when the system wants
            them.

        Raises
        ------
        PageHintError
            If the host refuses some of it, as the system does with locked memory. That stays as it is, and the rest has
            gone.
        HintingActiveError
            From inside a callback.

        Notes
        -----
        What goes back is whole granules, 2 MiB: free pages beside others in use stay. With hinting on this is
        `PageAllocator.flush_hinting`, with its advice, and nothing goes while fewer than `max_pages` granules are free.
        What was given back before, and is in memory again because somebody read or locked it, goes as well, where the
        host says so: mincore(2) for an `Arena`, with advice "dontneed"; the file that a guest's RAM is.
        With hinting off, hinting is on for a moment, and no other thread can enable it meanwhile. What the worker gives
        back during the call counts, too. O(granules that are free).
        """
        self._require_usable()
        before, stats = self._mapping.dropped_bytes, self.pages.stats()
        while not (self._flush() or self._flush_once()):
            pass  # another thread has just switched hinting on, or off
        after = self.pages.stats()
        if (after.report_errors, after.prepare_errors) != (stats.report_errors, stats.prepare_errors):
            raise PageHintError(f"not everything was given back: {self.pages.last_error}") from self.pages.last_error
        return self._mapping.dropped_bytes - before

    def _flush(self) -> bool:
        """Flush, if hinting is on; returns whether it was."""
        try:
            self.pages.flush_hinting()
        except HintingInactiveError:
            return False
        return True

    def _flush_once(self) -> bool:
        """Flush in a session of its own, if hinting is off; returns whether it was."""
        try:
            # Block by block: nearly everything goes, as only one is out at once, and a block that is refused is alone.
            with self.hinting(max_pages=1, workqueue="manual", delay=None) as pages:
                pages.flush_hinting()
        except (HintingActiveError, HintingInactiveError):
            return False
        return True

    # -- its end

    def close(self) -> None:
        """Stop hinting and give the whole mapping back. Nothing happens the second time.

        Raises
        ------
        PageHintError
            If there are arrays in it; the arena then stays as it is.
        """
        if self.closed:
            return
        # No arrays from here on: hinting may take a while to stop, and other threads could make arrays meanwhile.
        try:
            live = self._retire()
            if live:
                arrays = "1 array" if live == 1 else f"{live} arrays"
                raise PageHintError(f"{arrays} in the arena still alive; delete them, and then close it")
            self.pages.disable_hinting()
            self._mapping.discard()
        except BaseException:
            self._reopen()
            raise

    def _retire(self) -> int:
        """Have no arrays from now on, unless there are some; returns how many there are."""
        return self._mapping.retire()

    def _reopen(self) -> None:
        """Have arrays again, unless the memory has gone back already."""
        self._mapping.reopen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except PageHintError:
            if exc_type is None:
                raise
            # The exception that ends the block may hold the arrays, and matters more. The last array frees the mapping.
            self.pages.disable_hinting()

    def __repr__(self) -> str:
        name = type(self).__name__
        if self.closed:
            return f"<{name}, closed>"
        free = self.size - self.pages.stats().allocated_pages * self._mapping.page_size
        return (
            f"<{name} of {format_size(self.size)}: {format_size(free)} free,"
            f" {format_size(self.resident_bytes)} resident, {self.live_arrays} arrays>"
        )

    def _require_open(self) -> None:
        if self.closed:
            raise ArenaClosedError("the arena is closed")

    def _require_usable(self) -> None:
        """Raise unless the arena is open, and this process may use its pages."""
        self._require_open()


def _lengths(shape: Any) -> tuple[int, ...]:
    """Return a shape as NumPy reads it, an integer or several."""
    lengths: tuple[int, ...]
    try:
        lengths = (operator.index(shape),)
    except TypeError:
        try:
            lengths = tuple(map(operator.index, shape))
        except TypeError:
            raise TypeError(f"shape must be an integer or a sequence of integers, not {shape!r}") from None
    if any(length < 0 for length in lengths):
        raise ValueError(f"negative dimensions are not allowed: {lengths}")
    return lengths
