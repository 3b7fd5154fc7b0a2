"""A host that is real: QEMU, its balloon's driver, and an arena over its guest's RAM."""

from __future__ import annotations

import atexit
import operator
import os
import threading
import weakref
from contextlib import nullcontext
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, SupportsIndex

import numpy as np

from pagehint._core import PageAllocator, PageHintingCallbacks
from pagehint.arena.arena import HUGE_PAGE, Arena
from pagehint.arena.mapping import Mapping
from pagehint.errors import HostError, PageHintError
from pagehint.layout import ZoneSpec
from pagehint.qemu.process import Discards, QemuProcess, find_qemu
from pagehint.qemu.ram import DRIVER, FREE, PAGE_SIZE, GuestRam, Part
from pagehint.sizes import format_size, parse_size
from pagehint.virtio import Balloon, Qtest, VirtioPci
from pagehint.virtio.balloon import DEVICE_ID, POISON
from pagehint.virtio.undisturbed import undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from numpy.typing import DTypeLike, NDArray

    from pagehint.qemu.monitor import Monitor


_FORKED: Final = "the guest's RAM and its QEMU belong to the process that this one was forked from"


def _end(process: QemuProcess, monitor: Monitor | None) -> None:
    """End QEMU and the connections to it; in a forked child, which has no such threads, only its copies of them."""
    try:
        process.kill()
        if process.owned and monitor is not None:
            monitor.close()
    finally:
        process.close_sockets()


def _forgotten(process: QemuProcess, monitor: Monitor) -> None:
    """End the same without a wait: a collection may come on any thread, also on those that would be waited for."""
    if process.owned:
        process.send_kill()
        monitor.stop()
    process.close_sockets()


_hosts: weakref.WeakSet[Host] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """Close hosts that nobody closed, hinting first: the worker shall not find QEMU gone."""
    for host in list(_hosts):
        try:
            host.close()
        except BaseException:  # it has no one to go to, and all of them are to end
            host._if_forgotten()


class Host:
    """QEMU with a guest that is played from here: its RAM is ours to use, and what is reported to it, it discards.

    Parameters
    ----------
    memory : str or int, default "1GiB"
        The guest's RAM, in whole units of 2 MiB; costs nothing until it is used.
    qemu : str or path, optional
        QEMU for x86-64 machines. Default: ``qemu-system-x86_64`` from the path.
    reporting : bool, default True
        Whether its balloon offers free page reporting.
    poison : bool, default False
        Tell it that free pages hold a poison value, as a Linux guest with ``page_poison=1`` does. QEMU then ignores
        every report, so `callbacks` refuses.
    timeout : float, default 10.0
        Seconds until QEMU is taken for hung.

    Attributes
    ----------
    balloon : pagehint.virtio.Balloon
        The driver of its balloon; pages for `Balloon.inflate` are those of `arena`.
    ram : pagehint.qemu.ram.GuestRam
        The guest's RAM.

    Raises
    ------
    HostError
        If QEMU is not installed, or does not start.
    ImportError
        Without the extra "qemu".

    Notes
    -----
    The processor of the machine is halted for ever by a firmware of four bytes. QEMU ends with `close`, with the
    ``with`` block, when this is collected, and with this process; also when that is killed, where there is `setpriv`
    (of util-linux). Nothing of it is in the file system.

    A forked child shares the guest's RAM with its parent, and has no QEMU: it can read the arrays, and not make any.
    """

    def __init__(
        self,
        memory: str | SupportsIndex = "1GiB",
        qemu: str | os.PathLike[str] | None = None,
        reporting: bool = True,
        poison: bool = False,
        timeout: float = 10.0,
    ) -> None:
        try:
            import_module("qemu.qmp")
        except ImportError:
            raise ImportError("QEMU's monitor needs the package qemu.qmp: pip install 'pagehint[qemu]'") from None
        if not 0 < timeout < threading.TIMEOUT_MAX / 4:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
        self._binary = find_qemu(qemu)
        self._reporting, self._poison, self._timeout = reporting, poison, timeout
        self.ram = GuestRam(parse_size(memory))
        self._lock = threading.Lock()  # starting and ending
        self._closed = False
        try:
            self._arena = GuestArena(self)
            undisturbed(self._start)
        except BaseException:
            if hasattr(self, "_if_forgotten"):  # an interrupt, once it had started
                self._if_forgotten()
            self.ram.close()
            raise

    def _start(self) -> None:
        """Start QEMU, and its balloon."""
        from pagehint.qemu.monitor import Monitor

        process = QemuProcess(self._binary, self.ram, self._reporting)
        monitor = None
        try:
            qtest = Qtest(process.qtest, self._timeout)
            monitor = Monitor(process.qmp, self._timeout)
            self.balloon = Balloon(
                VirtioPci(qtest, DEVICE_ID, timeout=self._timeout),
                self.ram.driver_memory,
                DRIVER,
                fence=process.kill,
                pages=self._arena.pages,
                poison=POISON if self._poison else None,
                timeout=self._timeout,
            )
        except BaseException as error:
            ended = not process.running
            _end(process, monitor)
            if isinstance(error, HostError) and ended and process.said:
                raise HostError(f"QEMU did not start: {process.said}") from None
            raise
        self._process, self._monitor = process, monitor
        self._if_forgotten = weakref.finalize(self, _forgotten, process, monitor)
        self._if_forgotten.atexit = False  # at exit hinting ends first: _at_exit
        _hosts.add(self)

    def _stop(self) -> None:
        _end(self._process, self._monitor)
        self._if_forgotten.detach()

    # -- the guest

    def arena(self) -> GuestArena:
        """Return the arena over the guest's RAM, without its first 2 MiB: a PC's own things and the driver's."""
        return self._arena

    def callbacks(self, max_pages: int = 32) -> PageHintingCallbacks:
        """Return callbacks that report to this host over its balloon's reporting queue.

        Parameters
        ----------
        max_pages : int, default 32
            Most blocks out at once; neighbours are one range of a report.

        Raises
        ------
        HostError
            If the host would ignore reports: it does not offer them, or has been told of a poison value.

        Notes
        -----
        A block counts as reported if afterwards the host has no memory for it, and as failed, to be hinted again, if it
        still has some: the device itself does not say. After `restart` they report to the new QEMU. They do not keep
        the host: once it is collected, reports fail.
        """
        self._require_open()
        if not self._reporting:
            raise HostError("this host was started with reporting=False: it would take no report")
        if self._poison:
            raise HostError("this host was started with poison=True: QEMU ignores reports of poisoned pages")
        host = weakref.ref(self)

        def report_to_host(blocks: NDArray[np.void]) -> NDArray[np.bool_]:
            there = host()
            if there is None:
                raise HostError("the host is gone: it has been collected")
            return there._report(blocks)

        return PageHintingCallbacks(report_to_host, max_pages)

    def _report(self, blocks: NDArray[np.void]) -> NDArray[np.bool_]:
        self._require_open()
        starts = blocks["pfn"] * np.uint64(PAGE_SIZE)
        lengths = np.uint64(PAGE_SIZE) << blocks["order"].astype(np.uint64)
        out = self._arena.pages.memory.reporting_pages * PAGE_SIZE
        if lengths.sum() > out:
            raise ValueError(
                f"blocks from PFN {blocks['pfn'][0]:#x} on are of another allocator than this host's arena"
            )
        # Neighbours in one range: the host discards them in one call.
        first = np.flatnonzero(np.append(True, starts[1:] != starts[:-1] + lengths[:-1]))
        self.balloon.report(starts[first].tolist(), np.add.reduceat(lengths, first).tolist())
        return np.array(
            [
                self.ram.is_dropped(start, nr_bytes)
                for start, nr_bytes in zip(starts.tolist(), lengths.tolist(), strict=True)
            ]
        )

    # -- the host

    @property
    def resident_bytes(self) -> int:
        """Bytes of the guest's RAM that the host has memory for; 2 MiB at most of it are the driver's."""
        self._require_open()
        return self.ram.resident_bytes

    @property
    def discards(self) -> Discards:
        """What QEMU, since it was started, has traced of its discards."""
        return self._process.discards

    @property
    def process(self) -> QemuProcess:
        """QEMU's process: its ID, its resident memory, what it said."""
        return self._process

    @property
    def running(self) -> bool:
        """Whether QEMU runs."""
        return not self._closed and self._process.running

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command of QEMU's monitor, such as ``host.qmp("query-balloon")``; returns what it returns.

        Parameters
        ----------
        command : str
            Its name; QEMU's manual has them all.
        **arguments
            The command's. A hyphen in a name is written as an underscore.

        Raises
        ------
        HostError
            If QEMU has gone, or refuses it.
        """
        self._require_open()
        return self._monitor.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def events(self) -> list[dict[str, Any]]:
        """Return the monitor's events since last asked, oldest first."""
        self._require_open()
        return self._monitor.events()

    # -- its life

    def restart(self) -> None:
        """Start QEMU anew over the same RAM, after the old one has ended; a running one is ended.

        The arena, its arrays, hinting and callbacks stay; what could not be reported is reported to the new one. The
        balloon is empty.

        Raises
        ------
        HostError
            If it does not start; `restart` may be called again.
        """
        self._require_open()
        undisturbed(self._restart)

    def _restart(self) -> None:
        with self._lock:
            self._require_open()
            self._stop()
            self.balloon.forget()
            self._start()

    def close(self) -> None:
        """End hinting and QEMU. Arrays in the guest's RAM live on; nothing happens the second time.

        Raises
        ------
        HintingActiveError
            From inside a callback of the engine.
        """
        if self._closed:
            return
        if self._process.owned:
            self._arena.pages.disable_hinting()  # outside the lock, which a report under way may wait for
            undisturbed(self._close)
        else:
            self._close()

    def _close(self) -> None:
        # In a forked child whoever had the lock is not there to let go of it.
        with self._lock if self._process.owned else nullcontext():
            if not self._closed:
                self._closed = True  # whatever is reported from now on is refused
                self._stop()
                if self._process.owned:
                    self.balloon.forget()
                self.ram.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return "<Host, closed>"
        state = f"QEMU {self._process.pid}" if self.running else "QEMU gone"
        state += "" if self._process.owned else " of another process"
        return f"<Host of {format_size(self.ram.nr_bytes)}: {state}, {format_size(self.ram.resident_bytes)} resident>"

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the host is closed")
        if not self._process.owned:
            raise PageHintError(_FORKED)


class GuestArena(Arena):
    """The RAM of a guest as an arena: page frame numbers are the guest's, and what is free goes back to its host.

    Made by `Host.arena`.

    Attributes
    ----------
    pages : PageAllocator
        Zone "DMA32" from 2 MiB to the hole for devices, at 3 GiB; zone "Normal" from 4 GiB, where there is so much.
    """

    def __init__(self, host: Host) -> None:
        self._host = weakref.ref(host)
        self._ram = host.ram
        self._pid = os.getpid()
        end = host.ram.parts[-1].address + host.ram.parts[-1].nr_bytes
        self._mapping = Mapping(end, HUGE_PAGE, False, host.ram.fd, host.ram.parts)
        self.hugepages = False
        parts = [Part(FREE, FREE, host.ram.parts[0].nr_bytes - FREE), *host.ram.parts[1:]]
        most = max(part.nr_bytes for part in parts) // PAGE_SIZE
        self.pages = PageAllocator(
            [
                ZoneSpec(name, part.address // PAGE_SIZE, part.nr_bytes // PAGE_SIZE)
                for name, part in zip(("DMA32", "Normal"), parts, strict=False)
            ],
            page_size=PAGE_SIZE,
            max_page_order=(most - 1).bit_length(),
            pcp=False,
            min_order=(HUGE_PAGE // PAGE_SIZE).bit_length() - 1,
        )
        self._mapping.adopt(self.pages)

    @property
    def size(self) -> int:
        """Bytes of the guest's RAM that can be arrays."""
        return self._ram.nr_bytes - FREE

    @property
    def resident_bytes(self) -> int:
        """Bytes of the guest's RAM that the host has memory for."""
        self._require_open()
        # O(1), as long as the host is open.
        return super().resident_bytes if self._ram.fd < 0 else self._ram.resident_bytes

    def address(self, pfn: SupportsIndex) -> int:
        """Return the address, in this process, of a page's first byte; ValueError where it is not RAM of the arena."""
        self._require_own()
        number = operator.index(pfn)
        if not any(zone.start_pfn <= number < zone.start_pfn + zone.spanned_pages for zone in self.pages.zones):
            raise ValueError(f"PFN {number:#x} is not RAM of this guest")
        self._require_open()
        return self._mapping.address + number * PAGE_SIZE

    def empty(
        self, shape: SupportsIndex | Iterable[SupportsIndex], dtype: DTypeLike = float, order: Literal["C", "F"] = "C"
    ) -> NDArray[Any]:
        """Return a new array in the guest's RAM; see `Arena.empty`."""
        self._require_own()
        return super().empty(shape, dtype, order)

    def _require_own(self) -> None:
        if os.getpid() != self._pid:
            raise PageHintError(_FORKED)

    def hinting(  # type: ignore[override]
        self, max_pages: int | None = None, **options: Any
    ) -> AbstractContextManager[PageAllocator]:
        """Return a context manager in which free blocks are reported to the host.

        Parameters
        ----------
        max_pages : int, optional
            Most blocks out at once. None goes out while less than so many times 2 MiB is free. Default: 32; in a guest
            under 1 GiB, a sixteenth of it.
        **options
            Those of `PageAllocator.enable_hinting`.
        """
        host = self._host()
        if host is None:
            raise HostError("the host of this arena is gone")
        self._require_open()
        if max_pages is None:
            max_pages = min(max(self.size // HUGE_PAGE // 16, 1), 32)
        return self.pages.hinting(host.callbacks(max_pages), **options)
