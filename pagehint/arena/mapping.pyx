# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Real memory: a mapping, and the pages of it that are an array."""
cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EINVAL, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.mman cimport (MADV_DONTNEED, MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED,
                         PROT_NONE, PROT_READ, PROT_WRITE, mmap, munlock, munmap)

from pagehint._core cimport PageAllocator
from pagehint.allocator.memory cimport Memory
from pagehint.arena.huge_pages cimport choose_pages, huge_pages_init, probe_freed
from pagehint.arena.madvise cimport Advice, madvise_blocks
from pagehint.arena.opening cimport Opening, close_all, grow_arena, open_to, reserve, stop_growing
from pagehint.arena.populate cimport Populator, populate_ahead, populate_end, populator_init
from pagehint.arena.resident cimport Census, census_size, mincore, take_census, which_are_dropped
from pagehint.hinting.batch cimport pagehint_block
from pagehint.hinting.callbacks cimport PAGEHINT_HINT_SIGNATURE, PageHintingCallbacks, pagehint_hint_fn
from pagehint.hinting.watch cimport watch_broken
from pagehint.sync.atomic cimport RELAXED, ctz64, load64
from pagehint.zone.extents cimport extents_begin
from pagehint.zone.metadata cimport extents_create
from pagehint.zone.page_alloc cimport machine_free_run
from pagehint.zone.zeroed cimport zeroed_create
from pagehint.zone.zone cimport Extents, PageZone

import os

import numpy as np

from pagehint import errors
from pagehint.refusals import say_once

cnp.import_array()

cdef extern from "<sys/mman.h>" nogil:
    int MADV_FREE

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long, unsigned long, unsigned long, unsigned long)

cdef enum:
    GRANULE = 2 << 20           # bytes
    WHOLE = 64 << 20            # an arena of no more bytes is opened at once
    PR_GET_THP_DISABLE = 42     # by number, as headers may be older than the kernel
    PR_THP_DISABLE_EXCEPT_ADVISED = 2

ESTIMATED = "what is in memory is estimated, and what comes back by itself is not given back again"
SETTINGS = "/sys/kernel/mm/transparent_hugepage"

cdef extern from *:
    """
    #ifdef __SANITIZE_THREAD__
    #define PH_LAST_PLACE ((size_t)0)   /* ThreadSanitizer's own memory is there, and it ends a program that maps any */
    #else
    #define PH_LAST_PLACE ((size_t)42 << 40)
    #endif
    """
    const size_t LAST_PLACE "PH_LAST_PLACE"

# Where arenas that are opened in steps are placed, one behind the other: between a program and its heap and what the kernel
# places by itself, also from the bottom up (at a third of 128 TiB), and above the shadow memory of AddressSanitizer.
cdef size_t FIRST_PLACE = <size_t>17 << 40
cdef size_t next_place          # where the next one begins
cdef size_t nr_placed = 0       # of those that there are; without any, it begins anew

cdef Populator populator        # the process's
populator_init(&populator)


cdef void fork_child() noexcept nogil:
    """Begin anew in a forked child: the thread is not there, nor one that may have held the mutex."""
    populator_init(&populator)


if pthread_atfork(NULL, NULL, fork_child):
    raise MemoryError("no memory for what a fork needs")

ADVICE = {"dontneed": MADV_DONTNEED, "free": MADV_FREE}


def huge_pages_are_given():
    """Whether this process gets transparent huge pages of 2 MiB where it advises so: `madvise` succeeds even if not.

    They can be switched off for a process and its children (prctl, Linux 3.15), and for the machine. A size that the
    machine knows has a switch of its own since Linux 6.8, which may leave it to the one for all.
    """
    # 0: on. With the second bit, the kernel still gives them where they are advised (Linux 6.18). -1: no such call.
    cdef int disabled = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0)
    if disabled > 0 and not disabled & PR_THP_DISABLE_EXCEPT_ADVISED:
        return False
    chosen = chosen_in(f"{SETTINGS}/hugepages-{GRANULE >> 10}kB/enabled")
    if chosen is None or chosen == "inherit":
        chosen = chosen_in(f"{SETTINGS}/enabled")
    return chosen != "never"


def chosen_in(path):
    """The word in brackets in a file of settings, or None if it cannot be read, or a sandbox refuses it midway."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(file, 256).decode().partition("[")[2].partition("]")[0]
        finally:
            os.close(file)
    except OSError:
        return None


def mincore_says():
    """Whether mincore(2) says what is in memory. Some sandboxes refuse it, and gVisor answers that everything is."""
    cdef unsigned char present = 1
    cdef size_t page = os.sysconf("SC_PAGESIZE")
    cdef int refused
    cdef void *never_touched = mmap(NULL, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if never_touched == MAP_FAILED:
        return False
    refused = errno if mincore(never_touched, page, &present) else 0
    munmap(never_touched, page)
    if refused or present & 1:
        say_once("mincore", refused or "it takes all for resident", ESTIMATED)
        return False
    return True


@cython.no_gc_clear     # collected in a cycle, too, it needs `memory`, which is not to grow into it any more
cdef class Mapping:
    """A mapping, anonymous or of a file, aligned so that huge pages fit.

    It is unmapped when nothing refers to it any more, and not before, even when its memory has gone back: a reporting
    function that is called late must not find other memory at these addresses.

    Parameters
    ----------
    nr_bytes : int
        A multiple of `alignment`.
    alignment : int
        Bytes, a power of two.
    hugepages : bool
        Ask for transparent huge pages; whether this process gets them is in the attribute of this name.
    fd : int, optional
        A file to map, shared with other processes that map it.
    parts : sequence of (address, offset, nr_bytes), optional
        Which parts of the file are where in the mapping; the rest of the mapping cannot be touched.
    """

    def __cinit__(self, size_t nr_bytes, size_t alignment, bint hugepages, int fd=-1, parts=()):
        cdef size_t address, offset, length
        self.of_file = fd >= 0
        self.page_size = os.sysconf("SC_PAGESIZE")
        self.nr_bytes = nr_bytes
        self.opening.most = nr_bytes
        self.opening.granule = alignment
        self.opening.page_shift = ctz64(self.page_size)
        self.opening.hugepages = hugepages and huge_pages_are_given()
        if self.of_file:
            if not reserve(&self.opening):
                raise errors.no_mapping(errno, f"no mapping of {nr_bytes} bytes for an arena")
            self.opening.open = nr_bytes
        else:
            self.open_first()
        for address, offset, length in parts:
            if mmap(self.opening.base + address, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                    offset) == MAP_FAILED:
                raise errors.no_mapping(errno, f"no mapping of {length} bytes of a file for an arena")
        self.base = self.opening.base
        if not huge_pages_init(&self.huge_pages, self.opening.hugepages and not self.of_file, nr_bytes // GRANULE):
            raise MemoryError("no memory for which granules of an arena have huge pages")
        self.hugepages = self.huge_pages.wanted
        self.say_refusals()
        self.open = True

    cdef int open_first(self) except -1:
        """Find addresses, and open the first step: a granule, or all of a small arena."""
        global nr_placed
        cdef Opening *o = &self.opening
        cdef size_t first = o.most if o.most <= WHOLE else o.granule
        o.lengths = <uint32_t *> mmap(NULL, self.lengths_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                                      -1, 0)
        if <void *> o.lengths == MAP_FAILED:
            o.lengths = NULL
            raise errors.no_mapping(errno, f"no address space for the lengths of arrays in {o.most} bytes")
        if first < o.most:
            o.base = self.place()
            self.placed = o.base != NULL and open_to(o, first)
            nr_placed += self.placed
        if not self.placed and not (reserve(o) and open_to(o, first)):
            raise errors.no_mapping(errno, f"no mapping of {o.most} bytes for an arena")
        return 0

    cdef char *place(self):
        """Addresses for which there is no mapping, as far as is known; NULL if there are none left."""
        global next_place
        cdef size_t at
        if nr_placed == 0:
            # As random as the kernel has placed this module.
            next_place = FIRST_PLACE + ((<size_t>&populator >> 12 & 0xFFFF) << 26)
        at = next_place
        if at > LAST_PLACE or LAST_PLACE - at < self.opening.most + GRANULE:
            return NULL
        next_place += self.opening.most + GRANULE
        return <char *> at

    cdef size_t lengths_bytes(self):
        return (self.nr_bytes // self.page_size) * sizeof(uint32_t)

    def __dealloc__(self):
        global nr_placed
        cdef Opening *o = &self.opening
        if o.m != NULL:
            stop_growing(o)
        if o.base != NULL and munmap(o.base, o.most if o.reserved else o.open):
            close_all(o)            # where a sandbox refuses that, the memory goes and the addresses stay
        if o.lengths != NULL:
            munmap(o.lengths, self.lengths_bytes())
        free(self.huge_pages.huge)
        nr_placed -= self.placed

    def know_zeroes(self, PageAllocator pages not None):
        """Keep account of the granules that are zero, as all are: the mapping is fresh. `pages` is the allocator over it."""
        cdef PageZone *z = pages.memory.m.zones[0]
        self.memory = pages.memory
        z.zeroed = zeroed_create(self.nr_bytes // GRANULE)
        if z.zeroed == NULL:
            raise MemoryError("no memory for what is known of an arena's granules")
        watch_broken(z)
        z.growable_pages = (self.nr_bytes - self.opening.open) // self.page_size
        self.opening.m = &pages.memory.m
        self.opening.given_back = &self.returned.given_back
        pages.memory.m.grower = &self.opening
        pages.memory.m.grow = grow_arena
        # An arena without huge pages keeps no more memory than is touched: nothing is populated ahead.
        if self.hugepages:
            self.populator = &populator

    @staticmethod
    def adopt(PageAllocator pages not None):
        """Have an allocator place runs at any page, so that what is in use is in as few granules as possible, and not grow.

        For runs of a thirty-second of a granule and more, which is 64 KiB.
        """
        cdef PageZone *z
        cdef Extents *extents
        cdef int i
        pages.memory.of_arena = True
        for i in range(pages.memory.m.nr_zones):
            z = pages.memory.m.zones[i]
            extents = extents_create(z, max(z.min_order - 5, 0))
            if extents == NULL:
                raise MemoryError("no memory for the extents of an arena")
            extents_begin(z, extents)

    def retire(self):
        """Have no arrays from now on, unless there are some; returns how many there are."""
        self.open = self.open and self.live_arrays > 0
        return self.live_arrays

    def reopen(self):
        """Have arrays again, unless the memory has gone back."""
        self.open = not self.discarded

    def discard(self):
        """Give the memory back, and keep the addresses. It was retired before, so nothing uses the memory."""
        self.discarded = True
        munlock(self.base, self.opening.open)
        close_all(&self.opening)        # of a file: it lives on as long as others have it open or mapped

    @property
    def open_bytes(self):
        """Bytes that are open, from the first one on."""
        return self.opening.open

    @property
    def populated_bytes(self):
        """Bytes that were made resident ahead of their first use."""
        return load64(&self.populated, RELAXED)

    @property
    def address(self):
        """Address of the first byte."""
        return <size_t>self.base

    @property
    def given_back_bytes(self):
        """Bytes that were in memory when the reporting function gave them back, in all."""
        return load64(&self.returned.given_back, RELAXED)

    @property
    def dropped_bytes(self):
        """Of these, those that were out of memory at once (MADV_DONTNEED)."""
        return load64(&self.returned.dropped, RELAXED)

    def resident(self):
        """Return where memory is: the granules (2 MiB) that have pages in memory, how many, and whether that is estimated.

        Granules that are known to be zero are passed over, 64 at a time; the kernel is asked about the others (mincore).
        Where it does not say, a granule counts in full that may hold anything. Of a mapping that knows no zeroes nothing
        is said then. O(granules / 64), and O(pages) of granules that may hold anything.
        """
        cdef Census c
        cdef int64_t[::1] granules
        cdef uint32_t[::1] pages
        memset(&c, 0, sizeof(c))
        c.base, c.nr_bytes = self.base, self.opening.open
        c.page_shift, c.granule_shift = ctz64(self.page_size), ctz64(GRANULE)
        c.zeroed = self.memory.m.zones[0].zeroed if self.memory is not None else NULL
        c.nr_granules = (c.nr_bytes + GRANULE - 1) // GRANULE
        c.room = census_size(&c)
        where, counts = np.empty(c.room, np.int64), np.empty(c.room, np.uint32)
        granules, pages = where, counts
        c.granules, c.pages = &granules[0], &pages[0]
        with nogil:
            take_census(&c)
        if c.refused:
            say_once("mincore", c.refused, ESTIMATED)
        self.say_refusals()
        return where[:c.n], counts[:c.n], c.refused != 0

    def say_refusals(self):
        """Say what was refused to code that runs without the GIL."""
        if self.opening.denied not in (0, EINVAL):      # EINVAL: this kernel has none
            say_once("madvise(MADV_HUGEPAGE)", self.opening.denied, "an arena has no huge pages")
        if populator.denied:
            say_once("populating", populator.denied, "no memory is made resident ahead of its first use")

    def is_dropped(self, blocks):
        """Which blocks have no page in memory: a boolean for each, or None where the kernel does not say it. O(pages).

        Neighbours go in one call. What the kernel gives back by itself (MADV_FREE) may be in memory for long, and is not
        asked about.
        """
        cdef cnp.ndarray asked = np.ascontiguousarray(blocks)
        cdef cnp.ndarray dropped = np.empty(len(blocks), np.uint8)
        cdef int refused
        with nogil:
            refused = which_are_dropped(self.base, ctz64(self.page_size), <pagehint_block *> asked.data, asked.shape[0],
                                        <uint8_t *> dropped.data)
        if refused:
            say_once("mincore", refused, ESTIMATED)
            return None
        return dropped.view(bool)

    def callbacks(self, str advice, max_pages):
        """Callbacks that report by `advise_capsule`, and ask by `is_dropped` what was dropped at once."""
        cdef PageHintingCallbacks made
        made = PageHintingCallbacks(self.advise_capsule(advice), max_pages,
                                    is_dropped=self.is_dropped if advice == "dontneed" and mincore_says() else None)
        made.of_system = True
        return made

    def advise_capsule(self, str advice):
        """The compiled reporting function, bound to this mapping and one advice, in a capsule that keeps the mapping."""
        cdef Advice *data = <Advice *> malloc(sizeof(Advice))
        if data == NULL:
            raise MemoryError("no memory for the advice")
        data.base = self.base
        data.page_shift = ctz64(self.page_size)
        data.advice = ADVICE[advice]
        data.owner = <void *> self
        data.returned = &self.returned
        data.zeroed = NULL
        if self.memory is not None:
            data.zeroed = self.memory.m.zones[0].zeroed
            data.min_order = self.memory.min_order
        capsule = PyCapsule_New(<void *> <pagehint_hint_fn> madvise_blocks, PAGEHINT_HINT_SIGNATURE, release_advice)
        PyCapsule_SetContext(capsule, data)
        Py_INCREF(self)
        return capsule


cdef void release_advice(object capsule) noexcept:
    cdef Advice *data = <Advice *> PyCapsule_GetContext(capsule)
    Py_DECREF(<Mapping> data.owner)
    free(data)


@cython.final
@cython.no_gc_clear     # it frees its pages at the end, for which it needs `memory`, also when it is collected in a cycle
cdef class Block:
    """Pages of an arena as one buffer; they are freed with the last reference to it, on any thread."""

    cdef Mapping mapping
    cdef Memory memory
    cdef uint64_t pfn
    cdef uint64_t nr_pages
    cdef Py_ssize_t nr_bytes

    def __cinit__(self, Mapping mapping not None, PageAllocator pages not None, uint64_t pfn, uint64_t nr_pages,
                  Py_ssize_t nr_bytes):
        self.mapping = mapping
        self.memory = pages.memory
        self.pfn = pfn
        self.nr_pages = nr_pages
        self.nr_bytes = nr_bytes
        mapping.live_arrays += 1
        if not mapping.open:
            raise errors.ArenaClosedError("the arena is closed")
        with nogil:
            choose_pages(&mapping.huge_pages, mapping.base, ctz64(mapping.page_size), pages.memory.m.zones[0], pfn, nr_pages)
            populate_ahead(mapping.populator, mapping.base, ctz64(mapping.page_size), pages.memory.m.zones[0], pfn, nr_pages,
                           &mapping.populated)

    def __dealloc__(self):
        if self.mapping is not None:
            with nogil:
                probe_freed(&self.mapping.huge_pages, self.mapping.base, ctz64(self.mapping.page_size), self.pfn)
                populate_end(self.mapping.populator, self.mapping.base + self.pfn * self.mapping.page_size,
                             self.nr_pages * self.mapping.page_size)
                machine_free_run(&self.memory.m, self.pfn, self.nr_pages, self.memory.max_page_order)
            # This comes last: once it is 0, the arena may be closed.
            self.mapping.live_arrays -= 1

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.mapping.base + self.pfn * self.mapping.page_size, self.nr_bytes, 0, flags)
