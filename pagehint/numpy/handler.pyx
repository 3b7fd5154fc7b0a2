# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""NumPy's data memory handlers (NEP 49): one for a context, and one for the whole process.

An array keeps the handler it was made with: that of a context by its capsule, which keeps the arena's heap, and the heap
keeps the mapping. The process's handler stands in for NumPy's default one, whose capsule belongs to no arena. It finds an
address among the heaps that it has given memory from, and each of these is kept as long as memory of it is in use.
"""
cimport cython
cimport numpy as cnp
from cpython.pycapsule cimport (PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext,
                                PyCapsule_SetPointer)
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memcpy, strcpy

from pagehint.arena.heap cimport (ArenaHeap, Heap, THRESHOLD, heap_clear, heap_drop, heap_give, heap_has, heap_populate,
                                  heap_resize, heap_take, load_heap, load_pointer, page_of, store_heap, store_pointer)
from pagehint.sync.atomic cimport ACQUIRE, RELAXED, RELEASE, SEQ_CST, fetch_add64, load64

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

cdef Heap *known = NULL         # the list of the process's handler; changed with the GIL, read without it
cdef Heap *installed = NULL     # the heap in it that serves the process's large requests now, or NULL
cdef object installed_arena = None      # its arena


cdef inline Heap *heap_of(const void *p) noexcept nogil:
    """The heap that an address in use is in, or NULL. A heap in use is in the list, and one that left it is never freed."""
    cdef Heap *h = load_heap(&known, ACQUIRE)
    while h != NULL and not heap_has(h, p):
        h = load_heap(&h.next, ACQUIRE)
    return h


cdef void unlist(Heap *h) noexcept:
    """Take a heap from the list, and let go of its memory, if it is not installed and nothing of it is in use."""
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
    """Count one allocation less. After the last of a heap that is not installed this takes the GIL, so no lock is held."""
    if heap_drop(h) and load_pointer(&h.listed, RELAXED) != NULL and load_heap(&installed, SEQ_CST) != h:
        with gil:
            unlist(h)


cdef inline void *take(Heap *h, Heap **current, size_t size, bint noting) noexcept nogil:
    """Memory of the arena, or NULL if the C heap is to serve the request."""
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
    # Not done for zeros: an array of zeros may only be read, and that needs no memory.
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
    """Make an allocation of `h` larger or smaller; if it has to move, it moves to `to`."""
    cdef void *moved
    if heap_resize(h, p, size):
        return p
    moved = serve(to, current, rest, size)
    if moved != NULL:
        memcpy(moved, p, <size_t>h.lengths[page_of(h, p)] << h.page_shift)
        give(h, p)
    return moved


# ---- the handler of a context -------------------------------------------------------------------------------

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
    Py_DECREF(<ContextHandler> PyCapsule_GetContext(capsule))


@cython.final
cdef class ContextHandler:
    """What NumPy calls in a context of `Arena.numpy`, and for its arrays as long as they live."""

    cdef ArenaHeap heap
    cdef PyDataMem_Handler handler

    def __cinit__(self, ArenaHeap heap not None):
        self.heap = heap
        strcpy(self.handler.name, "pagehint")
        self.handler.version = 1
        self.handler.allocator.ctx = heap.h
        self.handler.allocator.malloc = context_malloc
        self.handler.allocator.calloc = context_calloc
        self.handler.allocator.realloc = context_realloc
        self.handler.allocator.free = context_free

    cdef object capsule(self):
        """The handler as NumPy takes it, in a capsule that keeps this."""
        made = PyCapsule_New(&self.handler, MEM_HANDLER, release)
        PyCapsule_SetContext(made, <void *> self)
        Py_INCREF(self)
        return made


@cython.final
cdef class NumpyContext:
    """What `Arena.numpy` returns. Compiled, so that no interrupt comes between setting a handler and noting the old one."""

    cdef ContextHandler handler
    cdef object arena
    cdef object before              # NumPy's handler before this was entered

    def __cinit__(self, ArenaHeap heap not None, arena):
        self.handler = ContextHandler(heap)
        self.arena = arena

    def __enter__(self):
        if self.before is not None:
            raise errors.PageHintError("this context was entered before; arena.numpy() makes another")
        self.before = cnp.PyDataMem_SetHandler(self.handler.capsule())
        return self.arena

    def __exit__(self, *exc_info):
        cnp.PyDataMem_SetHandler(self.before)


# ---- the process's handler ----------------------------------------------------------------------------------
# NumPy's default capsule points to it from the first installation on, for ever, since it frees the arrays that are in an
# arena still. It has the name of NumPy's own, which programs ask for.

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
    """Put this handler in the place of NumPy's default one."""
    global everywhere, replaced
    everywhere = default_handler()[0]
    replaced = everywhere.allocator
    everywhere.allocator.malloc = everywhere_malloc
    everywhere.allocator.calloc = everywhere_calloc
    everywhere.allocator.realloc = everywhere_realloc
    everywhere.allocator.free = everywhere_free
    PyCapsule_SetPointer(<object> PyDataMem_DefaultHandler, &everywhere)
    return 0


def install(ArenaHeap heap not None, arena):
    """Have the process's handler serve large requests from a heap; its arena is kept until `uninstall`."""
    global installed_arena
    cdef Heap *h = heap.h
    if installed != NULL and installed != h:
        raise errors.PageHintError("another arena is installed for NumPy; uninstall it first")
    if default_handler() != &everywhere:
        take_over()
    installed_arena = arena
    heap.memory.queue.in_children = True
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
    """Have the process's handler serve new requests from the C heap only; what is in use lives on."""
    global installed_arena
    cdef Heap *h = installed
    if h != NULL:
        (<ArenaHeap> h.listed).memory.queue.in_children = False
        store_heap(&installed, NULL, SEQ_CST)
        unlist(h)
        installed_arena = None
