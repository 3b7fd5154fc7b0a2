# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=False
"""The one pass that scores a policy: operations and reports side by side, page by page. `scores.py` is its face.

A page is *charged* if the host has memory behind it: since it was last taken for use, no report has included it. Taking
a page charges it alone, as a host of 4 KiB pages does. A report takes the charge from all pages of its granules.
"""
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import numpy as np

from pagehint.policies.reports cimport ReportRow
from pagehint.traces.intervals.free_pages cimport (FreePages, bits_set, clear_bits, count_granules, is_block, mask_of,
                                                   popcount, set_bits)
from pagehint.traces.operations cimport OPERATION_GIVE, OPERATION_TAKE, OperationRow

cdef enum:
    MOST_AGES = 16              # break-even ages, and windows of reuse, that one pass can count for

cdef struct Granule:
    int64_t since               # nanoseconds: when it became whole
    int64_t first               # when it was first reported in this interval; INT64_MAX: not yet
    int64_t last                # and last
    uint32_t charged            # pages of it
    bint costs                  # some of it was charged when the interval began

cdef struct Sums:
    double charged              # page nanoseconds: free and charged
    double charged_whole        # of these, in granules that are entirely free
    double free_partial         # free, charged or not, in granules that are partly used
    double free_all             # free
    double keep                 # granule nanoseconds: from whole to the first report, or to the interval's end
    double optimum[MOST_AGES]   # granule nanoseconds: what the offline optimum costs
    uint64_t reported, again, uncharged, broken     # granules
    uint64_t reused[MOST_AGES]                      # granules
    uint64_t refaults           # pages
    uint64_t nr_first           # entries of `latency`

cdef struct Scorer:
    FreePages free
    uint64_t *charged           # a bit for each page
    Granule *granules
    uint32_t whole              # pages of a granule
    uint64_t nr_free, nr_charged, nr_whole, nr_charged_whole    # pages, now
    int64_t now
    bint begun
    int nr_ages, nr_windows
    int64_t ages[MOST_AGES]     # nanoseconds
    int64_t windows[MOST_AGES]
    int64_t *latency            # nanoseconds from whole to reported, one an interval that was reported
    Sums sums


cdef inline void advance(Scorer *s, int64_t time) noexcept nogil:
    """The time passes, and what is free and charged costs."""
    cdef double passed = time - s.now
    if time <= s.now:
        return
    s.sums.charged += s.nr_charged * passed
    s.sums.charged_whole += s.nr_charged_whole * passed
    s.sums.free_partial += (s.nr_free - s.nr_whole) * passed
    s.sums.free_all += s.nr_free * passed
    s.now = time


cdef inline void begin_interval(Scorer *s, Granule *g) noexcept nogil:
    g.since, g.first, g.last, g.costs = s.now, INT64_MAX, INT64_MAX, g.charged > 0
    s.nr_whole += s.whole
    s.nr_charged_whole += g.charged


cdef inline void end_interval(Scorer *s, Granule *g) noexcept nogil:
    """Add up what the interval cost, and what it would have cost somebody who had known its length."""
    cdef int i
    s.nr_whole -= s.whole
    s.nr_charged_whole -= g.charged
    if g.costs:
        s.sums.keep += min(g.first, s.now) - g.since
        for i in range(s.nr_ages):
            s.sums.optimum[i] += min(s.now - g.since, s.ages[i])


cdef inline void break_granule(Scorer *s, Granule *g) noexcept nogil:
    cdef int i
    end_interval(s, g)
    if g.last != INT64_MAX:
        s.sums.broken += 1
        for i in range(s.nr_windows):
            s.sums.reused[i] += s.now - g.last <= s.windows[i]


cdef inline uint64_t charged_and_free(const Scorer *s, uint64_t pfn, int order) noexcept nogil:
    """How many pages of a block, at most 64 of them, are both."""
    return popcount(s.charged[pfn >> 6] & s.free.words[pfn >> 6] & mask_of(pfn, order))


cdef inline void take(Scorer *s, uint64_t pfn, int order) noexcept nogil:
    """Pages of one granule, at most 64 of them, are taken for use."""
    cdef Granule *g = s.granules + (pfn >> s.free.granule_order)
    cdef uint64_t were_charged = charged_and_free(s, pfn, order), n
    if s.begun and s.free.count[pfn >> s.free.granule_order] == s.whole:
        break_granule(s, g)
    n = clear_bits(s.free.words, pfn, order)
    s.free.count[pfn >> s.free.granule_order] -= n
    s.nr_free -= n
    s.nr_charged -= were_charged
    s.sums.refaults += n - were_charged
    g.charged += set_bits(s.charged, pfn, order)


cdef inline void give(Scorer *s, uint64_t pfn, int order) noexcept nogil:
    """Pages of one granule, at most 64 of them, come back."""
    cdef Granule *g = s.granules + (pfn >> s.free.granule_order)
    cdef uint64_t were_charged = charged_and_free(s, pfn, order), n
    n = set_bits(s.free.words, pfn, order)
    s.free.count[pfn >> s.free.granule_order] += n
    s.nr_free += n
    s.nr_charged += charged_and_free(s, pfn, order) - were_charged
    if s.begun and n and s.free.count[pfn >> s.free.granule_order] == s.whole:
        begin_interval(s, g)


cdef inline void follow(Scorer *s, const OperationRow *row) noexcept nogil:
    """Follow an operation, up to 64 pages at a time."""
    cdef int order = min(row.order, 6, s.free.granule_order)
    cdef uint64_t pfn = row.pfn
    if row.op != OPERATION_TAKE and row.op != OPERATION_GIVE or not is_block(&s.free, row.pfn, row.order):
        return
    while pfn < row.pfn + (<uint64_t>1 << row.order):
        if row.op == OPERATION_TAKE:
            take(s, pfn, order)
        else:
            give(s, pfn, order)
        pfn += <uint64_t>1 << order


cdef inline bint report(Scorer *s, const ReportRow *row) noexcept nogil:
    """The host drops a block. False if it is not entirely free: nothing has changed then."""
    cdef uint64_t first = row.pfn >> s.free.granule_order, granule
    cdef uint64_t end
    cdef Granule *g
    if row.order < s.free.granule_order or not is_block(&s.free, row.pfn, row.order):
        return False
    end = first + (<uint64_t>1 << (row.order - s.free.granule_order))
    for granule in range(first, end):
        if s.free.count[granule] != s.whole:
            return False
    for granule in range(first, end):
        g = s.granules + granule
        s.sums.reported += 1
        s.sums.again += g.last != INT64_MAX
        s.sums.uncharged += g.charged == 0 and g.last == INT64_MAX
        if g.first == INT64_MAX:
            g.first = s.now
            s.latency[s.sums.nr_first] = s.now - g.since
            s.sums.nr_first += 1
        g.last = s.now
        s.nr_charged -= clear_bits(s.charged, granule << s.free.granule_order, s.free.granule_order)
        s.nr_charged_whole -= g.charged
        g.charged = 0
    return True


cdef void begin(Scorer *s, int64_t time) noexcept nogil:
    """What is whole has its interval begin now; nothing has been added up so far."""
    cdef uint64_t granule
    memset(&s.sums, 0, sizeof(s.sums))
    s.now, s.begun = time, True
    for granule in range(s.free.nr_pages >> s.free.granule_order):
        if s.free.count[granule] == s.whole:
            begin_interval(s, s.granules + granule)


cdef void end(Scorer *s, int64_t time) noexcept nogil:
    cdef uint64_t granule
    advance(s, time)
    for granule in range(s.free.nr_pages >> s.free.granule_order):
        if s.free.count[granule] == s.whole:
            end_interval(s, s.granules + granule)


cdef int64_t run(Scorer *s, const OperationRow *rows, uint32_t nr_rows, const ReportRow *reports, int64_t nr_reports,
                 uint32_t begin_position, int64_t begin_time, int64_t end_time) noexcept nogil:
    """Score, and return how many reports were right: the next is of memory that is not entirely free, or too early."""
    cdef uint32_t position
    cdef int64_t next_report = 0
    for position in range(begin_position):
        follow(s, rows + position)
    begin(s, begin_time)
    for position in range(begin_position, nr_rows + 1):
        while next_report < nr_reports and reports[next_report].position <= position:
            advance(s, reports[next_report].time)
            if reports[next_report].position != position or not report(s, reports + next_report):
                return next_report
            next_report += 1
        if position < nr_rows:
            advance(s, rows[position].time)
            follow(s, rows + position)
    end(s, end_time)
    return next_report


cdef bint prepare(Scorer *s, const uint64_t *free_words, const uint64_t *charged_words, uint64_t nr_granules,
                  uint64_t most_reports) noexcept nogil:
    """Allocate, and take over the state at the start. False if there is no memory."""
    cdef uint64_t nr_bytes = s.free.nr_pages >> 3, pfn, word
    s.free.words = <uint64_t *>malloc(nr_bytes + 8)
    s.charged = <uint64_t *>malloc(nr_bytes + 8)
    s.free.count = <uint32_t *>calloc(nr_granules + 1, sizeof(uint32_t))
    s.granules = <Granule *>calloc(nr_granules + 1, sizeof(Granule))
    s.latency = <int64_t *>malloc(8 * most_reports + 8)
    if (s.free.words == NULL or s.charged == NULL or s.free.count == NULL or s.granules == NULL or s.latency == NULL):
        return False
    if nr_bytes:
        memcpy(s.free.words, free_words, nr_bytes)
        memcpy(s.charged, charged_words, nr_bytes)
    count_granules(&s.free)
    for word in range(nr_bytes >> 3):
        s.nr_free += popcount(s.free.words[word])
        s.nr_charged += popcount(s.free.words[word] & s.charged[word])
    for pfn in range(nr_granules):
        s.granules[pfn].charged = bits_set(s.charged, pfn << s.free.granule_order, s.free.granule_order)
    return True


cdef object results(Scorer *s):
    cdef int i
    cdef uint64_t n
    cdef int64_t[::1] copy
    names = ("charged", "charged_whole", "free_partial", "free_all", "keep", "reported", "again", "uncharged", "broken",
             "refaults")
    values = (s.sums.charged, s.sums.charged_whole, s.sums.free_partial, s.sums.free_all, s.sums.keep, s.sums.reported,
              s.sums.again, s.sums.uncharged, s.sums.broken, s.sums.refaults)
    found = dict(zip(names, values, strict=True))
    found["optimum"] = [s.sums.optimum[i] for i in range(s.nr_ages)]
    found["reused"] = [s.sums.reused[i] for i in range(s.nr_windows)]
    latency = np.empty(s.sums.nr_first, np.int64)
    copy = latency
    for n in range(s.sums.nr_first):
        copy[n] = s.latency[n]
    found["latency"] = latency
    return found


def run_scoring(const OperationRow[::1] table, const ReportRow[::1] reports, const uint64_t[::1] free_words,
                const uint64_t[::1] charged_words, int granule_order, uint32_t begin_position, int64_t begin_time,
                int64_t end_time, ages, windows):
    """Return how many reports were right, and the sums as a dict. `scores.py` says what they mean."""
    cdef Scorer s
    cdef int i
    cdef bint prepared = False
    cdef int64_t right = 0
    cdef uint64_t most = 0, n
    if <uint64_t>table.shape[0] >= UINT32_MAX or begin_position > table.shape[0]:
        raise ValueError(f"a table of {table.shape[0]} operations, begun at {begin_position}: out of range")
    if len(ages) > MOST_AGES or len(windows) > MOST_AGES or free_words.shape[0] != charged_words.shape[0]:
        raise ValueError(f"at most {MOST_AGES} ages and windows, and as many pages charged as free")
    memset(&s, 0, sizeof(s))
    s.free.nr_pages, s.free.granule_order = free_words.shape[0] << 6, granule_order
    s.whole = <uint32_t>1 << granule_order
    s.nr_ages, s.nr_windows = len(ages), len(windows)
    for i in range(s.nr_ages):
        s.ages[i] = ages[i]
    for i in range(s.nr_windows):
        s.windows[i] = windows[i]
    try:
        with nogil:
            for n in range(<uint64_t>reports.shape[0]):
                if granule_order <= reports[n].order and is_block(&s.free, reports[n].pfn, reports[n].order):
                    most += <uint64_t>1 << (reports[n].order - granule_order)
            prepared = prepare(&s, &free_words[0] if free_words.shape[0] else NULL,
                               &charged_words[0] if free_words.shape[0] else NULL,
                               s.free.nr_pages >> granule_order, most)
            if prepared:
                right = run(&s, &table[0] if table.shape[0] else NULL, table.shape[0],
                            &reports[0] if reports.shape[0] else NULL, reports.shape[0], begin_position, begin_time,
                            end_time)
        if not prepared:
            raise MemoryError(f"no memory to score {s.free.nr_pages} pages")
        return right, results(&s)
    finally:
        free(s.free.words)
        free(s.free.count)
        free(s.charged)
        free(s.granules)
        free(s.latency)
