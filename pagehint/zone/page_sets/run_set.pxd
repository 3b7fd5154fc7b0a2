"""The page set for runs: those that a zone's owner freed last, each kept for the next request of just its length.

A loop that makes the same array at every tick finds its pages here, in one cache line. In the zone it would read a
hundred more, which have left the caches while the loop slept.

A run in the set is marked as allocated, as for its owner, and counts as a block in a per-CPU page set does. What frees,
splits or claims pages by their numbers empties the set first, so that it finds all that is free as free. Runs are put
into a set only while it is `open`: while somebody is going to look whether they are still wanted. That is the watcher.

There is no lock. A run is one word, which a thread takes by exchanging it.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from pagehint.sync.atomic cimport RELAXED, SEQ_CST, load64, load_i32, store_i32, swap64_if, unlikely
from pagehint.sync.lock cimport lock_acquire
from pagehint.zone.check cimport check_run
from pagehint.zone.hook cimport zone_unlock
from pagehint.zone.metadata cimport aligned_alloc
from pagehint.zone.run cimport run_free_allocated
from pagehint.zone.status cimport OK
from pagehint.zone.zone cimport PageZone, RUNS, RunSet

cdef inline RunSet *run_set_create(uint32_t longest) noexcept nogil:
    """A closed set; NULL where memory lacks. To be freed by `free`."""
    cdef RunSet *s = <RunSet *> aligned_alloc(64, sizeof(RunSet))
    if s != NULL:
        memset(s, 0, sizeof(RunSet))
        s.longest = longest
    return s


cdef inline uint64_t run_pages(uint64_t run) noexcept nogil:
    return <uint32_t>run


cdef inline bint run_set_take(RunSet *s, uint64_t n, uint64_t *page) noexcept nogil:
    """Take a run of `n` pages, if there is one."""
    cdef uint64_t run
    cdef int i
    if n > s.longest:
        return False
    for i in range(RUNS):
        run = load64(&s.runs[i], RELAXED)
        if run_pages(run) == n and swap64_if(&s.runs[i], run, 0):
            page[0] = run >> 32
            return True
    return False


cdef inline int run_give(PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """Free a run, if it is one. Zone lock held."""
    cdef int rc = check_run(z, page, n)
    if rc == OK:
        run_free_allocated(z, page, n)
    return rc


cdef inline int zone_give_run(PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """As `run_give`, and takes the zone lock."""
    cdef int rc
    lock_acquire(&z.lock, True)
    rc = run_give(z, page, n)
    zone_unlock(z)
    return rc


cdef inline bint run_set_take_any(RunSet *s, uint64_t *page, uint64_t *n) noexcept nogil:
    """Take some run; False if there is none. `s` may be NULL: then there is none."""
    cdef uint64_t run
    cdef int i
    if s == NULL:
        return False
    for i in range(RUNS):
        run = load64(&s.runs[i], SEQ_CST)
        if run and swap64_if(&s.runs[i], run, 0):
            page[0] = run >> 32
            n[0] = run_pages(run)
            return True
    return False


cdef inline void run_set_drain(PageZone *z) noexcept nogil:
    """Free all runs in the set, if the zone has one."""
    cdef uint64_t page = 0, n = 0
    while run_set_take_any(z.run_set, &page, &n):
        zone_give_run(z, page, n)


cdef inline int place_for(RunSet *s, uint64_t run) noexcept nogil:
    """The place where a run is, or one that is empty, or that of the one to give way."""
    cdef int i, place = load_i32(&s.next, RELAXED)
    cdef uint64_t there
    for i in range(RUNS):
        there = load64(&s.runs[i], RELAXED)
        if there == run:
            return i
        if there == 0:
            place = i
    return place


cdef inline bint run_set_put(PageZone *z, uint64_t page, uint64_t n) noexcept nogil:
    """Keep a run that its owner has freed, and free the one whose place it takes; False if none as long is kept now."""
    cdef RunSet *s = z.run_set
    cdef uint64_t run = page << 32 | n, former
    cdef int place
    if n > s.longest or not load_i32(&s.open, RELAXED):
        return False
    place = place_for(s, run)
    former = load64(&s.runs[place], RELAXED)
    while not swap64_if(&s.runs[place], former, run):
        former = load64(&s.runs[place], RELAXED)
    if former and former != run:        # else it was freed before
        store_i32(&s.next, (place + 1) % RUNS, RELAXED)
        zone_give_run(z, former >> 32, run_pages(former))
    if not load_i32(&s.used, RELAXED):
        store_i32(&s.used, True, RELAXED)
    # Whoever closes the set empties it afterwards. Either that thread sees this run, or this one sees that it is closed.
    if unlikely(not load_i32(&s.open, SEQ_CST)):
        run_set_drain(z)
    return True


cdef inline void run_set_open(PageZone *z) noexcept nogil:
    """Keep runs from now on. The caller is going to look whether they are wanted."""
    if z.run_set != NULL:
        store_i32(&z.run_set.open, True, RELAXED)


cdef inline void run_set_close(PageZone *z) noexcept nogil:
    """Keep no more runs. What is in the set is still found there until it is emptied."""
    if z.run_set != NULL:
        store_i32(&z.run_set.open, False, SEQ_CST)


cdef inline void run_set_give_up(PageZone *z) noexcept nogil:
    """Keep no more runs, and free those that are kept."""
    run_set_close(z)
    run_set_drain(z)


cdef inline bint run_set_is_open(const PageZone *z) noexcept nogil:
    return z.run_set != NULL and load_i32(&z.run_set.open, RELAXED)


cdef inline bint run_set_was_used(RunSet *s) noexcept nogil:
    """Whether a run was kept since the last call."""
    cdef bint used = load_i32(&s.used, RELAXED)
    store_i32(&s.used, False, RELAXED)
    return used


cdef inline uint64_t run_set_pages(const PageZone *z) noexcept nogil:
    """Pages in the set, as far as no other thread is changing it."""
    cdef uint64_t pages = 0
    cdef int i
    if z.run_set != NULL:
        for i in range(RUNS):
            pages += run_pages(load64(&z.run_set.runs[i], RELAXED))
    return pages
