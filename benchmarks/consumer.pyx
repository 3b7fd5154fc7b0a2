# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, cdivision=True
"""A compiled user of pagehint, for the tests and the benchmarks; `build.py` compiles it when it is needed.

The first half uses what `pagehint/_core.pxd` offers to everybody. The second looks inside, or measures the machine.
"""
from cpython.pycapsule cimport PyCapsule_New
import numpy as np

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.mman cimport MADV_DONTNEED, madvise

from pagehint cimport (E_ALIGN, E_FREE, E_INSIDE, E_NOMEM, E_NO_ZONE, E_SIZE, E_WITHHELD, MT_MOVABLE, Machine, OK,
                       PAGEHINT_HINT_SIGNATURE, PageAllocator, WAIT, machine_alloc, machine_alloc_bulk, machine_free,
                       machine_free_bulk, pagehint_block, pagehint_hint_fn)
# What follows is not for others: the benchmarks look into the bitmap.
from pagehint.hinting.bitmap cimport HintScan, hint_find, hint_store, scan_begin, scan_next
from pagehint.hinting.hinted_zone cimport Hints

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from *:
    uint64_t swap64 "__atomic_exchange_n" (uint64_t *p, uint64_t value, int order) noexcept nogil
    int SEQ_CST "__ATOMIC_SEQ_CST"

cdef packed struct Op:          # as `OP_DTYPE`
    uint32_t slot
    uint16_t order, op

cdef enum:
    FEW = 8                     # pages held at a time
    MANY = 64


CODES = {
    OK: "OK", E_NOMEM: "E_NOMEM", E_NO_ZONE: "E_NO_ZONE", E_ALIGN: "E_ALIGN", E_FREE: "E_FREE", E_SIZE: "E_SIZE",
    E_INSIDE: "E_INSIDE", E_WITHHELD: "E_WITHHELD",
}


cdef int accept(int rc) except -1:
    if rc != OK:
        raise RuntimeError(f"pagehint refused: {CODES.get(rc, rc)}")
    return 0


# ---- what everybody may use -----------------------------------------------------------------------------------------

def free(PageAllocator pages, uint64_t pfn, int order=0):
    """Free a block; return the name of the code."""
    cdef int rc
    with nogil:
        rc = machine_free(&pages.memory.m, pfn, order, WAIT)
    return CODES[rc]


def pairs(PageAllocator pages, uint64_t n, int order=0):
    """Allocate a block and free it, `n` times."""
    cdef Machine *m = &pages.memory.m
    cdef uint64_t _, pfn = 0
    cdef int rc = OK
    with nogil:
        for _ in range(n):
            rc = machine_alloc(m, m.default_zone, order, MT_MOVABLE, WAIT, &pfn)
            if rc == OK:
                rc = machine_free(m, pfn, order, WAIT)
            if rc != OK:
                break
    accept(rc)


def few(PageAllocator pages, uint64_t n):
    """Allocate eight pages and free them, until it were `n` pages."""
    cdef Machine *m = &pages.memory.m
    cdef uint64_t[FEW] pfns
    cdef uint64_t _
    cdef int rc = OK, j
    with nogil:
        for _ in range(n // FEW):
            for j in range(FEW):
                rc |= machine_alloc(m, m.default_zone, 0, MT_MOVABLE, WAIT, &pfns[j])
            if rc != OK:
                break
            for j in range(FEW):
                rc |= machine_free(m, pfns[j], 0, WAIT)
    accept(rc)


def alloc_bulk(PageAllocator pages, uint64_t[::1] pfns, uint64_t batch, int order=0):
    """Fill the array with blocks, a batch a call."""
    cdef Machine *m = &pages.memory.m
    cdef uint64_t at = 0, n = pfns.shape[0]
    cdef int rc = OK
    with nogil:
        while at < n and rc == OK:
            rc = machine_alloc_bulk(m, m.default_zone, order, MT_MOVABLE, WAIT, &pfns[at], min(batch, n - at))
            at += batch
    accept(rc)


def free_bulk(PageAllocator pages, uint64_t[::1] pfns, uint64_t batch, int order=0):
    """Free the blocks of the array, a batch a call."""
    cdef Machine *m = &pages.memory.m
    cdef uint64_t at = 0, n = pfns.shape[0], refused = 0
    cdef int rc = OK
    with nogil:
        while at < n and rc == OK:
            rc = machine_free_bulk(m, &pfns[at], NULL, order, min(batch, n - at), &refused)
            at += batch
    accept(rc)


def alloc_each(PageAllocator pages, uint64_t[::1] pfns, int order=0):
    """Fill the array with blocks, one a call."""
    cdef Machine *m = &pages.memory.m
    cdef uint64_t i, n = pfns.shape[0]
    cdef int rc = OK
    with nogil:
        for i in range(n):
            rc |= machine_alloc(m, m.default_zone, order, MT_MOVABLE, WAIT, &pfns[i])
    accept(rc)


def free_each(PageAllocator pages, const uint64_t[::1] pfns, int order=0):
    """Free the blocks of the array, one a call."""
    cdef Machine *m = &pages.memory.m
    cdef uint64_t i, n = pfns.shape[0]
    cdef int rc = OK
    with nogil:
        for i in range(n):
            rc |= machine_free(m, pfns[i], order, WAIT)
    accept(rc)


def ops_each(PageAllocator pages, const Op[::1] ops, uint64_t[::1] table):
    """As `PageAllocator.run_ops`, by one call an operation."""
    cdef Machine *m = &pages.memory.m
    cdef uint64_t i, n = ops.shape[0]
    cdef int rc = OK
    with nogil:
        for i in range(n):
            if ops[i].op:
                rc |= machine_free(m, table[ops[i].slot], ops[i].order, WAIT)
            else:
                rc |= machine_alloc(m, m.default_zone, ops[i].order, MT_MOVABLE, WAIT, &table[ops[i].slot])
    accept(rc)


def churn(PageAllocator pages, int32_t[::1] owner, int32_t me, uint64_t rounds):
    """Allocate, write `me` on every page, look whether it still stands there, free; return how often it was not so.

    By turns one by one and in bulk, also freed the other way than allocated, in orders 0 to 3.
    """
    cdef Machine *m = &pages.memory.m
    cdef uint64_t[MANY] pfns
    cdef uint64_t turn, n, i, page, refused = 0, clashes = 0
    cdef int rc = OK, order
    with nogil:
        for turn in range(rounds):
            n = 1 + turn * 37 % MANY
            order = (turn >> 2) & 3
            if turn & 1:
                rc |= machine_alloc_bulk(m, m.default_zone, order, MT_MOVABLE, WAIT, pfns, n)
            else:
                for i in range(n):
                    rc |= machine_alloc(m, m.default_zone, order, MT_MOVABLE, WAIT, &pfns[i])
            if rc != OK:
                break
            for i in range(n):
                for page in range(pfns[i], pfns[i] + (1 << order)):
                    clashes += owner[page] != 0
                    owner[page] = me
            sched_yield()       # let the other thread in; and the compiler must read again what it has written
            for i in range(n):
                for page in range(pfns[i], pfns[i] + (1 << order)):
                    clashes += owner[page] != me
                    owner[page] = 0
            if turn & 2:
                rc |= machine_free_bulk(m, pfns, NULL, order, n, &refused)
            else:
                for i in range(n):
                    rc |= machine_free(m, pfns[i], order, WAIT)
    accept(rc)
    return clashes


def exchange(PageAllocator pages, int32_t[::1] owner, uint64_t[::1] shelf, uint64_t rounds, int order=0):
    """Allocate blocks, leave each in a place of a shelf that others use, too, and free what lay there before.

    So half of all blocks are freed by a thread that has not allocated them, some of them in bulk. A place holds a PFN plus
    one, or 0. Returns how often a block had an owner when it was allocated, or none when it was freed.
    """
    cdef Machine *m = &pages.memory.m
    cdef uint64_t turn, pfn = 0, old, refused = 0, clashes = 0, n = shelf.shape[0], at = 0
    cdef int rc = OK
    with nogil:
        for turn in range(rounds):
            rc |= machine_alloc(m, m.default_zone, order, MT_MOVABLE, WAIT, &pfn)
            if rc != OK:
                break
            clashes += owner[pfn] != 0
            owner[pfn] = 1
            at = (at * 5 + 3 + (pfn & 1)) % n
            old = swap64(&shelf[at], pfn + 1, SEQ_CST)
            if old:
                pfn = old - 1
                clashes += owner[pfn] != 1
                owner[pfn] = 0
                if turn & 7:
                    rc |= machine_free(m, pfn, order, WAIT)
                else:
                    rc |= machine_free_bulk(m, &pfn, NULL, order, 1, &refused)
    accept(rc)
    return clashes


cdef int take_note(const pagehint_block *blocks, size_t n, uint8_t *failed, void *data) noexcept nogil:
    return 0


def noop_callback():
    """A compiled reporting function that does nothing."""
    return PyCapsule_New(<void *> <pagehint_hint_fn> take_note, PAGEHINT_HINT_SIGNATURE, NULL)


# ---- what only the benchmarks need ----------------------------------------------------------------------------------

cdef class Nothing:
    """The two methods of `PageAllocator` that Python calls most, with their signatures, doing nothing."""

    cdef uint64_t pfn

    def alloc_pages(self, order=0, migratetype="movable", zone=None):
        return self.pfn

    def free_pages(self, pfn, order=0):
        pass


cdef class HintBits:
    """Hint bits in the caller's words, without a zone around them. All that knows how the bitmap is searched is here."""

    cdef uint64_t[::1] words
    cdef uint64_t[::1] filled           # the second level
    cdef Hints hints
    cdef uint64_t nr_granules

    def __cinit__(self, uint64_t[::1] words):
        cdef uint64_t i
        self.words = words
        self.filled = np.zeros(words.shape[0] // 64 + 1, np.uint64)
        self.hints.bits = &words[0]
        self.hints.filled = &self.filled[0]
        self.nr_granules = 64 * <uint64_t>words.shape[0]
        for i in range(<uint64_t>words.shape[0]):
            hint_store(&self.hints, i, words[i])

    def next(self, uint64_t granule=0):
        """The first bit from there on, or the number of bits."""
        with nogil:
            granule = hint_find(&self.hints, granule, self.nr_granules)
        return granule

    def visit(self):
        """Visit every bit that is set; return how many, and the sum of their numbers."""
        cdef HintScan scan
        cdef uint64_t count = 0, total = 0, granule
        with nogil:
            scan_begin(&self.hints, &scan, 0)
            granule = scan_next(&self.hints, &scan, self.nr_granules)
            while granule < self.nr_granules:
                count += 1
                total += granule
                granule = scan_next(&self.hints, &scan, self.nr_granules)
        return count, total


def read_words(uint64_t[::1] words):
    """Add them up: what it takes to read them at all."""
    cdef uint64_t total = 0, n = words.shape[0], i
    cdef const uint64_t *word = &words[0]
    with nogil:
        for i in range(n):
            total += word[i]
    return total


def touch(uint64_t address, uint64_t[::1] pfns, uint64_t nr_bytes, uint64_t page_size):
    """Write one byte into every page of some blocks of `nr_bytes`, so that there is memory under them."""
    cdef uint64_t i, page
    with nogil:
        for i in range(<uint64_t>pfns.shape[0]):
            for page in range(pfns[i], pfns[i] + nr_bytes // page_size):
                (<uint8_t *> address)[page * page_size] = 1


def advise(uint64_t address, uint64_t[::1] pfns, uint64_t nr_bytes, uint64_t page_size):
    """Give the memory under some blocks back, one system call for each."""
    cdef uint64_t i
    cdef int failed = 0
    with nogil:
        for i in range(<uint64_t>pfns.shape[0]):
            failed |= madvise(<char *> address + pfns[i] * page_size, nr_bytes, MADV_DONTNEED)
    if failed:
        raise OSError("madvise failed")
