"""An arena of this process's own memory, whose host is the operating system."""

from __future__ import annotations

import mmap
import weakref
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, SupportsIndex

from pagehint._core import PageHintingCallbacks
from pagehint.arena.base import HUGE_PAGE, BaseArena
from pagehint.arena.counts import Counts
from pagehint.arena.heap import ArenaHeap
from pagehint.arena.mapping import Mapping
from pagehint.available_memory import most_memory
from pagehint.layout import ZoneSpec
from pagehint.sizes import format_size, parse_size, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_living: dict[weakref.ref[Mapping], weakref.ref[Arena]] = {}


def living() -> list[tuple[Mapping, Arena | None]]:
    """Return the mappings of all arenas of this process, with the arena, unless only arrays in it have been left."""
    found = ((mapping(), arena()) for mapping, arena in list(_living.items()))
    return [(mapping, arena) for mapping, arena in found if mapping is not None]


class Arena(BaseArena):
    """A mapping of this process, its pages handed out as arrays, and given back to the operating system when free.

    Parameters
    ----------
    size : str or int, optional
        Bytes, or a size such as "2GiB"; rounded up to 2 MiB. Costs nothing until it is used, not even address space: it
        is opened in steps, and a limit of the process that refuses a step makes the arena as full as a smaller one.
        Default: as much as this process can come to have: the machine's memory; or the limit of its cgroup, or of one
        above it, or half of what its limits on address space and data (``ulimit -v``, ``ulimit -d``) leave now, if that
        is less.
    hugepages : bool, default True
        Back it with transparent huge pages where the kernel gives them: touching memory and giving it back is about
        twenty times faster, in units of 2 MiB.

    Attributes
    ----------
    pages : PageAllocator
        The allocator over it: one zone "Arena", PFN 0 at the first byte, blocks up to the arena's size, granules
        of 2 MiB, no per-CPU page sets. If the arena has more than 64 MiB, the zone has as many pages as are open, and
        grows.
    hugepages : bool
        Whether it has huge pages. False if the kernel has none or gives none to this process, which can be so for the
        machine (``transparent_hugepage/enabled``: never) and for the process (``PR_SET_THP_DISABLE``); as it was when
        the arena was made.

    Raises
    ------
    ValueError
        If the size is none, or more than 2**32 pages: 16 TiB where a page has 4 KiB.
    MemoryError
        If the kernel gives no such mapping.
    """

    _place = "in the arena"
    _max_batch = 16
    _of_process = True

    def __init__(self, size: str | SupportsIndex | None = None, hugepages: bool = True) -> None:
        page_size = mmap.PAGESIZE
        if size is None:
            size = max(most_memory() // HUGE_PAGE, 1) * HUGE_PAGE
        nr_bytes = -(-parse_size(size) // HUGE_PAGE) * HUGE_PAGE
        most = page_size << 32
        if nr_bytes > most:
            raise ValueError(f"an arena has at most {format_size(most)}, not {shown(nr_bytes)} bytes")
        mapping = Mapping(nr_bytes, HUGE_PAGE, hugepages)
        zone = ZoneSpec("Arena", 0, mapping.open_bytes // page_size, span_limit=nr_bytes // page_size)
        super().__init__(mapping, [zone])
        mapping.know_zeroes(self.pages)
        self._heap = ArenaHeap(mapping, self.pages)
        _living[weakref.ref(mapping, _living.pop)] = weakref.ref(self)

    @property
    def live_arrays(self) -> int:
        """Arrays whose memory is in the arena and in use, NumPy's own and its buffers included."""
        return super().live_arrays + self._heap.live

    @property
    def numpy_counts(self) -> Counts:
        """What NumPy has asked this arena for, in contexts of `numpy` and while it was installed."""
        return self._heap.counts()

    def numpy(self) -> AbstractContextManager[Arena]:
        """Return a context manager in which NumPy's new arrays have their memory from the arena (NEP 49).

        Requests of 64 KiB or more are runs of whole pages, not rounded to powers of two. The C heap serves smaller
        ones, as ever, and those for which there is no such run; `numpy_counts` counts all. (Where somebody else's
        handler was in force before, that serves them.)

        Raises
        ------
        ArenaClosedError
            If the arena is closed. If it is closed later, the C heap serves everything.
        PageHintError
            If the context is entered a second time, or left without having been entered.

        Warns
        -----
        RuntimeWarning
            If it is dropped without having been entered.

        Notes
        -----
        The arrays live on after the context, the arena object and the thread, and the last of them frees the mapping.
        For the whole process there is `pagehint.numpy.install`.

        *Threads, tasks and generators.* NumPy keeps its handler in a context variable. A new thread has none (but for
        Python's free-threaded build, where it takes over a copy); a task has a copy of what was entered where it was
        made. A generator has no context of its own: what it enters is in force in the code that runs it, also between
        its ``yield``s, until it is left. So two generators in one loop, each ``with arena.numpy(): yield``, are entered
        and left alternately, and the one that was entered last is in force.

        An arena is in force from the entering to the leaving, in the context where it was entered and in copies of
        that. It may be left in any order, and in another thread, task or context, also by the collector that closes a
        generator. From then on no new array is made in it, in whatever context; what is still entered stays in force;
        and somebody else's handler that was set in between stays where it is.

        *Memory profilers.* `tracemalloc` sees these arrays with their sizes, and the lines that made them, as NumPy
        reports them to it. memray and others that watch ``malloc`` and ``mmap`` see none of them: one mapping, as large
        as the arena, made where the arena was. What of it is in memory is in `status` and `resident_bytes`.
        """
        # Imported here, since what NumPy calls is built on arenas.
        from pagehint.numpy.handler import NumpyContext

        return NumpyContext(self._numpy_heap(), self)

    def _numpy_heap(self) -> ArenaHeap:
        self._require_open()
        return self._heap

    def _callbacks(self, advice: str, max_pages: int) -> PageHintingCallbacks:
        return self._mapping.callbacks(advice, max_pages)

    def _is_dropped(self, blocks: NDArray[np.void]) -> NDArray[np.bool_] | None:
        return self._mapping.is_dropped(blocks)

    def _retire(self) -> int:
        live = self._heap.retire()
        return live + (self._mapping.live_arrays if live else super()._retire())

    def _reopen(self) -> None:
        super()._reopen()
        if not self.closed:
            self._heap.reopen()
