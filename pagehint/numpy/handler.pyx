# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""NumPy's data memory handlers (NEP 49): one for each arena, which contexts use, and one for the whole process.

Arrays keep the handler they were made with, and through its capsule the arena. The process's handler is NumPy's default
one, which is nobody's in particular: it finds the arena of an address among the heaps it has given memory from, and
these are kept by what is in use of them.
"""
cimport cython
cimport numpy as cnp
from cpython.pycapsule cimport (PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext,
                                PyCapsule_SetPointer)
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, strcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from pagehint._core cimport Memory, PageAllocator
from pagehint.arena.heap cimport (Heap, THRESHOLD, heap_clear, heap_drop, heap_give, heap_has, heap_populate,
                                  heap_resize, heap_take, load_heap, load_pointer, page_of, store_heap, store_pointer)
from pagehint.arena.mapping cimport Mapping
from pagehint.sync.atomic cimport ACQUIRE, RELAXED, RELEASE, SEQ_CST, ctz64, fetch_add64, load64

from pagehint import errors

cdef extern from "Python.h":
    ctypedef struct PyObject

cdef extern from *:
    bint mul_overflow "__builtin_mul_overflow" (size_t a, size_t b, size_t *product) noexcept nogil

# Not by cimport: NumPy's own declarations do not say that these run without the GIL.
cdef extern from "numpy/arrayobject.h" nogil:
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept nogil
        void *(*calloc)(void *ctx, size_t nelem, size_t elsize) noexcept nogil
        void *(*realloc)(void *ctx, void *ptr, size_t new_size) noexcept nogil
        void (*free)(void *ctx, void *ptr, size_t size) noexcept nogil
    ctypedef struct PyDataMem_Handler:
        char *name
        unsigned char version
        PyDataMemAllocator allocator
    PyObject *PyDataMem_DefaultHandler

cnp.import_array()

cdef const char *MEM_HANDLER = "mem_handler"    # what NumPy wants its handlers' capsules to be named


cdef PyDataMem_Handler *default_handler() except NULL:
    return <PyDataMem_Handler *> PyCapsule_GetPointer(<object> PyDataMem_DefaultHandler, MEM_HANDLER)


# ---- requests -----------------------------------------------------------------------------------------------

cdef Heap *known = NULL         # those the process's handler has given memory from; changed with the GIL, read without it
cdef Heap *installed = NULL     # where it takes large requests from, one of them, or NULL
cdef object installed_arena = None


cdef inline Heap *heap_of(const void *p) noexcept nogil:
    """The heap that an address in use is in, or NULL. Heaps that were ever known are never freed, so none is missed."""
    cdef Heap *h = load_heap(&known, ACQUIRE)
    while h != NULL and not heap_has(h, p):
        h = load_heap(&h.next, ACQUIRE)
    return h


cdef void unlist(Heap *h) noexcept:
    """Let go of a heap's memory, unless the process's handler may still come to it."""
    cdef Heap **at = &known
    if h.listed == NULL or h == installed or load64(&h.live, SEQ_CST):
        return
    while at[0] != h:
        at = &at[0].next
    store_heap(at, h.next, RELEASE)
    owner = <object> h.listed
    store_pointer(&h.listed, NULL, RELAXED)
    Py_DECREF(owner)


cdef inline void dropped(Heap *h) noexcept nogil:
    """One allocation less. No lock is held: the last one of a heap that is no longer installed needs the GIL."""
    if heap_drop(h) and load_pointer(&h.listed, RELAXED) != NULL and load_heap(&installed, SEQ_CST) != h:
        with gil:
            unlist(h)


cdef inline void *take(Heap *h, Heap **current, size_t size, bint noting) noexcept nogil:
    """Memory of the arena, or NULL for what the C heap is to serve."""
    cdef void *p = NULL
    if h == NULL:
        return NULL
    if size >= THRESHOLD:
        p = heap_take(h, size, noting, current)
        if p != NULL:
            return p
        dropped(h)
    fetch_add64(&h.from_heap, 1, RELAXED)
    return NULL


cdef inline void *serve(Heap *h, Heap **current, PyDataMemAllocator *rest, size_t size) noexcept nogil:
    cdef void *p = take(h, current, size, False)
    if p == NULL:
        return rest.malloc(rest.ctx, size)
    # Not for zeros, which people read before they write to them, and that needs no memory.
    heap_populate(h, p)
    return p


cdef inline void *serve_zeroed(Heap *h, Heap **current, PyDataMemAllocator *rest, size_t nelem,
                               size_t elsize) noexcept nogil:
    cdef size_t size = 0
    cdef void *p = NULL
    if not mul_overflow(nelem, elsize, &size):
        p = take(h, current, size, True)
    if p == NULL:
        return rest.calloc(rest.ctx, nelem, elsize)
    heap_clear(h, p, size)
    return p


cdef inline void give(Heap *h, void *p) noexcept nogil:
    heap_give(h, p)
    dropped(h)


cdef inline void *resize(Heap *h, void *p, size_t size, Heap *to, Heap **current, PyDataMemAllocator *rest) noexcept nogil:
    """Memory of `h` becomes larger or smaller; if it has to move, `to` is where."""
    cdef void *moved
    if heap_resize(h, p, size):
        return p
    moved = serve(to, current, rest, size)
    if moved != NULL:
        memcpy(moved, p, <size_t>h.lengths[page_of(h, p)] << h.page_shift)
        give(h, p)
    return moved


# ---- an arena's handler -------------------------------------------------------------------------------------

cdef PyDataMemAllocator own = default_handler().allocator       # NumPy's


cdef void *context_malloc(void *ctx, size_t size) noexcept nogil:
    return serve(<Heap *> ctx, NULL, &own, size)


cdef void *context_calloc(void *ctx, size_t nelem, size_t elsize) noexcept nogil:
    return serve_zeroed(<Heap *> ctx, NULL, &own, nelem, elsize)


cdef void *context_realloc(void *ctx, void *p, size_t size) noexcept nogil:
    cdef Heap *h = <Heap *> ctx
    if heap_has(h, p):
        return resize(h, p, size, h, NULL, &own)
    return own.realloc(own.ctx, p, size)


cdef void context_free(void *ctx, void *p, size_t size) noexcept nogil:
    cdef Heap *h = <Heap *> ctx
    if heap_has(h, p):
        give(h, p)
    else:
        own.free(own.ctx, p, size)


cdef void release(object capsule) noexcept:
    Py_DECREF(<NumpyHeap> PyCapsule_GetContext(capsule))


@cython.final
@cython.no_gc_clear     # collected in a cycle, too, it needs its memory until the end
cdef class NumpyHeap:
    """An arena as the place of NumPy's data.

    Parameters
    ----------
    mapping : Mapping
        The arena's, anonymous: what a forked child writes must be its own. It knows its zeroes.
    pages : PageAllocator
        The allocator over it, without per-CPU page sets.
    """

    cdef Mapping mapping
    cdef Memory memory
    cdef Heap *h
    cdef PyDataMem_Handler handler
    cdef bint was_listed

    def __cinit__(self, Mapping mapping not None, PageAllocator pages not None):
        cdef Heap *h = <Heap *> calloc(1, sizeof(Heap))
        cdef void *lengths
        if h == NULL:
            raise MemoryError("no memory for NumPy's heap in an arena")
        self.h = h
        self.mapping = mapping
        self.memory = pages.memory
        h.nr_bytes = mapping.nr_bytes
        h.page_shift = ctz64(mapping.page_size)
        h.base = mapping.base
        h.m = &self.memory.m
        h.max_order = self.memory.max_page_order
        lengths = mmap(NULL, self.lengths_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0)
        if lengths == MAP_FAILED:
            raise errors.no_mapping(errno, f"no address space for the lengths of arrays in {h.nr_bytes} bytes")
        h.lengths = <uint32_t *> lengths
        h.populator = mapping.populator
        h.populated = &mapping.populated
        h.open = True
        strcpy(self.handler.name, "pagehint")
        self.handler.version = 1
        self.handler.allocator.ctx = h
        self.handler.allocator.malloc = context_malloc
        self.handler.allocator.calloc = context_calloc
        self.handler.allocator.realloc = context_realloc
        self.handler.allocator.free = context_free

    cdef size_t lengths_bytes(self):
        return (self.h.nr_bytes >> self.h.page_shift) * sizeof(uint32_t)

    def __dealloc__(self):
        if self.h != NULL and self.h.lengths != NULL:
            munmap(self.h.lengths, self.lengths_bytes())
        if not self.was_listed:
            free(self.h)

    @property
    def live(self):
        """Allocations in the arena."""
        return load64(&self.h.live, SEQ_CST)

    def retire(self):
        """Serve no request from now on, unless some memory is in use; returns how many allocations are."""
        cdef uint64_t live
        self.h.open = False
        live = load64(&self.h.live, SEQ_CST)
        self.h.open = live > 0
        return live

    def reopen(self):
        """Serve requests again."""
        self.h.open = True

    def counts(self):
        """Requests served from the arena, from the C heap, of those for want of room; bytes cleared, and found zero."""
        cdef Heap *h = self.h
        return (load64(&h.from_arena, RELAXED), load64(&h.from_heap, RELAXED), load64(&h.full, RELAXED),
                load64(&h.cleared, RELAXED), load64(&h.spared, RELAXED))

    def capsule(self):
        """The arena's handler, which keeps the arena's memory."""
        made = PyCapsule_New(&self.handler, MEM_HANDLER, release)
        PyCapsule_SetContext(made, <void *> self)
        Py_INCREF(self)
        return made


@cython.final
cdef class NumpyContext:
    """What `Arena.numpy` returns. No Python code, in which an interrupt could leave one handler or the other behind."""

    cdef NumpyHeap heap
    cdef object arena
    cdef object before              # the handler there was, once entered

    def __cinit__(self, NumpyHeap heap not None, arena):
        self.heap = heap
        self.arena = arena

    def __enter__(self):
        if self.before is not None:
            raise errors.PageHintError("this context was entered before; arena.numpy() makes another")
        self.before = cnp.PyDataMem_SetHandler(self.heap.capsule())
        return self.arena

    def __exit__(self, *exc_info):
        cnp.PyDataMem_SetHandler(self.before)


# ---- the process's handler ----------------------------------------------------------------------------------
# What NumPy's default capsule points to from the first installation on, for ever: it frees whatever is in an arena
# still. The name is NumPy's own, for those that look at it.

cdef PyDataMem_Handler everywhere
cdef PyDataMemAllocator replaced        # what the capsule pointed to before


cdef void *everywhere_malloc(void *ctx, size_t size) noexcept nogil:
    return serve(load_heap(&installed, ACQUIRE), &installed, &replaced, size)


cdef void *everywhere_calloc(void *ctx, size_t nelem, size_t elsize) noexcept nogil:
    return serve_zeroed(load_heap(&installed, ACQUIRE), &installed, &replaced, nelem, elsize)


cdef void *everywhere_realloc(void *ctx, void *p, size_t size) noexcept nogil:
    cdef Heap *h = heap_of(p)
    if h != NULL:
        return resize(h, p, size, load_heap(&installed, ACQUIRE), &installed, &replaced)
    return replaced.realloc(replaced.ctx, p, size)


cdef void everywhere_free(void *ctx, void *p, size_t size) noexcept nogil:
    cdef Heap *h = heap_of(p)
    if h != NULL:
        give(h, p)
    else:
        replaced.free(replaced.ctx, p, size)


cdef int take_over() except -1:
    """Put our handler in the place of NumPy's default one."""
    global everywhere, replaced
    everywhere = default_handler()[0]
    replaced = everywhere.allocator
    everywhere.allocator.malloc = everywhere_malloc
    everywhere.allocator.calloc = everywhere_calloc
    everywhere.allocator.realloc = everywhere_realloc
    everywhere.allocator.free = everywhere_free
    PyCapsule_SetPointer(<object> PyDataMem_DefaultHandler, &everywhere)
    return 0


def install(NumpyHeap heap not None, arena):
    """Let the process's handler serve large requests from a heap, whose arena is kept until `uninstall`."""
    global installed_arena
    cdef Heap *h = heap.h
    if installed != NULL and installed != h:
        raise errors.PageHintError("another arena is installed for NumPy; uninstall it first")
    if default_handler() != &everywhere:
        take_over()
    installed_arena = arena
    if h.listed == NULL:
        Py_INCREF(heap)
        store_pointer(&h.listed, <void *> heap, RELAXED)
        heap.was_listed = True
        store_heap(&h.next, known, RELAXED)
        store_heap(&known, h, RELEASE)
    store_heap(&installed, h, SEQ_CST)


def installed_in():
    """The arena that is installed, or None."""
    return installed_arena


def uninstall():
    """Serve no request of the process any more; what is in use lives on."""
    global installed_arena
    cdef Heap *h = installed
    if h != NULL:
        store_heap(&installed, NULL, SEQ_CST)
        unlist(h)
        installed_arena = None
