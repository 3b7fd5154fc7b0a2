"""The zones of a machine as one object. Compiled code allocates and frees without the GIL on ``memory.m``."""
from cpython.ref cimport PyObject
from libc.stdint cimport uint64_t
from pagehint.allocator.fork cimport ForkRecord
from pagehint.hinting.batch cimport Batch
from pagehint.hinting.limit cimport Limit
from pagehint.hinting.queue cimport WorkQueue
from pagehint.zone.page_alloc cimport Machine
from pagehint.zone.zone cimport PageZone

cdef struct Absent:                     # where a zone has no memory: lists of (start, end) in PFNs, or NULL for none
    # Each is one reference. Written under the zone lock without the GIL, read with the GIL.
    PyObject *offline                   # sections that are offline
    PyObject *grown                     # holes that growing has left

# Of one zone, whose lock they take.
cdef void set_zone_watermarks(PageZone *z, const uint64_t *marks, uint64_t max_pages) noexcept nogil

cdef class Memory:
    cdef Machine m                      # the zones; each is protected by its lock
    cdef WorkQueue queue                # the hinting engine's; protected by its mutex
    cdef Limit limit                    # on what the zones keep together
    # Set when it is made, if not said otherwise.
    cdef readonly tuple specs           # a ZoneSpec for each zone
    cdef readonly int page_size         # bytes
    cdef readonly int max_page_order
    cdef readonly int min_order         # a granule is 2**min_order pages
    cdef readonly tuple watermarks      # Watermarks of each zone, in pages; replaced under `hotplug`
    cdef list holes                     # for each zone those it was made with, as (start, end) in PFNs
    cdef tuple wanted_watermarks        # for each zone, Watermarks or "linux": by the formulas; replaced under `hotplug`
    cdef bint linux_watermarks          # the machine was made with "linux", so that it has lowmem reserves, too
    cdef list ranks                     # `layout.zone_ranks`
    cdef list interleaved               # `layout.interleaved_ranges`
    cdef set edges                      # where these begin and end
    cdef bint of_arena                  # the zones do not grow: an arena has no memory behind its last page
    cdef Absent *absent                 # one for each zone
    cdef object hotplug_lock            # see `hotplug`
    cdef uint64_t hotplug_forks         # `forks_so_far` when that was made
    cdef Batch batch                    # the blocks of these zones that are out with the host
    cdef ForkRecord fork_record         # in the list of all memories
    cdef public object warm_pages       # a weak method: the pages in memory of free granules; None where nothing knows
    cdef public object came_back        # a weak method: of a Zone, the granules that its host has again; or None
    cdef object __weakref__

    cdef int map_zones(self) except -1
    cdef int set_watermarks(self) except -1
    cdef add_page_sets(self, int i)
    cdef int settle(self) except -1
    cdef void begin_last_resort(self) noexcept nogil
    cdef void end_last_resort(self) noexcept nogil
    cdef tuple page_range(self, object pfn, object nr_pages)
    cdef uint64_t section_pages(self)
    cdef PageZone *zone_of(self, uint64_t start, uint64_t end) except? NULL
    cdef PageZone *zone_in(self, uint64_t start, uint64_t end) except NULL
    cdef tuple section_range(self, object pfn, object nr_pages)
    cdef bint try_offline(self, object pfn, object nr_pages, bint settled) except -1
    cdef str label(self, int i)
    cdef list offline(self, int i)
    cdef list grown(self, int i)
    cdef list present(self, int i, start, end, grown)
    cdef runs(self, PageZone *z, start, end, grown)
    cdef list still_grown(self, int i, uint64_t start, uint64_t end)
    cdef appear(self, PageZone *z, start, end, bint new)
    cdef PageZone *grow(self, uint64_t start, uint64_t end) except NULL
    cdef bint cuts(self, PageZone *z, pfn, first, last) except -1
    cdef tuple cut_to_zone(self, uint64_t start, uint64_t end, uint64_t unit)
    cdef object hotplug(self)
