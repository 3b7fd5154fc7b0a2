# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What the preloaded library asks of an arena's heap: `preload.h`."""
from cpython.ref cimport Py_INCREF
from libc.errno cimport EBUSY, EINVAL
from libc.stdint cimport uint64_t
from libc.string cimport strerror

from pagehint.arena.heap cimport (ArenaHeap, Heap, heap_clear, heap_drop, heap_give, heap_populate, heap_resize, heap_take,
                                  page_of)
from pagehint.sync.atomic cimport RELAXED, SEQ_CST, fetch_add64

from pagehint import errors

cdef extern from "<errno.h>" nogil:
    const int ENOTSUP

cdef extern from "preload.h" nogil:
    ctypedef struct Server "pagehint_malloc_server":
        unsigned int version
        size_t threshold
        size_t page_size
        const char *base
        const uint64_t *reached
        void *heap
        void *(*take)(void *heap, size_t size, int zeroed) noexcept nogil
        size_t (*size)(void *heap, const void *p) noexcept nogil
        int (*resize)(void *heap, void *p, size_t size) noexcept nogil
        int (*give)(void *heap, void *p) noexcept nogil
    ctypedef int (*register_fn "pagehint_malloc_register_fn")(const Server *server) noexcept nogil
    const unsigned int VERSION "PAGEHINT_MALLOC_VERSION"
    const char *REGISTER "PAGEHINT_MALLOC_REGISTER"

cdef extern from "<dlfcn.h>" nogil:
    void *RTLD_DEFAULT
    void *dlsym(void *library, const char *name)


cdef void *take(void *heap, size_t size, int zeroed) noexcept nogil:
    cdef Heap *h = <Heap *> heap
    cdef bint fresh = False
    cdef void *p = heap_take(h, size, &fresh, NULL)
    if p == NULL:
        heap_drop(h)
        fetch_add64(&h.from_heap, 1, RELAXED)
    elif zeroed:
        heap_clear(h, p, size, fresh)
    elif fresh:
        heap_populate(h, p)
    return p


cdef size_t size_of(void *heap, const void *p) noexcept nogil:
    cdef Heap *h = <Heap *> heap
    return <size_t>h.lengths[page_of(h, p)] << h.page_shift


cdef int resize(void *heap, void *p, size_t size) noexcept nogil:
    return heap_resize(<Heap *> heap, p, size)


cdef int give(void *heap, void *p) noexcept nogil:
    cdef Heap *h = <Heap *> heap
    if not heap_give(h, p):
        return False
    heap_drop(h)        # never the last one: `serve` counts, too
    return True


cdef register_fn library() noexcept nogil:
    """The preloaded library's door; NULL if it is not in this process."""
    return <register_fn> dlsym(RTLD_DEFAULT, REGISTER)


def is_preloaded():
    """Whether this process has the library."""
    return library() != NULL


cdef object serving_arena = None        # the arena whose heap it is, which gives back what is free as long as it is kept


def serve(ArenaHeap heap not None, arena, size_t threshold):
    """Have malloc's requests of `threshold` bytes and more served from an arena's heap, as long as the process lives.

    Nothing happens if that heap serves them already.

    Raises
    ------
    PageHintError
        If the library is not in this process, or is another version's, or another heap serves, or an allocator that is
        not libc's.
    """
    global serving_arena
    cdef Server server
    cdef register_fn door = library()
    cdef int error
    if heap.serves_malloc:
        return
    if door == NULL:
        raise errors.PageHintError("malloc's library is not preloaded in this process; pagehint run --malloc does that")
    server.version = VERSION
    server.threshold = threshold
    server.page_size = heap.mapping.page_size
    server.base = heap.h.base
    server.reached = &heap.h.reached
    server.heap = heap.h
    server.take = take
    server.size = size_of
    server.resize = resize
    server.give = give
    fetch_add64(&heap.h.live, 1, SEQ_CST)       # so that it is neither closed nor let go of
    error = door(&server)
    if error:
        fetch_add64(&heap.h.live, -1, SEQ_CST)
        if error == EBUSY:
            raise errors.PageHintError("malloc's large requests go to another arena already")
        if error == EINVAL:
            raise errors.PageHintError("malloc's library that is preloaded in this process is of another pagehint")
        if error == ENOTSUP:
            raise errors.PageHintError("malloc's requests stay with another allocator that is preloaded, or linked")
        raise MemoryError(f"malloc's large requests stay in the C heap: {strerror(error).decode()}")
    Py_INCREF(heap)
    serving_arena = arena
    heap.serves_malloc = True
    heap.memory.queue.in_children = True
