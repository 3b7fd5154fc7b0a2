"""Real memory with an allocator over it, whose free blocks can be given back to the operating system."""

from __future__ import annotations

import math
import mmap
import operator
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np

from pagehint._core import PageAllocator, PageHintingCallbacks
from pagehint.arena.counts import Counts
from pagehint.arena.mapping import ADVICE, Block, Mapping
from pagehint.arena.status import ArenaStatus, free_by_granule
from pagehint.errors import HintingActiveError, HintingInactiveError, OutOfMemoryError, PageHintError
from pagehint.layout import ZoneSpec
from pagehint.sizes import format_size, parse_size, shown

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from pagehint.numpy.handler import NumpyHeap

HUGE_PAGE = 2 << 20


class Arena:
    """A mapping of this process, its pages handed out as arrays, and given back to the operating system when free.

    Parameters
    ----------
    size : str or int, optional
        Bytes, or a size such as "2GiB"; rounded up to 2 MiB. Costs nothing until it is used. Default: as much as this
        machine has memory.
    hugepages : bool, default True
        Back it with transparent huge pages where the kernel has them: touching memory and giving it back is about
        twenty times faster, in units of 2 MiB.

    Attributes
    ----------
    pages : PageAllocator
        The allocator over it: one zone "Arena", PFN 0 at the first byte, blocks up to the arena's size, granules
        of 2 MiB, no per-CPU page sets.
    hugepages : bool
        Whether huge pages are in use.

    Raises
    ------
    ValueError
        If the size is none, or more than 2**32 pages: 16 TiB where a page has 4 KiB.
    MemoryError
        If the kernel gives no such mapping.
    """

    _heap: NumpyHeap | None = None  # of memory that is this process's own only

    def __init__(self, size: str | SupportsIndex | None = None, hugepages: bool = True) -> None:
        page_size = mmap.PAGESIZE
        if size is None:
            size = os.sysconf("SC_PHYS_PAGES") * page_size
        nr_bytes = -(-parse_size(size) // HUGE_PAGE) * HUGE_PAGE
        most = page_size << 32
        if nr_bytes > most:
            raise ValueError(f"an arena has at most {format_size(most)}, not {shown(nr_bytes)} bytes")
        self._mapping = Mapping(nr_bytes, HUGE_PAGE, hugepages)
        self._limit: int | None = None
        self.hugepages = self._mapping.hugepages
        granule = (HUGE_PAGE // page_size).bit_length() - 1
        # High enough that one array can fill the arena.
        top = max((nr_bytes // page_size - 1).bit_length(), granule)
        self.pages = PageAllocator(
            [ZoneSpec("Arena", 0, nr_bytes // page_size)],
            page_size=page_size,
            max_page_order=top,
            min_order=granule,
            pcp=False,
        )
        self._mapping.adopt(self.pages)
        self._mapping.know_zeroes(self.pages)
        from pagehint.numpy.handler import NumpyHeap

        self._heap = NumpyHeap(self._mapping, self.pages)

    @property
    def size(self) -> int:
        """Bytes in all, used or not."""
        return self._mapping.nr_bytes

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return not self._mapping.open

    @property
    def live_arrays(self) -> int:
        """Arrays whose memory is in the arena and in use, NumPy's own and its buffers included."""
        return self._mapping.live_arrays + (self._heap.live if self._heap is not None else 0)

    @property
    def numpy_counts(self) -> Counts:
        """What NumPy has asked this arena for, in contexts of `numpy` and while it was installed."""
        return Counts(*self._heap.counts()) if self._heap is not None else Counts()

    @property
    def resident_bytes(self) -> int:
        """Bytes of the arena that are in memory at this moment, as the kernel counts them (mincore). O(size)."""
        self._require_open()
        return int(self._mapping.resident_pages().sum()) * self._mapping.page_size

    @property
    def populated_bytes(self) -> int:
        """Bytes that were made resident ahead of their first use, in all.

        Where somebody comes to an array of some granules (2 MiB) that are not in memory, from its beginning on, a
        thread of the process faults in what comes next, which takes the time of another CPU. Never more than 128 MiB
        ahead. The first 16 MiB come at once, if the last array that was followed was written to; of one that nobody
        touches no more, and of the next one nothing. Of one array at a time; not of arrays of zeros, not of what an
        array grows into, and not without huge pages, without a second CPU, or on Linux before 5.14.
        """
        return self._mapping.populated_bytes

    @property
    def limit(self) -> int | None:
        """Bytes at most in use or free and warm, that is, not given back; None, the default, for no limit.

        May be set at any time, as bytes or as a size such as "512MiB". While hinting is on, and the granules (2 MiB)
        that are not all free and those that are warm come to more than this, warm ones go back at once, whatever their
        age and however few they are: those at the lowest addresses, no more than need be, by a block. Enforced by the
        worker, just after the allocation or the free that goes over it (with ``workqueue="manual"`` in `run_pending`),
        if a batch is free. What is in use cannot be sent away, and no allocation is refused: the limit is on what is
        free.
        """
        return self._limit

    @limit.setter
    def limit(self, limit: str | SupportsIndex | None) -> None:
        self._require_open()
        nr_bytes = None if limit is None else parse_size(limit)
        self.pages.memory.set_limit(
            0, None if nr_bytes is None else min(nr_bytes, self.size) // self._mapping.page_size
        )
        self._limit = nr_bytes

    def address(self, pfn: SupportsIndex) -> int:
        """Return the address of a page's first byte."""
        self._require_open()
        number = operator.index(pfn)
        if not 0 <= number * self._mapping.page_size < self.size:
            raise ValueError(f"PFN {number:#x} is not in the arena of {format_size(self.size)}")
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

        Notes
        -----
        O(max_page_order) where a free block is large enough. Whole pages are used: no rounding to powers of two.
        """
        self._require_open()
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"an array of dtype {kind} holds Python objects, which cannot live in an arena")
        lengths = _lengths(shape)
        nr_bytes = math.prod(lengths) * kind.itemsize
        if nr_bytes > self.size:
            zone, nr_pages = self.pages.zones[0].name, self.size // self._mapping.page_size
            raise OutOfMemoryError(f"more contiguous pages than zone {zone} has ({nr_pages})")
        nr_pages = max(-(-nr_bytes // self._mapping.page_size), 1)
        pfn = self.pages.alloc_pages_exact(nr_pages)
        block = Block(self._mapping, self.pages, pfn, nr_pages, nr_bytes)
        return np.ndarray(lengths, kind, buffer=memoryview(block), order=order)

    def hinting(
        self, advice: str = "dontneed", *, max_pages: int | None = None, **options: Any
    ) -> AbstractContextManager[PageAllocator]:
        """Return a context manager in which free blocks are given back to the operating system.

        Parameters
        ----------
        advice : {"dontneed", "free"}
            "dontneed": at once, and pages come back zeroed. "free": when the system is short of memory; cheaper, but
            the pages count as resident until then.
        max_pages : int, optional
            Most blocks out at once, neighbours among them in one system call. None goes out while less than so many
            times 2 MiB is free. Default: 16; in an arena under 512 MiB, a sixteenth of it.
        **options
            Those of `PageAllocator.enable_hinting`: threshold, delay, min_age, max_report_order, mark_free, workqueue,
            clock. With ``min_age=1.0``, say, what a loop frees and uses again stays in memory.
        """
        if advice not in ADVICE:
            raise ValueError(f"advice must be one of {', '.join(ADVICE)}, not {advice!r}")
        self._require_open()
        if max_pages is None:
            max_pages = min(max(self.size // HUGE_PAGE // 16, 1), 16)
        callbacks = PageHintingCallbacks(self._mapping.advise_capsule(advice), max_pages)
        return _Hinting(self, self.pages.hinting(callbacks, **options))

    def numpy(self) -> AbstractContextManager[Arena]:
        """Return a context manager in which NumPy's new arrays have their memory from the arena (NEP 49).

        Requests of 64 KiB or more are runs of whole pages, not rounded to powers of two; smaller ones, and those for
        which there is no such run, are the C heap's as ever, and counted in `numpy_counts`.

        Raises
        ------
        PageHintError
            If the arena is a guest's RAM, which its host, and a forked child, would share.

        Notes
        -----
        The arrays live on after the context, the arena object and the thread, and the last of them frees the mapping.
        NumPy keeps its handler in a context variable: another thread, or task, has its own, and a new thread none. For
        the whole process there is `pagehint.numpy.install`. Closed in such a context, an arena serves nothing any more.
        """
        self._require_open()
        from pagehint.numpy.handler import NumpyContext

        return NumpyContext(self._require_heap(), self)

    def status(self) -> ArenaStatus:
        """Return what the arena holds, as figures and as a picture: used, free and warm, given back. O(size)."""
        self._require_open()
        arrays = self.live_arrays  # before there are some that this makes
        granule = HUGE_PAGE // self._mapping.page_size
        resident = self._mapping.resident_pages()
        stats = self.pages.stats()
        parts = []
        for zone in self.pages.zones:
            first = zone.start_pfn // granule
            free = free_by_granule(zone.free_blocks(), zone.start_pfn, zone.spanned_pages, granule)
            parts.append((free, resident[first : first + len(free)]))
        free, resident = map(np.concatenate, zip(*parts, strict=True))
        return ArenaStatus(
            size=self.size,
            arrays=arrays,
            hinting=self.pages.hinting_enabled,
            given_back=stats.pages_reported * stats.page_size,
            page_size=stats.page_size,
            used=granule - free,
            resident=resident,
        )

    def trim(self) -> int:
        """Give everything that is free back to the operating system, now, whether hinting is on or off.

        Returns
        -------
        int
            Bytes by which `resident_bytes` has fallen.

        Raises
        ------
        PageHintError
            If the system refuses some of it, as it does with locked memory. That stays as it is, and the rest has gone.
        HintingActiveError
            From inside a callback.

        Notes
        -----
        What goes back is whole granules, 2 MiB: free pages beside others in use stay. With hinting on this is
        `PageAllocator.flush_hinting`, with its advice, and nothing goes while less than a batch is free; with it off, a
        session of a moment, in which nobody else can enable it. O(size), most of it for counting resident pages.
        """
        self._require_open()
        before, stats = self.resident_bytes, self.pages.stats()
        while not (self._flush() or self._flush_once()):
            pass  # somebody has just switched hinting on, or off
        after = self.pages.stats()
        if (after.report_errors, after.prepare_errors) != (stats.report_errors, stats.prepare_errors):
            raise PageHintError(f"not everything was given back: {self.pages.last_error}") from self.pages.last_error
        return max(before - self.resident_bytes, 0)

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
            # Block by block: so nearly everything goes, as no more is out at once, and what is refused is alone.
            with self.hinting(max_pages=1, workqueue="manual", delay=None) as pages:
                pages.flush_hinting()
        except (HintingActiveError, HintingInactiveError):
            return False
        return True

    def close(self) -> None:
        """Stop hinting and give the whole mapping back. Nothing happens the second time.

        Raises
        ------
        PageHintError
            If there are arrays in it; the arena then stays as it is.
        """
        if self.closed:
            return
        # First of all, since stopping may take a while, in which others could make arrays.
        try:
            live = self._heap.retire() if self._heap is not None else 0
            live += self._mapping.retire() if live == 0 else self._mapping.live_arrays
            if live:
                arrays = "1 array" if live == 1 else f"{live} arrays"
                raise PageHintError(f"{arrays} in the arena still alive; delete them, and then close it")
            self.pages.disable_hinting()
            self._mapping.discard()
        except BaseException:
            self._mapping.reopen()
            if self._heap is not None and not self.closed:  # as it is when the memory has gone back already
                self._heap.reopen()
            raise

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except PageHintError:
            if exc_type is None:
                raise
            # The exception on its way holds the arrays, and matters more; the mapping goes when all of them have gone.
            self.pages.disable_hinting()

    def __repr__(self) -> str:
        if self.closed:
            return "<Arena, closed>"
        free = self.pages.stats().free_pages * self._mapping.page_size
        return (
            f"<Arena of {format_size(self.size)}: {format_size(free)} free,"
            f" {format_size(self.resident_bytes)} resident, {self.live_arrays} arrays>"
        )

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("the arena is closed")

    def _install(self) -> None:
        self._require_open()
        from pagehint.numpy.handler import install

        install(self._require_heap(), self)

    def _require_heap(self) -> NumpyHeap:
        if self._heap is None:
            raise PageHintError("NumPy's arrays cannot live in a guest's RAM: a forked child would share them")
        return self._heap


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


class _Hinting(AbstractContextManager[PageAllocator]):
    """What `Arena.hinting` returns."""

    def __init__(self, arena: Arena, context: AbstractContextManager[PageAllocator]) -> None:
        self._arena = arena
        self._context = context

    def __enter__(self) -> PageAllocator:
        pages = self._context.__enter__()
        # Not before: a close that begins after this will find hinting on and end it.
        if self._arena.closed:
            pages.disable_hinting()
            self._arena._require_open()
        return pages

    def __exit__(self, *exc_info: Any) -> None:
        self._context.__exit__(*exc_info)
