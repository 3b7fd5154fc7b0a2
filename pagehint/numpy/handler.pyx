# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""NumPy's data memory handlers (NEP 49): one for a context, and one for the whole process.

An array keeps the handler it was made with: that of a context by its capsule, which keeps the arena's heap, and the heap
keeps the mapping. The process's handler stands in for NumPy's default one, whose capsule belongs to no arena. It finds an
address among the heaps that it has given memory from, and each of these is kept as long as memory of it is in use.
"""
cimport cython
cimport numpy as cnp
from cpython.pycapsule cimport (PyCapsule_GetContext, PyCapsule_GetDestructor, PyCapsule_GetPointer, PyCapsule_New,
                                PyCapsule_SetContext, PyCapsule_SetPointer)
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t
from libc.string cimport memcpy, strcpy

from pagehint.arena.heap cimport (ArenaHeap, Heap, THRESHOLD, heap_clear, heap_drop, heap_give, heap_has, heap_populate,
                                  heap_resize, heap_take, load_heap, load_pointer, page_of, store_heap, store_pointer)
from pagehint.sync.atomic cimport ACQUIRE, RELAXED, RELEASE, SEQ_CST, fetch_add64, load64, load_i32, store_i32

from contextvars import ContextVar

from pagehint import errors

cdef extern from "Python.h":
    ctypedef struct PyObject
    bint PyGC_Disable()
    bint PyGC_Enable()

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


cdef PyDataMem_Handler *handler_in(object capsule) except NULL:
    return <PyDataMem_Handler *> PyCapsule_GetPointer(capsule, MEM_HANDLER)


cdef PyDataMem_Handler *default_handler() except NULL:
    return handler_in(<object> PyDataMem_DefaultHandler)


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


cdef inline void *take(Heap *h, Heap **current, size_t size, bint *fresh) noexcept nogil:
    """Memory of the arena, or NULL if the C heap is to serve the request."""
    cdef void *p = NULL
    if h == NULL:
        return NULL
    if size >= THRESHOLD:
        p = heap_take(h, size, fresh, current)
        if p != NULL:
            return p
        dropped(h)
    fetch_add64(&h.from_heap, 1, RELAXED)
    return NULL


cdef inline void *serve(Heap *h, Heap **current, PyDataMemAllocator *rest, size_t size) noexcept nogil:
    cdef bint fresh = False
    cdef void *p = take(h, current, size, &fresh)
    if p == NULL:
        return rest.malloc(rest.ctx, size)
    # Not done for zeros: an array of zeros may only be read, and that needs no memory.
    if fresh:
        heap_populate(h, p)
    return p


cdef inline void *serve_zeroed(Heap *h, Heap **current, PyDataMemAllocator *rest, size_t nelem,
                               size_t elsize) noexcept nogil:
    cdef size_t size = 0
    cdef bint fresh = False
    cdef void *p = NULL
    if not mul_overflow(nelem, elsize, &size):
        p = take(h, current, size, &fresh)
    if p == NULL:
        return rest.calloc(rest.ctx, nelem, elsize)
    heap_clear(h, p, size, fresh)
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
# A handler serves from its arena while it is *in force*: from the entering of its `Arena.numpy` to its leaving. After that
# it may still stand in contexts that cannot be reached from where it was left: another thread's, a copy, or one in which
# somebody else's code restores it. So it is not taken out of them but passes requests on: to the one below it if that is
# in force, else to what stood there before them all. It still frees and resizes what is in its arena.
#
# NumPy's context variable holds the topmost handler, which knows the one below. That is all the state there is: leaving
# puts into the variable the topmost that is in force, if it finds one of ours there, and nothing if it finds another's.

cdef PyDataMemAllocator own = default_handler().allocator       # NumPy's

cdef struct Entry:
    Heap *heap
    PyDataMemAllocator rest     # of the handler that is not ours, under all of ours here: for what no arena serves
    # The one of ours below, or NULL. It changes only while this one is in force, and is read only when it is not.
    Entry *below
    int32_t over                # no longer in force
    bint on_default             # `rest` is that of NumPy's default handler, for which an installed arena stands in


cdef inline Entry *in_force(Entry *e) noexcept nogil:
    """The topmost handler that is in force, from this one down, or NULL."""
    while e != NULL and load_i32(&e.over, ACQUIRE):
        e = e.below
    return e


cdef inline Heap *serving(Entry *e, Heap ***current) noexcept nogil:
    """The heap that serves large requests, or NULL. `current` is where it was read, if the process's handler serves."""
    cdef Entry *top = in_force(e)
    current[0] = &installed if top == NULL and e.on_default else NULL
    if current[0] != NULL:
        return load_heap(current[0], ACQUIRE)
    return top.heap if top != NULL else NULL


cdef inline Heap *heap_around(Entry *e, const void *p) noexcept nogil:
    """The heap that an allocation of this handler is in, or NULL: its own, or one that requests were passed on to."""
    cdef Entry *each = e
    while not heap_has(each.heap, p):
        if not load_i32(&each.over, ACQUIRE):
            return NULL
        if each.below == NULL:
            return heap_of(p) if e.on_default else NULL
        each = each.below
    return each.heap


cdef void *context_malloc(void *ctx, size_t size) noexcept nogil:
    cdef Entry *e = <Entry *> ctx
    cdef Heap **current
    cdef Heap *h = serving(e, &current)
    return serve(h, current, &e.rest, size)


cdef void *context_calloc(void *ctx, size_t nelem, size_t elsize) noexcept nogil:
    cdef Entry *e = <Entry *> ctx
    cdef Heap **current
    cdef Heap *h = serving(e, &current)
    return serve_zeroed(h, current, &e.rest, nelem, elsize)


cdef void *context_realloc(void *ctx, void *p, size_t size) noexcept nogil:
    cdef Entry *e = <Entry *> ctx
    cdef Heap **current
    cdef Heap *h = heap_around(e, p)
    cdef Heap *to
    if h == NULL:
        return e.rest.realloc(e.rest.ctx, p, size)
    to = serving(e, &current)
    return resize(h, p, size, to, current, &e.rest)


cdef void context_free(void *ctx, void *p, size_t size) noexcept nogil:
    cdef Entry *e = <Entry *> ctx
    cdef Heap *h = heap_around(e, p)
    if h != NULL:
        give(h, p)
    else:
        e.rest.free(e.rest.ctx, p, size)


cdef void release(object capsule) noexcept:
    Py_DECREF(<ContextHandler> PyCapsule_GetContext(capsule))


cdef ContextHandler ours(object capsule):
    """The handler in a capsule of NumPy's if it is one of these, else None."""
    if PyCapsule_GetDestructor(capsule) != release:
        return None
    return <ContextHandler> PyCapsule_GetContext(capsule)


@cython.final
cdef class ContextHandler:
    """What NumPy calls in a context of `Arena.numpy`, and for its arrays as long as they live."""

    cdef ArenaHeap heap
    cdef PyDataMem_Handler handler
    cdef Entry entry
    cdef ContextHandler below       # the object of `entry.below`
    cdef object base                # the capsule of the handler that `entry.rest` is of
    cdef list followers             # of this one: those that are over and stand above it

    def __cinit__(self, ArenaHeap heap not None):
        self.heap = heap
        self.entry.heap = heap.h
        self.followers = []
        strcpy(self.handler.name, "pagehint")
        self.handler.version = 1
        self.handler.allocator.ctx = &self.entry
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

    cdef int stand_on(self, object capsule) except -1:
        """Note what is below: the handler in this capsule, which is in the context now."""
        cdef ContextHandler other = ours(capsule)
        if other is None:
            self.base = capsule
            self.entry.on_default = capsule is <object> PyDataMem_DefaultHandler
            self.entry.rest = own if self.entry.on_default else handler_in(capsule).allocator
        else:
            self.base = other.base
            self.entry.on_default = other.entry.on_default
            self.entry.rest = other.entry.rest
            self.put_above(other.topmost())
        return 0

    cdef void put_above(self, ContextHandler other):
        self.below = other
        self.entry.below = &other.entry if other is not None else NULL

    cdef ContextHandler topmost(self):
        """The topmost handler that is in force, from this one down, or None."""
        cdef ContextHandler each = self
        while each is not None and each.entry.over:
            each = each.below
        return each

    cdef bint stands_on(self, ContextHandler other):
        """Whether that one is this one, or somewhere below it."""
        cdef ContextHandler each = self
        while each is not None and each is not other:
            each = each.below
        return each is not None

    cdef void forget(self):
        """Have those in force, from this one down, stand on one another, so that what is over need not be kept."""
        cdef ContextHandler each = self.topmost(), next
        while each is not None:
            next = each.below.topmost() if each.below is not None else None
            each.put_above(next)
            each = next

    cdef int leave(self, bint stays) except -1:
        """End it. `stays`: it may still stand in a context, so it takes the name of what serves there from now on."""
        cdef ContextHandler heir
        cdef list over = [*self.followers, self] if stays else self.followers
        self.forget()       # from here on `below` does not change
        store_i32(&self.entry.over, True, RELEASE)
        heir = self.below
        if heir is not None:
            heir.followers.extend(over)
        else:
            for follower in over:
                strcpy((<ContextHandler> follower).handler.name, handler_in(self.base).name)
        self.followers = []
        return 0


# Says whether a context is left in the very context that it was entered in, which Python knows of a variable's token.
cdef object place = ContextVar("pagehint place")


@cython.final
cdef class NumpyContext:
    """What `Arena.numpy` returns. Compiled, so that no interrupt comes between what entering or leaving changes."""

    cdef ContextHandler handler
    cdef object arena
    cdef object token               # of `place`, while this is entered
    cdef bint entered               # once for all

    def __cinit__(self, ArenaHeap heap not None, arena):
        self.handler = ContextHandler(heap)
        self.arena = arena

    def __enter__(self):
        if self.entered:
            raise errors.PageHintError("this context was entered before; arena.numpy() makes another")
        capsule = self.handler.capsule()
        collecting = PyGC_Disable()     # before 3.12 a collection may come here, and close a generator that leaves another
        try:
            self.handler.stand_on(cnp.PyDataMem_GetHandler())
            self.token = place.set(None)
            cnp.PyDataMem_SetHandler(capsule)
            self.entered = True
        finally:
            if collecting:
                PyGC_Enable()
        return self.arena

    def __exit__(self, *exc_info):
        if self.token is None:
            raise errors.PageHintError(f"this context was {'left before' if self.entered else 'never entered'}")
        collecting = PyGC_Disable()
        try:
            self.leave()
        finally:
            if collecting:
                PyGC_Enable()

    cdef int leave(self) except -1:
        cdef ContextHandler top = ours(cnp.PyDataMem_GetHandler()), found
        cdef bint here = True
        try:
            place.reset(self.token)
        except ValueError:
            here = False        # in another thread, task or context
        self.handler.leave(not here or top is None or not top.stands_on(self.handler))
        self.token = None
        if top is None:
            return 0        # somebody else's handler was set above; it is not this one's to take away
        top.forget()
        found = top.topmost()
        if found is None:
            cnp.PyDataMem_SetHandler(top.base)
        elif found is not top:
            cnp.PyDataMem_SetHandler(found.capsule())
        return 0

    def __del__(self):
        if not self.entered and self.handler is not None:
            errors.warn_never_entered("arena.numpy()", 2)


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
        (<ArenaHeap> h.listed).memory.queue.in_children = (<ArenaHeap> h.listed).serves_malloc
        store_heap(&installed, NULL, SEQ_CST)
        unlist(h)
        installed_arena = None
