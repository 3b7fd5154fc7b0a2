# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The heap of an arena as an object, which owns its memory; what a request does is in `heap.pxd`."""
cimport cython
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from pagehint._core cimport PageAllocator
from pagehint.arena.mapping cimport Mapping
from pagehint.sync.atomic cimport RELAXED, SEQ_CST, ctz64, load64
from pagehint.zone.page_sets.run_set cimport run_set_create

from pagehint.arena.counts import Counts


@cython.final
@cython.no_gc_clear     # collected in a cycle, too, it needs its memory until the end
cdef class ArenaHeap:
    """The heap of an arena. It lives as long as something refers to it: the arena, or an allocation's handler.

    Parameters
    ----------
    mapping : Mapping
        The arena's, anonymous: what a forked child writes must be its own. It knows its zeroes.
    pages : PageAllocator
        The allocator over it, without per-CPU page sets.
    """

    def __cinit__(self, Mapping mapping not None, PageAllocator pages not None):
        cdef Heap *h = <Heap *> calloc(1, sizeof(Heap))
        if h == NULL:
            raise MemoryError("no memory for an arena's heap")
        self.h = h
        self.mapping = mapping
        self.memory = pages.memory
        h.page_shift = ctz64(mapping.page_size)
        h.base = mapping.base
        h.m = &self.memory.m
        h.zone = self.memory.m.zones[self.memory.m.default_zone]
        h.zone.run_set = run_set_create(max(KEPT >> h.page_shift, 1))
        if h.zone.run_set == NULL:
            raise MemoryError("no memory for an arena's page set")
        h.lengths = mapping.opening.lengths
        h.huge_pages = &mapping.huge_pages
        h.populator = mapping.populator
        h.populated = &mapping.populated
        h.open = True

    def __dealloc__(self):
        if not self.was_listed:
            free(self.h)

    @property
    def live(self):
        """Allocations in the arena."""
        return load64(&self.h.live, SEQ_CST)

    def retire(self):
        """Serve no request from now on, unless there are allocations; returns how many there are."""
        cdef uint64_t live
        self.h.open = False
        live = load64(&self.h.live, SEQ_CST)
        self.h.open = live > 0
        return live

    def reopen(self):
        """Serve requests again."""
        self.h.open = True

    def counts(self):
        """What was asked of it so far."""
        cdef Heap *h = self.h
        return Counts(load64(&h.from_arena, RELAXED), load64(&h.from_heap, RELAXED), load64(&h.full, RELAXED),
                      load64(&h.cleared, RELAXED), load64(&h.spared, RELAXED), load64(&h.dropped, RELAXED))
