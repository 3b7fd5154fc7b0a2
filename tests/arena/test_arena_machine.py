"""Any sequence of what can be done with an arena, against a plain model of its pages.

Each page of an array in use keeps what was written to it; what is dropped was free, and old enough, over the limit or
trimmed; and nothing stays over the limit that could go.
"""

from __future__ import annotations

import mmap

import numpy as np
from clocks import Clock
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pagehint as ph

MIB = 1 << 20
PAGE = mmap.PAGESIZE
GRANULE = 2 * MIB // PAGE
NR_GRANULES = 16
SIZE = 2 * MIB * NR_GRANULES
LARGEST_BLOCK = 4 * MIB // PAGE
SIZES = st.integers(16, 3 * GRANULE) | st.sampled_from([GRANULE, 2 * GRANULE, 4 * GRANULE])
LIMITS = st.none() | st.integers(1, NR_GRANULES)
SETTINGS = {
    "advice": st.sampled_from(["dontneed", "dontneed", "free"]),
    "max_pages": st.none() | st.integers(1, 5),
    "threshold": st.sampled_from([None, 1, 3, 1000]),
    "delay": st.sampled_from([None, 0.5, 3.0]),
    "min_age": st.sampled_from([None, 1.0, 1000.0]),
    "reserve": st.none() | st.integers(1, 5 * 2 * MIB),
}


class InUse:
    """An array, the pages of the arena it has, and what was written to the first byte of each."""

    def __init__(self, array, first, canaries):
        self.array = array
        self.first = first
        self.canaries = canaries

    @property
    def pages(self):
        return slice(self.first, self.first + len(self.canaries))


class ArenaMachine(RuleBasedStateMachine):
    @initialize(
        nr_granules=st.sampled_from([0, 8, 12, 14]), limit=LIMITS, settings=st.none() | st.fixed_dictionaries(SETTINGS)
    )
    def begin(self, nr_granules, limit, settings):
        self.clock = Clock()
        self.arena = ph.Arena(SIZE, hugepages=False)
        self.pages = self.arena.pages
        self.context = None  # of hinting
        self.arrays = []
        self.next_canary = 1
        # By page. What is in memory for certain, as it was written, and what may be, as it was read or advised away.
        self.used = np.zeros(NR_GRANULES * GRANULE, bool)
        self.written = np.zeros(NR_GRANULES * GRANULE, bool)
        self.perhaps = np.zeros(NR_GRANULES * GRANULE, bool)
        self.freed_at = np.full(NR_GRANULES, self.clock.now)
        if nr_granules:  # so that little is free
            self.allocate(nr_granules * GRANULE, "arena", True)
        self.set_limit(limit)
        if settings:
            self.enable(**settings)

    # ---- what is where

    def by_granule(self, pages):
        return pages.reshape(NR_GRANULES, GRANULE).sum(axis=1)

    @property
    def in_use(self):
        """Granules any page of which is."""
        return self.by_granule(self.used) > 0

    @property
    def hinted(self):
        [word] = self.pages.zones[0].hint_bitmap[:1].tolist()
        return np.array([word >> granule & 1 for granule in range(NR_GRANULES)], bool)

    @property
    def warm(self):
        """Granules that are hinted, or free but for what is kept for a loop's next array, which goes when given up."""
        words = self.pages.free_bitmap().view(np.uint8)
        free = self.by_granule(np.unpackbits(words, bitorder="little")[: len(self.used)])
        return self.hinted | ~self.in_use & (free < GRANULE)

    @property
    def gate_is_open(self):
        batch = min(self.pages.max_pages, max(self.pages.zones[0].managed_pages // 8 // GRANULE, 1))
        return (~self.used).sum() >= batch * GRANULE

    def over_the_limit(self):
        """Pages, by what is in use or warm."""
        kept = int((self.in_use | self.warm).sum()) * GRANULE
        return 0 if self.arena.limit is None else max(kept - self.arena.limit // PAGE, 0)

    def gone(self, granules, *, at_once):
        """These were given back."""
        pages = np.repeat(granules, GRANULE)
        assert not (pages & self.used).any(), "memory in use was given back"
        self.written &= ~pages
        if at_once:
            self.perhaps &= ~pages

    def reported(self, before):
        """Those that were warm before are so no more: they were given back."""
        gone = before & ~self.warm
        self.gone(gone, at_once=self.advice == "dontneed")
        return gone

    # ---- arrays

    def write(self, it, pages):
        """New canaries from a page of an array on."""
        canaries = (np.arange(self.next_canary, self.next_canary + len(it.canaries) - pages) % 255 + 1).astype(np.uint8)
        self.next_canary += 1
        it.array[::PAGE][pages:] = it.canaries[pages:] = canaries
        self.written[it.pages][pages:] = True
        self.perhaps |= self.written

    def place(self, array):
        return (array.__array_interface__["data"][0] - self.arena.address(0)) // PAGE

    def take(self, first, nr_pages):
        assert not self.used[first : first + nr_pages].any(), "pages are in two hands"
        self.used[first : first + nr_pages] = True

    def release(self, pages):
        before = self.in_use
        self.used[pages] = False
        self.freed_at[before & ~self.in_use] = self.clock.now

    @rule(nr_pages=SIZES, how=st.sampled_from(["arena", "numpy", "zeros"]), write=st.booleans())
    def allocate(self, nr_pages, how, write):
        if how == "arena":
            try:
                array = self.arena.empty(nr_pages * PAGE, "u1")
            except ph.OutOfMemoryError:
                return
        else:
            with self.arena.numpy():
                array = (np.zeros if how == "zeros" else np.empty)(nr_pages * PAGE, "u1")
            if not 0 <= self.place(array) < len(self.used):
                return  # no room
        it = InUse(array, self.place(array), np.zeros(nr_pages, np.uint8))
        self.take(it.first, nr_pages)
        if how == "zeros":
            self.perhaps[it.pages] = True
            assert not array.any(), "stale bytes"
        if how == "zeros" or write:
            self.write(it, 0)
            self.arrays.append(it)
        else:
            self.release(it.pages)

    @precondition(lambda self: self.arrays)
    @rule(pick=st.integers(0, 99), nr_pages=SIZES)
    def resize(self, pick, nr_pages):
        it = self.arrays[pick % len(self.arrays)]
        if not it.array.flags.owndata:
            return
        had, old = len(it.canaries), it.pages
        with self.arena.numpy():
            it.array.resize(nr_pages * PAGE, refcheck=False)
        first = self.place(it.array)
        canaries = np.zeros(nr_pages, np.uint8)
        canaries[: min(had, nr_pages)] = it.canaries[:nr_pages]
        if not 0 <= first < len(self.used):
            assert (it.array[::PAGE] == canaries).all()
            self.release(old)
            self.arrays.remove(it)
            return
        if first == it.first:
            self.take(first + had, max(nr_pages - had, 0))
            it.canaries = canaries
            self.release(slice(first + nr_pages, max(first + had, first + nr_pages)))
        else:
            it.canaries, it.first = canaries, first
            self.take(first, nr_pages)
            self.release(old)
        # What it had was copied to where it is, and NumPy has cleared the rest.
        self.written[it.pages] = self.perhaps[it.pages] = True
        assert (it.array[::PAGE] == it.canaries).all()
        self.write(it, min(had, nr_pages))

    @precondition(lambda self: self.arrays)
    @rule(pick=st.integers(0, 99))
    def free(self, pick):
        self.release(self.arrays.pop(pick % len(self.arrays)).pages)

    # ---- what gives back

    @precondition(lambda self: self.context is None)
    @rule(**SETTINGS)
    def enable(self, advice, max_pages, threshold, delay, min_age, reserve):
        self.advice, self.delay = advice, delay
        self.context = self.arena.hinting(
            advice,
            max_pages=max_pages,
            threshold=threshold,
            delay=delay,
            min_age=min_age,
            reserve=reserve,
            workqueue="manual",
            clock=self.clock,
        )
        self.context.__enter__()
        self.freed_at[:] = self.clock.now
        assert (self.hinted == ~self.in_use).all()

    @precondition(lambda self: self.context)
    @rule()
    def disable(self):
        self.context.__exit__(None, None, None)
        self.context = None
        assert not self.hinted.any()

    @rule(nr_granules=LIMITS)
    def set_limit(self, nr_granules):
        limit = None if nr_granules is None else nr_granules * 2 * MIB - nr_granules % 2 * PAGE
        self.arena.limit = limit
        assert self.arena.limit == limit

    @precondition(lambda self: self.context)
    @rule(max_pages=st.integers(1, 5))
    def change_batch(self, max_pages):
        self.pages.max_pages = max_pages

    @precondition(lambda self: self.context)
    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 3000.0]))
    def run(self, seconds):
        self.clock.sleep(seconds)
        before, excess, min_age = self.warm, self.over_the_limit(), self.pages.min_age or 0.0
        wanted = self.hinted.sum() >= (self.pages.threshold or self.pages.max_pages) or self.delay is not None
        self.pages.run_pending()
        gone = self.reported(before)
        young = gone & (self.freed_at + min_age > self.clock.now)
        most = excess + LARGEST_BLOCK - 1 if excess else 0
        assert young.sum() * GRANULE <= most, "more young ones than need be"
        if self.gate_is_open:
            assert self.over_the_limit() == 0 or not self.hinted.any(), "warm memory over the limit"
            assert seconds < 3000 or not wanted or not self.hinted.any(), "old memory that is not given back"
        else:
            assert not gone.any()

    @rule()
    def trim(self):
        on, before, resident = self.context is not None, self.warm, self.arena.resident_bytes
        nr_bytes = self.arena.trim()
        assert nr_bytes == resident - self.arena.resident_bytes
        assert self.pages.hinting_enabled == on
        if on:
            self.reported(before)
            assert not self.gate_is_open or not self.hinted.any()
        else:
            self.gone(~self.in_use, at_once=True)

    # ---- what always holds

    @invariant()
    def arrays_are_as_they_were_written(self):
        for it in self.arrays:
            assert (it.array[::PAGE] == it.canaries).all()

    @invariant()
    def memory_is_where_the_model_says(self):
        granules, pages, estimated = self.arena._mapping.resident()
        resident = np.zeros(NR_GRANULES, int)
        resident[granules] = pages
        assert not estimated
        assert (self.by_granule(self.written) <= resident).all(), "dropped"
        assert (resident <= self.by_granule(self.perhaps)).all(), "not dropped"
        assert not (self.hinted & self.in_use).any()

    @invariant()
    def the_allocator_is_consistent(self):
        self.pages.verify()
        assert self.arena.live_arrays == len(self.arrays)
        assert self.pages.stats().allocated_pages == self.used.sum()

    def teardown(self):
        if hasattr(self, "arena"):
            if self.context:
                self.context.__exit__(None, None, None)
            self.arrays.clear()
            self.arena.close()


TestArena = ArenaMachine.TestCase
