# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""The memory of a machine: its zones as one object, their watermarks, hotplug, and consistency check.

Hotplug, that is what changes where there is memory or of which migratetype it is, is serialised by one lock of its own.
Within that each zone changes under its zone lock, so allocations and frees go on beside it.
"""
import os
import threading

import numpy as np

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_XDECREF
from libc.errno cimport errno
from libc.stdint cimport INT64_MAX, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from pagehint.allocator.fork cimport fork_record_add, fork_record_remove, forks_so_far, zone_resume, zone_stop
from pagehint.allocator.hotplug cimport Change, change, finish, swap, zone_offline, zone_online, zone_retype
from pagehint.allocator.migratetype_names cimport as_type
from pagehint.hinting.gate cimport report_gate
from pagehint.hinting.hinted_zone cimport (hinted_zone_create, hinted_zone_destroy, hinted_zone_open, hints_of, keep_ages,
                                           keep_pauses)
from pagehint.hinting.limit cimport NO_LIMIT, settle_limit
from pagehint.hinting.look cimport go_by_limit
from pagehint.hinting.notify cimport unlock_and_notify
from pagehint.hinting.queue cimport (SIGNAL_CHECK, queue_init, queue_lock, queue_resume, queue_unlock,
                                     queue_wait_batch)
from pagehint.hinting.verify cimport verify_hints
from pagehint.numbers cimport as_count, as_pfn
from pagehint.sync.atomic cimport RELAXED, peek64, store64
from pagehint.sync.clock cimport monotonic_ns
from pagehint.sync.lock cimport lock_acquire, lock_init, lock_release, thread_id
from pagehint.zone.hook cimport zone_unlock
from pagehint.zone.metadata cimport aligned_alloc, leaves_for, types_begin, zone_extend
from pagehint.zone.page_alloc cimport (Machine, ZoneMap, ZoneRange, ZoneTry, find_zone, machine_drain, machine_hold,
                                       machine_let_go, range_around)
from pagehint.zone.page_sets.page_set cimport Pcp, pcp_init, sets_drain
from pagehint.zone.status cimport E_BUSY, OK
from pagehint.zone.verify cimport Finding, verify_zone
from pagehint.zone.zone cimport MT_ISOLATE, PAGEBLOCK_ORDER, PageZone, WORDS_ATOMIC

from pagehint import errors, layout
from pagehint.allocator.page_ranges import joined, overlapping, union, within, without
from pagehint.refusals import say_no_barrier

cnp.import_array()


cdef void set_zone_watermarks(PageZone *z, const uint64_t *marks, uint64_t max_pages) noexcept nogil:
    """Set min, low and high, in pages, and the gate that follows from them."""
    cdef int i
    lock_acquire(&z.lock, True)
    for i in range(3):
        store64(&z.watermark[i], marks[i], RELAXED)         # page sets read it without the lock
    if 0 < z.notify_at < INT64_MAX:
        z.notify_at = report_gate(z, max_pages)       # a zone that waits for its gate waits for the new one
    zone_unlock(z)


cdef class Memory:
    """The zones of a machine, and their hotplug, to which `PageAllocator` is the front.

    The hinting engine and an arena's arrays refer to this object, so they do not keep the allocator alive. It does not
    refer to the engine, so there is no cycle.
    """

    def __cinit__(self, specs, int page_size, int max_page_order, int min_order, bint pcp, watermarks):
        cdef Machine *m = &self.m
        cdef PageZone *z
        cdef int i, j
        queue_init(&self.queue)
        lock_init(&m.last_resort)
        lock_init(&m.growing)
        if m.last_resort.fences:
            say_no_barrier()
        self.queue.delay_armed = True
        self.specs = tuple(specs)
        self.holes = [[(pfn, pfn + n) for pfn, n in spec.holes] for spec in self.specs]
        self.page_size = page_size
        self.max_page_order = max_page_order
        self.min_order = min_order
        self.hotplug_lock = threading.Lock()
        self.hotplug_forks = forks_so_far()
        m.nr_cpus = os.cpu_count() or 1
        m.nr_zones = len(self.specs)
        m.default_zone = layout.default_zone(self.specs)
        m.zones = <PageZone **> calloc(m.nr_zones, sizeof(PageZone *))
        m.zonelists = <ZoneTry *> calloc(m.nr_zones * m.nr_zones, sizeof(ZoneTry))
        m.zonelist_length = <int *> calloc(m.nr_zones, sizeof(int))
        self.absent = <Absent *> calloc(m.nr_zones, sizeof(Absent))
        if m.zones == NULL or m.zonelists == NULL or m.zonelist_length == NULL or self.absent == NULL:
            raise MemoryError("no memory for the zones")
        self.limit.pages = self.limit.chosen = <uint64_t>NO_LIMIT
        self.limit.zones = m.zones
        self.limit.nr_zones = m.nr_zones
        for i, spec in enumerate(self.specs):
            z = <PageZone *> hinted_zone_create(spec.start_pfn, spec.end_pfn, spec.start_pfn + spec.span_limit,
                                                max_page_order, min_order)
            if z == NULL:               # a limit on address space: then it cannot grow
                z = <PageZone *> hinted_zone_create(spec.start_pfn, spec.end_pfn, spec.end_pfn, max_page_order, min_order)
            if z == NULL:
                raise errors.no_mapping(errno, f"no metadata for zone {spec.name} of {spec.spanned_pages} pages")
            m.zones[i] = z
            z.index = i
            z.notify = unlock_and_notify
            hints_of(z).queue = &self.queue
            hints_of(z).delay_armed = &self.queue.delay_armed
            hints_of(z).limit = &self.limit
            self.appear(z, spec.start_pfn, spec.end_pfn, True)
            if pcp:
                self.add_page_sets(i)
        self.map_zones()
        for i, order in enumerate(layout.zonelists(self.specs)):
            m.zonelist_length[i] = len(order)
            for j, other in enumerate(order):
                m.zonelists[i * m.nr_zones + j].zone = other
        self.linux_watermarks = watermarks == "linux"
        self.wanted_watermarks = (watermarks,) * m.nr_zones
        self.set_watermarks()
        self.fork_record.m = m
        self.fork_record.queue = &self.queue
        self.fork_record.batch = &self.batch
        fork_record_add(&self.fork_record)

    cdef int map_zones(self) except -1:
        """Write down which zone a page belongs to."""
        cdef ZoneMap *map = &self.m.map
        cdef int i, zone
        tails = layout.tails(self.specs)
        self.ranks = layout.zone_ranks(self.specs)
        self.interleaved = layout.interleaved_ranges(self.specs)
        self.edges = {pfn for start, end, _ in self.interleaved for pfn in (start, end)}
        map.zones = <PageZone **> calloc(self.m.nr_zones, sizeof(PageZone *))
        map.ranges = <ZoneRange *> calloc(max(len(self.interleaved), 1), sizeof(ZoneRange))
        if map.zones == NULL or map.ranges == NULL:
            raise MemoryError("no memory for the ranges of the zones")
        for i, zone in enumerate(sorted(range(self.m.nr_zones), key=lambda zone: tails[zone] is None)):
            map.zones[i] = self.m.zones[zone]
            map.zones[i].tail_pfn = tails[zone] if tails[zone] is not None else map.zones[i].end_pfn
            map.nr_tails += tails[zone] is not None
        map.nr_zones = self.m.nr_zones
        map.range_around = range_around
        map.nr_ranges = len(self.interleaved)
        for i, (start, end, zone) in enumerate(self.interleaved):
            map.ranges[i].start_pfn, map.ranges[i].end_pfn, map.ranges[i].zone = start, end, self.m.zones[zone]
        return 0

    cdef int set_watermarks(self) except -1:
        """Set each zone's watermarks. Linux's formulas need the managed pages, so this follows each change of them."""
        cdef Machine *m = &self.m
        cdef uint64_t[3] marks
        cdef int i, j
        cdef ZoneTry *step
        cdef cnp.ndarray[cnp.uint64_t, ndim=2] reserves
        cdef cnp.ndarray[cnp.int64_t] ranks
        managed = [m.zones[i].managed_pages for i in range(m.nr_zones)]
        by_linux = layout.linux_watermarks(managed, self.page_size)
        self.watermarks = tuple([by_formula if wanted == "linux" else wanted
                                 for wanted, by_formula in zip(self.wanted_watermarks, by_linux)])
        if self.linux_watermarks:
            reserves = np.array(layout.lowmem_reserves(self.specs, self.ranks, managed), np.uint64)
            ranks = np.array(self.ranks, np.int64)
            with nogil:
                for i in range(m.nr_zones):
                    for j in range(m.zonelist_length[i]):
                        step = &m.zonelists[i * m.nr_zones + j]
                        # Requests read it without a lock, and may still go by the old one.
                        store64(&step.reserve, reserves[step.zone, ranks[i]], RELAXED)
        for i in range(m.nr_zones):
            for j in range(3):
                marks[j] = self.watermarks[i][j]
            with nogil:
                set_zone_watermarks(m.zones[i], marks, self.queue.max_pages)
        return 0

    def set_watermarks_of(self, i, watermarks):
        """Set those of zone `i`, as `PageAllocator.set_watermarks`."""
        spec = self.specs[i]
        try:
            marks = layout.check_watermarks(watermarks)
        except (TypeError, ValueError) as error:
            raise type(error)(f"zone {spec.name} (node {spec.node}): {error}; nothing was changed") from None
        with self.hotplug():
            self.wanted_watermarks = self.wanted_watermarks[:i] + (marks,) + self.wanted_watermarks[i + 1:]
            self.set_watermarks()

    cdef add_page_sets(self, int i):
        """Put per-CPU page sets in front of zone `i`, which no other thread knows yet."""
        cdef PageZone *z = self.m.zones[i]
        cdef Pcp *sets = <Pcp *> aligned_alloc(64, self.m.nr_cpus * sizeof(Pcp))
        cdef int cpu
        if sets == NULL:
            raise MemoryError(f"no memory for the per-CPU page sets of zone {self.specs[i].name}")
        memset(sets, 0, self.m.nr_cpus * sizeof(Pcp))
        for cpu in range(self.m.nr_cpus):
            pcp_init(&sets[cpu], cpu, z.managed_pages)
        z.pcp = sets
        z.words = WORDS_ATOMIC

    def __dealloc__(self):
        cdef int i
        if self.fork_record.m != NULL:
            fork_record_remove(&self.fork_record)
        if self.m.zones != NULL:
            for i in range(self.m.nr_zones):
                if self.m.zones[i] != NULL:
                    hinted_zone_destroy(self.m.zones[i])
        if self.absent != NULL:
            for i in range(self.m.nr_zones):
                Py_XDECREF(self.absent[i].offline)
                Py_XDECREF(self.absent[i].grown)
        free(self.absent)
        free(self.batch.blocks)
        free(self.m.zones)
        free(self.m.map.zones)
        free(self.m.map.ranges)
        free(self.m.zonelists)
        free(self.m.zonelist_length)

    # -- where there is memory

    cdef str label(self, int i):
        """A zone in words."""
        return f"{self.specs[i].name} (node {self.specs[i].node})"

    cdef list offline(self, int i):
        """The offline runs of zone `i`."""
        return [] if self.absent[i].offline == NULL else <list> self.absent[i].offline

    cdef list grown(self, int i):
        """The holes that growing has left in zone `i`."""
        return [] if self.absent[i].grown == NULL else <list> self.absent[i].grown

    cdef list present(self, int i, start, end, grown):
        """The runs of zone `i` within [start, end) that are not holes, nor in `grown`, as (start, end) in PFNs."""
        runs = []
        for first, last in union(within(self.holes[i], start, end), within(grown, start, end)):
            if first > start:
                runs.append((start, first))
            start = last
        if start < end:
            runs.append((start, end))
        return runs

    def offline_pages(self, i):
        """Pages of memory in the offline sections of zone `i`."""
        return sum([last - first for start, end in self.offline(i)
                    for first, last in self.present(i, start, end, self.grown(i))])

    def absence(self, uint64_t pfn, uint64_t nr_pages):
        """Why some of these pages have no memory, in words, or None if all have. O(log ranges)."""
        cdef PageZone *z = find_zone(&self.m, pfn)
        cdef uint64_t end = pfn + nr_pages
        if z == NULL:
            return "outside every zone"
        for what, ranges in (("an offline section", self.offline(z.index)), ("a hole", self.holes[z.index]),
                             ("a hole", self.grown(z.index))):
            for first, _ in within(ranges, pfn, end)[:1]:
                for _, _, i in self.interleaved[overlapping(self.interleaved, first, first + 1)]:
                    what = what if i == z.index else f"zone {self.label(i)}"
                return f"in {what}" if first == pfn else f"reaches into {what} at PFN {first:#x}"
        return "reaches beyond the zone's end" if end > z.end_pfn else None

    # -- waiting for memory

    cdef int settle(self) except -1:
        """Wait until no batch is out with the host, and keep it so until `queue_resume`; then empty the page sets."""
        cdef bint done = False
        while not done:
            with nogil:
                done = queue_wait_batch(&self.queue, thread_id(), monotonic_ns() + SIGNAL_CHECK)
                if done:
                    machine_drain(&self.m)
            if not done:
                PyErr_CheckSignals()
        return 0

    cdef void begin_last_resort(self) noexcept nogil:
        """Before a request that failed is tried a last time, after `settle`: empty the page sets, and keep them empty.

        So the request fails only if there is no memory for it. The locks of all page sets are held until
        `end_last_resort`, and the caller must not wait for the GIL in between: a fork holds the GIL while it waits for
        them.
        """
        machine_hold(&self.m)

    cdef void end_last_resort(self) noexcept nogil:
        """After `begin_last_resort` and the request: give the page sets' locks back, and let batches go out."""
        machine_let_go(&self.m)
        queue_resume(&self.queue)

    # -- how much stays in memory

    @property
    def reporting_pages(self):
        """Pages that are out with the host just now. Takes no lock."""
        cdef uint64_t pages = 0
        cdef int i
        for i in range(self.m.nr_zones):
            pages += peek64(&hints_of(self.m.zones[i]).reporting_pages)
        return pages

    def set_limit(self, limit):
        """Set how many pages all zones together keep at most, in use or warm, while hinting is on; None for no limit."""
        cdef uint64_t pages = <uint64_t>NO_LIMIT if limit is None else as_count(limit, "limit", 0)
        with nogil:
            queue_lock(&self.queue)
            self.limit.chosen = pages
            settle_limit(&self.limit)
            queue_unlock(&self.queue)
            go_by_limit(&self.limit)

    # -- how long granules have been free

    def keep_ages(self, bint learn=False):
        """Have stamps in every zone from now on, and room to `learn` an age; MemoryError where there is no memory."""
        cdef int i, failed      # an errno, or 0
        with self.hotplug():
            for i in range(self.m.nr_zones):
                with nogil:
                    lock_acquire(&self.m.growing, True)
                    failed = errno if keep_ages(self.m.zones[i]) or learn and keep_pauses(self.m.zones[i]) else 0
                    lock_release(&self.m.growing)
                if failed:
                    raise errors.no_mapping(failed, f"no stamps for the granules of zone {self.specs[i].name}")

    # -- hotplug

    cdef tuple page_range(self, object pfn, object nr_pages):
        """The run of so many pages as (start, end) in PFNs; BadPageError if it is beyond the last PFN."""
        cdef uint64_t start = as_pfn(pfn), count = as_count(nr_pages, "nr_pages", 1)
        if start > layout.PFN_LIMIT - count:
            raise errors.BadPageError(f"PFN {start:#x}, {count} pages: outside every zone; PFNs are from 0 to 2**52")
        return start, start + count

    cdef uint64_t section_pages(self):
        """Pages of the unit of hotplug."""
        return max(layout.SECTION_BYTES // self.page_size, 1)

    cdef PageZone *zone_of(self, uint64_t start, uint64_t end) except? NULL:
        """The zone that the memory in [start, end) is in, all of it, or NULL; BadPageError if two zones have some there.

        The run may reach beyond the zone: of zones that do not interleave, it is the one of the first page.
        """
        cdef PageZone *z = find_zone(&self.m, start)
        shared = self.interleaved[overlapping(self.interleaved, start, end)]
        if z == NULL or not shared:
            return z
        for first, _, i in shared:
            if i != shared[0][2]:
                raise errors.BadPageError(
                    f"PFN {start:#x}, {end - start} pages: in zone {self.label(shared[0][2])}, and from PFN {first:#x} on in"
                    f" zone {self.label(i)}; nothing was changed"
                )
        return self.m.zones[<int>shared[0][2]]

    cdef PageZone *zone_in(self, uint64_t start, uint64_t end) except NULL:
        """As `zone_of`; BadPageError as well if the run is not inside the zone."""
        cdef PageZone *z = self.zone_of(start, end)
        if z == NULL or start < z.start_pfn or end > z.end_pfn:
            raise errors.BadPageError(f"PFN {start:#x}, {end - start} pages: not inside one zone; nothing was changed")
        return z

    cdef tuple section_range(self, object pfn, object nr_pages):
        """As `page_range`; BadPageError if the run is not made of whole sections, which the ends of memory may cut.

        These are the ends of a zone, and where the memory of zones that interleave begins or ends.
        """
        cdef uint64_t section = self.section_pages(), start, end
        start, end = self.page_range(pfn, nr_pages)
        cdef PageZone *z = find_zone(&self.m, start)
        cdef uint64_t first = z.start_pfn if z != NULL else 0, last = z.end_pfn if z != NULL else 0
        if ((start % section and start != first and start not in self.edges)
                or (end % section and end != last and end not in self.edges)):
            raise errors.BadPageError(
                f"PFN {start:#x}, {end - start} pages: hotplug goes by whole sections of {section} pages ({section:#x})"
            )
        return start, end

    def set_offline(self, pfn, nr_pages):
        """As `PageAllocator.offline`."""
        if not self.try_offline(pfn, nr_pages, False):
            # Not under `hotplug`: a callback may keep the batch out for long, and may want that lock itself.
            self.settle()
            try:
                self.try_offline(pfn, nr_pages, True)
            finally:
                queue_resume(&self.queue)

    cdef bint try_offline(self, object pfn, object nr_pages, bint settled) except -1:
        """Take a run offline; False if a page is not free and not `settled`, when it may be out or in a page set."""
        cdef uint64_t start, end, busy = 0
        cdef PageZone *z
        cdef int rc
        cdef Change offline
        cdef cnp.ndarray[cnp.uint64_t] ranges
        with self.hotplug():
            start, end = self.section_range(pfn, nr_pages)
            z = self.zone_in(start, end)
            spec = self.specs[z.index]
            for first, _ in within(self.offline(z.index), start, end)[:1]:
                at = f"PFN {first:#x} (zone {spec.name}, node {spec.node})"
                raise errors.BadPageError(f"{at}: already offline")
            ranges = self.runs(z, start, end, self.grown(z.index))
            offline = change(&self.absent[z.index].offline, joined(self.offline(z.index), start, end))
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
        """As `PageAllocator.online`."""
        cdef uint64_t start, end, first, last
        cdef PageZone *z
        with self.hotplug():
            start, end = self.section_range(pfn, nr_pages)
            z = self.zone_of(start, end)
            if z == NULL:
                z = self.grow(start, end)
            spec = self.specs[z.index]
            # A hole that growing has left may have memory by now.
            ranges = union(within(self.offline(z.index), start, end), within(self.grown(z.index), start, end))
            if sum([last - first for first, last in ranges]) != end - start:
                raise errors.BadPageError(
                    f"PFN {start:#x}, {end - start} pages (zone {spec.name}, node {spec.node}):"
                    " not all offline; nothing was changed"
                )
            self.appear(z, start, end, False)
            self.set_watermarks()

    cdef runs(self, PageZone *z, start, end, grown):
        """The runs in [start, end) that are not holes, as uint64: first, end, first, ... from the zone's base."""
        return np.array(self.present(z.index, start, end, grown), np.uint64).ravel() - np.uint64(z.base_pfn)

    cdef list still_grown(self, int i, uint64_t start, uint64_t end):
        """The holes that growing has left in zone `i`, once [start, end) is online.

        Whole sections have memory then. What is missing of a section that was there before never had any.
        """
        cdef uint64_t section = self.section_pages(), first, last
        cdef list left = self.grown(i)
        for first, last in within(left, start, end):
            first, last = (first + section - 1) // section * section, last // section * section
            if first < last:
                left = without(left, first, last)
        return left

    cdef appear(self, PageZone *z, start, end, bint new):
        """Make [start, end) present, with the holes that growing has left in it; `new` if no thread knows the zone yet."""
        cdef list left = self.still_grown(z.index, start, end)
        cdef cnp.ndarray[cnp.uint64_t] ranges = self.runs(z, start, end, left)
        cdef Change offline = change(&self.absent[z.index].offline, without(self.offline(z.index), start, end))
        cdef Change grown = change(&self.absent[z.index].grown, left)
        cdef const uint64_t *pages = <const uint64_t *> ranges.data
        cdef size_t n = ranges.shape[0] // 2, k
        with nogil:
            for k in range(n if new else 0):
                types_begin(z, pages[2 * k], pages[2 * k + 1])
            zone_online(z, pages, n, &offline, &grown)
        finish(&offline)
        finish(&grown)

    cdef PageZone *grow(self, uint64_t start, uint64_t end) except NULL:
        """Let the zone below `start` reach to `end`: [start, end) is offline then, and what lies below it a hole."""
        cdef PageZone *z = NULL
        cdef PageZone *other
        cdef int i
        cdef Change offline, grown
        if self.of_arena:
            raise errors.BadPageError(f"PFN {start:#x} is outside every zone, and those of an arena do not grow")
        for i in range(self.m.nr_zones):
            if self.m.zones[i].end_pfn <= start and (z == NULL or self.m.zones[i].end_pfn > z.end_pfn):
                z = self.m.zones[i]
        for i in range(self.m.nr_zones):
            other = self.m.zones[i]
            if z != NULL and start < other.end_pfn and other.start_pfn < end:
                for first, _ in self.present(i, max(start, other.start_pfn), min(end, other.end_pfn), self.grown(i))[:1]:
                    raise errors.BadPageError(
                        f"PFN {first:#x} would be in two zones, {self.label(z.index)} and {self.label(i)}; nothing was"
                        " changed"
                    )
                z = NULL
        if z == NULL:
            raise errors.BadPageError(f"PFN {start:#x}, {end - start} pages: no zone could grow there; nothing was changed")
        if leaves_for(z, end) > z.limit_leaves:
            spec = self.specs[z.index]
            raise errors.BadPageError(
                f"PFN {start:#x}, {end - start} pages: zone {spec.name} of node {spec.node} cannot grow so far;"
                f" nothing was changed"
            )
        if hinted_zone_open(z, leaves_for(z, end)):
            raise errors.no_mapping(errno, f"no metadata for zone {self.specs[z.index].name} up to PFN {end:#x}")
        gaps = self.grown(z.index)
        grown = change(&self.absent[z.index].grown, joined(gaps, z.end_pfn, start) if z.end_pfn < start else gaps)
        offline = change(&self.absent[z.index].offline, joined(self.offline(z.index), start, end))
        with nogil:
            lock_acquire(&z.lock, True)
            zone_extend(z, end)
            swap(&grown)
            swap(&offline)
            zone_unlock(z)
        finish(&grown)
        finish(&offline)
        return z

    cdef bint cuts(self, PageZone *z, pfn, first, last) except -1:
        """Whether a run of pageblocks may begin or end at a PFN: what lies beside it, [first, last), is nothing of the zone.

        That is so between pageblocks, and at the zone's ends. Where it is a hole, another zone must begin or end there.
        """
        if first == last or pfn == z.start_pfn or pfn == z.end_pfn:
            return True
        return pfn in self.edges and not self.present(z.index, max(first, z.start_pfn), min(last, z.end_pfn),
                                                      self.grown(z.index))

    cdef tuple cut_to_zone(self, uint64_t start, uint64_t end, uint64_t unit):
        """Cut from a run what reaches beyond the one zone that has memory in it, if it ends at the edge of a unit there."""
        cdef PageZone *z
        cdef int i
        owners = [i for i in range(self.m.nr_zones) if self.present(i, max(start, self.m.zones[i].start_pfn),
                                                                    min(end, self.m.zones[i].end_pfn), self.grown(i))]
        if len(owners) == 1:
            z = self.m.zones[<int>owners[0]]
            start = z.start_pfn if start == z.start_pfn // unit * unit else start
            end = z.end_pfn if end == (z.end_pfn + unit - 1) // unit * unit else end
        return start, end

    def set_migratetype(self, pfn, nr_pages, migratetype):
        """As `PageAllocator.set_migratetype`."""
        cdef int mt = as_type(migratetype, MT_ISOLATE)
        cdef uint64_t start, end
        start, end = self.page_range(pfn, nr_pages)
        # A granule is reported as a whole, so its pageblocks, if it has several, change together.
        cdef uint64_t unit = <uint64_t>1 << max(<int>PAGEBLOCK_ORDER, self.min_order), first, last
        cdef PageZone *z
        with self.hotplug():
            start, end = self.cut_to_zone(start, end, unit)
            z = self.zone_in(start, end)
            spec = self.specs[z.index]
            first, last = start // unit * unit, (end + unit - 1) // unit * unit
            if not (self.cuts(z, start, first, start) and self.cuts(z, end, end, last)):
                raise errors.BadPageError(
                    f"PFN {start:#x}, {end - start} pages (zone {spec.name}, node {spec.node}):"
                    f" a migratetype is set for whole pageblocks of {unit} pages; nothing was changed"
                )
            first = (start - z.base_pfn) >> PAGEBLOCK_ORDER
            last = (end - z.base_pfn + (1 << PAGEBLOCK_ORDER) - 1) >> PAGEBLOCK_ORDER
            with nogil:
                zone_retype(z, first, last, mt)
                sets_drain(z, self.m.nr_cpus)

    # -- consistency

    def verify(self):
        """As `PageAllocator.verify`."""
        cdef PageZone *z
        cdef Finding finding
        cdef int i
        cdef bint bad
        cdef cnp.ndarray[cnp.uint64_t] absent
        with self.hotplug():
            for i in range(self.m.nr_zones):
                z = self.m.zones[i]
                ranges = union(self.holes[i], self.grown(i), self.offline(i))
                absent = np.array(ranges, np.uint64).ravel() - np.uint64(z.base_pfn)
                with nogil:
                    zone_stop(z, self.m.nr_cpus)
                    bad = (verify_zone(z, self.m.nr_cpus, <uint64_t *> absent.data, absent.shape[0] // 2,
                                       hints_of(z).reporting_pages, &self.m.bulk_blocks, &finding)
                           or verify_hints(z, &finding))
                    zone_resume(z, self.m.nr_cpus)
                if bad:
                    spec = self.specs[i]
                    raise errors.PageHintError(
                        f"zone {spec.name} (node {spec.node}) is inconsistent at PFN {z.base_pfn + finding.page:#x}:"
                        f" {finding.what.decode()}"
                    )

    cdef object hotplug(self):
        """The lock that serialises hotplug. A forked child makes its own, since the old one's holder may be gone."""
        if self.hotplug_forks != forks_so_far():
            self.hotplug_forks = forks_so_far()
            self.hotplug_lock = threading.Lock()
        return self.hotplug_lock
