"""Any sequence of operations, on the compiled allocator and the reference: same answers, state, reports."""

from __future__ import annotations

import numpy as np
from conftest import Clock
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from layouts import LAYOUTS
from reference import COUNTS, ReferenceAllocator

import pagehint as ph

SECTION = 128
orders = st.integers(0, 12)
types = st.sampled_from(["movable", "unmovable", "reclaimable"])
picks = st.integers(0, 10**6)


class HostError(Exception):
    pass


def host(machine, log, check):
    """The callbacks for one of the two; both hosts fail alike, by the machine's mood and the block."""

    def hint_pages(blocks):
        check(blocks)
        log.append([(int(b["pfn"]), int(b["order"]), int(b["zone"])) for b in blocks])
        if machine.mood == "raises" or (machine.mood == "sometimes" and int(blocks["pfn"][0]) % 3 == 0):
            raise HostError
        if machine.mood == "refuses some":
            return (blocks["pfn"] >> blocks["order"]) % 3 != 0
        return None

    def prepare():
        if machine.mood == "prepare raises":
            raise HostError
        return -1 if machine.mood == "prepare refuses" else None

    return ph.PageHintingCallbacks(hint_pages, machine.batch, prepare, lambda: log.append("cleanup"))


class AllocatorMachine(RuleBasedStateMachine):
    @initialize(name=st.sampled_from(sorted(LAYOUTS)))
    def build(self, name):
        zones, options = LAYOUTS[name]
        self.real = ph.PageAllocator(zones, pcp=False, **options)
        self.oracle = ReferenceAllocator(zones, **options)
        self.clock, self.mood, self.batch = Clock(), "takes all", 16
        self.real_log, self.oracle_log = [], []

    # -- both do it, both agree

    def both(self, name, *args, **kwargs):
        """Call both; either both refuse with the same error, or both answer. Returns whether they did it."""
        outcome = []
        for allocator in (self.real, self.oracle):
            try:
                getattr(allocator, name)(*args, **kwargs)
                outcome.append(None)
            except ph.PageHintError as error:
                outcome.append(type(error))
        assert outcome[0] == outcome[1], (name, args, outcome)
        return outcome[0] is None

    def used(self):
        return sorted((zone.base + page, n) for zone in self.oracle.zones for page, n in zone.used.items())

    def pick_used(self, pick):
        used = self.used()
        return used[pick % len(used)] if used else None

    def any_pfn(self, pick):
        edges = [zone.start_pfn for zone in self.oracle.zones] + [zone.end_pfn for zone in self.oracle.zones]
        low, high = min(edges) - 2, max(edges) + 2
        return max(low + pick % (high - low), 0)

    # -- allocate

    @rule(order=orders, migratetype=types, zone=st.sampled_from([None, "DMA", "Normal"]))
    def alloc(self, order, migratetype, zone):
        order %= self.real.max_page_order + 1
        if zone is not None and zone not in {each.name for each in self.real.zones}:
            zone = None
        try:
            pfn = self.real.alloc_pages(order, migratetype, zone)
        except ph.OutOfMemoryError:
            assert self.oracle.can_alloc(order, zone) is None
        else:
            self.oracle.alloc_pages_at(pfn, order)

    @rule(count=st.integers(0, 200), order=st.integers(0, 3), migratetype=types)
    def alloc_bulk(self, count, order, migratetype):
        try:
            pfns = self.real.alloc_pages_bulk(count, order, migratetype)
        except ph.OutOfMemoryError:
            try:
                self.oracle.alloc_pages_bulk(count, order, migratetype)
            except ph.OutOfMemoryError:
                return
            raise
        assert len(pfns) == count
        for pfn in pfns:
            self.oracle.alloc_pages_at(int(pfn), order)

    @rule(pick=picks, order=orders)
    def alloc_at(self, pick, order):
        self.both("alloc_pages_at", self.any_pfn(pick), order)

    @rule(nr_pages=st.one_of(st.integers(1, 70), st.integers(1, 1500)), migratetype=types)
    def alloc_exact(self, nr_pages, migratetype):
        try:
            pfn = self.real.alloc_pages_exact(nr_pages, migratetype)
        except ph.OutOfMemoryError:
            order = (nr_pages - 1).bit_length()
            if order <= self.real.max_page_order:
                assert self.oracle.can_alloc(order) is None
        else:
            self.oracle.alloc_run_at(pfn, nr_pages)

    # -- free

    @rule(pick=picks)
    def free(self, pick):
        if block := self.pick_used(pick):
            self.both("free_pages_exact", *block)

    @rule(pick=picks)
    def free_by_order(self, pick):
        block = self.pick_used(pick)
        if block and block[1] & (block[1] - 1) == 0 and block[1] <= 1 << self.real.max_page_order:
            self.both("free_pages", block[0], block[1].bit_length() - 1)

    @rule(pick=picks, share=st.integers(1, 4), twice=st.booleans())
    def free_bulk(self, pick, share, twice):
        blocks = [b for b in self.used() if b[1] & (b[1] - 1) == 0 and b[1] <= 1 << self.real.max_page_order]
        blocks = [b for b in blocks if b[0] % share == pick % share]
        order = np.random.default_rng(pick).permutation(len(blocks))
        pfns = np.array([blocks[i][0] for i in order], np.uint64)
        each = np.array([blocks[i][1].bit_length() - 1 for i in order], np.uint32)
        if twice and len(pfns):
            pfns, each = np.append(pfns, pfns[0]), np.append(each, each[0])
        self.both("free_pages_bulk", pfns, each)

    @rule(pick=picks, order=orders)
    def free_wrongly(self, pick, order):
        self.both("free_pages", self.any_pfn(pick), order)

    @rule(pick=picks, shift=st.integers(-2, 2), order=orders)
    def free_nearly_right(self, pick, shift, order):
        if block := self.pick_used(pick):
            self.both("free_pages", max(block[0] + shift, 0), order)
            self.both("free_pages_exact", block[0], max(block[1] + shift, 1))

    # -- hotplug and migratetypes

    @rule(pick=picks, sections=st.integers(1, 4))
    def offline(self, pick, sections):
        self.both("offline", self.any_pfn(pick) // SECTION * SECTION, sections * SECTION)

    @rule(pick=picks, sections=st.integers(1, 4))
    def online(self, pick, sections):
        self.both("online", self.any_pfn(pick) // SECTION * SECTION, sections * SECTION)

    @rule(pick=picks)
    def online_again(self, pick):
        offline = [zone.base + int(i) for zone in self.oracle.zones for i in np.flatnonzero(zone.offline)]
        if offline:
            self.both("online", offline[pick % len(offline)] // SECTION * SECTION, SECTION)

    @rule(pick=picks, blocks=st.integers(1, 3), migratetype=st.sampled_from(["isolate", "movable", "unmovable"]))
    def set_migratetype(self, pick, blocks, migratetype):
        unit = max(512, 1 << self.real.min_order)
        start = self.any_pfn(pick) // unit * unit
        end = start + blocks * unit
        for zone in self.oracle.zones:
            if start < zone.end_pfn and zone.start_pfn < end:
                start, end = max(start, zone.start_pfn), min(end, zone.end_pfn)
                break
        self.both("set_migratetype", start, end - start, migratetype)

    # -- hinting

    def check(self, blocks):
        """Before the oracle has had its turn: what is reported is free, hinted, and its like was not reported since."""
        for block in blocks:
            zone = self.oracle.zones[int(block["zone"])]
            page, nr_pages = int(block["pfn"]) - zone.base, 1 << int(block["order"])
            assert zone.free[page : page + nr_pages].all()
            assert not zone.isolate[page : page + nr_pages].any()
            assert set(zone.granules(page, nr_pages)) <= zone.hints

    @rule(
        batch=st.integers(1, 20),
        threshold=st.sampled_from([None, 1, 3]),
        delay=st.sampled_from([None, 0.0, 2.0]),
        report_order=st.booleans(),
        mark_free=st.booleans(),
    )
    def enable(self, batch, threshold, delay, report_order, mark_free):
        self.batch = batch
        for allocator, log, check in (
            (self.real, self.real_log, self.check),
            (self.oracle, self.oracle_log, lambda blocks: None),
        ):
            try:
                allocator.enable_hinting(
                    host(self, log, check),
                    workqueue="manual",
                    threshold=threshold,
                    delay=delay,
                    mark_free=mark_free,
                    max_report_order=allocator.min_order if report_order else None,
                    clock=self.clock,
                )
            except ph.HintingActiveError:
                assert self.was_on
        self.was_on = True

    was_on = False

    @rule()
    def disable(self):
        self.both("disable_hinting")
        self.was_on = False

    @rule()
    def flush(self):
        self.both("flush_hinting")

    @rule(seconds=st.sampled_from([0.0, 0.05, 1.0, 2.0, 100.0]))
    def run_pending(self, seconds):
        self.clock.sleep(seconds)
        self.both("run_pending")

    @rule(
        mood=st.sampled_from(["takes all", "raises", "sometimes", "refuses some", "prepare raises", "prepare refuses"])
    )
    def change_mood(self, mood):
        self.mood = mood

    @precondition(lambda self: self.was_on)
    @rule(what=st.sampled_from(["max_pages", "threshold"]), value=st.integers(1, 20))
    def change_settings(self, what, value):
        for allocator in (self.real, self.oracle):
            setattr(allocator, what, value)

    @precondition(lambda self: self.was_on)
    @rule(value=st.sampled_from([None, 0.5, 2.0]))
    def change_delay(self, value):
        for allocator in (self.real, self.oracle):
            allocator.delay = value

    @precondition(lambda self: self.was_on)
    @rule()
    def everything_reportable_is_reported(self):
        self.mood = "takes all"
        self.both("flush_hinting")
        for zone in self.oracle.zones:
            waiting = [g for g in zone.hints if not zone.isolate[g << self.real.min_order]]
            assert not waiting or zone.gated

    # -- always

    @invariant()
    def same_state(self):
        if not hasattr(self, "real"):
            return
        self.real.verify()
        assert self.real_log == self.oracle_log
        for real, oracle in zip(self.real.zones, self.oracle.zones, strict=True):
            assert real.free_blocks().tolist() == oracle.free_blocks().tolist()
            bits = np.unpackbits(real.hint_bitmap.view(np.uint8), bitorder="little")
            assert set(np.flatnonzero(bits).tolist()) == oracle.hints
            assert real.managed_pages == oracle.managed_pages
            assert real.nr_free == oracle.nr_free
        real, oracle = self.real.stats(), self.oracle.stats()
        for name in (
            *COUNTS,
            "managed_pages",
            "free_pages",
            "pcp_pages",
            "isolated_pages",
            "allocated_pages",
            "hints_pending",
        ):
            assert getattr(real, name) == getattr(oracle, name), name
        assert real.managed_pages == real.free_pages + real.allocated_pages
        assert real.isolated_pages == 0

    def teardown(self):
        if hasattr(self, "real"):
            self.real.disable_hinting()


TestAllocator = AllocatorMachine.TestCase
