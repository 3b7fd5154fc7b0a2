"""Runs that begin at any page: where an arena's zones place them, and that each is freed in its own size only."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from allocators import refuse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pagehint as ph
from benchmarks.build import build_module
from pagehint.arena.mapping import Mapping

FREE, INSIDE, SIZE = "already free", "inside an allocated block", "not as one block of this size"
SECTION = 1 << 15
LOOKS = 16  # extents of about the same length, at most, among which the best is chosen


@pytest.fixture(scope="session")
def resizing(tmp_path_factory):
    RunMachine.resizing = build_module(Path(__file__).parent / "resizing.pyx", tmp_path_factory.mktemp("resizing"))
    return RunMachine.resizing


def placed(zones, **options):
    """An allocator whose runs may begin at any page."""
    pages = ph.PageAllocator(zones, pcp=False, **options)
    Mapping.adopt(pages)
    return pages


# ---- where


def test_equal_arrays_of_a_page_more_than_a_power_of_two_leave_no_gaps():
    arena = ph.Arena("8MiB")
    pages = arena.pages
    assert [pages.alloc_pages_exact(17) for _ in range(100)] == list(range(0, 1700, 17))
    pages.verify()


@pytest.mark.parametrize("nr_pages", [16, 17, 33, 63, 64, 65, 127, 128, 129, 257, 511, 512, 513, 1000])
@pytest.mark.parametrize("begin", [1, 63, 64, 65, 100, 127, 448])
def test_a_run_from_any_page_is_freed_in_its_own_size_only(begin, nr_pages):
    arena = ph.Arena("8MiB")
    pages = arena.pages
    first = [pages.alloc_pages_at(page) for page in range(begin)]
    pfn = pages.alloc_pages_exact(nr_pages)
    after = pages.alloc_pages_at(pfn + nr_pages)
    assert pfn == begin
    pages.verify()
    for wrong in {1, nr_pages - 1, nr_pages + 1, nr_pages + 64, 64 - begin % 64, 2 * nr_pages, 1 << 40} - {nr_pages}:
        refuse(pages, pages.free_pages_exact, pfn, wrong)
    for page in {pfn + 1, pfn | 63, (pfn | 63) + 1, pfn + nr_pages - 1} - {after}:
        if pfn < page < after:
            with pytest.raises(ph.BadPageError, match=INSIDE):
                pages.free_pages_exact(page, 1)
            refuse(pages, pages.free_pages, page, 0)
            refuse(pages, pages.free_pages_bulk, [after, page])
            refuse(pages, pages.free_pages_exact, page, after - page)
    pages.free_pages_exact(pfn, nr_pages)
    with pytest.raises(ph.BadPageError, match=FREE):
        pages.free_pages_exact(pfn, nr_pages)
    for pfn in [*first, after]:
        pages.free_pages(pfn)
    assert pages.zones[0].free_blocks().tolist() == [(0, 11)]


def test_the_last_page_of_a_leaf_is_no_block_if_its_run_goes_on_in_the_next_leaf():
    """Freed as a block, it would be a part of a run: of one whole leaf, or of a leaf's first pages."""
    for nr_pages in (17, 81):
        arena = ph.Arena("8MiB")
        pages = arena.pages
        first = [pages.alloc_pages_at(page) for page in range(63)]
        assert pages.alloc_pages_exact(nr_pages) == 63
        refuse(pages, pages.free_pages, 63)
        refuse(pages, pages.free_pages_bulk, [62, 63])
        refuse(pages, pages.free_pages_bulk, [63, 62])
        refuse(pages, pages.free_pages_bulk, [62, 63], [0, 0])
        pages.free_pages_exact(63, nr_pages)
        pages.free_pages_bulk(first)
        pages.verify()


def test_the_shortest_extent_is_taken_and_of_equal_ones_the_lowest():
    arena = ph.Arena("8MiB")
    pages = arena.pages
    runs = {n: pages.alloc_pages_exact(n) for n in (100, 16, 40, 17, 30, 18, 200, 19)}
    again = [pages.alloc_pages_exact(n) for n in (40, 20)]
    for n in (100, 40, 30, 200):
        pages.free_pages_exact(runs[n], n)
    pages.free_pages_exact(again[0], 40)
    assert pages.alloc_pages_exact(35) == runs[40]
    assert pages.alloc_pages_exact(35) == again[0]
    assert pages.alloc_pages_exact(29) == runs[30]
    assert pages.alloc_pages_exact(29) == runs[100]
    assert pages.alloc_pages_exact(71) == runs[100] + 29
    assert pages.alloc_pages_exact(72) == runs[200]
    pages.verify()


def test_what_is_long_enough_is_found_behind_many_that_are_not():
    """In a bin of extents of nearly equal size, the one that is long enough comes last."""
    pages = placed([ph.ZoneSpec("Normal", 0, 1 << 16)], max_page_order=16, min_order=9)
    longest = pages.alloc_pages_exact(1055)
    runs = []
    pages.alloc_pages_exact(16)
    for _ in range(40):
        runs.append(pages.alloc_pages_exact(1024))
        pages.alloc_pages_exact(16)
    rest = pages.stats().free_pages
    pages.alloc_pages_exact(rest)
    pages.free_pages_exact(longest, 1055)
    for pfn in runs:
        pages.free_pages_exact(pfn, 1024)
    assert pages.alloc_pages_exact(1050) == longest
    pages.verify()


def test_a_run_shorter_than_any_extent_is_found_as_a_block_or_in_an_extent():
    arena = ph.Arena("2MiB")
    pages = arena.pages
    for n in (1, 2, 3, 9, 15):
        pfn = pages.alloc_pages_exact(n)
        pages.verify()
        pages.free_pages_exact(pfn, n)
    assert pages.alloc_pages_exact(481) == 0
    for page in range(497, 512):
        pages.alloc_pages_at(page)
    assert pages.alloc_pages_exact(15) == 481  # in no block of order 4
    assert pages.alloc_pages_exact(1) == 496
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages_exact(1)
    pages.verify()


# ---- beside what else changes free memory


def test_runs_are_not_placed_in_isolate_pageblocks():
    pages = placed([ph.ZoneSpec("Normal", 0, 2048)])
    pfn = pages.alloc_pages_exact(700)
    pages.set_migratetype(0, 1024, "isolate")
    pages.verify()
    assert pages.alloc_pages_exact(20) == 1024
    pages.free_pages_exact(pfn, 700)
    pages.verify()
    assert pages.alloc_pages_exact(1000) == 1044
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages_exact(16)
    pages.set_migratetype(0, 1024, "movable")
    pages.verify()
    assert pages.alloc_pages_exact(1024) == 0


def test_a_run_that_becomes_isolate_in_part_is_freed_into_two_extents():
    pages = placed([ph.ZoneSpec("Normal", 0, 2048)])
    pfn = pages.alloc_pages_exact(700)
    pages.set_migratetype(512, 512, "isolate")
    pages.free_pages_exact(pfn, 700)
    pages.verify()
    assert pages.alloc_pages_exact(512) == 0
    assert pages.alloc_pages_exact(16) == 1024


def test_sections_go_offline_and_online_beside_runs():
    pages = placed([ph.ZoneSpec("Normal", 0, 3 * SECTION)], max_page_order=17, min_order=9)
    pfn = pages.alloc_pages_exact(1000)
    pages.offline(SECTION, SECTION)
    pages.verify()
    assert pages.alloc_pages_exact(SECTION) == 2 * SECTION
    pages.online(SECTION, SECTION)
    pages.verify()
    assert pages.alloc_pages_exact(2 * SECTION - 1000) == pfn + 1000


def test_a_run_is_placed_across_what_was_out_for_a_report():
    """While a batch is out, its pages are in no extent; after it they are in one with their neighbours."""
    arena = ph.Arena("32MiB")
    pages = arena.pages
    found = []

    def hint(blocks):
        found.append(pages.alloc_pages_exact(1000))
        pages.verify()
        assert not any(pfn < found[-1] + 1000 and found[-1] < pfn + (1 << order) for pfn, order, _ in blocks.tolist())
        pages.free_pages_exact(found[-1], 1000)

    pfn = pages.alloc_pages_exact(700)
    with pages.hinting(ph.PageHintingCallbacks(hint, max_pages=2), workqueue="manual"):
        pages.flush_hinting()
    assert found
    pages.verify()
    assert pages.alloc_pages_exact(8192 - 700) == pfn + 700


def test_many_extents_that_are_too_short_are_passed():
    """The same runs, in an empty arena, and behind 20,000 of which every other one was freed: at the same distances."""
    zones = [ph.ZoneSpec("Normal", 0, 1 << 20)]
    few, many = (placed(zones, max_page_order=20, min_order=9) for _ in range(2))
    before = [many.alloc_pages_exact(17 + i % 20) for i in range(20_000)]
    for i in range(0, 20_000, 2):
        many.free_pages_exact(before[i], 17 + i % 20)
    start = before[-1] + 17 + 19_999 % 20
    assert [many.alloc_pages_exact(n) - start for n in (100, 50, 3000)] == [
        few.alloc_pages_exact(n) for n in (100, 50, 3000)
    ]
    many.verify()


# ---- everything, against a model

START = 0x4400
LAYOUTS = {
    "arena": ([ph.ZoneSpec("Normal", 0, 2048)], {"max_page_order": 11, "min_order": 9}),
    "granules of leaves": ([ph.ZoneSpec("Normal", 0, 2048)], {"max_page_order": 11, "min_order": 7}),
    "granules smaller than leaves": ([ph.ZoneSpec("Normal", START, 1500)], {"max_page_order": 10, "min_order": 4}),
    "blocks smaller than leaves": ([ph.ZoneSpec("Normal", START + 7, 1500)], {"max_page_order": 4, "min_order": 3}),
    "holes": (
        [ph.ZoneSpec("Normal", START + 5, 2000, holes=[(START + 200, 13), (START + 512, 128), (START + 1100, 1)])],
        {"max_page_order": 10, "min_order": 6},
    ),
}


class RunMachine(RuleBasedStateMachine):
    """Runs and blocks as sets of pages; a run is at the front of the shortest, then lowest, free pages that suffice."""

    resizing = None

    @initialize(layout=st.sampled_from(sorted(LAYOUTS)))
    def begin(self, layout):
        zones, options = LAYOUTS[layout]
        self.pages = placed(zones, **options)
        [self.zone] = self.pages.zones
        self.order, self.slot = options["min_order"], 1 << max(options["min_order"] - 5, 0)
        self.max_order = options["max_page_order"]
        self.base = zones[0].start_pfn >> 10 << 10 if zones[0].start_pfn else 0
        self.present = np.zeros(1 << 12, bool)
        self.present[zones[0].start_pfn - self.base : zones[0].end_pfn - self.base] = True
        for pfn, n in zones[0].holes:
            self.present[pfn - self.base : pfn - self.base + n] = False
        self.free = self.present.copy()
        self.runs, self.blocks = {}, {}  # first page -> pages
        self.told = np.zeros(len(self.free) >> self.order, bool)  # granules that were reported since their last use
        self.pages.enable_hinting(
            ph.PageHintingCallbacks(lambda blocks: None, max_pages=2), workqueue="manual", threshold=10**6, delay=None
        )

    def extents(self):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.free, [False]]).astype(int)))
        return [(int(end - first), int(first)) for first, end in edges.reshape(-1, 2)]

    def use(self, page, n):
        assert self.free[page : page + n].all(), "in two hands"
        self.free[page : page + n] = False
        self.told[page >> self.order : ((page + n - 1) >> self.order) + 1] = False

    def granules(self):
        return self.free.reshape(-1, 1 << self.order).all(axis=1)

    @rule(n=st.integers(1, 300))
    def take(self, n):
        fitting = [extent for extent in self.extents() if extent[0] >= max(n, self.slot)]
        try:
            page = self.pages.alloc_pages_exact(n) - self.base
        except ph.OutOfMemoryError:
            assert not fitting
            return
        if n >= self.slot:
            assert page in [first for _, first in fitting]
            assert len(fitting) > LOOKS or page == min(fitting)[1]
        self.use(page, n)
        self.runs[page] = n

    @precondition(lambda self: self.runs)
    @rule(pick=st.integers(0, 99))
    def give(self, pick):
        page = sorted(self.runs)[pick % len(self.runs)]
        n = self.runs.pop(page)
        self.pages.free_pages_exact(page + self.base, n)
        self.free[page : page + n] = True

    @precondition(lambda self: self.runs)
    @rule(pick=st.integers(0, 99), wanted=st.integers(1, 300))
    def resize(self, pick, wanted):
        page = sorted(self.runs)[pick % len(self.runs)]
        n = self.runs[page]
        room = self.free[page + n : page + wanted].all() and page + wanted <= len(self.free)
        assert self.resizing.resize(self.pages, page + self.base, n, wanted) == room
        if room:
            self.free[page : page + n] = True
            told = self.told.copy()
            self.use(page, wanted)
            keep = np.arange(len(told)) > (page + max(wanted, n) - 1) >> self.order
            self.told[keep] = told[keep]
            self.runs[page] = wanted

    @rule(order=st.integers(0, 8))
    def take_block(self, order):
        try:
            page = self.pages.alloc_pages(min(order, self.max_order)) - self.base
        except ph.OutOfMemoryError:
            return
        self.use(page, 1 << min(order, self.max_order))
        self.blocks[page] = 1 << min(order, self.max_order)

    @rule(order=st.integers(0, 3), count=st.integers(1, 60))
    def take_blocks(self, order, count):
        try:
            pfns = self.pages.alloc_pages_bulk(count, order)
        except ph.OutOfMemoryError:
            return
        for pfn in pfns.tolist():
            self.use(pfn - self.base, 1 << order)
            self.blocks[pfn - self.base] = 1 << order

    @precondition(lambda self: self.blocks)
    @rule(first=st.integers(0, 99), step=st.integers(1, 5), bulk=st.booleans())
    def give_blocks(self, first, step, bulk):
        some = sorted(self.blocks)[first % len(self.blocks) :: step]
        orders = [self.blocks[page].bit_length() - 1 for page in some]
        if bulk:
            self.pages.free_pages_bulk(np.array(some, np.uint64) + self.base, orders)
        else:
            for page, order in zip(some, orders, strict=True):
                self.pages.free_pages(page + self.base, order)
        for page in some:
            n = self.blocks.pop(page)
            self.free[page : page + n] = True

    @rule()
    def report(self):
        self.pages.flush_hinting()
        hints = self.hints()
        assert not hints.any() or self.free.sum() < 2 << self.order
        self.told = self.granules() & ~hints

    @rule(page=st.integers(0, 2100), n=st.integers(1, 300))
    def refuse_any(self, page, n):
        self.refuse(page, n)

    @precondition(lambda self: self.runs)
    @rule(pick=st.integers(0, 99), by=st.sampled_from([-64, -1, 1, 64]), inside=st.sampled_from(["", "leaf", "page"]))
    def refuse_near(self, pick, by, inside):
        page = sorted(self.runs)[pick % len(self.runs)]
        at = page | 63 if inside == "leaf" else page + bool(inside)
        self.refuse(at, self.runs[page] + by)
        self.refuse(at, 1)

    def refuse(self, page, n):
        used = self.runs | self.blocks
        if n < 1 or used.get(page) == n or not self.present[page]:
            return
        why = FREE if self.free[page] else SIZE if page in used else INSIDE
        with pytest.raises(ph.BadPageError, match=re.escape(why)):
            self.pages.free_pages_exact(page + self.base, n)
        order = n.bit_length() - 1
        if page % (1 << order) == 0 and order <= self.max_order and used.get(page) != 1 << order:
            with pytest.raises(ph.BadPageError, match=re.escape(why)):
                self.pages.free_pages(page + self.base, order)
            with pytest.raises(ph.BadPageError, match=re.escape(why)):
                self.pages.free_pages_bulk([page + self.base], order)

    def hints(self):
        bits = np.unpackbits(self.zone.hint_bitmap.view(np.uint8), bitorder="little")
        return np.pad(bits, (0, len(self.told)))[: len(self.told)].astype(bool)

    @invariant()
    def all_is_as_in_the_model(self):
        if not hasattr(self, "pages"):
            return
        self.pages.verify()
        free = np.zeros_like(self.free)
        for pfn, order in self.zone.free_blocks().tolist():
            free[pfn - self.base : pfn - self.base + (1 << order)] = True
        assert (free == self.free).all()
        assert (self.hints() == (self.granules() & ~self.told)).all()

    def teardown(self):
        if hasattr(self, "pages"):
            self.pages.disable_hinting()
            for page, n in (self.runs | self.blocks).items():
                self.pages.free_pages_exact(page + self.base, n)
            self.pages.verify()
            assert self.pages.stats().allocated_pages == 0


@pytest.mark.usefixtures("resizing")
class TestRuns(RunMachine.TestCase):
    settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


@given(st.lists(st.tuples(st.booleans(), st.integers(16, 2000), st.integers(0, 1 << 30)), max_size=60))
def test_an_arena_places_runs_at_the_front_of_the_shortest_extent(steps):
    arena = ph.Arena("64MiB")
    pages = arena.pages
    used = np.zeros(16384, bool)
    living = []
    for take, n, which in steps:
        if take or not living:
            edges = np.flatnonzero(np.diff(np.concatenate([[True], used, [True]]).astype(int))).reshape(-1, 2)
            fitting = [(end - first, first) for first, end in edges.tolist() if end - first >= n]
            if not fitting:
                continue
            assert pages.alloc_pages_exact(n) == min(fitting)[1]
            used[min(fitting)[1] :][:n] = True
            living.append((min(fitting)[1], n))
        else:
            at, n = living.pop(which % len(living))
            pages.free_pages_exact(at, n)
            used[at : at + n] = False
    pages.verify()
