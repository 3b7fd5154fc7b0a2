# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""The memory of a machine: its zones, their hotplug, why a call on them is refused, and the check of it all."""
import os
import threading

import numpy as np

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.errno cimport errno
from libc.stdint cimport INT64_MAX, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from pagehint.allocator.arguments cimport as_count, as_pfn, as_type
from pagehint.hinting.batch cimport put_back
from pagehint.hinting.bitmap cimport hint_evaluate, hint_off
from pagehint.hinting.limit cimport NO_LIMIT, limit_enforce
from pagehint.hinting.notify cimport notify_unlocked, zone_unlock
from pagehint.hinting.queue cimport (Engine, SIGNAL_CHECK, engine_forked, engine_init, engine_lock, engine_resume,
                                     engine_unlock, engine_wait_batch)
from pagehint.sync.atomic cimport RELAXED, load64, store64
from pagehint.sync.clock cimport monotonic_ns
from pagehint.sync.lock cimport Lock, lock_acquire, lock_forget_sleepers, lock_init, lock_release, pthread_self
from pagehint.sync.testpoint cimport AT_FORK, test_point
from pagehint.zone.buddy cimport NOT_FREE, free_block_around
from pagehint.zone.bulk cimport bulk_resume, bulk_stop
from pagehint.zone.check cimport E_ABSENT, E_ALIGN, E_BUSY, E_FREE, E_HELD, E_INSIDE, E_ISOLATE, E_NO_ZONE, E_SIZE, OK
from pagehint.zone.metadata cimport (aligned_alloc, leaves_for, zone_create, zone_destroy, zone_extend, zone_keep_ages,
                                     zone_open)
from pagehint.zone.migratetype cimport granule_pageblocks, retype
from pagehint.zone.page_alloc cimport Machine, ZoneTry, find_zone, machine_drain
from pagehint.zone.page_set cimport Pcp, pcp_init, sets_drain, sets_hold, sets_let_go
from pagehint.zone.run cimport first_not_free, range_appear, range_vanish
from pagehint.zone.verify cimport Finding, verify_zone
from pagehint.zone.watermark cimport report_gate
from pagehint.zone.zone cimport LEAF_SHIFT, MT_ISOLATE, PAGEBLOCK_ORDER, PageZone

from pagehint import errors, layout
from pagehint.sizes import shown

cnp.import_array()


# A list of ranges changes in one step with its zone, under the zone lock, so that a fork finds both or neither. Without
# the GIL that is a swap of two pointers: no count changes, and readers, who have the GIL, find the one list or the other.
cdef struct Change:
    PyObject **place
    PyObject *other             # before the swap the new list, then the old one


cdef inline Change change(PyObject **place, list new):
    cdef Change c
    Py_INCREF(new)
    c.place = place
    c.other = <PyObject *> new
    return c


cdef inline void swap(Change *c) noexcept nogil:
    c.place[0], c.other = c.other, c.place[0]


cdef inline void finish(Change *c):
    """Let go of the list that is not in place."""
    Py_XDECREF(c.other)


cdef int zone_offline(PageZone *z, int nr_cpus, bint settled, const uint64_t *ranges, size_t n, Change *offline,
                      uint64_t *busy) noexcept nogil:
    """Make `n` runs absent, or none of them: `busy` is then a page that is not free.

    Once `settled`, with the page sets empty and held so, lest one is filled from here meanwhile.
    """
    cdef size_t k
    cdef int rc = OK
    if settled:
        sets_hold(z, nr_cpus, True)
    lock_acquire(&z.lock, True)
    for k in range(n):
        busy[0] = first_not_free(z, ranges[2 * k], ranges[2 * k + 1])
        if busy[0] != ranges[2 * k + 1]:
            rc = E_BUSY
            break
    else:
        for k in range(n):
            range_vanish(z, ranges[2 * k], ranges[2 * k + 1])
        swap(offline)
    zone_unlock(z)
    if settled:
        sets_let_go(z, nr_cpus)
    return rc


cdef void zone_online(PageZone *z, const uint64_t *ranges, size_t n, Change *offline, Change *grown) noexcept nogil:
    """Make `n` runs present, from the end, so that the lists begin with low addresses."""
    cdef size_t k
    lock_acquire(&z.lock, True)
    for k in range(n, 0, -1):
        range_appear(z, ranges[2 * k - 2], ranges[2 * k - 1])
    swap(offline)
    swap(grown)
    zone_unlock(z)


cdef void zone_retype(PageZone *z, uint64_t block, uint64_t end, int mt) noexcept nogil:
    """Retype pageblocks, some a lock round, but never a part of a granule: its bit stands for all of it."""
    cdef uint64_t chunk, step = max(<uint64_t>64, granule_pageblocks(z))
    while block < end:
        chunk = min((block // step + 1) * step, end)
        lock_acquire(&z.lock, True)
        while block < chunk:
            retype(z, block, mt)
            block += 1
        # What waited in isolation may be reported now.
        z.look_at = 0
        hint_evaluate(z)
        zone_unlock(z)


cdef void set_zone_watermarks(PageZone *z, const uint64_t *marks, uint64_t max_pages) noexcept nogil:
    cdef int i
    lock_acquire(&z.lock, True)
    for i in range(3):
        store64(&z.watermark[i], marks[i], RELAXED)         # page sets look without the lock
    if 0 < z.wake_at < INT64_MAX:
        z.wake_at = report_gate(z, max_pages)       # a zone under the gate waits for another one now
    zone_unlock(z)


cdef void zone_stop(PageZone *z, int nr_cpus) noexcept nogil:
    """Stop everything in a zone: its page sets' locks, then its own."""
    sets_hold(z, nr_cpus, False)
    lock_acquire(&z.lock, True)


cdef void zone_resume(PageZone *z, int nr_cpus) noexcept nogil:
    lock_release(&z.lock)
    sets_let_go(z, nr_cpus)


cdef class Memory:
    """The zones of a machine, and their hotplug. What `PageAllocator` is a front to.

    Apart from it so that the hinting engine and an arena's arrays can hold this without keeping the allocator alive.
    It does not hold the engine, so that the two make no cycle.
    """

    def __cinit__(self, specs, int page_size, int max_page_order, int min_order, bint pcp, watermarks):
        cdef Machine *m = &self.m
        cdef PageZone *z
        cdef int i, j
        engine_init(&m.engine)
        lock_init(&m.last_resort)
        m.engine.delay_armed = True
        self.specs = tuple(specs)
        self.page_size = page_size
        self.max_page_order = max_page_order
        self.min_order = min_order
        self.hotplug_lock = threading.Lock()
        self.hotplug_forks = forks
        m.nr_cpus = os.cpu_count() or 1
        m.nr_zones = len(self.specs)
        m.default_zone = layout.default_zone(self.specs)
        m.zones = <PageZone **> calloc(m.nr_zones, sizeof(PageZone *))
        m.zonelists = <ZoneTry *> calloc(m.nr_zones * m.nr_zones, sizeof(ZoneTry))
        m.zonelist_length = <int *> calloc(m.nr_zones, sizeof(int))
        self.absent = <Absent *> calloc(m.nr_zones, sizeof(Absent))
        if m.zones == NULL or m.zonelists == NULL or m.zonelist_length == NULL or self.absent == NULL:
            raise MemoryError("no memory for the zones")
        for i, spec in enumerate(self.specs):
            z = zone_create(spec.start_pfn, spec.end_pfn, max_page_order, min_order)
            if z == NULL:
                raise errors.no_mapping(errno, f"no metadata for zone {spec.name} of {spec.spanned_pages} pages")
            m.zones[i] = z
            z.index = i
            z.engine = &m.engine
            z.notify = notify_unlocked
            z.delay_armed = &m.engine.delay_armed
            self.appear(z, spec.start_pfn, spec.end_pfn)
            if pcp:
                self.add_page_sets(i)
        for i, order in enumerate(layout.zonelists(self.specs)):
            m.zonelist_length[i] = len(order)
            for j, other in enumerate(order):
                m.zonelists[i * m.nr_zones + j].zone = other
        self.linux_watermarks = watermarks == "linux"
        self.watermarks = (watermarks,) * m.nr_zones
        self.set_watermarks()
        self.world.m = m
        self.world.batch = &self.batch
        world_add(&self.world)

    cdef int set_watermarks(self) except -1:
        """By Linux's formulas, where they are wanted, and anew whenever there are more or fewer managed pages."""
        cdef Machine *m = &self.m
        cdef uint64_t[3] marks
        cdef int i, j
        managed = [m.zones[i].managed_pages for i in range(m.nr_zones)]
        if self.linux_watermarks:
            self.watermarks = tuple(layout.linux_watermarks(managed, self.page_size))
        for i in range(m.nr_zones):
            if self.linux_watermarks:
                for j in range(m.zonelist_length[i]):
                    # Read without a lock, and a request may go by the old one.
                    store64(&m.zonelists[i * m.nr_zones + j].reserve, layout.lowmem_reserve(
                        self.specs, managed, m.zonelists[i * m.nr_zones + j].zone, i), RELAXED)
            for j in range(3):
                marks[j] = self.watermarks[i][j]
            with nogil:
                set_zone_watermarks(m.zones[i], marks, m.engine.max_pages)
        return 0

    cdef add_page_sets(self, int i):
        cdef PageZone *z = self.m.zones[i]
        cdef Pcp *sets = <Pcp *> aligned_alloc(64, self.m.nr_cpus * sizeof(Pcp))
        cdef int cpu
        if sets == NULL:
            raise MemoryError(f"no memory for the per-CPU page sets of zone {self.specs[i].name}")
        memset(sets, 0, self.m.nr_cpus * sizeof(Pcp))
        for cpu in range(self.m.nr_cpus):
            pcp_init(&sets[cpu], cpu, z.managed_pages)
        z.pcp = sets
        z.atomic_words = True

    def __dealloc__(self):
        cdef int i
        if self.world.m != NULL:
            world_remove(&self.world)
        if self.m.zones != NULL:
            for i in range(self.m.nr_zones):
                if self.m.zones[i] != NULL:
                    zone_destroy(self.m.zones[i])
        if self.absent != NULL:
            for i in range(self.m.nr_zones):
                Py_XDECREF(self.absent[i].offline)
                Py_XDECREF(self.absent[i].grown)
        free(self.absent)
        free(self.batch.blocks)
        free(self.m.zones)
        free(self.m.zonelists)
        free(self.m.zonelist_length)

    @property
    def reporting_pages(self):
        """Pages that are out for reporting now. Takes no lock."""
        cdef uint64_t pages = 0
        cdef int i
        for i in range(self.m.nr_zones):
            pages += load64(&self.m.zones[i].isolated_pages, RELAXED)
        return pages

    # -- where there is memory

    @property
    def offline(self):
        """For each zone its offline (start, end), sorted and disjoint."""
        return [self.ranges(self.absent[i].offline) for i in range(self.m.nr_zones)]

    @property
    def grown(self):
        """For each zone the holes that growing has left."""
        return [self.ranges(self.absent[i].grown) for i in range(self.m.nr_zones)]

    cdef list ranges(self, PyObject *known):
        return [] if known == NULL else <list> known

    def present(self, int i, start, end, grown):
        """The runs of a zone that are no hole, nor one that growing has left, within [start, end)."""
        absent = sorted([(pfn, pfn + n) for pfn, n in self.specs[i].holes] + grown)
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

    def absence(self, uint64_t pfn, uint64_t nr_pages):
        """Why some of these pages have no memory, or None."""
        cdef PageZone *z = find_zone(&self.m, pfn)
        cdef uint64_t end = pfn + nr_pages
        if z == NULL:
            return "outside every zone"
        holes = [(hole, hole + n) for hole, n in self.specs[z.index].holes] + self.grown[z.index]
        for what, ranges in (("an offline section", self.offline[z.index]), ("a hole", holes)):
            for first, last in ranges:
                if first <= pfn < last:
                    return f"in {what}"
                if pfn < first < end:
                    return f"reaches into {what} at PFN {first:#x}"
        return "reaches beyond the zone's end" if end > z.end_pfn else None

    cdef object place(self, uint64_t pfn, object what):
        cdef PageZone *z = find_zone(&self.m, pfn)
        if z == NULL:
            return f"PFN {pfn:#x} ({what}, outside every zone)"
        spec = self.specs[z.index]
        return f"PFN {pfn:#x} ({what}, zone {spec.name}, node {spec.node})"

    cdef object refusal(self, int rc, uint64_t pfn, object what, uint64_t nr_pages=1):
        """The error for a refused call."""
        cdef PageZone *z = find_zone(&self.m, pfn)
        cdef uint64_t head = 0
        cdef int order
        where = self.place(pfn, what)
        if z == NULL:
            return errors.BadPageError(f"{where}; nothing was changed")
        why = self.absence(pfn, nr_pages)
        if why is None:
            with nogil:
                lock_acquire(&z.lock, True)
                order = free_block_around(z, pfn - z.base_pfn, 0, &head)
                lock_release(&z.lock)
            if rc == E_INSIDE and order != NOT_FREE:
                rc = E_FREE
            why = {
                E_NO_ZONE: "was outside every zone, before this one grew",
                E_ABSENT: "was absent, before it came online",
                E_ALIGN: "not aligned to the order",
                E_FREE: "already free (a double free?)",
                E_HELD: "already free, and in a per-CPU page set or out for reporting; or twice in one call",
                E_SIZE: "allocated, but not as one block of this size (wrong order?)",
                E_INSIDE: "inside an allocated block, not its first page",
                E_BUSY: "not all free",
                E_ISOLATE: "in a pageblock of migratetype isolate",
            }[rc]
        return errors.BadPageError(f"{where}: {why}; nothing was changed")

    cdef object order_refusal(self, object order, object pfn):
        """The error for an order that no block has, at a page or, if that is None, anywhere."""
        order = shown(order)
        if pfn is None:
            zones = ", ".join([f"{spec.name} (node {spec.node})" for spec in self.specs])
            where = f"order {order} (zones {zones})"
        else:
            where = self.place(as_pfn(pfn), f"order {order}")
        return errors.BadPageError(
            f"{where}: orders are from 0 to {self.max_page_order} (max_page_order); nothing was changed"
        )

    # -- waiting for memory

    cdef int settle(self) except -1:
        """Drain the page sets, wait until no batch is out, and keep it so until `engine_resume`.

        A request that has failed before this and fails after it has really no memory.
        """
        cdef Engine *e = &self.m.engine
        cdef bint done = False
        while not done:
            with nogil:
                done = engine_wait_batch(e, pthread_self(), monotonic_ns() + SIGNAL_CHECK)
                if done:
                    machine_drain(&self.m)
            if not done:
                PyErr_CheckSignals()
        return 0

    # -- how much stays in memory

    def set_limit(self, int index, limit):
        """Pages in use or warm that a zone keeps at most, while hinting is on; None for no limit."""
        cdef PageZone *z = self.m.zones[index]
        cdef uint64_t pages = <uint64_t>NO_LIMIT if limit is None else as_count(limit, "limit", 0)
        with nogil:
            lock_acquire(&z.lock, True)
            z.limit = pages
            limit_enforce(z)
            zone_unlock(z)

    # -- how long granules have been free

    cdef int keep_ages(self) except -1:
        """Have room for their stamps from now on."""
        cdef int i
        with self.hotplug():
            for i in range(self.m.nr_zones):
                if zone_keep_ages(self.m.zones[i]):
                    raise errors.no_mapping(errno, f"no stamps for the granules of zone {self.specs[i].name}")
        return 0

    # -- hotplug

    cdef tuple page_range(self, object pfn, object nr_pages):
        """(start, end) of so many pages, which do not wrap around."""
        cdef uint64_t start = as_pfn(pfn), count = as_count(nr_pages, "nr_pages", 1)
        if start > layout.PFN_LIMIT - count:
            raise errors.BadPageError(f"PFN {start:#x}, {count} pages: outside every zone; PFNs are from 0 to 2**52")
        return start, start + count

    cdef tuple section_range(self, object pfn, object nr_pages):
        """Check that a range is made of whole sections; returns (start, end)."""
        cdef uint64_t section = max(layout.SECTION_BYTES // self.page_size, 1), start, end
        start, end = self.page_range(pfn, nr_pages)
        cdef PageZone *z = find_zone(&self.m, start)
        cdef uint64_t first = z.start_pfn if z != NULL else 0, last = z.end_pfn if z != NULL else 0
        if (start % section and start != first) or (end % section and end != last):
            raise errors.BadPageError(
                f"PFN {start:#x}, {end - start} pages: hotplug goes by whole sections of {section} pages ({section:#x})"
            )
        return start, end

    def set_offline(self, pfn, nr_pages):
        if not self.try_offline(pfn, nr_pages, False):
            # Not under the lock: the batch is out for as long as the callback likes, and it may want the lock itself.
            self.settle()
            try:
                self.try_offline(pfn, nr_pages, True)
            finally:
                engine_resume(&self.m.engine)

    cdef bint try_offline(self, object pfn, object nr_pages, bint settled) except -1:
        """Whether the range is offline now; False only before `settled`, if a page is in use."""
        cdef uint64_t start, end, busy = 0
        cdef PageZone *z
        cdef int rc
        cdef Change offline
        cdef cnp.ndarray[cnp.uint64_t] ranges
        with self.hotplug():
            start, end = self.section_range(pfn, nr_pages)
            z = find_zone(&self.m, start)
            if z == NULL or end > z.end_pfn:
                raise errors.BadPageError(f"PFN {start:#x}, {end - start} pages: not inside one zone; nothing was changed")
            spec = self.specs[z.index]
            for first, last in self.offline[z.index]:
                if first < end and start < last:
                    raise errors.BadPageError(f"PFN {max(first, start):#x} (zone {spec.name}): already offline")
            ranges = self.runs(z, start, end, self.grown[z.index])
            offline = change(&self.absent[z.index].offline, sorted(self.offline[z.index] + [(start, end)]))
            with nogil:
                rc = zone_offline(z, self.m.nr_cpus, settled, <uint64_t *> ranges.data, ranges.shape[0] // 2, &offline,
                                  &busy)
            finish(&offline)
            if rc == OK:
                self.set_watermarks()
            if rc == E_BUSY and settled:
                raise errors.BadPageError(
                    f"PFN {z.base_pfn + busy:#x} (zone {spec.name}, node {spec.node}): in use, so that"
                    f" [{start:#x}, {end:#x}) cannot go offline; nothing was changed"
                )
            return rc == OK

    def set_online(self, pfn, nr_pages):
        cdef uint64_t start, end, first, last
        cdef PageZone *z
        with self.hotplug():
            start, end = self.section_range(pfn, nr_pages)
            z = find_zone(&self.m, start)
            if z == NULL:
                z = self.grow(start, end)
            spec = self.specs[z.index]
            # What growing has left out was not there then, but may be now.
            ranges = self.disjoint(self.offline[z.index] + self.grown[z.index])
            covered = sum(min(last, end) - max(first, start) for first, last in ranges if first < end and start < last)
            if covered != end - start:
                raise errors.BadPageError(
                    f"PFN {start:#x}, {end - start} pages (zone {spec.name}, node {spec.node}):"
                    " not all offline; nothing was changed"
                )
            self.appear(z, start, end)
            self.set_watermarks()

    @staticmethod
    def without(ranges, start, end):
        """What [start, end) leaves of ranges."""
        below = [(first, min(last, start)) for first, last in ranges if first < start]
        return sorted(below + [(max(first, end), last) for first, last in ranges if last > end])

    cdef runs(self, PageZone *z, start, end, grown):
        """The pages of a range that are no hole, as (first, end) relative to the zone's base, one after the other."""
        return np.array(self.present(z.index, start, end, grown), np.uint64).ravel() - np.uint64(z.base_pfn)

    cdef appear(self, PageZone *z, start, end):
        """Make a range present, what growing has left out of it included."""
        cdef list left = self.without(self.grown[z.index], start, end)
        cdef cnp.ndarray[cnp.uint64_t] ranges = self.runs(z, start, end, left)
        cdef Change offline = change(&self.absent[z.index].offline, self.without(self.offline[z.index], start, end))
        cdef Change grown = change(&self.absent[z.index].grown, left)
        with nogil:
            zone_online(z, <uint64_t *> ranges.data, ranges.shape[0] // 2, &offline, &grown)
        finish(&offline)
        finish(&grown)

    cdef PageZone *grow(self, uint64_t start, uint64_t end) except NULL:
        """Let the zone below reach to `end`; what lies between becomes a hole, the rest offline."""
        cdef PageZone *z = NULL
        cdef int i
        cdef Change offline, grown
        if self.of_arena:
            raise errors.BadPageError(f"PFN {start:#x} is outside every zone, and those of an arena do not grow")
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
            raise errors.BadPageError(
                f"PFN {start:#x}, {end - start} pages: zone {name} cannot grow so far; nothing was changed"
            )
        if zone_open(z, leaves_for(z, end)):
            raise errors.no_mapping(errno, f"no metadata for zone {self.specs[z.index].name} up to PFN {end:#x}")
        gap = [(z.end_pfn, start)] if z.end_pfn < start else []
        grown = change(&self.absent[z.index].grown, self.grown[z.index] + gap)
        offline = change(&self.absent[z.index].offline, self.offline[z.index] + [(start, end)])
        with nogil:
            lock_acquire(&z.lock, True)
            zone_extend(z, end)
            swap(&grown)
            swap(&offline)
            zone_unlock(z)
        finish(&grown)
        finish(&offline)
        return z

    def set_migratetype(self, pfn, nr_pages, migratetype):
        cdef int mt = as_type(migratetype, MT_ISOLATE)
        cdef uint64_t start, end
        start, end = self.page_range(pfn, nr_pages)
        # A granule is reported as a whole, so its pageblocks, where it has several, change together.
        cdef uint64_t unit = <uint64_t>1 << max(<int>PAGEBLOCK_ORDER, self.min_order), first, last
        cdef PageZone *z = find_zone(&self.m, start)
        with self.hotplug():
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
                sets_drain(z, self.m.nr_cpus)

    # -- consistency

    def verify(self):
        cdef PageZone *z
        cdef Finding finding
        cdef int i
        cdef bint bad
        cdef cnp.ndarray[cnp.uint64_t] absent
        with self.hotplug():
            for i in range(self.m.nr_zones):
                z = self.m.zones[i]
                holes = [(pfn, pfn + n) for pfn, n in self.specs[i].holes] + self.grown[i] + self.offline[i]
                edges = [(z.base_pfn, z.start_pfn), (z.end_pfn, z.base_pfn + (z.nr_leaves << LEAF_SHIFT))]
                absent = np.array(self.disjoint(holes) + edges, np.uint64).ravel() - np.uint64(z.base_pfn)
                with nogil:
                    zone_stop(z, self.m.nr_cpus)
                    bad = verify_zone(z, self.m.nr_cpus, <uint64_t *> absent.data, absent.shape[0] // 2,
                                      &self.m.bulk_blocks, &finding)
                    zone_resume(z, self.m.nr_cpus)
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

    cdef object hotplug(self):
        """The lock that serialises hotplug; another in a forked child, where nobody may be left to release it."""
        if self.hotplug_forks != forks:
            self.hotplug_forks = forks
            self.hotplug_lock = threading.Lock()
        return self.hotplug_lock


# ---- fork ---------------------------------------------------------------------------------------------------
# All of it happens inside fork(2), and none of it in Python: Python's own hooks let others' code run in between, which
# may use an allocator, or be interrupted. We wait for the locks with the GIL; nobody who has one waits for that.

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)

cdef Lock worlds_lock               # protects the list, and is held across a fork
cdef World worlds                   # its head
cdef uint64_t forks = 0             # how many there have been, from the first process to this one


cdef void world_add(World *w) noexcept nogil:
    lock_acquire(&worlds_lock, True)
    w.prev = &worlds
    w.next = worlds.next
    if w.next != NULL:
        w.next.prev = w
    worlds.next = w
    lock_release(&worlds_lock)


cdef void world_remove(World *w) noexcept nogil:
    lock_acquire(&worlds_lock, True)
    w.prev.next = w.next
    if w.next != NULL:
        w.next.prev = w.prev
    lock_release(&worlds_lock)


cdef void fork_prepare() noexcept nogil:
    cdef World *w
    cdef int i
    test_point(AT_FORK)
    lock_acquire(&worlds_lock, True)
    w = worlds.next
    while w != NULL:
        lock_acquire(&w.m.last_resort, True)
        bulk_stop(w.m)
        for i in range(w.m.nr_zones):
            zone_stop(w.m.zones[i], w.m.nr_cpus)
        engine_lock(&w.m.engine)
        w = w.next


cdef void world_resume(World *w) noexcept nogil:
    """Let go of all but the engine."""
    cdef int i
    for i in range(w.m.nr_zones):
        zone_resume(w.m.zones[i], w.m.nr_cpus)
    bulk_resume(w.m)
    lock_release(&w.m.last_resort)


cdef void fork_parent() noexcept nogil:
    cdef World *w = worlds.next
    while w != NULL:
        engine_unlock(&w.m.engine)
        world_resume(w)
        w = w.next
    lock_release(&worlds_lock)


cdef void fork_child() noexcept nogil:
    """Every other thread is gone, the worker, perhaps with a batch out, and those that waited for a lock included."""
    global forks
    cdef World *w = worlds.next
    cdef PageZone *z
    cdef int i, cpu
    while w != NULL:
        lock_forget_sleepers(&w.m.last_resort)
        for i in range(w.m.nr_zones):
            z = w.m.zones[i]
            lock_forget_sleepers(&z.lock)
            if z.pcp != NULL:
                for cpu in range(w.m.nr_cpus):
                    lock_forget_sleepers(&(<Pcp *> z.pcp + cpu).lock.lock)
            hint_off(z)
        if w.batch.n:
            memset(w.batch.failed, 1, w.batch.n)
            put_back(w.batch.zone, w.batch.blocks, w.batch.n, w.batch.failed)
            w.batch.n = 0
        engine_forked(&w.m.engine)
        world_resume(w)
        w = w.next
    forks += 1
    lock_forget_sleepers(&worlds_lock)
    lock_release(&worlds_lock)


lock_init(&worlds_lock)
if pthread_atfork(fork_prepare, fork_parent, fork_child):
    raise MemoryError("no memory for what a fork needs")
