"""Make the n-th allocation of some work fail, for n = 1, 2, 3 ... until all succeed: what `test_nomemory.py` runs.

Each time the work must have ended in MemoryError or have been done; the allocator is then consistent and can be used,
and when it is gone, nothing is left of it.
"""

from __future__ import annotations

import _testcapi
import ctypes
import gc
import logging
import mmap
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pagehint as ph
from pagehint.virtio import SplitQueue

Step = Callable[[Any], object]


def callbacks() -> ph.PageHintingCallbacks:
    return ph.PageHintingCallbacks(lambda blocks: None, 2)


def hinting(workqueue: str) -> Callable[[], ph.PageAllocator]:
    def make() -> ph.PageAllocator:
        pages = ph.PageAllocator("16MiB")
        pages.enable_hinting(callbacks(), workqueue=workqueue, delay=None)
        return pages

    return make


def switch(workqueue: str, **options: float) -> Step:
    def work(pages: ph.PageAllocator) -> None:
        pages.enable_hinting(callbacks(), workqueue=workqueue, delay=None, **options)
        pages.disable_hinting()

    return work


def bulk(pages: ph.PageAllocator) -> None:
    try:
        pfns = pages.alloc_pages_bulk(1000)
        pages.free_pages_bulk(pfns)
    except MemoryError:
        # All or nothing: either the pages are still ours, or there never were any.
        if pages.drain_pcp() or pages.stats().allocated_pages:
            pages.free_pages_bulk(pfns)
        raise


def hotplug(pages: ph.PageAllocator) -> None:
    try:
        pages.online(32768, 32768)
    finally:
        if pages.stats().managed_pages > 32768:
            pages.offline(32768, 32768)


def arena(_: object) -> None:
    with ph.Arena("16MiB") as made, made.hinting(workqueue="manual"):
        array = made.empty(1000)
        array[:] = 1.0
        del array
        made.pages.flush_hinting()


# What there is before, what is done to it. Python's Thread.start waits for ever when a thread has no memory to begin
# with, so that with Python's own allocations failing no thread is started.
WORK: dict[str, tuple[Callable[[], Any], Step]] = {
    "build": (lambda: None, lambda _: ph.PageAllocator.x86_64("8GiB")),
    "enable": (lambda: ph.PageAllocator("16MiB"), switch("manual")),
    "enable with ages": (lambda: ph.PageAllocator("16MiB"), switch("manual", min_age=1.0)),
    "enable with a reserve": (lambda: ph.PageAllocator("16MiB"), switch("manual", reserve="4MiB")),
    "enable a thread": (lambda: ph.PageAllocator("16MiB"), switch("thread")),
    "bulk": (lambda: ph.PageAllocator("16MiB"), bulk),
    "flush": (hinting("manual"), lambda pages: pages.flush_hinting()),
    "larger batch": (hinting("manual"), lambda pages: (setattr(pages, "max_pages", 8), pages.flush_hinting())),
    "hotplug": (lambda: ph.PageAllocator("128MiB"), hotplug),
    "arena": (lambda: None, arena),
    "queue": (lambda: None, lambda _: SplitQueue(mmap.mmap(-1, 4096), 0, 8)),
}


class Modules:
    """Allocations of pagehint's own modules, which fail where `scarce.c` says."""

    def __init__(self, library: str) -> None:
        self.library = ctypes.CDLL(library)
        for function in (self.library.scarce_left, self.library.scarce_blocks, self.library.scarce_bytes):
            function.restype = ctypes.c_long
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, access, *_, path = line.split()
            if "x" in access and Path(ph.__file__).parent in Path(path).parents:
                self.library.scarce_watch(*(ctypes.c_size_t(int(end, 16)) for end in span.split("-")))

    def begin(self, n: int) -> None:
        self.library.scarce_fail(ctypes.c_long(n))

    def end(self) -> bool:
        """Whether it has failed."""
        failed = self.library.scarce_left() == 0
        self.library.scarce_fail(ctypes.c_long(-1))
        return failed

    def held(self) -> tuple[int, ...]:
        return self.library.scarce_blocks(), self.library.scarce_bytes()


class Python:
    """Allocations of Python's objects, as CPython's own tests let them fail."""

    def begin(self, n: int) -> None:
        _testcapi.set_nomemory(n, n + 1)

    def end(self) -> bool:
        """False: it does not say."""
        _testcapi.remove_mem_hooks()
        return False

    def held(self) -> tuple[int, ...]:
        return ()


def own() -> tuple[int, ...]:
    """What the process has: open files, threads, and kibibytes of address space."""
    gc.collect()
    status = Path("/proc/self/status").read_text().split("VmSize:")[1]
    files, tasks = (sum(1 for _ in Path("/proc/self", what).iterdir()) for what in ("fd", "task"))
    return files, tasks, int(status.split()[0])


def consistent(made: Any) -> None:
    if made is None:
        return
    made.verify()
    if made.hinting_enabled:
        made.flush_hinting()
        assert made.stats().hints_pending == 0
        made.disable_hinting()
    made.drain_pcp()
    made.verify()
    stats = made.stats()
    assert (stats.allocated_pages, stats.reporting_pages) == (0, 0), stats
    assert len(made.alloc_pages_bulk(stats.managed_pages)) == stats.managed_pages


def main(source: str, name: str, library: str = "") -> None:
    before, work = WORK[name]
    injector: Any = Modules(library) if source == "modules" else Python()
    logging.disable()
    warnings.simplefilter("ignore", RuntimeWarning)  # a context that memory lacked for entering
    for _ in range(3):  # what is made once: caches, and the record of a thread
        made = before()
        work(made)
        consistent(made)
        del made
    gc.collect()
    gc.freeze()  # what is there already is not looked through after each allocation
    base, held, failures, n, in_a_row = own(), injector.held(), 0, 0, 0
    # The places of Python's allocations vary a little with what is in its free lists: some passes in a row are the end.
    while in_a_row < (1 if source == "modules" else 20):
        n += 1
        assert n < 5000, "there is no end of it"
        made = before()
        error = None
        injector.begin(n)
        try:
            work(made)
        except MemoryError as raised:
            error = raised.with_traceback(None)
        except RuntimeError as raised:
            if str(raised) != "can't allocate lock":  # how threading.Lock says it
                raise
            error = raised.with_traceback(None)
        failed = injector.end()
        assert not isinstance(error, ph.OutOfMemoryError), error
        # What fails while blocks are out is kept, and they are tried again.
        failed = failed or error is not None or (made is not None and isinstance(made.last_error, MemoryError))
        failures += failed
        in_a_row = 0 if failed else in_a_row + 1
        consistent(made)
        del made, error
        gc.collect()
        assert injector.held() == held, f"allocation {n}: {injector.held()} held, {held} before"
        *now, space = own()
        assert now == [*base[:2]], f"allocation {n}: {now} files and threads, {base[:2]} before"
        # Lists that grow are less. CPython 3.11 leaks the arguments of a call for whose frame it has no memory, so that
        # an arena may be left over a few times; one at each of the hundreds of allocations would be much more.
        most = base[2] + ((256 if source == "python" else 64) << 10)
        assert space < most, f"allocation {n}: {space} KiB of address space, {base[2]} before"
        assert threading.active_count() == 1
    assert failures, "nothing failed"
    print(f"{name}: {failures} of {n - 1} failed, nothing left")


if __name__ == "__main__":
    main(*sys.argv[1:])
