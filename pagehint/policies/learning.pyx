# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=False
"""The learnt age, for Python, and the policy "auto" on the free intervals of one zone, which goes by it.

A granule is looked at when it has the age of the moment. If that is lower than it was, so that the granule is older,
it may be kept for longer (`learnt_age.pxd`): such granules are looked at again at the ages that matter to them.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t

import numpy as np

from pagehint.hinting.learning.learnt_age cimport (DECISION_SHIFT, LEAST_BREAK_EVEN, MOST_BREAK_EVEN_S, is_break_even,
                                                   is_old_enough, later, learn_free, learn_reported, learn_start,
                                                   learn_taken, learnt_age, next_old_enough)
from pagehint.hinting.learning.learnt_age cimport LearntAge as Learner


cdef int require_break_even(int64_t age) except -1:
    if not is_break_even(age):
        raise ValueError(f"a break-even age must be from {LEAST_BREAK_EVEN} ns to {MOST_BREAK_EVEN_S} s, not {age} ns")
    return 0


cdef class LearntAge:
    """The age at which to report, learnt from how long granules pause: from free until taken again.

    It is what the policy "auto" goes by, for policies of your own: tell it of granules, and ask it. Times and ages are
    whole nanoseconds; a time before one that it was told already is that one.

    Parameters
    ----------
    break_even : int
        Nanoseconds, at least 1000: a report, and the faults that follow, cost as much as keeping a granule for so long.
    now : int, default 0

    Raises
    ------
    ValueError
        If the break-even age is out of range, or a time is negative.

    Notes
    -----
    6 KiB, whatever it is told; O(1) for each granule, O(200) to ask. `learnt_age.pxd` says how it works, and where the
    ideas come from.

    Examples
    --------
    A loop takes its memory ten times a second:

    >>> learnt = LearntAge(10**9)
    >>> for now in range(0, 10**9, 10**8):
    ...     learnt.free(now)
    ...     learnt.taken(now, now + 9 * 10**7)
    >>> 9 * 10**7 < learnt.age(10**9) < 10**8
    True
    """

    cdef Learner learnt
    cdef int64_t now

    def __cinit__(self, int64_t break_even, int64_t now=0):
        require_break_even(break_even)
        if now < 0:
            raise ValueError(f"times go on from 0, not from {now} ns")
        self.now = now
        learn_start(&self.learnt, break_even, now)

    cdef int tell(self, int64_t since, int64_t now) except -1:
        """Go on to a time."""
        if not 0 <= since <= now:
            raise ValueError(f"a granule became free at {since} ns, and it is {now} ns: times go on from 0")
        self.now = max(self.now, now)
        return 0

    def free(self, int64_t now, uint32_t n=1):
        """Learn that so many granules have become free."""
        self.tell(now, now)
        learn_free(&self.learnt, self.now, n)

    def reported(self, int64_t since, int64_t now):
        """Learn that a granule, which became free at `since`, is reported for the first time since."""
        self.tell(since, now)
        learn_reported(&self.learnt, since, self.now)

    def taken(self, int64_t since, int64_t now, bint reported=False):
        """Learn that a granule, which became free at `since`, is taken for use; `reported` if it had been."""
        self.tell(since, now)
        if not learn_taken(&self.learnt, since, self.now, reported):
            raise ValueError(f"no granule is left that became free about {since} ns")

    def age(self, int64_t now):
        """Return the age at which to report what has just become free."""
        self.tell(now, now)
        return learnt_age(&self.learnt, self.now)

    def is_old_enough(self, int64_t age):
        """Return whether to report a granule of this age, as of when `age` was called last.

        What is older than `age` says may be kept: it has waited for long, and costs less if it is taken soon.
        """
        return is_old_enough(&self.learnt, max(age, <int64_t>0))

    def next_old_enough(self, int64_t age):
        """Return the least age from this one on, and at most the break-even age, that is old enough."""
        return next_old_enough(&self.learnt, max(age, <int64_t>0))

    @property
    def account(self):
        """Nanoseconds of a granule: what reports that were too soon have cost beyond twice the optimum; 0 or more."""
        return self.learnt.account


cdef struct Run:
    Learner learnt
    const int64_t *starts       # of each interval, in their order
    int64_t *at                 # when each was reported; -1: it was not
    uint8_t *ended
    uint64_t nr_begun           # intervals that have begun
    uint64_t next               # the first of these that has not been looked at
    uint32_t *kept              # those that have, and were kept, the oldest first
    uint64_t first_kept, end_kept
    int64_t review_at           # when to look at these again


cdef inline void report(Run *r, uint64_t i, int64_t now) noexcept nogil:
    r.at[i] = now
    learn_reported(&r.learnt, r.starts[i], now)


cdef inline void review(Run *r, int64_t now) noexcept nogil:
    """Look at what was kept. O(kept)."""
    cdef uint64_t end = r.first_kept, i, j
    cdef int64_t age
    r.review_at = INT64_MAX
    for j in range(r.first_kept, r.end_kept):
        i = r.kept[j]
        age = now - r.starts[i]
        if r.ended[i]:
            continue
        if is_old_enough(&r.learnt, age):
            report(r, i, now)
        else:
            r.review_at = min(r.review_at, later(r.starts[i], next_old_enough(&r.learnt, age)))
            r.kept[end] = i
            end += 1
    r.end_kept = end
    # Not for each granule of a large group for itself.
    r.review_at = max(r.review_at, later(now, <int64_t>1 << r.learnt.slot_shift >> DECISION_SHIFT))


cdef inline int64_t report_kept(Run *r, int64_t now) noexcept nogil:
    """Report of the kept what is old enough; return when to look again. At the break-even age none is late."""
    while r.first_kept < r.end_kept:
        if not r.ended[r.kept[r.first_kept]]:
            if now - r.starts[r.kept[r.first_kept]] < r.learnt.break_even:
                break
            report(r, r.kept[r.first_kept], now)
        r.first_kept += 1
    if r.first_kept == r.end_kept:
        r.first_kept = r.end_kept = 0
        return INT64_MAX
    if now >= r.review_at:
        review(r, now)
        if r.first_kept == r.end_kept:
            return INT64_MAX
    return min(r.review_at, later(r.starts[r.kept[r.first_kept]], r.learnt.break_even))


cdef inline int64_t report_next(Run *r, int64_t now, int64_t age) noexcept nogil:
    """Report what has reached the age; return when the next will have."""
    while r.next < r.nr_begun:
        if not r.ended[r.next]:
            if now - r.starts[r.next] < age:
                return later(r.starts[r.next], age)
            if is_old_enough(&r.learnt, now - r.starts[r.next]):
                report(r, r.next, now)
            else:
                r.kept[r.end_kept] = r.next
                r.end_kept += 1
                r.review_at = now
        r.next += 1
    return INT64_MAX


cdef void report_until(Run *r, int64_t now, int64_t until) noexcept nogil:
    """Report what becomes old enough from now on, before a time. The age is decided anew at least once a slot."""
    cdef int64_t age, due
    while now < until:
        age = learnt_age(&r.learnt, now)
        due = report_next(r, now, age)
        due = min(due, report_kept(r, now))
        if due == INT64_MAX:
            return
        now = max(later(now, 1), min(due, later(now, <int64_t>1 << r.learnt.slot_shift)))


def run_learning(const int64_t[::1] starts, const int64_t[::1] ends, const uint32_t[::1] start_positions,
                 const uint32_t[::1] end_positions, const int64_t[::1] by_end, int64_t break_even, int64_t end):
    """Run the policy on intervals in the order of their beginnings; `by_end` are those that end, in that order.

    Returns when each was reported (-1: never), and the age after each beginning and end. Times are nanoseconds since
    the recording's beginning.
    """
    cdef Run r
    cdef uint64_t n = starts.shape[0], nr_ends = by_end.shape[0], nr_ended = 0, i
    cdef int64_t now = 0
    require_break_even(break_even)
    reported_at, over, kept = np.full(n + 1, -1, np.int64), np.zeros(n + 1, np.uint8), np.zeros(n + 1, np.uint32)
    ages = np.zeros(n + nr_ends + 1, np.int64)
    cdef int64_t[::1] at = reported_at, age_after = ages
    cdef uint8_t[::1] ended = over
    cdef uint32_t[::1] room = kept
    r.starts, r.at, r.ended, r.kept = &starts[0] if n else NULL, &at[0], &ended[0], &room[0]
    r.nr_begun = r.next = r.first_kept = r.end_kept = 0
    r.review_at = INT64_MAX
    with nogil:
        learn_start(&r.learnt, break_even, 0)
        age_after[0] = learnt_age(&r.learnt, 0)
        while r.nr_begun < n or nr_ended < nr_ends:
            if nr_ended == nr_ends or r.nr_begun < n and start_positions[r.nr_begun] <= end_positions[by_end[nr_ended]]:
                report_until(&r, now, starts[r.nr_begun])
                now = starts[r.nr_begun]
                learn_free(&r.learnt, now, 1)
                r.nr_begun += 1
            else:
                i = by_end[nr_ended]
                report_until(&r, now, ends[i])
                now = ends[i]
                learn_taken(&r.learnt, starts[i], now, r.at[i] >= 0)
                r.ended[i] = True
                nr_ended += 1
            age_after[r.nr_begun + nr_ended] = learnt_age(&r.learnt, now)
        report_until(&r, now, later(end, 1))
    return reported_at[:n], ages
