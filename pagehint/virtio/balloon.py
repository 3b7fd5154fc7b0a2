"""The driver of the memory balloon: free page reporting, inflating, deflating, statistics.

Sections named are those of the VIRTIO specification, version 1.2; the balloon's is 5.5. Two of its features have names
that are easily mixed up. By *free page hinting* (feature bit 3) the host asks which pages are free, so that it need not
copy them when it migrates the guest. By *free page reporting* (bit 5) the guest says which pages are free, whenever it
likes, and the host may drop them. What pagehint calls hinting is done by reporting.
"""

from __future__ import annotations

import logging
import operator
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from pagehint._core import PageAllocator
from pagehint.errors import HostError, HostTimeoutError, OutOfMemoryError
from pagehint.virtio.encoding import MOST_PAGES, chains, encode_pfns, encode_statistics, whole_pages, whole_ranges
from pagehint.virtio.owner import Owner
from pagehint.virtio.pci import ACCESS_PLATFORM, EVENT_IDX, NEEDS_RESET, VERSION_1
from pagehint.virtio.queue_numbers import FREE_PAGE_HINT, REPORTING, STATS_VQ, queue_numbers
from pagehint.virtio.split_queue import SplitQueue
from pagehint.virtio.timeout import require_timeout
from pagehint.virtio.transport import LostError, Transport
from pagehint.virtio.undisturbed import interrupted, undisturbed

if TYPE_CHECKING:
    from typing_extensions import Buffer

DEVICE_ID: Final = 5

PAGE_POISON: Final = 1 << 4  # a feature bit (section 5.5.3); those that have queues are with their numbers

_NUM_PAGES, _ACTUAL, _HINT_COMMAND, _POISON_VAL = 0, 4, 8, 12  # device configuration (section 5.5.4)
PAGE_SIZE: Final = 4096  # of the balloon, on all machines
_STOP, _DONE = 0, 1  # hinting commands that ask for no pass (section 5.5.6.5)
POISON: Final = 0xAAAAAAAA  # as Linux fills free pages with page_poison=1

MOST_DESCRIPTORS: Final = 32768  # of a queue (section 2.7)
_MOST_USED: Final = 4096  # of them by this driver, for its memory has an end

_FENCE_AGAIN: Final = 1.0  # seconds until the next try

_SPINS: Final = 100  # looks at a queue without sleeping in between
_SLEEP: Final = 0.0005


class Balloon:
    """The driver of a memory balloon device: it tells the host what a guest's kernel would tell it.

    Parameters
    ----------
    transport : Transport
        The device.
    memory : writable buffer
        Part of the guest's RAM, for the queues and what is sent over them; `Balloon.NR_BYTES` are enough.
    address : int
        Its guest-physical address.
    fence : callable
        Called when the device cannot be reached any more, not even to reset it. It makes sure that the device never
        touches the memory again, for instance by ending its process. As long as it raises, it is called again: memory
        that the device might still drop cannot be used.
    pages : PageAllocator, optional
        `inflate` takes its pages; they have 4 KiB, and their PFNs are those of the guest, under 2**32.
    poison : int, optional
        Tell the device that free pages hold this value. It must then not drop them, and `report` refuses.
    timeout : float, default 10.0
        Seconds that the device may take for one chain of buffers.
    page_bytes : int, default 4096
        What the host drops as a whole or not at all: `report` refuses parts of such a page, and of those that `inflate`
        takes, ones that are whole are sent together.

    Raises
    ------
    HostError
        If the device does not work as the specification says.

    Notes
    -----
    May be used from any thread; one request is under way at a time. A request that fails, by time-out, by
    interrupt or by a broken device, ends with a reset, so that the device has let go of the memory when the exception
    arrives. For the same reason an interrupt waits for the end of a request: `undisturbed`.

    The machine may be reset, and the device unplugged and plugged in again, in any slot. The next request then starts
    it, and tells it how many pages are in the balloon, which keep their place. A request that is under way meanwhile
    fails, and so do all requests as long as there is no device. Pages in the balloon of a device that does not come
    back are free after `forget`.

    The device belongs to the process that made this. A forked child, which shares the guest's memory, is refused.
    """

    NR_BYTES: Final = 1 << 20
    # The driver's memory: the PFNs of one request to inflate or deflate, up to _SCRATCH; from there on the statistics,
    # which the device keeps until it asks for new ones; the queues, from _FIRST_QUEUE on.
    _SCRATCH: Final = 4096
    _FIRST_QUEUE: Final = 8192

    def __init__(
        self,
        transport: Transport,
        memory: Buffer,
        address: int,
        *,
        fence: Callable[[], object],
        pages: PageAllocator | None = None,
        poison: int | None = None,
        timeout: float = 10.0,
        page_bytes: int = PAGE_SIZE,
    ) -> None:
        require_timeout(timeout)
        if pages is not None and pages.page_size != PAGE_SIZE:
            raise ValueError(f"a balloon has pages of {PAGE_SIZE} bytes, not {pages.page_size}")
        for zone in pages.zones if pages is not None else ():
            if zone.start_pfn + zone.spanned_pages > MOST_PAGES:
                raise ValueError(f"zone {zone.name} goes beyond the 2**32 pages that a balloon can name")
        if poison is not None and not 0 <= poison < 1 << 32:
            raise ValueError(f"a poison value has 32 bits, and {poison:#x} has not")
        self._transport = transport
        self._memory = memoryview(memory).cast("B")
        self._address = address
        self._pages = pages
        self._poison = poison
        self._timeout = timeout
        self._page_bytes = page_bytes
        self._fence = fence
        self._owner = Owner("a balloon and its device")
        self._lock = threading.Lock()  # never held while waiting for pages: the worker needs it to bring them back
        self._gone: str | None = None  # why the device cannot be used any more
        self._queues: dict[str, tuple[int, SplitQueue]] = {}  # none as long as the device is not in operation
        self._inflated: list[int] = []  # PFNs
        self._hints: tuple[int, int] | None = None  # the host's pass that has begun: its ID, of which configuration
        undisturbed(self._start)

    def _start(self) -> None:
        """Take the device from reset to operation (section 3.1.1)."""
        self._transport.probe()
        offered = self._transport.features()
        if not offered & VERSION_1:
            raise HostError(f"the device is older than virtio 1.0: it offers the features {offered:#x}")
        if offered & ACCESS_PLATFORM:
            self._transport.reset()  # a device that is broken, and reads as all ones, does not get any further
            raise HostError(
                "the device translates addresses (iommu_platform=on), and this driver has no IOMMU: the addresses and"
                " PFNs that it sends are the guest's physical ones"
            )
        wanted = VERSION_1 | EVENT_IDX | REPORTING | FREE_PAGE_HINT
        wanted |= STATS_VQ if self._pages is not None else 0
        wanted |= PAGE_POISON if self._poison is not None else 0
        self.features = offered & wanted
        if self._poison is not None and not self.features & PAGE_POISON:
            raise HostError("the device does not offer page poison")
        self._transport.negotiate(self.features)
        if self._poison is not None:
            self._transport.write_config(_POISON_VAL, 4, self._poison)
        queues = self._enable_queues(offered)
        self._transport.start()
        self._transport.write_config(_ACTUAL, 4, len(self._inflated))
        self._queues = queues
        if "statistics" in queues:
            self._put_statistics()

    def _enable_queues(self, offered: int) -> dict[str, tuple[int, SplitQueue]]:
        """Place the queues in the driver's memory one after the other; returns their numbers, and them, by name."""
        queues: dict[str, tuple[int, SplitQueue]] = {}
        at = self._FIRST_QUEUE
        for name, number in queue_numbers(offered, self.features, self._transport.queue_size).items():
            size = self._transport.queue_size(number)
            if not size or size & (size - 1) or size > MOST_DESCRIPTORS:
                raise HostError(f"queue {number} of the device, for {name}, cannot have {size} descriptors")
            size = min(size, _MOST_USED)
            nr_bytes = SplitQueue.nr_bytes(size)
            if at + nr_bytes > len(self._memory):
                raise ValueError(f"the queues need more than {len(self._memory)} bytes")
            queue = SplitQueue(
                self._memory[at : at + nr_bytes], self._address + at, size, bool(self.features & EVENT_IDX)
            )
            self._transport.enable_queue(number, queue)
            queues[name] = number, queue
            at = -(-(at + nr_bytes) // PAGE_SIZE) * PAGE_SIZE
        return queues

    # -- requests

    def report(self, addresses: Sequence[int] | NDArray[Any], lengths: Sequence[int] | NDArray[Any]) -> None:
        """Tell the host that ranges are free, so that it may drop them; returns when it has done so (section 5.5.6.7).

        Parameters
        ----------
        addresses, lengths : sequence of int
            Guest-physical address and bytes of each range. They must not be used during the call.

        Raises
        ------
        HostError
            If the device does not offer reporting, was told of a poison value, or has gone.
        HostTimeoutError
            If it does not answer in time. It has been reset.
        ValueError
            If a range is empty, beyond the address space, not of whole pages, or in the driver's own memory.

        Notes
        -----
        A chain of descriptors, with one notification and one wait, has as many ranges as the queue has descriptors, and
        less than 4 GiB in all. The device does not say what it did: that has to be found out by other means.
        """
        if not self.features & REPORTING:
            raise HostError("the device does not offer free page reporting (QEMU: free-page-reporting=on)")
        undisturbed(self._report, self._checked(addresses, lengths))

    def _checked(
        self, addresses: Sequence[int] | NDArray[Any], lengths: Sequence[int] | NDArray[Any]
    ) -> list[tuple[int, int]]:
        """Return ranges that the host may drop, or raise."""
        if self._poison:
            raise HostError(f"free pages hold the poison value {self._poison:#x}, so that the host must not drop them")
        return whole_ranges(addresses, lengths, self._page_bytes, self._address, len(self._memory))

    def _report(self, ranges: list[tuple[int, int]]) -> None:
        with self._device(), self._request("a report", look=False):
            try:
                self._send_reports(ranges)
            except LostError:  # before this request, which then begins as others do that look first
                self._stop()
                self._start()
                self._send_reports(ranges)

    def _send_reports(self, ranges: list[tuple[int, int]]) -> None:
        if "reporting" not in self._queues:
            raise HostError("the device that was plugged in does not offer free page reporting")
        for chain in chains(ranges, self._queues["reporting"][1].size):
            if interrupted():
                return
            self._send("reporting", chain, looked=False)

    # -- free page hinting

    def begin_hints(self) -> bool:
        """Begin the pass over all free pages that the host asks for (section 5.5.6.5); returns whether it does."""
        if not self.features & FREE_PAGE_HINT:
            raise HostError("the device does not offer free page hinting (QEMU: free-page-hint=on,iothread=...)")
        return undisturbed(self._begin_hints)

    def _begin_hints(self) -> bool:
        with self._device(), self._request("hinting"):
            command = self._transport.read_config(_HINT_COMMAND, 4)
            if command in (_STOP, _DONE) or "free page hint" not in self._queues:
                return False
            if not self._send_command(command, lambda: self._transport.read_config(_HINT_COMMAND, 4) == command):
                return False
            # Only now: a host counts a change of its configuration up to a moment after it can be read.
            self._hints = command, self._transport.config_generation()
            return True

    def hint(self, addresses: Sequence[int] | NDArray[Any], lengths: Sequence[int] | NDArray[Any]) -> bool:
        """Tell the host that ranges are free; returns whether it still wants to know, and has been told of all.

        Parameters and errors are those of `report`. The host drops nothing, but may leave the ranges out where it
        copies the guest's memory. What is written to them afterwards it must see by itself.
        """
        return undisturbed(self._hint, self._checked(addresses, lengths))

    def _hint(self, ranges: list[tuple[int, int]]) -> bool:
        with self._device(), self._request("hinting"):
            if self._hints is None:
                return False
            # Each buffer is a chain of its own: of a longer one QEMU takes the first alone.
            for group in chains(ranges, self._queues["free page hint"][1].size):
                if not self._wants_hints() or interrupted():
                    return False
                if not self._send("free page hint", *([one] for one in group), wanted=self._wants_hints):
                    return False
        return True

    def end_hints(self) -> None:
        """End the pass, if one has begun and the host has not ended it."""
        undisturbed(self._end_hints)

    def _end_hints(self) -> None:
        with self._device(), self._request("hinting"):
            if self._wants_hints():
                self._send_command(_STOP, self._wants_hints)
            self._hints = None

    def _wants_hints(self) -> bool:
        """Whether the pass that has begun goes on for the host, and the device has not been reset meanwhile.

        The command is read again only after a change: while a pass goes on QEMU reads as _STOP, and says nothing.
        """
        if self._hints is None:
            return False
        command, generation = self._hints
        now = self._transport.config_generation()
        if now != generation:
            self._hints = (command, now) if self._transport.read_config(_HINT_COMMAND, 4) == command else None
        return self._hints is not None

    def _send_command(self, number: int, wanted: Callable[[], bool]) -> bool:
        self._memory[:4] = number.to_bytes(4, "little")
        return self._send("free page hint", [(self._address, 4)], nr_readable=1, wanted=wanted)

    # -- how all of them are made

    @contextmanager
    def _device(self) -> Iterator[None]:
        """Hold the device alone; HostError if it has gone."""
        self._owner.require()
        with self._lock:
            if self._gone is not None:
                raise HostError(f"the host is gone: {self._gone}")
            yield

    @contextmanager
    def _request(self, what: str, look: bool = True) -> Iterator[bool]:
        """Begin with a device in operation; reset or fence it after an exception.

        So it has let go of the memory when the exception goes on. A machine may be reset, and a device unplugged and
        plugged in, at any time. The device that is there then knows nothing, and is started. A host that has asked for
        statistics is answered first; gives whether it was. Without `look` it is for the caller to find the device lost.
        """
        try:
            if not self._queues or (look and not self._transport.is_running()):
                self._stop()
                self._start()
            yield self._answer_statistics()
        except BaseException as error:
            fate = self._recover(error)
            if isinstance(error, HostError):
                raise type(error)(f"{what} failed: {error}; {fate}") from None
            raise

    def _stop(self) -> None:
        """Have the device let go of the memory, by a reset."""
        self._queues, self._hints = {}, None
        self._transport.reset()

    def _recover(self, cause: BaseException) -> str:
        """Reset the device and start it again, or fence it; returns in words what was done."""
        try:
            self._stop()
        except BaseException as error:
            self._gone = str(cause)
            self._fence_off()
            if isinstance(error, HostError):
                return "the host is gone"
            raise
        try:
            self._start()
        except HostError as error:
            # Nothing is lost. The next request tries again.
            return f"the device has let go of the memory, and is not started: {error}"
        return "the device has been reset"

    def _fence_off(self) -> None:
        while True:
            try:
                self._fence()
                return
            except Exception as error:
                logging.getLogger("pagehint").error(
                    "the device cannot be kept from the memory, trying again: %s", error
                )
                time.sleep(_FENCE_AGAIN)

    def _send(
        self,
        name: str,
        *chains: Sequence[tuple[int, int]],
        nr_readable: int = 0,
        wanted: Callable[[], bool] = lambda: True,
        looked: bool = True,
    ) -> bool:
        """Send chains, not more buffers than the queue has descriptors, and wait; returns whether all came back.

        If nobody has looked whether the device is in operation, it is LostError that it was not before it was notified.
        A machine that has stopped answers no hint until it goes on. So what is not `wanted` any more is not waited for:
        a reset takes it back.
        """
        number, queue = self._queues[name]
        heads = set()
        for chain in chains:
            addresses, lengths = zip(*chain, strict=True)
            heads.add(queue.add(addresses, lengths, nr_readable))
        lost = self._transport.notify(number) if queue.must_notify() else not (looked or self._transport.is_running())
        if lost and not looked:
            raise LostError("the device was reset or unplugged before it was notified")
        deadline = time.monotonic() + self._timeout
        looks = 0
        while heads:
            over = looks > _SPINS and not wanted()  # before the look: it may have come with the end
            used = self._take(queue)
            if used is not None:
                if used[0] not in heads:
                    raise HostError(f"the device gave back descriptor {used[0]} of the {name} queue, and had others")
                heads.remove(used[0])
                continue
            if over:
                self._stop()
                self._start()
                return False
            # The device answers in turn, so this waits, asleep, until it has done what it was at.
            self._transport.interrupt_status()
            looks += 1
            if looks == _SPINS:
                # A device that turns its notifications on again without another look at the queue misses what came
                # meanwhile: QEMU's, at the end of a hinting pass. One that is only slow ignores this one.
                self._transport.notify(number)
            if looks > _SPINS:
                if self._transport.status & NEEDS_RESET:
                    raise HostError(f"the device gave up on what was in the {name} queue")
                if interrupted():
                    raise HostError(f"interrupted while waiting for the {name} queue")
                time.sleep(_SLEEP)
                if time.monotonic() > deadline:
                    raise HostTimeoutError(f"the {name} queue did not answer in {self._timeout:g} s")
        return True

    def _take(self, queue: SplitQueue) -> tuple[int, int] | None:
        try:
            return queue.take()
        except ValueError as error:
            raise HostError(str(error)) from None

    # -- the balloon

    @property
    def target(self) -> int:
        """Pages of 4 KiB that the host wants in the balloon."""
        return undisturbed(self._read_target)

    def _read_target(self) -> int:
        with self._device(), self._request("reading the target"):
            target = self._transport.read_config(_NUM_PAGES, 4)
            _ = self._transport.status  # HostError if that came from no device
            return target

    @property
    def actual(self) -> int:
        """Pages of 4 KiB that are in the balloon."""
        return len(self._inflated)

    def inflate(self, nr_pages: int) -> None:
        """Take pages from the allocator and hand them to the host, which has them until `deflate`.

        Raises
        ------
        OutOfMemoryError
            If there are not so many; nothing has changed.
        BadPageError
            If a zone has grown beyond PFN 2**32, and some of them are there, which no balloon can name; nothing has
            changed.
        HostError
            If the host fails. The pages that it was given stay in the balloon, the rest is free again. An interrupt has
            the same effect.
        """
        pages = self._allocator()
        self._owner.require()
        # On this thread, so that in a callback it does not wait for what is out, and Ctrl-C ends its wait.
        undisturbed(self._inflate, pages, obtain=partial(pages.alloc_pages_bulk, operator.index(nr_pages)))

    def _inflate(self, pages: PageAllocator, waiting: NDArray[np.uint64]) -> None:
        waiting = np.sort(waiting)
        try:
            numbers = encode_pfns(pages, waiting)
            with self._device(), self._request("inflating"):
                while len(waiting) and not interrupted():
                    left = numbers[-len(waiting) :]
                    n = whole_pages(left, self._SCRATCH // 4, self._page_bytes // PAGE_SIZE)
                    self._send_pfns("inflate", left[:n])
                    self._inflated += waiting[:n].tolist()
                    waiting = waiting[n:]
                self._transport.write_config(_ACTUAL, 4, len(self._inflated))
        finally:
            pages.free_pages_bulk(waiting)

    def deflate(self, nr_pages: int) -> None:
        """Take pages out of the balloon, the last first, and give them back to the allocator.

        Raises
        ------
        ValueError
            If there are not so many in it.
        HostError
            If the host fails. The pages that it was not told of stay in the balloon. An interrupt has the same effect.
        """
        undisturbed(self._deflate, self._allocator(), operator.index(nr_pages))

    def _deflate(self, pages: PageAllocator, nr_pages: int) -> None:
        with self._device():
            if not 0 <= nr_pages <= len(self._inflated):
                raise ValueError(f"{nr_pages} pages from a balloon of {len(self._inflated)}")
            with self._request("deflating"):
                left = nr_pages
                while left and not interrupted():
                    pfns = np.array(self._inflated[-min(left, self._SCRATCH // 4) :], np.uint64)
                    self._send_pfns("deflate", encode_pfns(pages, pfns))
                    del self._inflated[-len(pfns) :]
                    pages.free_pages_bulk(pfns)
                    left -= len(pfns)
                self._transport.write_config(_ACTUAL, 4, len(self._inflated))

    def follow(self) -> int:
        """Inflate or deflate to the host's target, as far as there are free pages. One thread only.

        Returns
        -------
        int
            By how many pages the balloon has grown.

        Notes
        -----
        If the host wants more than is free, the balloon takes what is. The rest is for the next call to try.
        """
        before = self.actual
        change = self.target - before
        if change > 0:
            self._inflate_up_to(change)
        elif change < 0:
            self.deflate(-change)
        return self.actual - before

    def _inflate_up_to(self, nr_pages: int) -> None:
        """Inflate by so many pages, or by as many as there are."""
        stats = self._allocator().stats()
        # Watermarks may keep some of these, and other threads may take them: then fewer are tried for.
        step = min(nr_pages, stats.free_pages + stats.pcp_pages + stats.reporting_pages)
        while step and nr_pages:
            step = min(step, nr_pages)
            try:
                self.inflate(step)
                nr_pages -= step
            except OutOfMemoryError:
                step //= 2

    def send_statistics(self) -> bool:
        """Send how much memory is free and in all, if the host waits for it (section 5.5.6.3).

        Returns
        -------
        bool
            Whether it was sent. A device gets it when it is started, and then once each time that its host has asked
            anew: by this, or by any other request.
        """
        self._allocator()
        if not self.features & STATS_VQ:
            raise HostError("the device does not offer statistics")
        return undisturbed(self._send_statistics)

    def _send_statistics(self) -> bool:
        with self._device(), self._request("sending statistics") as answered:
            return answered

    def _answer_statistics(self) -> bool:
        """Send the statistics if the device has given those before back, by which its host asks; returns whether."""
        if "statistics" not in self._queues or self._take(self._queues["statistics"][1]) is None:
            return False
        self._put_statistics()
        return True

    def _put_statistics(self) -> None:
        """Give the statistics to the device, which keeps them until its host asks for new ones."""
        number, queue = self._queues["statistics"]
        entries = encode_statistics(self._allocator().stats())
        self._memory[self._SCRATCH : self._SCRATCH + entries.nbytes] = entries.tobytes()
        queue.add([self._address + self._SCRATCH], [entries.nbytes], nr_readable=1)
        if queue.must_notify():
            self._transport.notify(number)

    def _send_pfns(self, name: str, numbers: NDArray[np.uint32]) -> None:
        self._memory[: numbers.nbytes] = numbers.tobytes()
        self._send(name, [(self._address, numbers.nbytes)], nr_readable=1)

    def _allocator(self) -> PageAllocator:
        if self._pages is None:
            raise ValueError("this balloon was made without an allocator to take pages from")
        return self._pages

    def forget(self) -> None:
        """Free the pages in the balloon without telling the host; refuse all requests from now on.

        For a host that has gone, or a device that has been unplugged for good.
        """
        undisturbed(self._forget)

    def _forget(self) -> None:
        self._owner.require()
        with self._lock:
            self._gone = "forget() was called"
            if self._inflated:
                self._allocator().free_pages_bulk(np.array(self._inflated, np.uint64))
                self._inflated.clear()

    def __repr__(self) -> str:
        return f"<Balloon of {self.actual} pages, queues {', '.join(self._queues)}>"
