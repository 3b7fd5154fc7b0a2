"""A host that is real: QEMU, its balloon's driver, and an arena over its guest's RAM."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex

from pagehint._core import PageHintingCallbacks
from pagehint.errors import HintingActiveError, HostError
from pagehint.qemu.guest_arena import GuestArena
from pagehint.qemu.huge_pages import HUGE_PAGE, require_kind
from pagehint.qemu.process import Discards, QemuProcess, find_qemu, require_options
from pagehint.qemu.ram import DRIVER, PAGE_SIZE, GuestRam
from pagehint.sizes import format_size, parse_size
from pagehint.virtio.balloon import DEVICE_ID, POISON, Balloon
from pagehint.virtio.pci import VirtioPci
from pagehint.virtio.qtest import Qtest
from pagehint.virtio.timeout import require_timeout
from pagehint.virtio.undisturbed import undisturbed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pagehint.qemu.monitor import Monitor


def _end(process: QemuProcess, monitor: Monitor | None) -> None:
    """End QEMU and the connections to it; in a forked child, which has no such threads, only its copies of them."""
    try:
        process.kill()
        if process.owned and monitor is not None:
            monitor.close()
    finally:
        process.close_sockets()


def _end_soon(process: QemuProcess, monitor: Monitor) -> None:
    """End the same without a wait: a collection may happen on any thread, also on one that would be waited for."""
    if process.owned:
        process.send_kill()
        monitor.stop()
    process.close_sockets()


def _require_no_memory(driver: str) -> None:
    """Raise HostError if a device is more memory: it would be in no zone, and nothing of it ever reported."""
    if driver.startswith(_MEMORY):
        raise HostError(f"{driver}: the arena is the RAM that the guest began with, and memory cannot be added to it")


_MEMORY = ("dimm", "pc-dimm", "nvdimm", "virtio-mem", "virtio-pmem")  # devices, and how the monitor calls them
_hosts: weakref.WeakSet[Host] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """Close the hosts that are still open, hinting first, so that the worker does not find QEMU gone."""
    for host in list(_hosts):
        try:
            host.close()
        except BaseException:  # no caller is left to get it, and each QEMU must end
            host._end_soon()


class Host:
    """QEMU with a guest that is played from here: this process uses its RAM, and QEMU discards what is reported to it.

    Parameters
    ----------
    memory : str or int, default "1GiB"
        The guest's RAM, in whole units of 2 MiB; costs nothing until it is used.
    qemu : str or path, optional
        QEMU for x86-64 machines. Default: ``qemu-system-x86_64`` from the path.
    reporting : bool, default True
        Whether its balloon offers free page reporting.
    free_page_hint : bool, default False
        Whether it also offers free page hinting: `hint_free_pages` answers it during a migration.
    poison : bool, default False
        Tell it that free pages hold a poison value, as a Linux guest with ``page_poison=1`` does. QEMU then ignores
        every report, so `callbacks` refuses.
    timeout : float, default 10.0
        Seconds until QEMU counts as hung.
    options : sequence of str, default ()
        More options for QEMU's command line, after those that it is given here, such as
        ``["-device", "virtio-rng-pci"]``.
    hugepages : bool or {"2MiB", "thp"}, default False
        Have the guest's RAM in huge pages of 2 MiB, which the host drops many times faster: True or "2MiB" from the
        machine's pool (hugetlb), "thp" transparent ones, as far as the kernel has some.
    count_discards : bool, default True
        Have QEMU trace each discard, from which `discards` is counted: its own word, beside that of the kernel, which
        each report asks anyway. The line takes QEMU half as long as all else that it does for a huge page.

    Attributes
    ----------
    balloon : pagehint.virtio.Balloon
        The driver of its balloon; pages for `Balloon.inflate` are those of `arena`.
    ram : pagehint.qemu.ram.GuestRam
        The guest's RAM.

    Raises
    ------
    HostError
        If QEMU is not installed, or does not start; or if the machine has not so many huge pages. The message has the
        command that reserves them.
    ImportError
        Without the extra "qemu".

    Notes
    -----
    The processor of the machine is halted for ever by a firmware of four bytes. QEMU ends with `close`, with the
    ``with`` block, when this is collected, and with this process; also when that is killed, where there is `setpriv`
    (of util-linux). Nothing of it is in the file system.

    RAM from the pool is promised to the guest as a whole when it starts. What is reported goes back to the pool, for
    whoever wants it next, and `GuestArena.empty` asks the pool again. Pages that are taken from `GuestArena.pages`
    itself are to be asked for with ``host.ram.reserve``: to touch one that the pool does not have any more is a SIGBUS.
    It is one for QEMU, too, if it reads all RAM, as a dump or a migration does, when the pool is short.

    A forked child shares the guest's RAM with its parent, and has no QEMU: it can read the arrays, and not make any.
    """

    def __init__(
        self,
        memory: str | SupportsIndex = "1GiB",
        qemu: str | os.PathLike[str] | None = None,
        reporting: bool = True,
        poison: bool = False,
        timeout: float = 10.0,
        options: Sequence[str] = (),
        hugepages: bool | str = False,
        free_page_hint: bool = False,
        count_discards: bool = True,
    ) -> None:
        try:
            import_module("qemu.qmp")
        except ImportError:
            raise ImportError("QEMU's monitor needs the package qemu.qmp: pip install 'pagehint[qemu]'") from None
        require_timeout(timeout)
        self._options = require_options(options)
        if free_page_hint:
            # Last, since QEMU then knows the object and the device; its device needs a thread of its own for it.
            self._options += ["-object", "iothread,id=pagehint"]
            self._options += ["-set", "device.balloon.free-page-hint=on", "-set", "device.balloon.iothread=pagehint"]
        self._binary = find_qemu(qemu)
        self._reporting, self._poison, self._timeout = reporting, poison, timeout
        self._count_discards = count_discards
        self.ram = GuestRam(parse_size(memory), require_kind(hugepages))
        self._lock = threading.Lock()  # starting and ending
        self._closed = False
        self._finalizer: weakref.finalize[[QemuProcess, Monitor], Host] | None = None  # of the QEMU that runs
        try:
            self._arena = GuestArena(self.ram, self.callbacks)
            undisturbed(self._start)
        except BaseException:
            self._end_soon()  # it has started if this is an interrupt
            self.ram.close()
            raise

    def _start(self) -> None:
        """Start QEMU, and its balloon."""
        from pagehint.qemu.monitor import Monitor

        process = QemuProcess(self._binary, self.ram, self._reporting, self._options, self._count_discards)
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
                page_bytes=self.ram.page_bytes,
            )
            for device in monitor.execute("query-memory-devices", {}):
                _require_no_memory(device["type"])
        except BaseException as error:
            why = process.last_words if isinstance(error, HostError) else ""
            _end(process, monitor)
            if why:
                raise HostError(f"QEMU did not start: {why}") from None
            if isinstance(error, HostError) and process.said:
                raise type(error)(f"{error}; QEMU said: {process.said}") from None
            raise
        self._process, self._monitor = process, monitor
        self._finalizer = weakref.finalize(self, _end_soon, process, monitor)
        self._finalizer.atexit = False  # at exit hinting ends first: _at_exit
        _hosts.add(self)

    def _stop(self) -> None:
        assert self._finalizer is not None, "it has not started"
        _end(self._process, self._monitor)
        self._finalizer.detach()

    def _end_soon(self) -> None:
        """End QEMU, if it runs, without a wait."""
        if self._finalizer is not None:
            self._finalizer()

    # -- the guest

    def arena(self) -> GuestArena:
        """Return the arena over the guest's RAM, without its first 2 MiB, which are a PC's own and the driver's."""
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
        The device does not say what it did with a block. A block counts as reported if afterwards the host has no
        memory for it; if it still has some, the report has failed, and the block is hinted again. A flush asks the same
        of what was reported before, since a dump or a migration makes it resident again. After `restart` the
        callbacks report to the new QEMU. They do not keep the host: once it is collected, reports fail.
        """
        self._require_open()
        if not self._reporting:
            raise HostError("this host was started with reporting=False: it would take no report")
        if self._poison:
            raise HostError("this host was started with poison=True: QEMU ignores reports of poisoned pages")
        host = weakref.ref(self)

        def report_to_host(blocks: NDArray[np.void]) -> NDArray[np.bool_] | None:
            there = host()
            if there is None:
                raise HostError("the host is gone: it has been collected")
            return there._report(blocks)

        def is_dropped(blocks: NDArray[np.void]) -> NDArray[np.bool_] | None:
            there = host()
            return None if there is None else there._arena._is_dropped(blocks)

        return PageHintingCallbacks(report_to_host, max_pages, is_dropped=is_dropped)

    def _report(self, blocks: NDArray[np.void]) -> NDArray[np.bool_] | None:
        self._require_open()
        there = self.ram.blocks(blocks)
        if there.nr_pages > self._arena.pages.memory.reporting_pages:
            raise ValueError(
                f"blocks from PFN {blocks['pfn'][0]:#x} on are of another allocator than this host's arena"
            )
        before = self.ram.resident_bytes
        with self._last_words():
            # Neighbours are one range: the host discards them in one call.
            self.balloon.report(there.addresses, there.lengths)
        # To ask for each huge page takes half as long as to drop it. What others touch meanwhile makes the difference
        # smaller, and each page is asked for. What they give back could hide only a discard that fails in the same
        # moment; a flush, which asks for each page of what was reported, finds it.
        if self.ram.page_bytes == HUGE_PAGE and before - self.ram.resident_bytes == there.nr_pages * PAGE_SIZE:
            return None
        return self.ram.are_blocks_dropped(there)

    def hint_free_pages(self, max_pages: int = 32) -> int:
        """Tell QEMU once of all that is free, if it asks, as it does when it begins to migrate the guest.

        Parameters
        ----------
        max_pages : int, default 32
            Most blocks out at once.

        Returns
        -------
        int
            Bytes that it was told of, which it need not copy; 0 if it does not ask. It may end the pass early.

        Raises
        ------
        HintingActiveError
            If hinting is on: only one of the two can be. Or from inside a callback.
        HostError
            If the host was started without free_page_hint=True, has been told of a poison value, or fails.

        Notes
        -----
        QEMU does not see what this process writes to the guest's RAM. So nothing may be written to it from before a
        migration begins until it has ended, and what was hinted may be used again only then.
        """
        self._require_open()
        if self._poison:
            raise HostError("this host was started with poison=True: it must copy what free pages hold")
        pages, hinted = self._arena.pages, 0
        if pages.hinting_enabled:
            raise HintingActiveError("hinting is on: disable it before all that is free is hinted for a migration")

        def hint(blocks: NDArray[np.void]) -> None:
            nonlocal hinted
            there = self.ram.blocks(blocks)
            if self.balloon.hint(there.addresses, there.lengths):
                hinted += there.nr_pages * PAGE_SIZE

        with self._last_words():
            if not self.balloon.begin_hints():
                return 0
            try:
                with pages.hinting(PageHintingCallbacks(hint, max_pages), workqueue="manual", delay=None):
                    before = pages.stats().pages_reported
                    pages.flush_hinting()
                    self.ram.hinted_pages += pages.stats().pages_reported - before
                    if pages.last_error is not None:
                        raise pages.last_error
            finally:
                self.balloon.end_hints()
        return hinted

    # -- the host

    @property
    def resident_bytes(self) -> int:
        """Bytes of the guest's RAM that the host has memory for; 2 MiB at most of it are the driver's."""
        self._require_open()
        return self.ram.resident_bytes

    @property
    def discards(self) -> Discards:
        """What QEMU, since it was started, has traced of its discards; HostError without `count_discards`."""
        if not self._count_discards:
            raise HostError("this host was started with count_discards=False: its QEMU does not trace them")
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
            If QEMU has gone, or refuses it; or if it would add memory.
        """
        self._require_open()
        if command == "device_add":
            _require_no_memory(str(arguments.get("driver")))
        with self._last_words():
            return self._monitor.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def events(self) -> list[dict[str, Any]]:
        """Return the monitor's events since last asked, oldest first."""
        self._require_open()
        with self._last_words():
            return self._monitor.events()

    @contextmanager
    def _last_words(self) -> Iterator[None]:
        """Add to a HostError what QEMU said, if it said anything and has ended."""
        process = self._process
        try:
            yield
        except HostError as error:
            # What it said last may not have been read yet where it has ended: last_words waits for that.
            words = process.last_words if process.said or process.hangs_up(0) else ""
            if words and process.said:
                raise type(error)(f"{error}; it said: {words}") from None
            raise

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
        if self.ram.owner.is_here:
            self._arena.pages.disable_hinting()  # outside the lock, which a report under way may wait for
            undisturbed(self._close)
        else:
            self._close()

    def _close(self) -> None:
        # In a forked child the lock may be held by a thread that is not there to release it.
        with self._lock if self.ram.owner.is_here else nullcontext():
            if not self._closed:
                self._closed = True  # reports are refused from now on
                self._stop()
                if self.ram.owner.is_here:
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
        state += "" if self.ram.owner.is_here else " of another process"
        return f"<Host of {format_size(self.ram.nr_bytes)}: {state}, {format_size(self.ram.resident_bytes)} resident>"

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the host is closed")
        self.ram.owner.require()
