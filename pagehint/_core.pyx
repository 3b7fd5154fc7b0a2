# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic, freethreading_compatible=False
"""The public extension types: the allocator, and its zones. They check arguments, call what is below, and raise errors.

The memory under the allocator is in `allocator/memory.pyx`, the engine in `hinting/engine.pyx`. The way of a freed
page: `zone/page_alloc` → `zone/page_sets/page_set` → `zone/buddy` (merge) → `zone/hook` → `hinting/watch` (bit) →
`hinting/notify` → `hinting/queue` → `hinting/engine` (pass) → `hinting/batch` (isolate) → `hinting/report` →
`hinting/batch` (put back).

A call first tries to do its work with the GIL held, without waiting for a lock. Only if a lock is taken (E_AGAIN) does
it release the GIL and wait. `binding` is off, since methods with it do not check the type of `self`.
"""
import atexit
import html
import operator
import weakref

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.number cimport PyNumber_Index
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pagehint.allocator.arguments cimport (as_duration, as_moment, as_order, as_order_at, as_reserve, as_reserve_age,
                                           as_settings, set_min_age)
from pagehint.allocator.memory cimport Memory
from pagehint.allocator.migratetype_names cimport as_type, migratetypes
from pagehint.allocator.refusal cimport order_refusal, refusal
from pagehint.allocator.restore cimport restore_migratetypes, restore_watermarks
from pagehint.hinting.callbacks cimport PageHintingCallbacks
from pagehint.hinting.age cimport has_ages
from pagehint.hinting.count cimport hints_in_isolation, hints_too_young
from pagehint.hinting.engine cimport hinting_engine
from pagehint.hinting.gate cimport report_gate
from pagehint.hinting.hinted_zone cimport HintedZone, hinted_zone_metadata_bytes, hints_of
from pagehint.hinting.learning.regret cimport zone_regret
from pagehint.hinting.queue cimport (SET_BREAK_EVEN, SET_DELAY, SET_MAX_PAGES, SET_MIN_AGE, SET_RESERVE, SET_RESERVE_AGE,
                                     SET_THRESHOLD, Settings, WorkQueue)
from pagehint.hinting.reported cimport GROUP_GRANULES, GROUP_WORDS, mark_free_granules, reported_granules
from pagehint.hinting.timed cimport due_at, run_until
from pagehint.numbers cimport as_count, as_pfn, as_positive
from pagehint.replaying.replay cimport replay
from pagehint.sync.atomic cimport PH_DEBUG, RELAXED, load64, load8, load_i32
from pagehint.sync.clock cimport NEVER, SECOND
from pagehint.sync.lock cimport lock_acquire, lock_release
from pagehint.zone.buddy cimport NOT_FREE, free_block_around
from pagehint.zone.bulk cimport machine_alloc_bulk, machine_free_bulk
from pagehint.zone.bulk_at cimport Runs, machine_alloc_at_bulk
from pagehint.zone.extents cimport FreeBlock, list_free_blocks, zone_free_bits
from pagehint.zone.page_alloc cimport (ALONE, Machine, TRY, WAIT, find_zone, machine_alloc, machine_alloc_at,
                                       machine_alloc_run, machine_drain, machine_free, machine_free_run, machine_grow,
                                       machine_split)
from pagehint.zone.page_sets.page_set cimport Pcp, pcp_pages
from pagehint.zone.page_sets.run_set cimport run_set_pages
from pagehint.zone.status cimport E_AGAIN, E_ALIGN, E_BUSY, E_NOMEM, E_SLOT, E_TWICE, OK
from pagehint.zone.trace cimport OP_ALLOC as _OP_ALLOC, OP_FREE as _OP_FREE, Op, machine_run_ops
from pagehint.zone.zone cimport MAX_ORDER_LIMIT, NR_TYPES, PAGEBLOCK_ORDER, PageZone

from pagehint import errors, layout
from pagehint.allocator.machine_state import MachineState
from pagehint.hinting import callbacks as _callbacks
from pagehint.hinting.context import HintingContext
from pagehint.refusals import say_no_barrier
from pagehint.stats import procfs
from pagehint.stats.explain import explain_zones
from pagehint.sizes import format_size, parse_size, shown
from pagehint.stats.regret import regret_of
from pagehint.stats.stats import LockStats, Stats

cnp.import_array()

DEBUG = bool(PH_DEBUG)
BLOCK_DTYPE = _callbacks.BLOCK_DTYPE
OP_DTYPE = np.dtype([("slot", np.uint32), ("order", np.uint16), ("op", np.uint16)])
OP_ALLOC = _OP_ALLOC
OP_FREE = _OP_FREE
FREE_BLOCK_DTYPE = np.dtype([("pfn", np.uint64), ("order", np.uint32)])
MIGRATETYPES = migratetypes()
HINTING_OPTIONS = ("workqueue", "threshold", "delay", "max_report_order", "mark_free", "min_age", "cost", "reserve",
                   "reserve_age", "clock")
# Python finds no type here that is only cimported, so they are added by name.
globals().update(Memory=Memory, PageHintingCallbacks=PageHintingCallbacks)


cdef cnp.ndarray as_numbers(object values, str what):
    """A contiguous copy of whole numbers, which no other thread can change."""
    array = np.array(values, order="C")
    if array.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, not of shape {array.shape}")
    if array.size == 0:
        return np.empty(0, np.uint64)
    if array.dtype.kind not in "ui":
        # NumPy turns a mix of its integers and Python's into floats, and large ones into objects.
        try:
            array = np.array([PyNumber_Index(value) for value in values], object)
        except TypeError:
            raise TypeError(f"{what} must be whole numbers, not of dtype {array.dtype}") from None
    return array


cdef Py_ssize_t first_outside(object array, object most) except -2:
    """The index of the first number that is not from 0 to `most`, or -1."""
    if array.size == 0 or (array.min() >= 0 and array.max() <= most):
        return -1
    return np.argmax((array < 0) | (array > most))


cdef cnp.ndarray as_pfns(object values):
    """PFNs as an array of uint64, a copy."""
    cdef Py_ssize_t bad
    array = as_numbers(values, "pfns")
    if array.dtype == np.uint64:
        return array
    bad = first_outside(array, 0xFFFFFFFFFFFFFFFF)
    if bad >= 0:
        raise errors.BadPageError(
            f"PFN {shown(array[bad])} (index {bad}): {'negative' if array[bad] < 0 else 'too large'}; nothing was changed"
        )
    return array.astype(np.uint64)


cdef cnp.ndarray as_orders(Memory memory, object values, cnp.ndarray pfns):
    """An order for each PFN, as an array of uint32, a copy."""
    cdef Py_ssize_t bad
    array = as_numbers(values, "order")
    if array.shape[0] != pfns.shape[0]:
        raise ValueError(f"{array.shape[0]} orders for {pfns.shape[0]} blocks")
    bad = first_outside(array, memory.max_page_order)
    if bad >= 0:
        raise order_refusal(memory, array[bad], pfns[bad])
    return array.astype(np.uint32)


cdef cnp.ndarray as_page_counts(object values, cnp.ndarray pfns):
    """A number of pages for each PFN, as an array of uint64: all the same, or one for each."""
    cdef Py_ssize_t bad
    if hasattr(values, "__index__") and np.ndim(values) == 0:
        return np.full(pfns.shape[0], as_count(values, "nr_pages", 1), np.uint64)
    array = as_numbers(values, "nr_pages")
    if array.shape[0] != pfns.shape[0]:
        raise ValueError(f"{array.shape[0]} numbers of pages for {pfns.shape[0]} runs")
    bad = -1 if array.size == 0 or array.min() >= 1 else np.argmax(array < 1)
    if bad < 0:
        bad = first_outside(array, (1 << 52) - 1)
    if bad >= 0:
        raise errors.BadPageError(
            f"PFN {pfns[bad]:#x} (index {bad}): nr_pages must be from 1 to 2**52, not {shown(array[bad])};"
            " nothing was changed"
        )
    return array.astype(np.uint64)


# ---- zones --------------------------------------------------------------------------------------------------

cdef inline void snapshot(PageZone *z, HintedZone *copy) noexcept nogil:
    """Copy a zone's figures as they are at one moment."""
    cdef size_t lock = <char *> &z.lock - <char *> z, rest = <char *> &z.free_pages - <char *> z
    lock_acquire(&z.lock, True)
    # Of the lock itself only what is written by its holder: the rest changes at any time.
    memcpy(copy, z, lock)
    copy.zone.lock.acquired, copy.zone.lock.contended = z.lock.acquired, z.lock.contended
    copy.zone.lock.longest_wait = z.lock.longest_wait
    memcpy(<char *> copy + rest, <char *> z + rest, sizeof(HintedZone) - rest)
    lock_release(&z.lock)


cdef class Zone:
    """One zone of a `PageAllocator`: where it is, what is free in it. Each figure is as of the moment of reading."""

    def __cinit__(self, Memory memory=None, int index=0):
        # Not in `__init__`, which need not be called: without a memory, an attribute would be read through NULL.
        if memory is None or not 0 <= index < memory.m.nr_zones:
            raise TypeError("zones come with a PageAllocator: PageAllocator.zones")
        self.memory = memory
        self.z = memory.m.zones[index]
        self.spec = memory.specs[index]

    @property
    def name(self):
        """Its name."""
        return self.spec.name

    @property
    def node(self):
        """The NUMA node it belongs to."""
        return self.spec.node

    @property
    def index(self):
        """Its place in `PageAllocator.zones`, and in the ``zone`` field of reported blocks."""
        return self.z.index

    @property
    def start_pfn(self):
        """Its first PFN."""
        return self.z.start_pfn

    @property
    def spanned_pages(self):
        """Pages from its first to its last, holes and offline sections included."""
        return load64(&self.z.end_pfn, RELAXED) - self.z.start_pfn

    @property
    def present_pages(self):
        """Pages that are not in holes or offline."""
        return load64(&self.z.managed_pages, RELAXED)

    @property
    def managed_pages(self):
        """Pages the buddy system manages: here, all that are present."""
        return load64(&self.z.managed_pages, RELAXED)

    @property
    def free_pages(self):
        """Free pages in the buddy system, so without those in per-CPU page sets or out with the host."""
        return load64(&self.z.free_pages, RELAXED)

    @property
    def nr_free(self):
        """Maximal free blocks of each order, from 0 to `max_page_order`: a tuple."""
        return tuple(sum(counts) for counts in zip(*self.figures()["nr_free"]))

    @property
    def watermarks(self):
        """Its `Watermarks` in pages."""
        return self.memory.watermarks[self.z.index]

    @property
    def metadata_bytes(self):
        """Bytes of metadata: of pages, pageblocks and free lists, hint bitmap and stamps, per-CPU page sets."""
        return hinted_zone_metadata_bytes(self.z) + (self.memory.m.nr_cpus * sizeof(Pcp) if self.z.pcp != NULL else 0)

    @property
    def hint_base_pfn(self):
        """First PFN of bit 0 of `hint_bitmap`: `start_pfn`, aligned down to the largest block or a pageblock."""
        return self.z.base_pfn

    @property
    def hint_bitmap(self):
        """The hint bits, one for each granule of ``2**min_order`` pages from `hint_base_pfn` on, lowest bit first.

        A read-only view of the bitmap itself, of shape (words,) and dtype uint64; bits change while it is read.
        """
        cdef cnp.npy_intp words = <cnp.npy_intp>((load64(&self.z.nr_granules, RELAXED) + 63) // 64)
        cdef cnp.ndarray view = cnp.PyArray_SimpleNewFromData(1, &words, cnp.NPY_UINT64, hints_of(self.z).bits)
        cnp.set_array_base(view, self)
        view.flags.writeable = False
        return view

    def reported_bitmap(self):
        """Return which granules are with the host: free, reported, and not used since. A copy, which does not change.

        Returns
        -------
        ndarray
            Read-only, of shape (words,) and dtype uint64, with the bits of `hint_bitmap`: a bit for each granule of
            ``2**min_order`` pages from `hint_base_pfn` on, lowest bit first. With hinting off all are 0.

        Notes
        -----
        O(spanned granules), without the GIL. The zone is locked for 4096 granules at a time, so that these are as of
        one moment, and others may be of a later one.

        What was free when hinting was enabled with ``mark_free=False`` has its bit set, too, until it is used. So has
        what its host has taken back since, until a flush has asked (`PageHintingCallbacks`) or `PageAllocator.mark_free`
        has said so. What is out for reporting, or hinted, has none.
        """
        cdef uint64_t nr_granules = load64(&self.z.nr_granules, RELAXED), first = 0
        cdef uint64_t[GROUP_WORDS] group
        cdef bint on = True
        cdef cnp.ndarray words = np.zeros((nr_granules + 63) // 64, np.uint64)
        with nogil:
            while on and first < nr_granules:
                lock_acquire(&self.z.lock, True)
                on = hints_of(self.z).on
                reported_granules(self.z, first, group)
                lock_release(&self.z.lock)
                if on:
                    memcpy(<uint64_t *> words.data + (first >> 6), group,
                           min(<uint64_t>GROUP_WORDS, (nr_granules - first + 63) >> 6) * sizeof(uint64_t))
                first += GROUP_GRANULES
        words.flags.writeable = False
        return words

    def free_blocks(self):
        """Return the maximal free blocks by address.

        Returns
        -------
        ndarray
            Structured, of shape (blocks,): ``pfn`` (uint64), a block's first PFN, and ``order`` (uint32).

        Notes
        -----
        The zone is locked while its blocks are listed, O(blocks + spanned pages / 64).
        """
        cdef cnp.ndarray blocks
        cdef uint64_t room = 0, n
        while True:
            room = sum(self.nr_free)
            blocks = np.empty(room, FREE_BLOCK_DTYPE)
            with nogil:
                lock_acquire(&self.z.lock, True)
                n = list_free_blocks(self.z, <FreeBlock *> blocks.data, room)
                lock_release(&self.z.lock)
            if n <= room:
                return blocks[:n]

    def free_bitmap(self):
        """Return which pages are free in the buddy system: a bit for each page, from `hint_base_pfn` on.

        Returns
        -------
        ndarray
            As `PageAllocator.free_bitmap`, and under concurrency with the same promise. Its first bit is the page
            `hint_base_pfn`. Pages that are not this zone's are not free.
        """
        cdef uint64_t n = load64(&self.z.nr_leaves, RELAXED)
        cdef cnp.ndarray words = np.zeros(n, np.uint64)
        with nogil:
            zone_free_bits(self.z, n, <uint64_t *> words.data)
        return words

    def figures(self):
        """Return the counts of the zone by name, as of one moment: for `stats`, `explain` and the /proc texts."""
        cdef HintedZone copy
        cdef Machine *m = &self.memory.m
        cdef uint64_t in_isolation = 0, young = 0
        cdef int mt, o, cpu, fences
        with nogil:
            snapshot(self.z, &copy)
            if copy.zone.isolate_pageblocks:
                in_isolation = min(hints_in_isolation(self.z), copy.hints.count)
            if has_ages(&copy.hints):
                young = min(hints_too_young(self.z, &copy.hints), copy.hints.count - in_isolation)
        counters = copy.hints.counters
        sets = []
        fences = load_i32(&self.z.lock.fences, RELAXED)
        if copy.zone.pcp != NULL:
            for cpu in range(m.nr_cpus):
                fences |= load_i32(&(<Pcp *> copy.zone.pcp + cpu).lock.lock.fences, RELAXED)
                held = pcp_pages(<Pcp *> copy.zone.pcp + cpu)
                sets.append((held, 2 * (<Pcp *> copy.zone.pcp + cpu).batch, (<Pcp *> copy.zone.pcp + cpu).batch))
        if fences:
            say_no_barrier()
        orders = range(self.memory.max_page_order + 1)
        # As in Linux: one number for each name of a zone, whatever the node of the request.
        first_of_name = {}
        for other, spec in enumerate(self.memory.specs):
            first_of_name.setdefault(spec.name, other)
        return {
            "name": self.spec.name,
            "node": self.spec.node,
            "start_pfn": copy.zone.start_pfn,
            "spanned_pages": copy.zone.end_pfn - copy.zone.start_pfn,
            "managed_pages": copy.zone.managed_pages,
            "free_pages": copy.zone.free_pages,
            "reporting_pages": copy.hints.reporting_pages,
            "offline_pages": self.memory.offline_pages(copy.zone.index),
            "nr_free": [[copy.zone.areas[mt].nr_free[o] for o in orders] for mt in range(NR_TYPES)],
            "watermarks": self.memory.watermarks[copy.zone.index],
            "protection": [self.reserve(other) for other in first_of_name.values()],
            "page_sets": sets,
            "pcp_pages": sum(held for held, _, _ in sets) + run_set_pages(&copy.zone),
            "hints_pending": copy.hints.count,
            "hints_in_isolation": in_isolation,
            "hints_too_young": young,
            "threshold": copy.hints.threshold,
            "gate": report_gate(&copy.zone, self.memory.queue.max_pages),
            "hinting": bool(copy.hints.on),
            "lock_acquired": copy.zone.lock.acquired,
            "lock_contended": copy.zone.lock.contended,
            "longest_wait": copy.zone.lock.longest_wait,
            "longest_hold": copy.hints.longest_hold,
            "holds": list(copy.hints.holds),
            **counters,
        }

    cdef object reserve(self, int preferred):
        """The pages that this zone keeps from requests that prefer zone `preferred`."""
        cdef Machine *m = &self.memory.m
        cdef int i
        for i in range(m.zonelist_length[preferred]):
            if m.zonelists[preferred * m.nr_zones + i].zone == self.z.index:
                return m.zonelists[preferred * m.nr_zones + i].reserve
        return 0

    cdef object pageblock_types(self):
        """How many pageblocks there are of each migratetype. Those without any memory do not count. O(spanned pages)."""
        cdef uint64_t[NR_TYPES] count
        cdef uint64_t block, i, leaves = load64(&self.z.nr_leaves, RELAXED)
        cdef int mt
        memset(count, 0, sizeof(count))
        with nogil:
            for block in range((leaves + 7) >> 3):
                for i in range(block << 3, min((block + 1) << 3, leaves)):
                    if load8(&self.z.kinds[i], RELAXED) != 0:
                        count[load8(&self.z.types[block], RELAXED)] += 1
                        break
        return [count[mt] for mt in range(NR_TYPES)]

    def __repr__(self):
        interleaved = "" if self.z.tail_pfn == self.z.start_pfn else " interleaved with others,"
        return (
            f"<Zone {self.spec.name}, node {self.spec.node}: PFN {self.z.start_pfn:#x} to {self.z.end_pfn:#x},{interleaved}"
            f" {self.z.free_pages} of {self.z.managed_pages} pages free>"
        )


# ---- the allocator ------------------------------------------------------------------------------------------

cdef inline int preferred(PageAllocator pages, object zone) except -1:
    """The index of the zone that a request prefers: the one it names, or the default one."""
    return pages.memory.m.default_zone if zone is None else pages.zone_index(zone)


@cython.no_gc_clear     # destructors of others in a cycle that is collected may still use it
cdef class PageAllocator:
    """PageAllocator(memory, *, page_size=4096, max_page_order=10, min_order=None, pcp=True, watermarks=None)
--

    A zoned buddy page allocator with free page hinting.

    It manages page frame numbers (PFNs), and no memory: those of a machine that is modelled, or of an `Arena`.

    Parameters
    ----------
    memory : str, int or iterable of ZoneSpec
        A size ("16GiB", or bytes), which makes one zone "Normal" from PFN 0 on; or the zones.
    page_size : int, default 4096
        Bytes in a page, a power of two from 512 to 128 MiB.
    max_page_order : int, default 10
        Largest order of a block, inclusive, up to 32.
    min_order : int, optional
        A granule, the unit of hinting, is ``2**min_order`` pages. Default: ``max_page_order - 1``.
    pcp : bool, default True
        Put per-CPU page sets in front of the zones for orders 0 to 3. Without them placement is reproducible.
    watermarks : None, "linux" or (min, low, high), optional
        In pages of a zone. Ordinary requests leave min free; nothing is reported with less than low and a batch free.
        None is zero; "linux" takes Linux's formulas, with its lowmem reserve; a tuple holds for every zone.
        `set_watermarks` sets those of one zone.

    Raises
    ------
    ValueError
        If an argument is out of range, or a page is in two zones. Their spans may overlap: zones may interleave.
    TypeError
        If an argument is not of its type.
    MemoryError
        If the kernel refuses memory for the metadata.

    Notes
    -----
    Metadata is 0.4 byte a page. Allocating and freeing is O(max_page_order). Every method may be called from any
    thread. A call that is refused has changed nothing.
    """

    def __cinit__(self, memory, *, page_size=4096, max_page_order=10, min_order=None, bint pcp=True, watermarks=None):
        page = operator.index(page_size)
        if page < 512 or page > layout.SECTION_BYTES or page & (page - 1):
            raise ValueError(f"page_size must be a power of two from 512 to 128 MiB, not {shown(page)}")
        top = operator.index(max_page_order)
        if not 0 <= top <= MAX_ORDER_LIMIT:
            raise ValueError(f"max_page_order must be from 0 to {MAX_ORDER_LIMIT}, not {shown(top)}")
        least = max(top - 1, 0) if min_order is None else operator.index(min_order)
        if not 0 <= least <= top:
            raise ValueError(f"min_order must be from 0 to max_page_order ({top}), not {shown(least)}")
        marks = layout.check_watermarks(watermarks)
        if isinstance(memory, str) or hasattr(memory, "__index__"):
            nr_pages = parse_size(memory) // page
            if nr_pages == 0:
                raise ValueError(f"{memory!r} is less than a page of {page} bytes")
            memory = [layout.ZoneSpec("Normal", 0, nr_pages)]
        specs = layout.check_zones(memory)
        for spec in specs:
            base = spec.start_pfn >> max(top, <int>PAGEBLOCK_ORDER) << max(top, <int>PAGEBLOCK_ORDER)
            if spec.end_pfn - base > 1 << 32:
                raise ValueError(f"zone {spec.name} spans {spec.spanned_pages} pages; a zone has at most 2**32")
        self.memory = Memory(specs, page, top, least, pcp, marks)
        self.engine = hinting_engine(self.memory, &self.memory.m, &self.memory.queue, &self.memory.batch)
        self.zone_objects = tuple([Zone(self.memory, i) for i in range(len(specs))])
        _engines.add(self.engine)

    def __del__(self):
        # The worker is not joined: this may be its own thread, which has dropped the last reference. It takes a reference
        # to the engine before a cycle that both are in is cleared, while the worker may still call back: no `__dealloc__`.
        if self.memory is not None and self.memory.queue.enabled:
            self.engine.abandon()

    @classmethod
    def x86_64(cls, memory, nodes=1, *, watermarks="linux", **options):
        """Return the allocator of a PC: zones DMA, DMA32 up to 3 GiB, Normal from 4 GiB on; Linux's watermarks.

        Parameters
        ----------
        memory : str or int
            Size of the machine's memory ("16GiB", or bytes).
        nodes : int, default 1
            NUMA nodes, which share the memory evenly.
        watermarks : None, "linux" or (min, low, high), default "linux"
            As for `PageAllocator`.
        **options
            The other options of `PageAllocator`. A page has 4096 bytes.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As `PageAllocator`, and if the memory is too small for so many nodes.
        """
        if options.get("page_size", 4096) != 4096:
            raise ValueError("a PC has pages of 4096 bytes")
        return cls(layout.x86_64_zones(parse_size(memory), operator.index(nodes)), watermarks=watermarks, **options)

    @classmethod
    def from_snapshot(cls, snapshot, *, min_order=None, bint pcp=False):
        """Return an allocator in the state in which a snapshot shows a kernel: its zones, holes, watermarks, free pages.

        Parameters
        ----------
        snapshot : pagehint.traces.Snapshot
            Or any object with a method ``machine_state()`` that returns a `MachineState`.
        min_order : int, optional
            A granule is ``2**min_order`` pages, as for `PageAllocator`.
        pcp : bool, default False
            Put per-CPU page sets in front of the zones. Here they are off by default: what the kernel's own hold is in
            use for its buddy, and a replay says itself where each block is.

        Returns
        -------
        PageAllocator
            Each page that is managed and not free is allocated, as a block of order 0, so that it can be freed alone.
            Zones have the snapshot's watermarks and lowmem reserves, pageblocks its migratetypes. Its free set is the
            kernel's to the page (`free_bitmap`). So are its maximal free blocks, unless some pageblocks are of a
            migratetype that is not modelled. The order of the free lists is its own.

        Raises
        ------
        SnapshotError
            If the snapshot does not say which pages are free, or shows a machine that cannot be.
        ValueError, TypeError, BadPageError, MemoryError
            As `PageAllocator`, and if `min_order` is over a pageblock's while pageblocks are isolate.

        Notes
        -----
        O(runs of pages in use, and spanned pages / 64), without the GIL. What of a snapshot no allocator can have is
        said by `Snapshot.unrepresented`.
        """
        cdef PageAllocator pages
        if not hasattr(snapshot, "machine_state"):
            raise TypeError(f"snapshot must be a pagehint.traces.Snapshot, not {type(snapshot).__name__}")
        state = snapshot.machine_state()
        if not isinstance(state, MachineState):
            raise TypeError(f"machine_state() must return a MachineState, not {type(state).__name__}")
        pages = cls(state.zones, page_size=state.page_size, max_page_order=state.max_page_order, min_order=min_order,
                    pcp=pcp)
        pages.alloc_pages_at_bulk(state.used_pfns, state.used_pages)
        if state.migratetypes is not None:
            restore_migratetypes(pages.memory, np.ascontiguousarray(state.migratetypes, np.uint8))
        # Last, as claims do not mind them.
        reserves = np.ascontiguousarray(state.reserves, np.uint64)
        if len(state.watermarks) != len(state.zones) or reserves.shape != (len(state.zones), len(state.zones)):
            raise ValueError(f"{len(state.zones)} zones, {len(state.watermarks)} watermarks, reserves {reserves.shape}")
        restore_watermarks(pages.memory, tuple([layout.check_watermarks(marks) for marks in state.watermarks]), reserves)
        return pages

    cdef int zone_index(self, object zone) except -1:
        """The index of a zone, given as a Zone or by its name: of those of that name, the one of the lowest node."""
        named = None
        for each in self.zone_objects:
            if zone is each:
                return each.index
            if zone == each.name and (named is None or each.node < named.node):
                named = each
        if named is not None:
            return named.index
        raise ValueError(f"no such zone: {zone!r} (there is {', '.join(dict.fromkeys(z.name for z in self.zone_objects))})")

    cdef int out_of_memory(self, object what) except -1:
        """Raise OutOfMemoryError for a request, `what`."""
        left = ", ".join(f"{zone.name} (node {zone.node}) {zone.free_pages}" for zone in self.zone_objects)
        raise errors.OutOfMemoryError(f"{what}: no zone has the pages; free pages: {left}")

    # -- allocate and free

    def alloc_pages(self, order=0, migratetype="movable", zone=None):
        """Allocate a block of ``2**order`` pages and return its first PFN.

        Parameters
        ----------
        order : int, default 0
            From 0 to `max_page_order`.
        migratetype : {"movable", "unmovable", "reclaimable"}
            What the pages will hold. Pages of one type share pageblocks, so that the unmovable ones fragment no others.
        zone : Zone or str, optional
            The zone to prefer; a name that several nodes have is that of the lowest of them. Lower zones are tried next,
            then those of other nodes. Default: the highest of the lowest node.

        Raises
        ------
        OutOfMemoryError
            If no zone has such a block above its min watermark, also after emptying the per-CPU page sets and waiting
            for what is out with the host.
        BadPageError
            If the order is out of range.
        ValueError
            If there is no such migratetype or zone.

        Notes
        -----
        O(max_page_order). If no lock is contended, it makes no system call and does not release the GIL.
        """
        cdef int o = as_order(self.memory, order), mt = as_type(migratetype, 2), prefer = preferred(self, zone)
        cdef int rc, tries = 0
        cdef Machine *m = &self.memory.m
        cdef uint64_t pfn = 0
        rc = machine_alloc(m, prefer, o, mt, TRY, &pfn)
        if rc == E_AGAIN:
            with nogil:
                rc = machine_alloc(m, prefer, o, mt, WAIT, &pfn)
        if rc == E_NOMEM:
            with nogil:
                while rc == E_NOMEM and machine_grow(m, prefer, 1, o, &tries):
                    rc = machine_alloc(m, prefer, o, mt, WAIT, &pfn)
        if rc == E_NOMEM:
            self.memory.settle()
            with nogil:
                self.memory.begin_last_resort()
                rc = machine_alloc(m, prefer, o, mt, ALONE, &pfn)
                self.memory.end_last_resort()
            if rc == E_NOMEM:
                self.out_of_memory(f"order {o}, {migratetype}")
        return <long>pfn        # PFNs fit, and a signed number becomes a Python int faster

    def free_pages(self, pfn, order=0):
        """Free a block that `alloc_pages` or `alloc_pages_at` returned. O(max_page_order).

        Parameters
        ----------
        pfn : int
            The block's first PFN.
        order : int, default 0
            The block's order.

        Raises
        ------
        BadPageError
            If it is not an allocated block of this order: a double free, the wrong order, a page inside a block, in a
            hole, offline or outside every zone.
        """
        cdef uint64_t at = as_pfn(pfn)
        cdef int o = as_order_at(self.memory, order, pfn), rc
        cdef Machine *m = &self.memory.m
        if self.memory.queue.injected_clock:
            self.engine.tick()
        rc = machine_free(m, at, o, TRY)
        if rc == E_AGAIN:
            with nogil:
                rc = machine_free(m, at, o, WAIT)
        if rc != OK:
            raise refusal(self.memory, rc, at, f"order {o}")

    def split_pages(self, pfn, order):
        """Make an allocated block blocks of one page, each of which is freed for itself. As Linux's `split_page`.

        Nothing becomes free, so no hint changes.

        Parameters
        ----------
        pfn : int
            The block's first PFN.
        order : int
            The block's order.

        Raises
        ------
        BadPageError
            As `free_pages`. Nothing has changed.

        Notes
        -----
        O(pages / 64).
        """
        cdef uint64_t at = as_pfn(pfn)
        cdef int o = as_order_at(self.memory, order, pfn), rc
        with nogil:
            rc = machine_split(&self.memory.m, at, o)
        if rc != OK:
            raise refusal(self.memory, rc, at, f"order {o}")

    def alloc_pages_bulk(self, count, order=0, migratetype="movable", zone=None):
        """Allocate `count` blocks of one order, all or none.

        Parameters
        ----------
        count : int
            Number of blocks, 0 or more.
        order, migratetype, zone
            As in `alloc_pages`.

        Returns
        -------
        ndarray
            The blocks' first PFNs, of shape (count,) and dtype uint64.

        Raises
        ------
        OutOfMemoryError, BadPageError, ValueError
            As `alloc_pages`.

        Notes
        -----
        O(count * max_page_order), without the GIL. A zone's lock is released between chunks of blocks.
        """
        cdef uint64_t n = as_count(count, "count", 0)
        cdef int o = as_order(self.memory, order), mt = as_type(migratetype, 2), prefer = preferred(self, zone), rc
        cdef Machine *m = &self.memory.m
        cdef cnp.ndarray pfns
        cdef uint64_t *out
        if n > <uint64_t>sum([z.managed_pages for z in self.zone_objects]) + m.zones[prefer].growable_pages >> o:
            self.out_of_memory(f"{n} blocks of order {o}, {migratetype}")
        pfns = np.empty(n, np.uint64)
        out = <uint64_t *> pfns.data
        with nogil:
            rc = machine_alloc_bulk(m, prefer, o, mt, WAIT, out, n)
        if rc == E_NOMEM:
            self.memory.settle()
            with nogil:
                self.memory.begin_last_resort()
                rc = machine_alloc_bulk(m, prefer, o, mt, ALONE, out, n)
                self.memory.end_last_resort()
            if rc == E_NOMEM:
                self.out_of_memory(f"{n} blocks of order {o}, {migratetype}")
        return pfns

    def free_pages_bulk(self, pfns, order=0):
        """Free many blocks, all or none. O(blocks * max_page_order), without the GIL.

        Parameters
        ----------
        pfns : array_like of int
            First PFNs of the blocks, of shape (n,), in any order.
        order : int or array_like of int
            The order of all blocks, or of shape (n,), one for each.

        Raises
        ------
        BadPageError
            As `free_pages`, for the first block that cannot be freed, also if it is named twice.
        ValueError
            If an array is not one-dimensional, or the two differ in length.
        TypeError
            If an array does not hold whole numbers.
        """
        cdef cnp.ndarray where = as_pfns(pfns)
        cdef uint64_t n = <uint64_t>where.shape[0], refused = 0
        cdef cnp.ndarray orders
        cdef uint32_t *each = NULL
        cdef int o = 0, rc
        cdef Machine *m = &self.memory.m
        cdef uint64_t *at = <uint64_t *> where.data
        if hasattr(order, "__index__") and np.ndim(order) == 0:
            o = as_order_at(self.memory, order, where[0] if n else None)
        else:
            orders = as_orders(self.memory, order, where)
            each = <uint32_t *> orders.data
        if self.memory.queue.injected_clock:
            self.engine.tick()
        with nogil:
            rc = machine_free_bulk(m, at, each, o, n, &refused)
        if rc != OK:
            raise refusal(self.memory, rc, at[refused], f"order {o if each == NULL else each[refused]}, index {refused}")

    def run_ops(self, ops, pfns, migratetype="movable", zone=None):
        """Run an array of allocations and frees in one call, without the GIL: the replay of a trace.

        Parameters
        ----------
        ops : ndarray of dtype `OP_DTYPE`
            Operations in turn, of shape (n,). The fields of one are, in this order: ``slot`` (uint32) is where in `pfns`
            the block's first PFN is written by an allocation and read by a free, ``order`` (uint16) is the block's, and
            ``op`` (uint16) is `OP_ALLOC` or `OP_FREE`. So ``(0, 3, OP_ALLOC)`` allocates order 3 into slot 0.
        pfns : ndarray of uint64
            A PFN for each slot, of shape (slots,), contiguous and writeable. Changed in place.
        migratetype, zone
            Those of all allocations, as in `alloc_pages`.

        Raises
        ------
        OutOfMemoryError, BadPageError
            For the first operation that is refused; its attribute `index` is that of the operation. The operation has
            changed nothing, those before it stay done, and those after it have not begun. (They cannot be all or
            nothing: other threads may have used in the meantime what was freed.)
        TypeError
            If an array is not of the dtype, shape or layout above.

        Notes
        -----
        O(max_page_order) an operation. The zone's lock is held for up to 64 operations at a time.
        """
        cdef Machine *m = &self.memory.m
        cdef cnp.ndarray trace = np.asarray(ops), table = pfns
        cdef uint64_t n, nr_slots, done = 0
        cdef int mt = as_type(migratetype, 2), prefer = preferred(self, zone), rc, tries
        cdef Op *op
        if trace.dtype != OP_DTYPE or trace.ndim != 1:
            raise TypeError("ops must be a one-dimensional array of dtype OP_DTYPE")
        if table is None or table.dtype != np.uint64 or not table.flags.carray or table.ndim != 1:
            raise TypeError("pfns must be a one-dimensional, contiguous, aligned and writeable array of uint64")
        # A copy, which no other thread changes meanwhile; as numbers, since NumPy copies records field by field.
        trace = trace.view(np.uint64).copy()
        n, nr_slots = <uint64_t>trace.shape[0], <uint64_t>table.shape[0]
        op = <Op *> trace.data
        if self.memory.queue.injected_clock:
            self.engine.tick()
        while True:
            with nogil:
                rc = machine_run_ops(m, prefer, mt, self.memory.max_page_order, op, n, WAIT,
                                     <uint64_t *> table.data, nr_slots, &done)
            if rc != E_NOMEM:
                break
            tries = 0
            if machine_grow(m, prefer, 1, op[done].order, &tries):
                continue
            # The operation that failed once more, with everything back from page sets and from the host.
            self.memory.settle()
            with nogil:
                self.memory.begin_last_resort()
                rc = machine_run_ops(m, prefer, mt, self.memory.max_page_order, op, done + 1, ALONE,
                                     <uint64_t *> table.data, nr_slots, &done)
                self.memory.end_last_resort()
            if rc != OK:
                break
        if rc != OK:
            self.refuse_op(rc, done, trace, table)

    cdef int refuse_op(self, int rc, uint64_t index, cnp.ndarray trace, cnp.ndarray table) except -1:
        """Raise the error for the operation at `index` of a trace, which was refused with `rc`."""
        cdef Op *op = <Op *> trace.data + index
        if rc == E_NOMEM:
            error = errors.OutOfMemoryError(f"operation {index}, order {op.order}: no zone has the pages")
        elif rc == E_SLOT:
            error = errors.BadPageError(
                f"operation {index}: slot {op.slot} of {table.shape[0]}, order {op.order}, op {op.op}: out of range")
        else:
            error = refusal(self.memory, rc, (<uint64_t *> table.data)[op.slot], f"operation {index}, order {op.order}")
        error.index = index
        raise error

    def alloc_pages_at(self, pfn, order=0):
        """Allocate exactly this block, as a replay must, or memory that is needed at one place. O(max_page_order).

        Migratetype and watermarks do not matter.

        Parameters
        ----------
        pfn : int
            The block's first PFN, a multiple of ``2**order``.
        order : int, default 0
            The block's order.

        Returns
        -------
        int
            `pfn`.

        Raises
        ------
        BadPageError
            If the block is not all free, in a pageblock of type isolate, not aligned, or not all in one zone.
        """
        cdef uint64_t at = as_pfn(pfn)
        cdef int o = as_order_at(self.memory, order, pfn), rc
        cdef Machine *m = &self.memory.m
        rc = machine_alloc_at(m, at, o, False)
        if rc == E_AGAIN:
            with nogil:
                rc = machine_alloc_at(m, at, o, True)
        # Pages without memory cannot come back from a page set or from the host.
        if rc == E_BUSY and self.memory.absence(at, <uint64_t>1 << o) is None:
            self.memory.settle()
            with nogil:
                self.memory.begin_last_resort()
                rc = machine_alloc_at(m, at, o, True)
                self.memory.end_last_resort()
        if rc != OK:
            raise refusal(self.memory, rc, at, f"order {o}", <uint64_t>1 << o)
        return at

    def alloc_pages_at_bulk(self, pfns, nr_pages, order=0):
        """Allocate exactly these runs of pages as blocks of one order, all or none: a whole machine's pages in one call.

        Migratetype and watermarks do not matter. Each block is freed by `free_pages` or `free_pages_bulk`: those of
        order 0 page by page, so that any part of a run may go.

        Parameters
        ----------
        pfns : array_like of int
            First PFNs of the runs, of shape (n,), in any order, each a multiple of ``2**order``.
        nr_pages : int or array_like of int
            Pages of all runs, or of shape (n,), of each: multiples of ``2**order``, at least one.
        order : int, default 0
            The blocks' order.

        Raises
        ------
        BadPageError
            If a run is not all free, in a pageblock of type isolate, not aligned, not all in one zone, or overlaps
            another. The message names the first such run, by address.
        ValueError
            If an array is not one-dimensional, or the two differ in length.
        TypeError
            If an array does not hold whole numbers.

        Notes
        -----
        O(free blocks in the runs, and pages / 64), and a sort of the runs where they are not ascending; without the
        GIL. A zone's lock is released after each 64 steps, of at most 1024 pages or one block. If another thread takes
        a page of them meanwhile, what was taken is freed again, as by `free_pages`.
        """
        cdef Machine *m = &self.memory.m
        cdef cnp.ndarray starts = as_pfns(pfns), counts = as_page_counts(nr_pages, starts)
        cdef int o = as_order_at(self.memory, order, starts[0] if len(starts) else None), rc
        cdef uint64_t refused = 0
        cdef Runs runs
        places = None
        if (starts[1:] <= starts[:max(len(starts) - 1, 0)]).any():
            places = np.argsort(starts, kind="stable")
            starts, counts = starts[places], counts[places]
        runs.pfns, runs.counts, runs.n = <uint64_t *> starts.data, <uint64_t *> counts.data, <uint64_t>len(starts)
        self.check_runs(starts, counts, o, places)
        with nogil:
            rc = machine_alloc_at_bulk(m, &runs, o, WAIT, &refused)
        # Pages without memory cannot come back from a page set or from the host.
        if rc == E_BUSY and self.memory.absence(runs.pfns[refused], runs.counts[refused]) is None:
            self.memory.settle()
            with nogil:
                self.memory.begin_last_resort()
                rc = machine_alloc_at_bulk(m, &runs, o, ALONE, &refused)
                self.memory.end_last_resort()
        if rc != OK:
            raise self.refuse_run(rc, starts, counts, refused, o, places)

    cdef int check_runs(self, cnp.ndarray starts, cnp.ndarray counts, int order, object places) except -1:
        """Raise BadPageError if a run is not aligned to the order, or overlaps the next."""
        cdef object rest = max(len(starts) - 1, 0), bad
        if order > 0:
            bad = (starts | counts) & np.uint64((1 << order) - 1)
            if bad.any():
                raise self.refuse_run(E_ALIGN, starts, counts, np.argmax(bad != 0), order, places)
        bad = starts[1:] - starts[:rest] < counts[:rest]
        if bad.any():
            raise self.refuse_run(E_TWICE, starts, counts, np.argmax(bad) + 1, order, places)
        return 0

    cdef object refuse_run(self, int rc, cnp.ndarray starts, cnp.ndarray counts, uint64_t bad, int order, object places):
        """The error for the run at index `bad`; `places` are the caller's indices, or None if they are the same."""
        what = f"order {order}, {counts[bad]} pages, index {bad if places is None else places[bad]}"
        return refusal(self.memory, rc, starts[bad], what, counts[bad])

    def alloc_pages_exact(self, nr_pages, migratetype="movable", zone=None):
        """Allocate a run of `nr_pages` contiguous pages and return its first PFN. The number is not rounded up.

        Parameters
        ----------
        nr_pages : int
            Any number from 1 on.
        migratetype, zone
            As in `alloc_pages`.

        Raises
        ------
        OutOfMemoryError, BadPageError, ValueError
            As `alloc_pages`.

        Notes
        -----
        Takes the front of a block, O(max_page_order). If no block is large enough it takes the first free run that
        begins at a multiple of 64 pages, O(spanned pages / 64). In an arena a run of 64 KiB or more begins at any page:
        the front of the shortest free run that is long enough, O(max_page_order) as well.
        """
        cdef uint64_t n = as_count(nr_pages, "nr_pages", 1), pfn = 0
        cdef int mt = as_type(migratetype, 2), prefer = preferred(self, zone), rc
        cdef Machine *m = &self.memory.m
        with nogil:
            rc = machine_alloc_run(m, prefer, n, mt, self.memory.max_page_order, WAIT, &pfn)
        if rc == E_NOMEM:
            self.memory.settle()
            with nogil:
                self.memory.begin_last_resort()
                rc = machine_alloc_run(m, prefer, n, mt, self.memory.max_page_order, ALONE, &pfn)
                self.memory.end_last_resort()
            if rc == E_NOMEM:
                self.out_of_memory(f"{n} contiguous pages, {migratetype}")
        return pfn

    def free_pages_exact(self, pfn, nr_pages):
        """Free a run that `alloc_pages_exact` returned. O(nr_pages / 64).

        Parameters
        ----------
        pfn : int
            The run's first PFN.
        nr_pages : int
            All of its pages.

        Raises
        ------
        BadPageError
            If these pages are not allocated as one run.
        """
        cdef uint64_t at = as_pfn(pfn), n = as_count(nr_pages, "nr_pages", 1)
        cdef Machine *m = &self.memory.m
        cdef int rc
        if self.memory.queue.injected_clock:
            self.engine.tick()
        with nogil:
            rc = machine_free_run(m, at, n, self.memory.max_page_order)
        if rc != OK:
            raise refusal(self.memory, rc, at, f"{n} pages")

    def drain_pcp(self):
        """Give all pages in the per-CPU page sets back to the zones, as ordinary frees: they merge, and are hinted."""
        self.engine.tick()
        with nogil:
            machine_drain(&self.memory.m)

    # -- hotplug and migratetypes

    def offline(self, pfn, nr_pages):
        """Take whole sections (128 MiB) offline, all or none; all their pages must be free. O(nr_pages / 64).

        Parameters
        ----------
        pfn : int
            First PFN, a multiple of a section, or the zone's first.
        nr_pages : int
            Pages up to the end of a section, or of the zone.

        Raises
        ------
        BadPageError
            If a page is in use or offline already, or the run is not made of whole sections of one zone.

        Notes
        -----
        If a page is not free it first waits for what is out with the host, and empties the per-CPU page sets.
        """
        self.memory.set_offline(pfn, nr_pages)

    def online(self, pfn, nr_pages):
        """Bring whole sections online: those that are offline, or new ones past the end of a zone, which grows.

        What a zone grows over becomes a hole, whose whole sections can come online later. O(nr_pages / 64).

        Parameters
        ----------
        pfn, nr_pages : int
            A run of pages as in `offline`.

        Raises
        ------
        BadPageError
            If the run is not made of whole sections, is not all offline, or no zone can grow there.
        MemoryError
            If the kernel refuses memory for the metadata of a zone that grows.
        """
        self.engine.tick()
        self.memory.set_online(pfn, nr_pages)

    def set_migratetype(self, pfn, nr_pages, migratetype):
        """Set the migratetype of whole pageblocks (512 pages), whether allocated or free. O(nr_pages / 64).

        Free pages of type "isolate" are neither allocated nor reported until their pageblock gets another type. Their
        hints stay.

        Parameters
        ----------
        pfn : int
            First PFN, a multiple of a pageblock and of a granule, or the zone's first.
        nr_pages : int
            Pages up to the end of a pageblock and of a granule, or of the zone. Where a zone begins or ends inside one,
            the part that there is is set, whether the run is given to the zone's end or to the pageblock's. If another
            zone has pages of that pageblock, each zone's part must be given by itself.
        migratetype : {"movable", "unmovable", "reclaimable", "isolate"}
            The new type.

        Raises
        ------
        BadPageError
            If the run is not made of whole pageblocks and granules of one zone. Nothing has changed.
        ValueError
            If there is no such migratetype.
        """
        self.engine.tick()
        self.memory.set_migratetype(pfn, nr_pages, migratetype)

    def set_watermarks(self, zone, watermarks):
        """Set the watermarks of one zone, at any time. A zone that waits for its gate goes by the new ones at once.

        Parameters
        ----------
        zone : Zone or str
            The zone; a name that several nodes have is that of the lowest of them.
        watermarks : None, "linux" or (min, low, high)
            In pages, as for the constructor: None is zero, "linux" what Linux's formulas give this zone, also after
            hotplug. Lowmem reserves stay as they are.

        Raises
        ------
        ValueError, TypeError
            If there is no such zone, or watermarks are not 0 <= min <= low <= high. Nothing has changed.
        """
        index = self.zone_index(zone)
        self.engine.tick()
        self.memory.set_watermarks_of(index, watermarks)

    # -- hinting

    def enable_hinting(self, callbacks, *, workqueue="thread", threshold=None, delay=2.0, max_report_order=None,
                       mark_free=True, min_age=None, cost=None, reserve=None, reserve_age=1.5, clock=None):
        """Begin to report free blocks.

        Parameters
        ----------
        callbacks : PageHintingCallbacks
            What reports the blocks.
        workqueue : {"thread", "manual"}
            Report on a worker thread, or on the threads that call `run_pending` and `flush_hinting`.
        threshold : int, optional
            Hinted granules in a zone at which it is reported at once, from 1 to 2**20. Default: the callbacks'
            `max_pages`; 1 with ``min_age="auto"``.
        delay : float or None, default 2.0
            Seconds after which fewer are reported, too. None: never.
        max_report_order : int, optional
            Largest order of a block that is reported. Default: 10, but at most `max_page_order` and at least
            `min_order`.
        mark_free : bool, default True
            Also report what is free already.
        min_age : float, "auto" or None, default None
            Seconds that a granule must have been free before it is reported, so that memory which is used again soon is
            not. What is free already counts from now. A block is as old as its youngest granule. "auto": learnt in each
            zone from how long its granules stay free, for a `cost`.
        cost : float, optional
            Seconds for which keeping a granule costs as much as reporting it, and faulting it in again. Only with
            ``min_age="auto"``. Default: 1.0. A reserve whose age is not longer is none.
        reserve : str or int, optional
            Bytes, or a size such as "64MiB", rounded up to granules: in each zone so much of the hinted memory, that at
            the lowest addresses, is reported only when it has been free for `reserve_age`. Default: none.
        reserve_age : float, default 1.5
            Seconds for which the reserve must have been free before it is reported. `min_age` if that is longer.
        clock : callable or float, optional
            Returns seconds, for the delay, the age and the back-off. Only with ``workqueue="manual"``. It is read by
            the methods that free, so what compiled code frees counts from the last reading. A number is the time at
            which a clock stands that `run_until` and `replay` move on. Default: the monotonic clock.

        Raises
        ------
        HintingActiveError
            If hinting is on already, or from inside a callback. Nothing has changed.
        ValueError, TypeError, BadPageError
            If an argument is out of range or not of its type. Nothing has changed.
        PageHintError
            If there is no thread for the worker. Nothing has changed.
        MemoryError
            If there is no memory for a batch, or for the stamps that `min_age` and `reserve` need. Nothing has changed.

        Notes
        -----
        After Linux's page hinting series (v10, June 2019) and free page reporting (5.7). What fails is hinted again,
        and retried with exponential back-off from 0.1 to 30 seconds.

        `min_age` is the rule of ski rental: an age at which keeping the memory has cost as much as reporting it and
        faulting it in again costs at most twice the optimum (Karlin and others, 1988). With it, threshold and delay say
        when a zone is looked at first, but not before something in it is old enough. While there is younger memory, the
        zone is looked at again when the oldest of that comes of age, at most eight times in each `min_age`, O(hinted
        granules) without its lock. This takes 8 bytes a granule, and a reading of the clock for each block freed.

        With ``min_age="auto"`` the cost is at most twice the optimum over any longer stretch, whatever happens, and as a
        rule much nearer (``pagehint/hinting/learning/learnt_age.pxd`` says how, ``docs/results.md`` how near). It takes
        6 KiB a zone, and a reading of the clock for each block that is taken out of a free granule, too. While memory
        is warm, the zone is looked at sixteen to thirty-two times in each `cost`. A report of 2 MiB and its faults take
        about 0.2 ms of a processor (in pages of 4 KiB over 1 ms); where a GiB costs as much as a tenth of a processor,
        so do 2 MiB for a second.

        A `reserve` is for loops that want a little memory again and again, more slowly than `min_age`. They find it
        still warm. What is in the reserve is decided at each look: granules
        keep their ages as they move in and out of it. When nothing is used any more, all of it is reported.

        The allocator keeps the callbacks alive, and what they refer to. If they refer to the allocator, both are
        collected when nothing else refers to it, which ends the worker.
        """
        cdef Settings settings
        if not isinstance(callbacks, PageHintingCallbacks):
            raise TypeError(f"callbacks must be PageHintingCallbacks, not {type(callbacks).__name__}")
        settings = as_settings(self.memory, (<PageHintingCallbacks> callbacks).most, workqueue, threshold, delay,
                               max_report_order, min_age, cost, reserve, reserve_age, clock)
        self.engine.enable(callbacks, &settings, mark_free, clock)
        self.marked = bool(mark_free)

    def disable_hinting(self):
        """Stop reporting; do nothing if hinting is off.

        On return no callback runs or will run, and every block is back.

        Raises
        ------
        HintingActiveError
            From inside a callback, whose end it would wait for.
        """
        self.engine.disable()

    def flush_hinting(self):
        """Report everything that can be reported, now, and return when that is done.

        Empties the per-CPU page sets first. Delay, threshold, `min_age` and back-off do not matter, but the watermarks
        do. A failure does not raise: it is in `last_error`.

        If the callbacks have an `is_dropped`, it is asked about all that is free and was reported; what the host has
        memory for again is hinted again, and reported, too. That is O(granules), with each zone's lock held for 4096
        of them at a time, and not while the host is asked.

        Raises
        ------
        HintingInactiveError
            If hinting is off, or is disabled meanwhile.
        HintingActiveError
            From inside a callback, whose end it would wait for.
        """
        self.engine.flush()

    def mark_free(self, pfn=None, nr_pages=None):
        """Hint again what is free, as if it had just been freed: for memory that its host has taken back.

        A host that can say what it has is asked by each flush (`PageHintingCallbacks`, `is_dropped`). This is for the
        others, and for who knows better.

        Parameters
        ----------
        pfn, nr_pages : int, optional
            A run of pages in one zone. The granules that it touches are hinted, as far as they are entirely free.
            Default: all zones.

        Returns
        -------
        int
            Granules that had no hint, and have one now.

        Raises
        ------
        HintingInactiveError
            If hinting is off.
        BadPageError
            If the run is not inside one zone. Nothing has changed.
        TypeError
            If one of the two is given without the other.

        Notes
        -----
        O(granules), without the GIL. The zone is locked for 4096 granules at a time.
        """
        cdef PageZone *z = NULL
        cdef uint64_t first, count, n = 0
        cdef int i
        self.engine.require_hinting("mark_free")
        if (pfn is None) != (nr_pages is None):
            raise TypeError("mark_free takes a first PFN and a number of pages, or neither")
        self.engine.tick()
        if pfn is None:
            with nogil:
                for i in range(self.memory.m.nr_zones):
                    n += mark_free_granules(self.memory.m.zones[i], 0,
                                            load64(&self.memory.m.zones[i].nr_granules, RELAXED))
            return n
        first, count = as_pfn(pfn), as_count(nr_pages, "nr_pages", 1)
        with self.memory.hotplug():
            z = self.memory.zone_in(first, first + count)
        first -= z.base_pfn
        with nogil:
            n = mark_free_granules(z, first >> z.min_order, ((first + count - 1) >> z.min_order) + 1)
        return n

    def run_pending(self):
        """With ``workqueue="manual"``: run what is queued and due, on this thread.

        A callback that frees memory may make another pass due each time, so a call ends after 64 passes at the latest.
        What is due then stays queued for the next call.

        Returns
        -------
        int
            Passes over the zones that were run.

        Raises
        ------
        HintingInactiveError
            If hinting is off.
        HintingActiveError
            From inside a callback.
        PageHintError
            With ``workqueue="thread"``, where the worker runs the work.
        """
        return self.engine.run_pending()

    def run_until(self, seconds):
        """With a clock that was given: run the passes that are due by a time, each at its own time; then it is that time.

        Parameters
        ----------
        seconds : float
            By the clock of `enable_hinting`. If that is a callable it is not called meanwhile, and should say this time
            from then on.

        Returns
        -------
        int
            Passes that were run. At one time it is 64 at the most, as in `run_pending`.

        Raises
        ------
        ValueError
            If it is later already.
        HintingInactiveError, HintingActiveError
            If hinting is off; from inside a callback.
        PageHintError
            With ``workqueue="thread"``; without a clock; while another thread sets the time.
        """
        return run_until(self.engine, as_moment(seconds, "seconds"))

    @property
    def now(self):
        """The time in seconds by the clock of hinting: in a callback, when its report begins."""
        self.engine.require_hinting("now")
        return self.engine.now() / <double>SECOND

    @property
    def next_due(self):
        """When the next pass is due, in seconds by the clock of hinting; None if nothing waits for one. Not in the past."""
        cdef int64_t due
        self.engine.require_hinting("next_due")
        self.engine.tick()
        due = due_at(&self.memory.queue)
        return None if due == INT64_MAX else due / <double>SECOND

    def replay(self, operations, *, bint strict=False, host_latency=0.0, host_rate=None, progress=None):
        """Carry out what happened to a kernel's free lists, page by page where it happened, as its recording says.

        With hinting on, its clock goes by the operations' times, and its passes are run on this thread, when they are due.

        Parameters
        ----------
        operations : pagehint.traces.Operations or ndarray of `OPERATION_DTYPE`
            What a block is taken for, and when, does not matter: only its place. What is given may be a part of a block
            that was taken as one, or parts of several. Of migratetypes those of pageblocks are set. The kernel's own
            reports change nothing here: their blocks are compared.
        strict : bool, default False
            Raise for the first operation that contradicts what is here, rather than count it and go on.
        host_latency : float, default 0.0
            Seconds that a report takes, by the recording's clock. Its blocks are out meanwhile, and what takes a page of
            them waits; at the end of the operations they come back at once.
        host_rate : str or int, optional
            Bytes a second that a report takes on top, or a size such as "4GiB". Default: any number in no time.
        progress : callable or True, optional
            Called now and then with the number of operations done and that of all; what it raises stops the replay.
            True shows a bar (needs the extra "demo").

        Returns
        -------
        Replayed
            What was done, refused, and reported.

        Raises
        ------
        BadPageError
            If `strict`, for an operation that was refused and has changed nothing; its attribute `index` is that of the
            operation, and those before it stay done. KeyboardInterrupt, and whatever stops it early, has `index`, too.
        PageHintError
            If there are page sets (`pcp`) or it is an arena; if hinting is on, but not with ``workqueue="manual"`` and a
            number for its ``clock``; or while another thread sets the time.
        TypeError, ValueError
            If an argument is not of its type or out of range, or hinting's clock is later than the first operation.

        Notes
        -----
        O(max_page_order) an operation, without the GIL but for the passes. A zone's lock is held for up to 64 operations at
        a time. The waits are open-loop: operations have the times of the recording, however long one would have waited.
        """
        return replay(self.memory, self.engine, operations, strict, host_latency, host_rate, progress)

    def hinting(self, callbacks, **options):
        """Return a context manager that calls `enable_hinting` with these arguments, at its end `disable_hinting`.

        All arguments are checked here. If it is dropped without having been entered, there is a RuntimeWarning.

        Raises
        ------
        ValueError, TypeError, BadPageError
            As `enable_hinting`.
        """
        check_hinting(self, callbacks, **options)
        return HintingContext(self, lambda: self.enable_hinting(callbacks, **options), self.disable_hinting,
                              "pages.hinting(...)")

    @property
    def hinting_enabled(self):
        """Whether hinting is on."""
        return bool(self.memory.queue.enabled)

    @property
    def last_error(self):
        """What a callback failed with last, since hinting was enabled; None if none did."""
        return self.engine.last_error

    @property
    def max_pages(self):
        """Most blocks that are out with the host at once. May be set. HintingInactiveError while hinting is off."""
        self.engine.require_hinting("max_pages")
        return self.memory.queue.max_pages

    @max_pages.setter
    def max_pages(self, value):
        self.engine.change(SET_MAX_PAGES, as_positive(value, "max_pages"))

    @property
    def threshold(self):
        """Hinted granules at which a zone is reported. May be set while hinting is on; None is `max_pages`."""
        self.engine.require_hinting("threshold")
        return self.memory.queue.threshold or self.memory.queue.max_pages

    @threshold.setter
    def threshold(self, value):
        self.engine.change(SET_THRESHOLD, 0 if value is None else as_positive(value, "threshold"))

    @property
    def delay(self):
        """Seconds until fewer hints than the threshold are reported, or None: never. May be set while hinting is on."""
        self.engine.require_hinting("delay")
        return None if self.memory.queue.delay == NEVER else self.memory.queue.delay / <double>SECOND

    @delay.setter
    def delay(self, value):
        self.engine.change(SET_DELAY, as_duration(value, "delay"))

    @property
    def min_age(self):
        """Seconds that a granule must have been free before it is reported, or None. May be set while hinting is on.

        What is free counts from when it was freed; from now on, if there was no age before. MemoryError if there is no
        memory for the stamps. What was learnt is forgotten with another age than "auto"; its `cost` is 1.0 at first.
        """
        self.engine.require_hinting("min_age")
        if self.memory.queue.break_even:
            return "auto"
        return None if self.memory.queue.min_age == NEVER else self.memory.queue.min_age / <double>SECOND

    @min_age.setter
    def min_age(self, value):
        cdef Settings settings
        set_min_age(&settings, value, None)
        self.engine.require_hinting("min_age")
        if settings.break_even:
            if not self.memory.queue.break_even:
                self.set_break_even(settings.break_even)
            return
        if settings.min_age > 0:
            self.memory.keep_ages()     # first, since it may fail
        self.engine.change(SET_MIN_AGE, settings.min_age)
        self.engine.change(SET_BREAK_EVEN, 0)

    @property
    def cost(self):
        """Seconds for which keeping a granule costs as much as reporting it; None unless `min_age` is "auto".

        May be set while it is. What was learnt is forgotten with another cost.
        """
        self.engine.require_hinting("cost")
        return self.memory.queue.break_even / <double>SECOND or None

    @cost.setter
    def cost(self, value):
        cdef Settings settings
        self.engine.require_hinting("cost")
        set_min_age(&settings, self.min_age, value)
        if settings.break_even:
            self.set_break_even(settings.break_even)

    cdef int set_break_even(self, int64_t nanoseconds) except -1:
        self.memory.keep_ages(True)     # first, since it may fail
        return self.engine.change(SET_BREAK_EVEN, nanoseconds)

    @property
    def reserve(self):
        """Bytes in each zone that are reported only after `reserve_age`, or None. May be set while hinting is on.

        What is free counts as when `min_age` is set. MemoryError if there is no memory for the stamps.
        """
        self.engine.require_hinting("reserve")
        granule = <uint64_t>self.memory.page_size << self.memory.min_order
        return <object>self.memory.queue.reserve * granule or None

    @reserve.setter
    def reserve(self, value):
        granules = as_reserve(self.memory, value)
        self.engine.require_hinting("reserve")
        if granules:
            self.memory.keep_ages()
        self.engine.change(SET_RESERVE, granules)

    @property
    def reserve_age(self):
        """Seconds for which the reserve must have been free before it is reported. May be set while hinting is on."""
        self.engine.require_hinting("reserve_age")
        return self.memory.queue.reserve_age / <double>SECOND

    @reserve_age.setter
    def reserve_age(self, value):
        self.engine.change(SET_RESERVE_AGE, as_reserve_age(value))

    # -- figures

    @property
    def zones(self):
        """The zones by address, a tuple of `Zone`."""
        return self.zone_objects

    @property
    def page_size(self):
        """Bytes in a page."""
        return self.memory.page_size

    @property
    def max_page_order(self):
        """Largest order of a block."""
        return self.memory.max_page_order

    @property
    def min_order(self):
        """Order of a granule, the unit of hinting: it is ``2**min_order`` pages."""
        return self.memory.min_order

    def free_bitmap(self):
        """Return which pages are free in the buddy system: a bit for each page, from PFN 0 to the end of the last zone.

        Returns
        -------
        ndarray
            Of shape (words,) and dtype uint64, the lowest bit of a word first, as `Zone.hint_bitmap`: word ``pfn // 64``
            has the page's bit at ``pfn % 64``. As booleans: ``numpy.unpackbits(words.view(numpy.uint8),
            bitorder="little")``. Pages in page sets, out with the host, in holes and offline are not free.

        Notes
        -----
        O(spanned pages / 64), and a bit for each PFN: of a machine whose PFNs begin high take `Zone.free_bitmap`. A
        zone's lock is held for 2**18 pages at a time. While other threads allocate and free, each such part is as of
        one moment, and so is each block in it; the parts are of different moments.
        """
        cdef Machine *m = &self.memory.m
        cdef uint64_t last = 0, n
        cdef cnp.ndarray words
        cdef int i
        for i in range(m.nr_zones):
            last = max(last, (m.zones[i].base_pfn >> 6) + load64(&m.zones[i].nr_leaves, RELAXED))
        words = np.zeros(last, np.uint64)
        for i in range(m.nr_zones):
            n = min(load64(&m.zones[i].nr_leaves, RELAXED), last - (m.zones[i].base_pfn >> 6))
            with nogil:
                zone_free_bits(m.zones[i], n, <uint64_t *> words.data + (m.zones[i].base_pfn >> 6))
        return words

    def free_block_at(self, pfn):
        """Return the maximal free block that a page is in, as (PFN, order); None if the page is not free.

        Parameters
        ----------
        pfn : int
            Any page of a zone. In a hole or an offline section, in a page set or out with the host it is not free.

        Raises
        ------
        BadPageError
            If the page is outside every zone.

        Notes
        -----
        O(max_page_order), under the zone's lock. The block may be gone when the call returns.
        """
        cdef uint64_t at = as_pfn(pfn), head = 0
        cdef PageZone *z = find_zone(&self.memory.m, at)
        cdef int order
        if z == NULL:
            raise errors.BadPageError(f"PFN {at:#x} is outside every zone")
        with nogil:
            lock_acquire(&z.lock, True)
            order = free_block_around(z, at - z.base_pfn, 0, &head)
            lock_release(&z.lock)
        return None if order == NOT_FREE else (z.base_pfn + head, order)

    def stats(self, bint locks=False):
        """Return the counts of now, added over all zones: a `Stats`. Each zone is locked for a moment, one by one.

        Parameters
        ----------
        locks : bool, default False
            Add how long the zone locks were waited for and held: a `LockStats`, as the attribute `locks`.
        """
        cdef WorkQueue *q = &self.memory.queue
        zones = [zone.figures() for zone in self.zone_objects]
        holds = map(sum, zip(*[zone["holds"] for zone in zones]))
        totals = {name: sum(zone[name] for zone in zones) for name in Stats.__dataclass_fields__
                  if name in zones[0] and name != "nr_free"}
        totals["nr_free"] = tuple(sum(counts) for counts in zip(*[types for zone in zones for types in zone["nr_free"]]))
        return Stats(**{
            **totals,
            "page_size": self.memory.page_size,
            "allocated_pages": (totals["managed_pages"] - totals["free_pages"] - totals["reporting_pages"]
                                - totals["pcp_pages"]),
            "work_runs": q.work_runs,
            "reports": q.reports,
            "report_errors": q.report_errors,
            "prepare_errors": q.prepare_errors,
            "locks": LockStats(
                max(zone["longest_wait"] for zone in zones),
                max(zone["longest_hold"] for zone in zones),
                tuple([(1 << i, count) for i, count in enumerate(holds) if count]),
            ) if locks else None,
            "regret": self.regret(),
        })

    cdef object regret(self):
        """The `Regret` of the session; None where no age is learnt."""
        found = [counts for counts in [zone_regret((<Zone> zone).z) for zone in self.zone_objects] if counts is not None]
        return regret_of(found, self.memory.page_size << self.memory.min_order) if found else None

    def explain(self):
        """Return where the free memory is, and why not with the host: an `Explanation`, which prints as a table.

        In an arena its host is asked what of the reported memory it has again, O(granules) of that.
        """
        count_warm = self.memory.warm_pages and self.memory.warm_pages()
        callbacks = self.engine.reporter.callbacks
        can_say = self.memory.came_back and callbacks is not None and callbacks.is_dropped is not None
        count_back = self.memory.came_back() if can_say else None
        return explain_zones(
            [{**zone.figures(), "came_back": count_back(zone) if count_back else 0} for zone in self.zone_objects],
            page_size=self.memory.page_size, min_order=self.memory.min_order, hinting=self.hinting_enabled,
            marked=self.marked, warm=count_warm and count_warm(), regret=self.regret(),
        )

    def buddyinfo(self):
        """Return the free blocks by order: the text of ``/proc/buddyinfo``."""
        return procfs.buddyinfo([zone.figures() for zone in self.zone_objects])

    def pagetypeinfo(self):
        """Return the free blocks by migratetype and order, and the pageblocks: the text of ``/proc/pagetypeinfo``."""
        zones = [{**zone.figures(), "pageblocks": (<Zone> zone).pageblock_types()} for zone in self.zone_objects]
        return procfs.pagetypeinfo(zones, PAGEBLOCK_ORDER, MIGRATETYPES)

    def zoneinfo(self):
        """Return the zones' sizes and watermarks: the text of ``/proc/zoneinfo``."""
        return procfs.zoneinfo([zone.figures() for zone in self.zone_objects])

    def verify(self):
        """Check every invariant of the metadata, from scratch. O(pages / 64), each zone locked meanwhile.

        Raises
        ------
        PageHintError
            For the first invariant that does not hold, with the zone and a PFN: of the block's first page, or, if a
            count is wrong, of the zone's first.
        """
        self.memory.verify()

    def __repr__(self):
        left = sum([zone.free_pages for zone in self.zone_objects])
        managed = sum([zone.managed_pages for zone in self.zone_objects])
        names = ", ".join(zone.name for zone in self.zone_objects)
        return (
            f"<PageAllocator {format_size(managed * self.page_size)} in {names}: {format_size(left * self.page_size)} free,"
            f" hinting {'on' if self.hinting_enabled else 'off'}>"
        )

    def _repr_html_(self):
        return f"<p>{html.escape(repr(self).strip("<>"))}</p>{self.explain()._repr_html_()}"


def check_hinting(PageAllocator pages not None, callbacks, **options):
    """Raise if `PageAllocator.enable_hinting` would refuse these arguments, whether hinting is on or off."""
    unknown = [name for name in options if name not in HINTING_OPTIONS]
    if unknown:
        raise TypeError(f"no option of hinting is named {unknown[0]!r}; there are: {', '.join(HINTING_OPTIONS)}")
    if not isinstance(callbacks, PageHintingCallbacks):
        raise TypeError(f"callbacks must be PageHintingCallbacks, not {type(callbacks).__name__}")
    bool(options.get("mark_free"))
    as_settings(pages.memory, (<PageHintingCallbacks> callbacks).most, options.get("workqueue", "thread"),
                options.get("threshold"), options.get("delay"), options.get("max_report_order"),
                options.get("min_age"), options.get("cost"), options.get("reserve"), options.get("reserve_age", 0.0),
                options.get("clock"))


# ---- at exit ------------------------------------------------------------------------------------------------

_engines = weakref.WeakSet()        # an engine outlives its allocator while its worker runs


@atexit.register
def _stop_all():
    """Stop every worker while the interpreter can still run callbacks."""
    for engine in list(_engines):
        engine.disable()
