# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""The extension types: the memory of a machine with its hinting engine, its zones, and the allocator over them.

What runs without Python stands in the `.pxd` files beside this one, one concept each. A freed page's way is
`_machine` → `_pcp` → `_buddy` (merge) → `_hint` (bit) → `_wake` → `_engine` (queue) → `_isolate` → report → put back.
"""
import atexit
import html
import logging
import operator
import os
import threading
import weakref

import numpy as np

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_CheckExact, PyCapsule_GetContext, PyCapsule_GetName, PyCapsule_GetPointer
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from pagehint._atomic cimport PH_DEBUG, RELAXED, store_i32
from pagehint._bias cimport bias_acquire, bias_release
from pagehint._bulk cimport machine_alloc_bulk, machine_free_bulk
from pagehint._check cimport (E_ABSENT, E_AGAIN, E_ALIGN, E_BUSY, E_FREE, E_HELD, E_INSIDE, E_ISOLATE, E_NOMEM,
                              E_SIZE, OK)
from pagehint._buddy cimport NOT_FREE, free_block_around
from pagehint._clock cimport monotonic_ns
from pagehint._engine cimport (Engine, NEVER, engine_backoff, engine_batch_begin, engine_batch_end, engine_disarm,
                               engine_due, engine_init, engine_lock, engine_next,
                               engine_release, engine_resume, engine_unlock,
                               engine_wait, engine_wait_batch,
                               pthread_cond_broadcast, pthread_cond_signal)
from pagehint._hint cimport hint_assign, hint_evaluate, hint_find
from pagehint._isolate cimport isolate_batch, pagehint_block, put_back
from pagehint._lock cimport lock_acquire, lock_release, pthread_self
from pagehint._machine cimport (ZoneTry, find_zone, machine_alloc, machine_alloc_at, machine_alloc_run, machine_drain,
                                machine_free, machine_free_run)
from pagehint._mapping cimport (aligned_alloc, leaves_for, zone_create, zone_destroy, zone_extend, zone_metadata_bytes, zone_open)
from pagehint._migratetype cimport retype
from pagehint._pcp cimport Pcp, pcp_drain_all, pcp_held, pcp_init
from pagehint._range cimport first_not_free, range_appear, range_vanish
from pagehint._verify cimport Finding, verify_zone
from pagehint._wake cimport zone_unlock
from pagehint._walk cimport FreeBlock, list_free_blocks, mark_free_blocks
from pagehint._watermark cimport report_gate
from pagehint._zone cimport (LEAF_SHIFT, MAX_ORDER_LIMIT, MT_ISOLATE, NO_HINTS, NR_TYPES, PAGEBLOCK_ORDER,
                             PageZone, usable_free_pages)

from pagehint import errors, layout, procfs
from pagehint.explain import explain_zones
from pagehint.sizes import format_size, parse_size
from pagehint.stats import Stats

cnp.import_array()

DEBUG = bool(PH_DEBUG)
BLOCK_DTYPE = np.dtype([("pfn", np.uint64), ("order", np.uint32), ("zone", np.uint32)])
FREE_BLOCK_DTYPE = np.dtype([("pfn", np.uint64), ("order", np.uint32)])
MIGRATETYPES = ("unmovable", "movable", "reclaimable", "isolate")
cdef dict _TYPE_NUMBERS = {name: number for number, name in enumerate(MIGRATETYPES)}
cdef int64_t _SECOND = 1000000000
cdef int64_t _SIGNAL_CHECK = 50000000      # how often a wait looks for Ctrl-C

_log = logging.getLogger("pagehint")


# ---- arguments ----------------------------------------------------------------------------------------------

cdef uint64_t as_pfn(object pfn) except? 0xFFFFFFFFFFFFFFFF:
    if type(pfn) is not int:
        pfn = operator.index(pfn)       # no float, whose fraction would be lost
    try:
        return pfn
    except OverflowError:
        raise errors.BadPageError(f"PFN {pfn} is outside every zone") from None


cdef uint64_t as_count(object count, str what, uint64_t least) except? 0xFFFFFFFFFFFFFFFF:
    cdef object number = operator.index(count)
    if not least <= number < 1 << 52:
        raise errors.BadPageError(f"{what} must be from {least} to 2**52, not {number}")
    return number


cdef int as_order(Memory memory, object order) except -1:
    cdef int number
    if type(order) is not int:
        order = operator.index(order)
    try:
        number = order
    except OverflowError:
        number = -1
    if not 0 <= number <= memory.max_page_order:
        raise errors.BadPageError(f"order {order} is out of range: from 0 to {memory.max_page_order} (max_page_order)")
    return number


cdef int as_type(object migratetype, int most) except -1:
    cdef object number = _TYPE_NUMBERS.get(migratetype) if isinstance(migratetype, str) else None
    if number is None or number > most:
        raise ValueError(f"migratetype must be one of {', '.join(MIGRATETYPES[:most + 1])}, not {migratetype!r}")
    return number


cdef int64_t as_delay(object delay) except -2:
    """Nanoseconds, or NEVER for None."""
    if delay is None:
        return NEVER
    seconds = float(delay)
    if not 0 <= seconds <= 1e9:
        raise ValueError(f"delay must be None or from 0 to 1e9 seconds, not {delay!r}")
    return <int64_t>(seconds * _SECOND)


cdef uint64_t as_positive(object number, str what) except 0:
    cdef object value = operator.index(number)
    if not 1 <= value <= 1 << 20:
        raise ValueError(f"{what} must be from 1 to 2**20, not {value}")
    return value


cdef cnp.ndarray as_pfn_array(object values, str what, object dtype):
    """A contiguous array of the dtype; anything but whole numbers that fit is refused."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, not of shape {array.shape}")
    if array.size == 0:
        return np.empty(0, dtype)
    if array.dtype == object and all(isinstance(value, int) for value in array.tolist()):
        raise errors.BadPageError(f"{what}: a number is too large or negative")
    if array.dtype.kind not in "ui":
        raise TypeError(f"{what} must be whole numbers, not of dtype {array.dtype}")
    if array.dtype.kind == "i" and array.min() < 0:
        raise errors.BadPageError(f"{what}: {int(array.min())} is negative")
    if array.max() > np.iinfo(dtype).max:
        raise errors.BadPageError(f"{what}: {int(array.max())} is too large")
    return np.ascontiguousarray(array, dtype)


# ---- what to call -------------------------------------------------------------------------------------------

cdef class PageHintingCallbacks:
    """PageHintingCallbacks(hint_pages, max_pages=16, prepare=None, cleanup=None)
--

    What the engine calls to report free blocks.

    Parameters
    ----------
    hint_pages : callable, PyCapsule or scipy.LowLevelCallable
        A Python callable gets a read-only structured array of dtype `BLOCK_DTYPE` (``pfn``, ``order``, ``zone``),
        its own to keep, and returns None, or a boolean per block: False means that the host did not take it, and
        it is hinted again. One boolean stands for all blocks. An exception means that none was taken.
        A capsule holds a compiled function of the signature in ``pagehint.h`` (see `get_include`); it runs
        without the GIL.
    max_pages : int, default 16
        Most blocks that are out at once.
    prepare : callable, optional
        Called before the first batch of a run. If it raises or returns a negative number, nothing is taken out, and the
        run is tried again later.
    cleanup : callable, optional
        Called after the last batch of every run whose `prepare` succeeded, whatever happened in between.

    Notes
    -----
    The names and the cycle are those of Linux's page hinting series (v10, June 2019). No lock is held during a call.
    """

    def __cinit__(self, hint_pages, max_pages=16, prepare=None, cleanup=None):
        capsule = hint_pages[0] if type(hint_pages).__name__ == "LowLevelCallable" else hint_pages
        if PyCapsule_CheckExact(capsule):
            self.compiled = <pagehint_hint_fn> PyCapsule_GetPointer(capsule, self.capsule_name(capsule))
            self.user_data = PyCapsule_GetContext(capsule)
        elif not callable(hint_pages):
            raise TypeError(f"hint_pages must be callable or a capsule, not {type(hint_pages).__name__}")
        for name, function in (("prepare", prepare), ("cleanup", cleanup)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable or None, not {type(function).__name__}")
        self.hint_pages = hint_pages
        self.most = as_positive(max_pages, "max_pages")
        self.prepare = prepare
        self.cleanup = cleanup

    cdef const char *capsule_name(self, object capsule) except NULL:
        """The capsule's name, which is the signature of what it holds, if it is the one we call."""
        cdef const char *name = PyCapsule_GetName(capsule)
        given = "" if name == NULL else "".join(name.decode().split()).replace("const", "")
        # scipy, building one from ctypes, knows the structure only as void.
        wanted = "".join(PAGEHINT_HINT_SIGNATURE.decode().split()).replace("const", "")
        if given not in (wanted, wanted.replace("pagehint_block*", "void*")):
            raise TypeError(
                f"a compiled hint_pages must have the signature {PAGEHINT_HINT_SIGNATURE.decode()!r} as its capsule's name,"
                f" not {'' if name == NULL else name.decode()!r}"
            )
        return name

    @property
    def max_pages(self):
        """Most blocks that are out at once."""
        return self.most

    def __repr__(self):
        return f"PageHintingCallbacks({self.hint_pages!r}, max_pages={self.most})"


# ---- the machine and its engine -----------------------------------------------------------------------------

_memories = weakref.WeakSet()           # for fork and exit


cdef inline PageZone *snapshot(PageZone *z, PageZone *copy) noexcept nogil:
    """The zone's figures as they are at one moment."""
    lock_acquire(&z.lock, True)
    memcpy(copy, z, sizeof(PageZone))
    lock_release(&z.lock)
    return copy


cdef inline uint64_t pcp_pages(const PageZone *z, int nr_cpus) noexcept nogil:
    """Pages in a zone's per-CPU sets. Exact when nothing else runs."""
    cdef uint64_t pages = 0
    cdef int cpu
    if z.pcp != NULL:
        for cpu in range(nr_cpus):
            pages += pcp_held(<Pcp *> z.pcp + cpu)
    return pages


cdef int zone_offline(PageZone *z, const uint64_t *ranges, size_t n, uint64_t *busy) noexcept nogil:
    """Make `n` runs absent, or none of them: `busy` is then a page that is not free."""
    cdef size_t k
    cdef int rc = OK
    lock_acquire(&z.lock, True)
    for k in range(n):
        busy[0] = first_not_free(z, ranges[2 * k], ranges[2 * k + 1])
        if busy[0] != ranges[2 * k + 1]:
            rc = E_BUSY
            break
    else:
        for k in range(n):
            range_vanish(z, ranges[2 * k], ranges[2 * k + 1])
    zone_unlock(z)
    return rc


cdef void zone_retype(PageZone *z, uint64_t block, uint64_t end, int mt) noexcept nogil:
    cdef uint64_t chunk
    while block < end:
        chunk = min(block + 64, end)
        lock_acquire(&z.lock, True)
        while block < chunk:
            retype(z, block, mt)
            block += 1
        # What waited in isolation may be reported now.
        hint_evaluate(z)
        zone_unlock(z)


cdef class Memory:
    """The zones of a machine, their hotplug, and the hinting engine. What `PageAllocator` is a front to.

    Apart from it so that the worker's thread can hold this without keeping the allocator alive.
    """

    def __cinit__(self, specs, int page_size, int max_page_order, int min_order, bint pcp, watermarks):
        cdef Machine *m = &self.m
        cdef PageZone *z
        cdef uint64_t[2] ranges
        cdef int i, j
        engine_init(&m.engine)
        m.engine.delay_armed = True
        self.specs = tuple(specs)
        self.page_size = page_size
        self.max_page_order = max_page_order
        self.min_order = min_order
        self.hotplug_lock = threading.Lock()
        self.enable_lock = threading.Lock()
        self.offline = [[] for _ in self.specs]
        self.grown = [[] for _ in self.specs]
        m.nr_cpus = os.cpu_count() or 1
        m.nr_zones = len(self.specs)
        m.default_zone = layout.default_zone(self.specs)
        m.zones = <PageZone **> calloc(m.nr_zones, sizeof(PageZone *))
        m.zonelists = <ZoneTry *> calloc(m.nr_zones * m.nr_zones, sizeof(ZoneTry))
        m.zonelist_length = <int *> calloc(m.nr_zones, sizeof(int))
        if m.zones == NULL or m.zonelists == NULL or m.zonelist_length == NULL:
            raise MemoryError("no memory for the zones")
        for i, spec in enumerate(self.specs):
            z = zone_create(spec.start_pfn, spec.end_pfn, max_page_order, min_order)
            if z == NULL:
                raise MemoryError(f"no memory for the metadata of zone {spec.name} ({spec.spanned_pages} pages)")
            m.zones[i] = z
            z.index = i
            z.engine = &m.engine
            z.delay_armed = &m.engine.delay_armed
            lock_acquire(&z.lock, True)
            # From the end, so that the lists begin with low addresses.
            for start, end in reversed(self.present(i, spec.start_pfn, spec.end_pfn)):
                ranges[0] = start - z.base_pfn
                ranges[1] = end - z.base_pfn
                with nogil:
                    range_appear(z, ranges[0], ranges[1])
            lock_release(&z.lock)
            if pcp:
                self.add_page_sets(i)
        managed = [m.zones[i].managed_pages for i in range(m.nr_zones)]
        self.watermarks = tuple(
            layout.linux_watermarks(managed, page_size) if watermarks == "linux" else [watermarks] * m.nr_zones
        )
        for i, order in enumerate(layout.zonelists(self.specs)):
            m.zonelist_length[i] = len(order)
            for j, other in enumerate(order):
                m.zonelists[i * m.nr_zones + j].zone = other
                if watermarks == "linux":
                    m.zonelists[i * m.nr_zones + j].reserve = layout.lowmem_reserve(self.specs, managed, other, i)
            for j in range(3):
                m.zones[i].watermark[j] = self.watermarks[i][j]
        _memories.add(self)

    cdef add_page_sets(self, int i):
        cdef PageZone *z = self.m.zones[i]
        cdef Pcp *sets = <Pcp *> aligned_alloc(64, self.m.nr_cpus * sizeof(Pcp))
        cdef int cpu
        if sets == NULL:
            raise MemoryError(f"no memory for the per-CPU page sets of zone {self.specs[i].name}")
        memset(sets, 0, self.m.nr_cpus * sizeof(Pcp))
        for cpu in range(self.m.nr_cpus):
            pcp_init(&sets[cpu], z.managed_pages)
        z.pcp = sets
        z.atomic_words = True

    def __dealloc__(self):
        cdef int i
        if self.m.zones != NULL:
            for i in range(self.m.nr_zones):
                if self.m.zones[i] != NULL:
                    zone_destroy(self.m.zones[i])
        free(self.m.zones)
        free(self.m.zonelists)
        free(self.m.zonelist_length)
        free(self.blocks)
        free(self.failed)

    # -- where there is memory

    def present(self, int i, start, end):
        """The runs of a zone that are neither hole nor offline, within [start, end)."""
        absent = sorted([(pfn, pfn + n) for pfn, n in self.specs[i].holes] + self.grown[i] + self.offline[i])
        runs = []
        for first, last in absent:
            if first >= end:
                break
            if first > start:
                runs.append((start, first))
            start = max(start, last)
        if start < end:
            runs.append((start, end))
        return runs

    def absence(self, int i, pfn):
        """Why a PFN in a zone's span has no memory, or None."""
        if any(start <= pfn < end for start, end in self.offline[i]):
            return "in an offline section"
        holes = [(hole, hole + n) for hole, n in self.specs[i].holes] + self.grown[i]
        return "in a hole" if any(start <= pfn < end for start, end in holes) else None

    cdef object refusal(self, int rc, uint64_t pfn, object what):
        """The error for a refused call."""
        cdef PageZone *z = find_zone(&self.m, pfn)
        cdef uint64_t head = 0
        cdef int order
        if z == NULL:
            return errors.BadPageError(f"PFN {pfn:#x} ({what}): outside every zone")
        spec = self.specs[z.index]
        where = f"PFN {pfn:#x} ({what}, zone {spec.name}, node {spec.node})"
        why = self.absence(z.index, pfn)
        if why is None:
            with nogil:
                lock_acquire(&z.lock, True)
                order = free_block_around(z, pfn - z.base_pfn, 0, &head)
                lock_release(&z.lock)
            if rc == E_INSIDE and order != NOT_FREE:
                rc = E_FREE
            why = {
                E_ABSENT: "reaches beyond the zone's end, or into a hole or an offline section",
                E_ALIGN: "not aligned to the order",
                E_FREE: "already free (a double free?)",
                E_HELD: "already free, and in a per-CPU page set or out for reporting; or twice in one call",
                E_SIZE: "allocated, but not as one block of this size (wrong order?)",
                E_INSIDE: "inside an allocated block, not its first page",
                E_BUSY: "not all free",
                E_ISOLATE: "in a pageblock of migratetype isolate",
            }[rc]
        return errors.BadPageError(f"{where}: {why}; nothing was changed")

    # -- waiting for memory

    cdef int settle(self) except -1:
        """Drain the page sets, wait until no batch is out, and keep it so until `engine_resume`.

        A request that has failed before this and fails after it has really no memory.
        """
        cdef Engine *e = &self.m.engine
        cdef bint done = False
        while not done:
            with nogil:
                done = engine_wait_batch(e, pthread_self(), monotonic_ns() + _SIGNAL_CHECK)
                if done:
                    machine_drain(&self.m)
            if not done:
                PyErr_CheckSignals()
        return 0

    # -- hotplug

    cdef tuple section_range(self, object pfn, object nr_pages):
        """Check that a range is made of whole sections; returns (start, end)."""
        cdef uint64_t section = max(layout.SECTION_BYTES // self.page_size, 1), start = as_pfn(pfn)
        cdef uint64_t end = start + as_count(nr_pages, "nr_pages", 1)
        cdef PageZone *z = find_zone(&self.m, start)
        cdef uint64_t first = z.start_pfn if z != NULL else 0, last = z.end_pfn if z != NULL else 0
        if (start % section and start != first) or (end % section and end != last):
            raise errors.BadPageError(
                f"PFN {start:#x}, {end - start} pages: hotplug goes by whole sections of {section} pages ({section:#x})"
            )
        return start, end

    def set_offline(self, pfn, nr_pages):
        cdef uint64_t start, end, busy = 0
        cdef PageZone *z
        cdef int rc
        cdef cnp.ndarray[cnp.uint64_t] ranges
        with self.hotplug_lock:
            start, end = self.section_range(pfn, nr_pages)
            z = find_zone(&self.m, start)
            if z == NULL or end > z.end_pfn:
                raise errors.BadPageError(f"PFN {start:#x}, {end - start} pages: not inside one zone; nothing was changed")
            spec = self.specs[z.index]
            for first, last in self.offline[z.index]:
                if first < end and start < last:
                    raise errors.BadPageError(f"PFN {max(first, start):#x} (zone {spec.name}): already offline")
            ranges = np.array(self.present(z.index, start, end), np.uint64).ravel() - np.uint64(z.base_pfn)
            with nogil:
                rc = zone_offline(z, <uint64_t *> ranges.data, ranges.shape[0] // 2, &busy)
            if rc == E_BUSY:
                self.settle()
                try:
                    with nogil:
                        rc = zone_offline(z, <uint64_t *> ranges.data, ranges.shape[0] // 2, &busy)
                finally:
                    engine_resume(&self.m.engine)
            if rc == E_BUSY:
                raise errors.BadPageError(
                    f"PFN {z.base_pfn + busy:#x} (zone {spec.name}, node {spec.node}): in use, so that"
                    f" [{start:#x}, {end:#x}) cannot go offline; nothing was changed"
                )
            self.offline[z.index] = sorted(self.offline[z.index] + [(start, end)])

    def set_online(self, pfn, nr_pages):
        cdef uint64_t start, end, first, last
        cdef PageZone *z
        with self.hotplug_lock:
            start, end = self.section_range(pfn, nr_pages)
            z = find_zone(&self.m, start)
            if z == NULL:
                z = self.grow(start, end)
            spec = self.specs[z.index]
            ranges = self.offline[z.index]
            covered = sum(min(last, end) - max(first, start) for first, last in ranges if first < end and start < last)
            if covered != end - start:
                raise errors.BadPageError(
                    f"PFN {start:#x}, {end - start} pages (zone {spec.name}, node {spec.node}):"
                    " not all offline; nothing was changed"
                )
            left = [(first, min(last, start)) for first, last in ranges if first < start]
            left += [(max(first, end), last) for first, last in ranges if last > end]
            self.offline[z.index] = sorted(left)
            for first, last in reversed(self.present(z.index, start, end)):
                first -= z.base_pfn
                last -= z.base_pfn
                with nogil:
                    lock_acquire(&z.lock, True)
                    range_appear(z, first, last)
                    zone_unlock(z)

    cdef PageZone *grow(self, uint64_t start, uint64_t end) except NULL:
        """Let the zone below reach to `end`; what lies between becomes a hole, the rest offline."""
        cdef PageZone *z = NULL
        cdef int i
        cdef uint64_t old
        for i in range(self.m.nr_zones):
            if self.m.zones[i].end_pfn <= start and (z == NULL or self.m.zones[i].end_pfn > z.end_pfn):
                z = self.m.zones[i]
        for i in range(self.m.nr_zones):
            if start < self.m.zones[i].end_pfn and self.m.zones[i].start_pfn < end:
                z = NULL
        if z == NULL:
            raise errors.BadPageError(f"PFN {start:#x}, {end - start} pages: no zone could grow there; nothing was changed")
        if leaves_for(z, end) > z.limit_leaves:
            name = self.specs[z.index].name
            raise errors.BadPageError(f"PFN {end:#x}: zone {name} cannot grow so far; nothing was changed")
        if zone_open(z, leaves_for(z, end)):
            raise MemoryError(f"no memory for the metadata of zone {self.specs[z.index].name} up to PFN {end:#x}")
        old = z.end_pfn
        with nogil:
            lock_acquire(&z.lock, True)
            zone_extend(z, end)
            zone_unlock(z)
        if old < start:
            self.grown[z.index].append((old, start))
        self.offline[z.index].append((start, end))
        return z

    def set_migratetype(self, pfn, nr_pages, migratetype):
        cdef int mt = as_type(migratetype, MT_ISOLATE), cpu
        cdef uint64_t start = as_pfn(pfn), end = start + as_count(nr_pages, "nr_pages", 1)
        # A granule is reported as a whole, so its pageblocks, where it has several, change together.
        cdef uint64_t unit = <uint64_t>1 << max(<int>PAGEBLOCK_ORDER, self.min_order), first, last
        cdef PageZone *z = find_zone(&self.m, start)
        with self.hotplug_lock:
            if z == NULL or end > z.end_pfn:
                raise errors.BadPageError(f"PFN {start:#x}, {end - start} pages: not inside one zone; nothing was changed")
            if (start % unit and start != z.start_pfn) or (end % unit and end != z.end_pfn):
                raise errors.BadPageError(
                    f"PFN {start:#x}, {end - start} pages (zone {self.specs[z.index].name}):"
                    f" a migratetype is set for whole pageblocks of {unit} pages; nothing was changed"
                )
            first = (start - z.base_pfn) >> PAGEBLOCK_ORDER
            last = (end - z.base_pfn + (1 << PAGEBLOCK_ORDER) - 1) >> PAGEBLOCK_ORDER
            with nogil:
                zone_retype(z, first, last, mt)
                if z.pcp != NULL:
                    for cpu in range(self.m.nr_cpus):
                        pcp_drain_all(z, <Pcp *> z.pcp + cpu)

    # -- consistency

    def verify(self):
        cdef PageZone *z
        cdef Finding finding
        cdef int i
        cdef bint bad
        cdef cnp.ndarray[cnp.uint64_t] absent
        with self.hotplug_lock:
            for i in range(self.m.nr_zones):
                z = self.m.zones[i]
                holes = [(pfn, pfn + n) for pfn, n in self.specs[i].holes] + self.grown[i] + self.offline[i]
                edges = [(z.base_pfn, z.start_pfn), (z.end_pfn, z.base_pfn + (z.nr_leaves << LEAF_SHIFT))]
                absent = np.array(self.disjoint(holes) + edges, np.uint64).ravel() - np.uint64(z.base_pfn)
                with nogil:
                    self.lock_zone(z)
                    bad = verify_zone(z, self.m.nr_cpus, <uint64_t *> absent.data, absent.shape[0] // 2, &finding)
                    self.unlock_zone(z)
                if bad:
                    spec = self.specs[i]
                    raise errors.PageHintError(
                        f"zone {spec.name} (node {spec.node}) is inconsistent at PFN {z.base_pfn + finding.page:#x}:"
                        f" {finding.what.decode()}"
                    )

    @staticmethod
    def disjoint(ranges):
        """The union of ranges, as disjoint ones; holes lie in offline sections, too."""
        merged = {}
        first = last = None
        for start, end in sorted(ranges):
            if first is None or start > last:
                first, last = start, end
            merged[first] = last = max(end, last)
        return list(merged.items())

    cdef void lock_zone(self, PageZone *z) noexcept nogil:
        """Stop everything in a zone: its page sets' locks, then its own."""
        cdef int cpu
        if z.pcp != NULL:
            for cpu in range(self.m.nr_cpus):
                bias_acquire(&(<Pcp *> z.pcp + cpu).lock, True)
        lock_acquire(&z.lock, True)

    cdef void unlock_zone(self, PageZone *z) noexcept nogil:
        cdef int cpu
        lock_release(&z.lock)
        if z.pcp != NULL:
            for cpu in range(self.m.nr_cpus):
                bias_release(&(<Pcp *> z.pcp + cpu).lock, False)

    # -- a run of the engine: isolate, report, put back

    cdef uint64_t grow_batch(self, uint64_t most) noexcept nogil:
        """Room for a batch; returns how many blocks fit, at least one unless there has never been memory."""
        cdef void *blocks
        cdef void *failed
        if most > self.room:
            blocks = realloc(self.blocks, most * sizeof(pagehint_block))
            if blocks != NULL:
                self.blocks = <pagehint_block *> blocks
                failed = realloc(self.failed, most)
                if failed != NULL:
                    self.failed = <uint8_t *> failed
                    self.room = most
        return min(most, self.room)

    cdef void run(self, bint everything) noexcept nogil:
        """Report what is hinted: in all zones, or in those that have reached the threshold. `running` is claimed."""
        cdef Engine *e = &self.m.engine
        cdef bint prepared = False, failed = False
        cdef uint64_t ticket
        cdef int64_t now = 0
        cdef int i
        engine_lock(e)
        e.work = False
        e.work_runs += 1
        ticket = e.flush_wanted
        if everything:
            engine_disarm(e)
        engine_unlock(e)
        for i in range(self.m.nr_zones):
            if everything or self.m.zones[i].queued:
                if self.run_zone(self.m.zones[i], &prepared):
                    failed = True
                    if not prepared:
                        break
            if e.stopping or self.interrupted:
                break
        if prepared:
            self.call_cleanup()
        if failed:
            now = self.now()
        else:
            self.burst_logged = False
        engine_lock(e)
        engine_backoff(e, failed, now)
        e.flush_done = max(e.flush_done, ticket)
        engine_release(e)
        pthread_cond_broadcast(&e.settled)
        engine_unlock(e)

    cdef bint run_zone(self, PageZone *z, bint *prepared) noexcept nogil:
        """One pass over a zone's hints. Returns whether anything failed."""
        cdef Engine *e = &self.m.engine
        cdef uint64_t cursor = 0, most, n
        cdef bint failed = False, open
        lock_acquire(&z.lock, True)
        z.queued = False
        open = z.hint_count > 0 and self.gate(z, e.max_pages)
        z.counters.scans += open
        zone_unlock(z)
        if not open:
            return False
        if not prepared[0]:
            if not self.call_prepare():
                return True
            prepared[0] = True
        while open and not e.stopping and not self.interrupted:
            cursor = hint_find(z, cursor, z.nr_granules)
            if cursor == z.nr_granules:
                break
            most = self.grow_batch(engine_batch_begin(e))
            lock_acquire(&z.lock, True)
            open = self.gate(z, most)
            n = isolate_batch(z, &cursor, most, e.max_report_order, self.blocks) if open else 0
            self.batch = n
            self.batch_zone = z
            zone_unlock(z)
            if n:
                memset(self.failed, 0, n)
                failed |= self.report(n)
                lock_acquire(&z.lock, True)
                put_back(z, self.blocks, n, self.failed)
                self.batch = 0
                zone_unlock(z)
            engine_batch_end(e)
        return failed

    cdef bint gate(self, PageZone *z, uint64_t most) noexcept nogil:
        """Whether the zone can spare a batch; if not, the wake-up is set for when it can. Zone lock held."""
        if usable_free_pages(z) >= report_gate(z, most):
            return True
        z.counters.isolation_refused += 1
        z.wake_at = report_gate(z, most)
        return False

    cdef bint report(self, uint64_t n) noexcept nogil:
        """Hand a batch over, no lock held; what failed is marked in `failed`. Returns whether any did."""
        cdef Engine *e = &self.m.engine
        cdef uint64_t i, lost = 0
        cdef int rc
        if self.callbacks.compiled != NULL:
            rc = self.callbacks.compiled(self.blocks, n, self.failed, self.callbacks.user_data)
            if rc < 0:
                memset(self.failed, 1, n)
            for i in range(n):
                lost += self.failed[i] != 0
            if lost:
                with gil:
                    self.refused_blocks(n, lost, rc)
        else:
            with gil:
                self.call_hint_pages(n)
            for i in range(n):
                lost += self.failed[i] != 0
        engine_lock(e)
        e.reports += 1
        e.report_errors += lost > 0
        engine_unlock(e)
        return lost > 0

    cdef void refused_blocks(self, uint64_t n, uint64_t lost, int rc) noexcept:
        cdef uint64_t i = 0
        while not self.failed[i]:
            i += 1
        why = f": {os.strerror(-rc)}" if rc < 0 else ""
        self.failure(errors.PageHintError(
            f"{lost} of {n} blocks were not taken, the first at PFN {self.blocks[i].pfn:#x}"
            f" (order {self.blocks[i].order}, zone {self.specs[self.blocks[i].zone].name}){why}"
        ))

    cdef void call_hint_pages(self, uint64_t n) noexcept:
        cdef cnp.ndarray blocks
        cdef cnp.ndarray taken
        cdef uint64_t i, lost = 0
        try:
            blocks = np.empty(n, BLOCK_DTYPE)
            memcpy(blocks.data, self.blocks, n * sizeof(pagehint_block))
            blocks.flags.writeable = False
            result = self.callbacks.hint_pages(blocks)
            if result is None or result is True:
                return
            taken = np.asarray(result)
            if taken.dtype != bool or np.shape(taken) not in ((), (n,)):
                raise TypeError(
                    f"hint_pages must return None or a boolean for each of {n} blocks,"
                    f" not {taken.dtype} of shape {np.shape(taken)}"
                )
            taken = np.ascontiguousarray(np.broadcast_to(taken, (n,)))
            for i in range(n):
                self.failed[i] = not (<uint8_t *> taken.data)[i]
                lost += self.failed[i]
            if lost:
                self.refused_blocks(n, lost, 0)
        except BaseException as error:
            memset(self.failed, 1, n)
            self.failure(error)

    cdef bint call_prepare(self) noexcept nogil:
        if self.no_prepare:
            return True
        with gil:
            try:
                result = self.callbacks.prepare()
                if result is not None and operator.index(result) < 0:
                    raise errors.PageHintError(f"prepare returned {result}")
                return True
            except BaseException as error:
                self.m.engine.prepare_errors += 1
                self.failure(error)
                return False

    cdef void call_cleanup(self) noexcept nogil:
        if self.no_cleanup:
            return
        with gil:
            try:
                self.callbacks.cleanup()
            except BaseException as error:
                self.failure(error)

    cdef void failure(self, object error) noexcept:
        """Keep what went wrong, and log it once until a run is clean again."""
        try:
            self.last_error = error
            if not isinstance(error, Exception) and self.m.engine.manual:
                self.interrupt = error
                self.interrupted = True
            if not self.burst_logged:
                self.burst_logged = True
                _log.warning("reporting failed, will be tried again: %s", error, exc_info=error)
        except BaseException:
            pass        # a logging handler that raises must not take the worker with it

    cdef int64_t now(self) noexcept nogil:
        if not self.m.engine.injected_clock:
            return monotonic_ns()
        with gil:
            return self.read_clock()

    cdef int64_t read_clock(self) noexcept:
        """The injected clock in nanoseconds. One that fails stands still."""
        try:
            self.clock_read = <int64_t>(float(self.clock()) * _SECOND)
        except BaseException as error:
            self.failure(error)
        return self.clock_read

    # -- when it runs

    cdef void stamp(self) noexcept:
        """Begin the delay by the injected clock, if the hook has asked for it."""
        cdef Engine *e = &self.m.engine
        cdef int64_t now
        if e.needs_stamp:
            now = self.read_clock()
            with nogil:
                engine_lock(e)
                if e.needs_stamp:
                    e.needs_stamp = False
                    e.deadline = now + e.delay
                engine_unlock(e)

    cdef void work(self) noexcept nogil:
        """The worker: waits, without the GIL, for work, a deadline, a flush, or the end."""
        cdef Engine *e = &self.m.engine
        cdef bint everything
        cdef int64_t now
        engine_lock(e)
        while not e.stopping:
            now = monotonic_ns()
            everything = e.flush_wanted > e.flush_done or self.overdue(now)
            if e.running:
                # A call from the time when the work was manual is about to see that it no longer is.
                engine_wait(e, &e.settled, NEVER)
            elif e.enabled and (everything or engine_due(e, now)):
                e.running = True
                e.runner = pthread_self()
                engine_unlock(e)
                self.run(everything)
                engine_lock(e)
            else:
                engine_wait(e, &e.wake, engine_next(e) if e.enabled else NEVER)
        e.worker = False
        pthread_cond_broadcast(&e.settled)
        engine_unlock(e)

    cdef bint overdue(self, int64_t now) noexcept nogil:
        """Whether a run should look into every zone: the delay is over, or the last run failed. Engine mutex held."""
        cdef Engine *e = &self.m.engine
        return now >= e.not_before and ((e.deadline != NEVER and now >= e.deadline) or (e.work and e.failures > 0))

    cdef bint reporting(self) noexcept nogil:
        """Whether the calling thread is inside one of the callbacks."""
        return self.m.engine.runner == pthread_self()

    cdef int refuse_callback(self, str what) except -1:
        if self.reporting():
            raise errors.HintingActiveError(f"{what} was called from inside a hinting callback, which would wait for itself")
        return 0

    cdef int claim(self) except -1:
        """Wait until no run is on, and claim the next. Manual work only."""
        cdef Engine *e = &self.m.engine
        cdef bint done = False
        while not done:
            with nogil:
                engine_lock(e)
                if e.running:
                    engine_wait(e, &e.settled, monotonic_ns() + _SIGNAL_CHECK)
                done = not e.running
                if done:
                    e.running = True
                    e.runner = pthread_self()
                engine_unlock(e)
            if not done:
                PyErr_CheckSignals()
        return 0

    cdef int await_worker(self) except -1:
        """Wait until the worker has left its loop.

        Not by `Thread.join` alone: Ctrl-C in it makes the next one return at once.
        """
        cdef Engine *e = &self.m.engine
        cdef bint on = True
        while on:
            with nogil:
                engine_lock(e)
                if e.worker:
                    engine_wait(e, &e.settled, monotonic_ns() + _SIGNAL_CHECK)
                on = e.worker
                engine_unlock(e)
            PyErr_CheckSignals()
        return 0

    cdef int run_manually(self, bint everything) except -1:
        """Run on this thread; 0 if hinting has ended meanwhile or nothing is due."""
        cdef Engine *e = &self.m.engine
        cdef int64_t now
        cdef bint due
        self.claim()
        now = self.now()
        with nogil:
            engine_lock(e)
            due = e.enabled and e.manual and not e.stopping and (everything or engine_due(e, now))
            everything = everything or self.overdue(now)
            if not due:
                engine_release(e)
                pthread_cond_broadcast(&e.settled)
            engine_unlock(e)
            if due:
                self.run(everything)
        if self.interrupted:
            error, self.interrupt = self.interrupt, None
            self.interrupted = False
            raise error
        return due

    def run_pending(self):
        cdef Engine *e = &self.m.engine
        self.require_hinting("run_pending")
        self.refuse_callback("run_pending")
        if not e.manual:
            raise errors.PageHintError("run_pending is for workqueue='manual'; here the worker's thread runs the work")
        runs = 0
        while True:
            self.stamp()
            if not self.run_manually(False):
                return runs
            runs += 1

    def flush(self):
        cdef Engine *e = &self.m.engine
        cdef uint64_t ticket
        cdef bint done = False, on
        self.refuse_callback("flush_hinting")
        self.require_hinting("flush_hinting")
        with nogil:
            machine_drain(&self.m)
        if e.manual:
            if not self.run_manually(True):
                raise errors.HintingInactiveError("hinting was disabled during flush_hinting")
            return
        with nogil:
            engine_lock(e)
            e.flush_wanted += 1
            ticket = e.flush_wanted
            pthread_cond_signal(&e.wake)
            engine_unlock(e)
        while not done:
            with nogil:
                engine_lock(e)
                on = e.enabled and not e.stopping
                done = e.flush_done >= ticket
                if on and not done:
                    engine_wait(e, &e.settled, monotonic_ns() + _SIGNAL_CHECK)
                    done = e.flush_done >= ticket
                engine_unlock(e)
            if not done and not on:
                raise errors.HintingInactiveError("hinting was disabled during flush_hinting")
            PyErr_CheckSignals()

    def require_hinting(self, what):
        if not self.m.engine.enabled:
            raise errors.HintingInactiveError(f"{what}: hinting is off; enable_hinting comes first")

    # -- on and off

    def enable(self, PageHintingCallbacks callbacks not None, workqueue, threshold, delay, max_report_order, bint mark_free,
               clock):
        cdef Engine *e = &self.m.engine
        cdef int64_t nanoseconds = as_delay(delay)
        cdef uint64_t limit = 0 if threshold is None else as_positive(threshold, "threshold")
        cdef int report_order = max(self.min_order, min(10, self.max_page_order))
        cdef int i
        if max_report_order is not None:
            report_order = as_order(self, max_report_order)
            if report_order < self.min_order:
                raise ValueError(f"max_report_order {report_order} is under min_order {self.min_order}, the granule")
        if workqueue not in ("thread", "manual"):
            raise ValueError(f"workqueue must be 'thread' or 'manual', not {workqueue!r}")
        if clock is not None and workqueue != "manual":
            raise ValueError("a clock can be injected with workqueue='manual' only; the worker sleeps by the real one")
        if self.reporting() or self.m.engine.enabled:
            raise errors.HintingActiveError("hinting is enabled already")
        with self.enable_lock:
            if e.enabled:
                raise errors.HintingActiveError("hinting is enabled already")
            if self.grow_batch(callbacks.most) < callbacks.most:
                raise MemoryError("no memory for a batch")
            thread = None
            e.stopping = False
            if workqueue == "thread":
                # Started first, since it is what can fail; it waits until the engine is enabled.
                thread = threading.Thread(target=_work, args=(self,), name="pagehint", daemon=True)
                e.worker = True
                try:
                    thread.start()
                except BaseException:
                    e.worker = False
                    raise
            self.callbacks = callbacks
            self.no_prepare = callbacks.prepare is None
            self.no_cleanup = callbacks.cleanup is None
            self.clock = clock
            self.thread = thread
            self.last_error = None
            self.burst_logged = False
            with nogil:
                engine_lock(e)
                e.manual = thread is None
                e.injected_clock = clock is not None
                e.max_pages = callbacks.most
                e.threshold = limit
                e.max_report_order = report_order
                e.delay = nanoseconds
                e.work = False
                e.failures = 0
                e.not_before = 0
                engine_disarm(e)
                engine_unlock(e)
                # Everything is in place: now, and zone by zone under its lock, the hook.
                for i in range(self.m.nr_zones):
                    self.hook_zone(self.m.zones[i], mark_free)
                engine_lock(e)
                e.enabled = True
                pthread_cond_signal(&e.wake)
                engine_unlock(e)
            self.stamp()

    cdef void hook_zone(self, PageZone *z, bint mark_free) noexcept nogil:
        """Switch the hook on, and hint what is free already, so many blocks a lock round."""
        cdef Engine *e = &self.m.engine
        cdef uint64_t page = 0
        cdef bint more = True
        lock_acquire(&z.lock, True)
        z.threshold = e.threshold or e.max_pages
        z.queued = False
        z.wake_at = INT64_MAX
        z.hint_order = z.min_order
        while mark_free and more:
            more = mark_free_blocks(z, &page, 4096)
            hint_evaluate(z)
            zone_unlock(z)
            lock_acquire(&z.lock, True)
        zone_unlock(z)

    def disable(self):
        cdef Engine *e = &self.m.engine
        cdef int i
        self.refuse_callback("disable_hinting")
        if not e.enabled:
            return
        with self.enable_lock:
            if not e.enabled:
                return
            self.request_stop()
            if e.manual:
                self.claim()
            else:
                self.await_worker()
                self.thread.join()
            with nogil:
                for i in range(self.m.nr_zones):
                    self.unhook_zone(self.m.zones[i])
                engine_lock(e)
                e.enabled = False
                if e.manual:
                    # Only its own claim: with a worker, the claim may be that of a call about to see it is too late.
                    engine_release(e)
                e.work = False
                e.flush_done = e.flush_wanted
                store_i32(&e.delay_armed, True, RELAXED)
                pthread_cond_broadcast(&e.settled)
                engine_unlock(e)
            self.thread = None
            self.callbacks = None
            self.clock = None

    cdef void request_stop(self) noexcept nogil:
        cdef Engine *e = &self.m.engine
        engine_lock(e)
        e.stopping = True
        pthread_cond_signal(&e.wake)
        pthread_cond_broadcast(&e.settled)
        engine_unlock(e)

    def abandon(self):
        """The allocator is gone: the worker, if there is one, ends by itself and lets go of the callbacks."""
        self.request_stop()
        self.abandoned = True
        if self.thread is None:
            self.callbacks = None

    cdef void unhook_zone(self, PageZone *z) noexcept nogil:
        lock_acquire(&z.lock, True)
        z.hint_order = NO_HINTS
        z.wake_at = INT64_MAX
        z.queued = False
        hint_assign(z, 0, z.nr_granules, False)
        zone_unlock(z)

    def change(self, max_pages=None, threshold=None, delay=None, bint any_threshold=False, bint any_delay=False):
        """Change settings while the worker runs; `any_` says that None is meant as a value."""
        cdef Engine *e = &self.m.engine
        cdef uint64_t most = 0 if max_pages is None else as_positive(max_pages, "max_pages")
        cdef uint64_t limit = 0 if threshold is None else as_positive(threshold, "threshold")
        cdef int64_t nanoseconds = as_delay(delay)
        cdef PageZone *z
        cdef int i
        self.require_hinting("settings")
        with nogil:
            engine_lock(e)
            if most:
                e.max_pages = most
            if any_threshold:
                e.threshold = limit
            if any_delay:
                e.delay = nanoseconds
                engine_disarm(e)
            limit = e.threshold or e.max_pages
            engine_unlock(e)
            for i in range(self.m.nr_zones):
                z = self.m.zones[i]
                lock_acquire(&z.lock, True)
                z.threshold = limit
                hint_evaluate(z)
                zone_unlock(z)
        self.stamp()

    # -- fork

    cdef void stop_the_world(self) noexcept nogil:
        """Hold every zone across a fork. Not the engine's mutex, which the child makes anew.

        We take the GIL back while holding, and a thread that has it may wait for that mutex in `engine_notify`; for a
        zone's lock nobody waits with the GIL.
        """
        cdef int i
        for i in range(self.m.nr_zones):
            self.lock_zone(self.m.zones[i])

    cdef void resume_the_world(self) noexcept nogil:
        cdef int i
        for i in range(self.m.nr_zones):
            self.unlock_zone(self.m.zones[i])

    def before_fork(self):
        with nogil:
            self.stop_the_world()

    def after_fork_in_parent(self):
        with nogil:
            self.resume_the_world()

    def after_fork_in_child(self):
        """The worker and every other thread are gone, perhaps with a batch out: it comes back, and hinting is off."""
        cdef Engine *e = &self.m.engine
        cdef int i
        with nogil:
            self.resume_the_world()
            engine_init(e)      # its waiters exist no more
            if self.batch:
                memset(self.failed, 1, self.batch)
                lock_acquire(&self.batch_zone.lock, True)
                put_back(self.batch_zone, self.blocks, self.batch, self.failed)
                lock_release(&self.batch_zone.lock)
                self.batch = 0
            for i in range(self.m.nr_zones):
                self.unhook_zone(self.m.zones[i])
            e.enabled = e.stopping = e.worker = e.out = e.work = False
            engine_release(e)
            e.waiters = 0
            e.flush_done = e.flush_wanted
            e.delay_armed = True
        self.enable_lock = threading.Lock()
        self.hotplug_lock = threading.Lock()
        self.thread = None
        self.callbacks = None
        self.clock = None
        self.interrupt = None
        self.interrupted = False


def _work(Memory memory):
    """What the worker's thread runs."""
    with nogil:
        memory.work()
    if memory.abandoned:
        memory.callbacks = None


_fork_lock = threading.Lock()       # one fork at a time stops the world
_forking = []


def _before_fork():
    _fork_lock.acquire()
    # Held by name, so that none is collected, or made, between the locks and their release.
    _forking[:] = sorted(_memories, key=id)
    for memory in _forking:
        memory.before_fork()


def _after_fork(method):
    for memory in reversed(_forking):
        getattr(memory, method)()
    _forking.clear()
    _fork_lock.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _after_fork("after_fork_in_parent"),
    after_in_child=lambda: _after_fork("after_fork_in_child"),
)


@atexit.register
def _stop_all():
    """Stop every worker while the interpreter can still run callbacks."""
    for memory in list(_memories):
        memory.disable()


# ---- zones --------------------------------------------------------------------------------------------------

cdef class Zone:
    """One zone of a `PageAllocator`: where it is, and what is free in it. Every figure is as of the moment it is read."""

    @staticmethod
    cdef Zone of(Memory memory, int index):
        cdef Zone zone = Zone.__new__(Zone)
        zone.memory = memory
        zone.z = memory.m.zones[index]
        zone.spec = memory.specs[index]
        return zone

    def __init__(self):
        raise TypeError("zones come with a PageAllocator: PageAllocator.zones")

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
        """Pages from its first to its last, whether there is memory or not."""
        return self.z.end_pfn - self.z.start_pfn

    @property
    def present_pages(self):
        """Pages that are not in holes or offline."""
        return self.z.managed_pages

    @property
    def managed_pages(self):
        """Pages the buddy system manages: here, all that are present."""
        return self.z.managed_pages

    @property
    def free_pages(self):
        """Pages in the buddy."""
        return self.z.free_pages

    @property
    def nr_free(self):
        """Maximal free blocks of each order, a tuple."""
        return tuple(sum(counts) for counts in zip(*self.figures()["nr_free"]))

    @property
    def watermarks(self):
        """Its `Watermarks` in pages."""
        return self.memory.watermarks[self.z.index]

    @property
    def metadata_bytes(self):
        """Bytes of metadata: leaf words, links, kinds, pageblock types, hint bitmap, lists, per-CPU page sets."""
        return zone_metadata_bytes(self.z) + (self.memory.m.nr_cpus * sizeof(Pcp) if self.z.pcp != NULL else 0)

    @property
    def hint_base_pfn(self):
        """The PFN that bit 0 of `hint_bitmap` stands for: `start_pfn`, rounded down to a block of the largest order."""
        return self.z.base_pfn

    @property
    def hint_bitmap(self):
        """The hint bits, one a granule of ``2**min_order`` pages from `hint_base_pfn` on: a read-only uint64 view."""
        cdef cnp.npy_intp words = <cnp.npy_intp>((self.z.nr_granules + 63) // 64)
        cdef cnp.ndarray view = cnp.PyArray_SimpleNewFromData(1, &words, cnp.NPY_UINT64, self.z.hints)
        cnp.set_array_base(view, self)
        view.flags.writeable = False
        return view

    def free_blocks(self):
        """Return the maximal free blocks by address: a structured array of ``pfn`` (uint64) and ``order`` (uint32).

        The zone is locked while they are listed, O(blocks + spanned pages / 64).
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

    def figures(self):
        """Everything countable about the zone, as of one moment: what the tables and texts are made of."""
        cdef PageZone copy
        cdef Machine *m = &self.memory.m
        cdef uint64_t held_back
        cdef int mt, o, cpu
        with nogil:
            snapshot(self.z, &copy)
            held_back = hints_in_isolation(self.z) if copy.isolate_pageblocks else 0
        counters = copy.counters
        sets = []
        if copy.pcp != NULL:
            for cpu in range(m.nr_cpus):
                sets.append((pcp_held(<Pcp *> copy.pcp + cpu), 2 * (<Pcp *> copy.pcp + cpu).batch, (<Pcp *> copy.pcp + cpu).batch))
        orders = range(self.memory.max_page_order + 1)
        return {
            "name": self.spec.name,
            "node": self.spec.node,
            "start_pfn": copy.start_pfn,
            "spanned_pages": copy.end_pfn - copy.start_pfn,
            "managed_pages": copy.managed_pages,
            "free_pages": copy.free_pages,
            "isolated_pages": copy.isolated_pages,
            "offline_pages": sum(end - start for start, end in self.memory.offline[copy.index]),
            "nr_free": [[copy.areas[mt].nr_free[o] for o in orders] for mt in range(NR_TYPES)],
            "pageblocks": self.pageblock_types(),
            "watermarks": self.memory.watermarks[copy.index],
            "protection": [self.reserve(other) for other in range(m.nr_zones)],
            "page_sets": sets,
            "hints_pending": copy.hint_count,
            "hints_in_isolation": held_back,
            "threshold": copy.threshold,
            "gate": report_gate(&copy, m.engine.max_pages),
            "hinting": copy.hint_order != NO_HINTS,
            "lock_acquired": copy.lock.acquired,
            "lock_contended": copy.lock.contended,
            **counters,
        }

    cdef object reserve(self, int preferred):
        cdef Machine *m = &self.memory.m
        cdef int i
        for i in range(m.zonelist_length[preferred]):
            if m.zonelists[preferred * m.nr_zones + i].zone == self.z.index:
                return m.zonelists[preferred * m.nr_zones + i].reserve
        return 0

    cdef object pageblock_types(self):
        """How many pageblocks there are of each migratetype, those without any memory left out."""
        cdef uint64_t[NR_TYPES] count
        cdef uint64_t block, i
        cdef int mt
        memset(count, 0, sizeof(count))
        with nogil:
            for block in range((self.z.nr_leaves + 7) >> 3):
                for i in range(block << 3, min((block + 1) << 3, self.z.nr_leaves)):
                    if self.z.kinds[i] != 0:
                        count[self.z.types[block]] += 1
                        break
        return [count[mt] for mt in range(NR_TYPES)]

    def __repr__(self):
        return (
            f"<Zone {self.spec.name}, node {self.spec.node}: PFN {self.z.start_pfn:#x} to {self.z.end_pfn:#x},"
            f" {self.z.free_pages} of {self.z.managed_pages} pages free>"
        )


cdef uint64_t hints_in_isolation(PageZone *z) noexcept nogil:
    """Bits whose granules lie in pageblocks of type isolate."""
    cdef uint64_t count = 0, granule
    lock_acquire(&z.lock, True)
    granule = hint_find(z, 0, z.nr_granules)
    while granule < z.nr_granules:
        count += z.types[(granule << z.min_order) >> PAGEBLOCK_ORDER] == MT_ISOLATE
        granule = hint_find(z, granule + 1, z.nr_granules)
    lock_release(&z.lock)
    return count


# ---- the allocator ------------------------------------------------------------------------------------------

cdef class PageAllocator:
    """PageAllocator(memory, *, page_size=4096, max_page_order=10, min_order=None, pcp=True, watermarks=None)
--

    A zoned buddy page allocator with free page hinting.

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
        Free pages that ordinary requests leave (min), and below which nothing is reported (low and a batch).
        None is zero; "linux" takes Linux's formulas, with its lowmem reserve; a tuple is in pages, for every zone.

    Notes
    -----
    Metadata is 0.4 byte a page. Allocating and freeing is O(max_page_order); every method may be called from any thread.
    A call that is refused has changed nothing.
    """

    def __cinit__(self, memory, *, page_size=4096, max_page_order=10, min_order=None, bint pcp=True, watermarks=None):
        page = operator.index(page_size)
        if page < 512 or page > layout.SECTION_BYTES or page & (page - 1):
            raise ValueError(f"page_size must be a power of two from 512 to 128 MiB, not {page}")
        top = operator.index(max_page_order)
        if not 0 <= top <= MAX_ORDER_LIMIT:
            raise ValueError(f"max_page_order must be from 0 to {MAX_ORDER_LIMIT}, not {top}")
        least = max(top - 1, 0) if min_order is None else operator.index(min_order)
        if not 0 <= least <= top:
            raise ValueError(f"min_order must be from 0 to max_page_order ({top}), not {least}")
        if watermarks is None:
            marks = layout.Watermarks(0, 0, 0)
        elif watermarks == "linux":
            marks = watermarks
        else:
            marks = layout.Watermarks(*map(operator.index, watermarks))
            if not 0 <= marks.min <= marks.low <= marks.high < 1 << 52:
                raise ValueError(f"watermarks must be 0 <= min <= low <= high, not {tuple(marks)}")
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
        self.zone_objects = tuple([Zone.of(self.memory, i) for i in range(len(specs))])

    def __dealloc__(self):
        # Not joined: this may be the worker's own thread, letting go of the last reference.
        if self.memory is not None and self.memory.m.engine.enabled:
            self.memory.abandon()

    @classmethod
    def x86_64(cls, memory, nodes=1, *, watermarks="linux", **options):
        """Return the allocator of a PC with so much memory: DMA, DMA32, the hole below 4 GiB, Normal; Linux's watermarks.

        `nodes` NUMA nodes share the memory evenly. `options` are those of `PageAllocator`; a page has 4096 bytes.
        """
        if options.get("page_size", 4096) != 4096:
            raise ValueError("a PC has pages of 4096 bytes")
        return cls(layout.x86_64_zones(parse_size(memory), operator.index(nodes)), watermarks=watermarks, **options)

    cdef int preferred(self, object zone) except -1:
        if zone is None:
            return self.memory.m.default_zone
        for each in self.zone_objects:
            if zone is each or zone == each.name:
                return each.index
        raise ValueError(f"no such zone: {zone!r} (there is {', '.join(dict.fromkeys(z.name for z in self.zone_objects))})")

    cdef int out_of_memory(self, object what) except -1:
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
            What the pages will hold; keeps what can never move out of everybody else's pageblocks.
        zone : Zone or str, optional
            The zone to prefer; lower ones and then other nodes' are tried next. Default: the highest of the lowest node.

        Raises
        ------
        OutOfMemoryError
            If no zone has such a block above its min watermark, also after emptying the per-CPU page sets and waiting
            for what is out for reporting.
        BadPageError
            If the order is out of range.

        Notes
        -----
        O(max_page_order); without a system call or the release of the GIL where no lock is contended.
        """
        cdef int o = as_order(self.memory, order), mt = as_type(migratetype, 2), prefer = self.preferred(zone), rc
        cdef Machine *m = &self.memory.m
        cdef uint64_t pfn = 0
        rc = machine_alloc(m, prefer, o, mt, False, &pfn)
        if rc == E_AGAIN:
            with nogil:
                rc = machine_alloc(m, prefer, o, mt, True, &pfn)
        if rc == E_NOMEM:
            self.memory.settle()
            with nogil:
                rc = machine_alloc(m, prefer, o, mt, True, &pfn)
                engine_resume(&m.engine)
            if rc == E_NOMEM:
                self.out_of_memory(f"order {o}, {migratetype}")
        return pfn

    def free_pages(self, pfn, order=0):
        """Free a block that `alloc_pages` or `alloc_pages_at` returned.

        Raises
        ------
        BadPageError
            If it is not an allocated block of this order: a double free, the wrong order, a page inside a block, in a
            hole, offline or outside every zone. O(max_page_order).
        """
        cdef uint64_t at = as_pfn(pfn)
        cdef int o = as_order(self.memory, order), rc
        cdef Machine *m = &self.memory.m
        rc = machine_free(m, at, o, False)
        if rc == E_AGAIN:
            with nogil:
                rc = machine_free(m, at, o, True)
        if rc != OK:
            raise self.memory.refusal(rc, at, f"order {o}")
        if m.engine.needs_stamp:
            self.memory.stamp()

    def alloc_pages_bulk(self, count, order=0, migratetype="movable", zone=None):
        """Allocate `count` blocks of one order, all or none; returns their PFNs, an ndarray of uint64.

        Runs without the GIL, a chunk of blocks to a lock round. Parameters and errors as in `alloc_pages`.
        """
        cdef uint64_t n = as_count(count, "count", 0)
        cdef int o = as_order(self.memory, order), mt = as_type(migratetype, 2), prefer = self.preferred(zone), rc
        cdef Machine *m = &self.memory.m
        cdef cnp.ndarray pfns
        cdef uint64_t *out
        if n << o > sum([z.managed_pages for z in self.zone_objects]):
            self.out_of_memory(f"{n} blocks of order {o}, {migratetype}")
        pfns = np.empty(n, np.uint64)
        out = <uint64_t *> pfns.data
        with nogil:
            rc = machine_alloc_bulk(m, prefer, o, mt, out, n)
        if rc == E_NOMEM:
            self.memory.settle()
            with nogil:
                rc = machine_alloc_bulk(m, prefer, o, mt, out, n)
                engine_resume(&m.engine)
            if rc == E_NOMEM:
                self.out_of_memory(f"{n} blocks of order {o}, {migratetype}")
        return pfns

    def free_pages_bulk(self, pfns, order=0):
        """Free many blocks, all or none. Runs without the GIL.

        Parameters
        ----------
        pfns : array_like of int
            First PFNs, one-dimensional, in any order.
        order : int or array_like of int
            The blocks' order, or one for each.

        Raises
        ------
        BadPageError
            As `free_pages`, for the first block that cannot be freed, also because it is there twice.
        """
        cdef cnp.ndarray where = as_pfn_array(pfns, "pfns", np.uint64)
        cdef uint64_t n = <uint64_t>where.shape[0], refused = 0
        cdef cnp.ndarray orders
        cdef uint32_t *each = NULL
        cdef int o = 0, rc
        cdef Machine *m = &self.memory.m
        cdef uint64_t *at = <uint64_t *> where.data
        if hasattr(order, "__index__") and np.ndim(order) == 0:
            o = as_order(self.memory, order)
        else:
            orders = as_pfn_array(order, "order", np.uint32)
            if <uint64_t>orders.shape[0] != n:
                raise ValueError(f"{orders.shape[0]} orders for {n} blocks")
            if n and orders.max() > self.memory.max_page_order:
                as_order(self.memory, int(orders.max()))
            each = <uint32_t *> orders.data
        with nogil:
            rc = machine_free_bulk(m, at, each, o, n, &refused)
        if rc != OK:
            raise self.memory.refusal(rc, at[refused], f"order {o if each == NULL else each[refused]}, index {refused}")
        if m.engine.needs_stamp:
            self.memory.stamp()

    def alloc_pages_at(self, pfn, order=0):
        """Allocate exactly this block: for replays, and for memory that has to be at one place. O(max_page_order).

        Neither migratetype nor watermark is looked at.

        Raises
        ------
        BadPageError
            If it is not all free, in an isolate pageblock, not aligned to its order, or not all in one zone.
        """
        cdef uint64_t at = as_pfn(pfn)
        cdef int o = as_order(self.memory, order), rc
        cdef Machine *m = &self.memory.m
        rc = machine_alloc_at(m, at, o, False)
        if rc == E_AGAIN:
            with nogil:
                rc = machine_alloc_at(m, at, o, True)
        if rc == E_BUSY:
            self.memory.settle()
            with nogil:
                rc = machine_alloc_at(m, at, o, True)
                engine_resume(&m.engine)
        if rc != OK:
            raise self.memory.refusal(rc, at, f"order {o}")
        return at

    def alloc_pages_exact(self, nr_pages, migratetype="movable", zone=None):
        """Allocate `nr_pages` contiguous pages, any number, and return the first PFN; nothing is rounded up.

        Takes the front of a block, or, where no block is large enough, the first free run that begins at a multiple of
        64 pages, which costs O(spanned pages / 64). Errors as in `alloc_pages`.
        """
        cdef uint64_t n = as_count(nr_pages, "nr_pages", 1), pfn = 0
        cdef int mt = as_type(migratetype, 2), prefer = self.preferred(zone), rc
        cdef Machine *m = &self.memory.m
        with nogil:
            rc = machine_alloc_run(m, prefer, n, mt, self.memory.max_page_order, &pfn)
        if rc == E_NOMEM:
            self.memory.settle()
            with nogil:
                rc = machine_alloc_run(m, prefer, n, mt, self.memory.max_page_order, &pfn)
                engine_resume(&m.engine)
            if rc == E_NOMEM:
                self.out_of_memory(f"{n} contiguous pages, {migratetype}")
        return pfn

    def free_pages_exact(self, pfn, nr_pages):
        """Free what `alloc_pages_exact` returned. O(nr_pages / 64).

        Raises
        ------
        BadPageError
            If it is not allocated as one run of so many pages.
        """
        cdef uint64_t at = as_pfn(pfn), n = as_count(nr_pages, "nr_pages", 1)
        cdef Machine *m = &self.memory.m
        cdef int rc
        with nogil:
            rc = machine_free_run(m, at, n, self.memory.max_page_order)
        if rc != OK:
            raise self.memory.refusal(rc, at, f"{n} pages")
        if m.engine.needs_stamp:
            self.memory.stamp()

    def drain_pcp(self):
        """Give everything in the per-CPU page sets back to the zones, by the ordinary path: it merges, and it hints."""
        with nogil:
            machine_drain(&self.memory.m)
        self.memory.stamp()

    # -- hotplug and migratetypes

    def offline(self, pfn, nr_pages):
        """Take whole sections (128 MiB) offline; all their pages must be free.

        Raises
        ------
        BadPageError
            If a page is in use, the range is not made of whole sections of one zone, or is offline already.
        """
        self.memory.set_offline(pfn, nr_pages)

    def online(self, pfn, nr_pages):
        """Bring whole sections online: offline ones again, or new ones past the end of a zone, which grows.

        Raises
        ------
        BadPageError
            If the range is not made of whole sections, not all offline, or no zone could grow there.
        """
        self.memory.set_online(pfn, nr_pages)
        self.memory.stamp()

    def set_migratetype(self, pfn, nr_pages, migratetype):
        """Set the migratetype of whole pageblocks (512 pages), allocated or free; "isolate" takes what is free there off.

        Hints stay. Isolated pages are neither allocated nor reported until the pageblock gets another type.

        Raises
        ------
        BadPageError
            If the range is not made of whole pageblocks (and granules) of one zone.
        """
        self.memory.set_migratetype(pfn, nr_pages, migratetype)
        self.memory.stamp()

    # -- hinting

    def enable_hinting(self, callbacks, *, workqueue="thread", threshold=None, delay=2.0, max_report_order=None,
                       mark_free=True, clock=None):
        """Begin to report free blocks.

        Parameters
        ----------
        callbacks : PageHintingCallbacks
            What to call.
        workqueue : {"thread", "manual"}
            Report on a thread of the allocator's, or on the caller in `run_pending` and `flush_hinting`.
        threshold : int, optional
            Hinted granules in a zone at which it is reported at once. Default: the callbacks' `max_pages`.
        delay : float or None, default 2.0
            Seconds after which fewer are reported, too; None: never.
        max_report_order : int, optional
            Largest block to report. Default: the smaller of 10 and `max_page_order`.
        mark_free : bool, default True
            Report what is free already.
        clock : callable, optional
            Returns seconds, for the delay and the back-off; with ``workqueue="manual"`` only. Default: the monotonic clock.

        Raises
        ------
        HintingActiveError
            If hinting is on already. Nothing has changed.

        Notes
        -----
        After Linux's page hinting series (v10, 2019) and free page reporting (5.7). What fails is hinted again, and
        retried with exponential back-off from 0.1 to 30 seconds.
        """
        if not isinstance(callbacks, PageHintingCallbacks):
            raise TypeError(f"callbacks must be PageHintingCallbacks, not {type(callbacks).__name__}")
        self.memory.enable(callbacks, workqueue, threshold, delay, max_report_order, mark_free, clock)

    def disable_hinting(self):
        """Stop reporting; nothing happens if it is off. On return no callback runs or will run, and every block is back.

        Raises
        ------
        HintingActiveError
            From inside a callback, for which it would have to wait.
        """
        self.memory.disable()

    def flush_hinting(self):
        """Report everything that can be reported, now; returns when done. Empties the per-CPU page sets first.

        Does not wait for the delay, the threshold or the back-off; what fails is in `last_error`.

        Raises
        ------
        HintingInactiveError
            If hinting is off, or is disabled meanwhile.
        HintingActiveError
            From inside a callback.
        """
        self.memory.flush()

    def run_pending(self):
        """With ``workqueue="manual"``: run what is queued and due, on this thread; returns the number of runs.

        Raises
        ------
        HintingInactiveError
            If hinting is off.
        """
        return self.memory.run_pending()

    def hinting(self, callbacks, **options):
        """Return a context manager: `enable_hinting` with these arguments on entry, `disable_hinting` on exit."""
        return _Hinting(self, callbacks, options)

    @property
    def hinting_enabled(self):
        """Whether hinting is on."""
        return bool(self.memory.m.engine.enabled)

    @property
    def last_error(self):
        """What the host or a callback failed with last, since hinting was enabled; None if it never did."""
        return self.memory.last_error

    @property
    def max_pages(self):
        """Most blocks out at once; may be set while hinting is on."""
        self.memory.require_hinting("max_pages")
        return self.memory.m.engine.max_pages

    @max_pages.setter
    def max_pages(self, value):
        self.memory.change(max_pages=value)

    @property
    def threshold(self):
        """Hinted granules at which a zone is reported; may be set while hinting is on, None for `max_pages`."""
        self.memory.require_hinting("threshold")
        return self.memory.m.engine.threshold or self.memory.m.engine.max_pages

    @threshold.setter
    def threshold(self, value):
        self.memory.change(threshold=value, any_threshold=True)

    @property
    def delay(self):
        """Seconds until fewer hints than the threshold are reported, or None; may be set while hinting is on."""
        self.memory.require_hinting("delay")
        return None if self.memory.m.engine.delay == NEVER else self.memory.m.engine.delay / _SECOND

    @delay.setter
    def delay(self, value):
        self.memory.change(delay=value, any_delay=True)

    # -- what there is to see

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
        """A granule is ``2**min_order`` pages."""
        return self.memory.min_order

    def stats(self):
        """Return the counts as of now, added over all zones: a `Stats`."""
        cdef Engine *e = &self.memory.m.engine
        zones = [zone.figures() for zone in self.zone_objects]
        pcp = sum(count for zone in zones for count, _, _ in zone["page_sets"])
        totals = {name: sum(zone[name] for zone in zones) for name in Stats.__dataclass_fields__
                  if name in zones[0] and name != "nr_free"}
        totals["nr_free"] = tuple(sum(counts) for counts in zip(*[types for zone in zones for types in zone["nr_free"]]))
        return Stats(**{
            **totals,
            "page_size": self.memory.page_size,
            "pcp_pages": pcp,
            "allocated_pages": totals["managed_pages"] - totals["free_pages"] - totals["isolated_pages"] - pcp,
            "work_runs": e.work_runs,
            "reports": e.reports,
            "report_errors": e.report_errors,
            "prepare_errors": e.prepare_errors,
        })

    def explain(self):
        """Return where the free memory is, and why it is not with the host: an `Explanation`, shown as a table."""
        return explain_zones(
            [zone.figures() for zone in self.zone_objects],
            page_size=self.memory.page_size, min_order=self.memory.min_order, hinting=self.hinting_enabled,
        )

    def buddyinfo(self):
        """Return the free blocks by order, in the format of ``/proc/buddyinfo``."""
        return procfs.buddyinfo([zone.figures() for zone in self.zone_objects])

    def pagetypeinfo(self):
        """Return the free blocks by migratetype and order, and the pageblocks, in the format of ``/proc/pagetypeinfo``."""
        return procfs.pagetypeinfo([zone.figures() for zone in self.zone_objects], PAGEBLOCK_ORDER, MIGRATETYPES)

    def zoneinfo(self):
        """Return the zones' sizes and watermarks, in the format of ``/proc/zoneinfo``."""
        return procfs.zoneinfo([zone.figures() for zone in self.zone_objects])

    def verify(self):
        """Check every invariant of the metadata; O(pages / 64), each zone locked meanwhile.

        Raises
        ------
        PageHintError
            Naming the zone, the page and the first invariant that does not hold.
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


class _Hinting:
    """What `PageAllocator.hinting` returns."""

    def __init__(self, pages, callbacks, options):
        self._pages = pages
        self._callbacks = callbacks
        self._options = options

    def __enter__(self):
        self._pages.enable_hinting(self._callbacks, **self._options)
        return self._pages

    def __exit__(self, *exc_info):
        self._pages.disable_hinting()
