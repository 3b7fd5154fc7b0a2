"""Any sequence of operations, on the compiled allocator and the reference.

Twice: with manual work both report, and have the same answers, state and reports; with the worker's thread only the
real one reports, while the operations go on, and the reference knows what is allocated.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from conftest import Clock
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from layouts import LAYOUTS
from reference import COUNTS, ReferenceAllocator

import pagehint as ph

SECTION = 128
orders = st.integers(0, 12)
types = st.sampled_from(["movable", "unmovable", "reclaimable"])
pageblock_types = st.sampled_from(["isolate", "movable", "unmovable"])
picks = st.integers(0, 10**6)
layouts = st.sampled_from(sorted(LAYOUTS))
batches = st.integers(1, 3) | st.integers(1, 20)  # mostly so few that small zones are above the watermark gate
moods = st.sampled_from(["takes all", "raises", "sometimes", "refuses some", "prepare raises", "prepare refuses"])
pauses = st.sampled_from([0.0, 0.001, 0.005])
hintings = st.fixed_dictionaries(
    {
        "batch": batches,
        "threshold": st.sampled_from([None, 1, 3]),
        "delay": st.integers(0, 2),
        "least_order": st.booleans(),
        "mark_free": st.booleans(),
    }
)


class HostError(Exception):
    pass


def answer(mood, blocks):
    """What a host in this mood says to a report; by the block, so that two hosts say the same."""
    if mood == "raises" or (mood == "sometimes" and int(blocks["pfn"][0]) % 3 == 0):
        raise HostError
    if mood == "refuses some":
        return (blocks["pfn"] >> blocks["order"]) % 3 != 0
    return None


def answer_to_prepare(mood):
    if mood == "prepare raises":
        raise HostError
    return -1 if mood == "prepare refuses" else None


def refusal(allocator, name, *args):
    """Call it; the type of the error, or None if it did it."""
    try:
        getattr(allocator, name)(*args)
    except ph.PageHintError as error:
        return type(error)
    return None


class Operations(RuleBasedStateMachine):
    """The rules. What is reported, by whom and when is for the machines below to say and to check."""

    on = False
    delays: tuple[float | None, ...]  # of which the rules take one

    def build(self, name, **options):
        zones, layout_options = LAYOUTS[name]
        self.real = ph.PageAllocator(zones, **layout_options, **options)
        self.oracle = ReferenceAllocator(zones, **layout_options)
        self.mood = "takes all"

    # -- both do it, both agree

    def both(self, name, *args):
        """Call both; either both refuse with the same error, or both answer. Returns whether they did it."""
        outcome = [refusal(allocator, name, *args) for allocator in (self.real, self.oracle)]
        assert outcome[0] == outcome[1], (name, args, outcome)
        return outcome[0] is None

    def took(self, pfns, nr_pages):
        """The real one has allocated blocks of so many pages; it alone decides where."""
        for pfn in pfns:
            self.oracle.alloc_run_at(int(pfn), nr_pages)

    def alloc_bulk_real(self, *args):
        return self.real.alloc_pages_bulk(*args)

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
            assert pfn % (1 << order) == 0
            self.took([pfn], 1 << order)

    @rule(count=st.integers(0, 200), order=st.integers(0, 3), migratetype=types)
    def alloc_bulk(self, count, order, migratetype):
        try:
            pfns = self.alloc_bulk_real(count, order, migratetype)
        except ph.OutOfMemoryError:
            try:
                self.oracle.alloc_pages_bulk(count, order, migratetype)
            except ph.OutOfMemoryError:
                return
            raise
        assert len(pfns) == count
        self.took(pfns, 1 << order)

    @rule(pick=picks, order=orders, aligned=st.booleans())
    def alloc_at(self, pick, order, aligned):
        pfn = self.any_pfn(pick)
        self.both("alloc_pages_at", pfn >> order << order if aligned else pfn, order)

    @rule(nr_pages=st.one_of(st.integers(1, 70), st.integers(1, 1500)), migratetype=types)
    def alloc_exact(self, nr_pages, migratetype):
        try:
            pfn = self.real.alloc_pages_exact(nr_pages, migratetype)
        except ph.OutOfMemoryError:
            order = (nr_pages - 1).bit_length()
            if order <= self.real.max_page_order:
                assert self.oracle.can_alloc(order) is None
        else:
            self.took([pfn], nr_pages)

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

    @rule(pick=picks, blocks=st.integers(1, 3), migratetype=pageblock_types)
    def set_migratetype(self, pick, blocks, migratetype):
        self.retype(self.any_pfn(pick), blocks, migratetype)

    @rule(pick=picks, at=st.integers(0, 3), migratetype=pageblock_types)
    def set_migratetype_where_used(self, pick, at, migratetype):
        """Also of a part of a block, which must not come back as one."""
        if block := self.pick_used(pick):
            self.retype(block[0] + block[1] * at // 4, 1, migratetype)

    def retype(self, pfn, blocks, migratetype):
        unit = max(512, 1 << self.real.min_order)
        start = pfn // unit * unit
        end = start + blocks * unit
        for zone in self.oracle.zones:
            if start < zone.end_pfn and zone.start_pfn < end:
                start, end = max(start, zone.start_pfn), min(end, zone.end_pfn)
                break
        self.both("set_migratetype", start, end - start, migratetype)

    # -- hinting

    @rule(settings=hintings)
    def enable(self, settings):
        self.switch_on(
            settings["batch"],
            threshold=settings["threshold"],
            delay=self.delays[settings["delay"]],
            mark_free=settings["mark_free"],
            max_report_order=self.real.min_order if settings["least_order"] else None,
        )
        self.on = True

    @precondition(lambda self: self.on)
    @rule(settings=st.none() | hintings)
    def disable(self, settings):
        self.switch_off()
        self.on = False
        if settings:
            self.enable(settings)

    @rule(mood=moods)
    def change_mood(self, mood):
        self.mood = mood

    @precondition(lambda self: self.on)
    @rule(what=st.sampled_from(["max_pages", "threshold"]), value=batches)
    def change_settings(self, what, value):
        self.set(what, value)

    @precondition(lambda self: self.on)
    @rule(delay=st.integers(0, 2))
    def change_delay(self, delay):
        self.set("delay", self.delays[delay])

    def teardown(self):
        if hasattr(self, "real"):
            self.real.disable_hinting()


class AllocatorMachine(Operations):
    """Manual work, no page sets: all is deterministic, and everything is compared after every step."""

    delays = (None, 0.0, 2.0)

    @initialize(name=layouts, settings=st.none() | hintings)
    def begin(self, name, settings):
        self.build(name, pcp=False)
        self.clock = Clock()
        self.real_log, self.oracle_log = [], []
        if settings:
            self.enable(settings)

    def host(self, most, log, check):
        """The callbacks for one of the two."""

        def hint_pages(blocks):
            check(blocks)
            log.append([(int(b["pfn"]), int(b["order"]), int(b["zone"])) for b in blocks])
            return answer(self.mood, blocks)

        return ph.PageHintingCallbacks(
            hint_pages, most, lambda: answer_to_prepare(self.mood), lambda: log.append("cleanup")
        )

    def check(self, blocks):
        """Before the oracle has had its turn: what is reported is free, hinted, and its like was not reported since."""
        for block in blocks:
            zone = self.oracle.zones[int(block["zone"])]
            page, nr_pages = int(block["pfn"]) - zone.base, 1 << int(block["order"])
            assert zone.free[page : page + nr_pages].all()
            assert not zone.isolate[page : page + nr_pages].any()
            assert set(zone.granules(page, nr_pages)) <= zone.hints

    def switch_on(self, most, **options):
        for allocator, log, check in (
            (self.real, self.real_log, self.check),
            (self.oracle, self.oracle_log, lambda blocks: None),
        ):
            try:
                allocator.enable_hinting(self.host(most, log, check), workqueue="manual", clock=self.clock, **options)
            except ph.HintingActiveError:
                assert self.on

    def switch_off(self):
        self.both("disable_hinting")

    def set(self, name, value):
        for allocator in (self.real, self.oracle):
            setattr(allocator, name, value)

    @rule()
    def flush(self):
        self.both("flush_hinting")

    @rule(seconds=st.sampled_from([0.0, 0.05, 1.0, 2.0, 100.0]))
    def run_pending(self, seconds):
        self.clock.sleep(seconds)
        self.both("run_pending")

    @precondition(lambda self: self.on)
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


class OwningHost:
    """Has a page from when it is reported until it answers; serves one enable. Runs on the worker's thread."""

    def __init__(self, machine, most):
        self.machine = machine
        self.live, self.prepared = True, False
        self.callbacks = ph.PageHintingCallbacks(self.hint_pages, most, self.prepare, self.cleanup)

    def expect(self, truth, what):
        # An exception would only be a failed report to the engine; the machine looks here after every step.
        if not truth:
            self.machine.broken.append(what)

    def prepare(self):
        self.expect(self.live, "prepare after disable_hinting")
        self.expect(not self.prepared, "prepare twice")
        result = answer_to_prepare(self.machine.mood)
        self.prepared = result is None
        return result

    def cleanup(self):
        self.expect(self.live, "cleanup after disable_hinting")
        self.expect(self.prepared, "cleanup without prepare")
        self.prepared = False

    def hint_pages(self, blocks):
        machine = self.machine
        machine.reports += 1
        self.expect(self.live, "a report after disable_hinting")
        self.expect(self.prepared, "a report outside prepare and cleanup")
        self.expect(0 < len(blocks) <= machine.most, f"{len(blocks)} blocks at once")
        for pfn, order, index in blocks.tolist():
            zone = machine.real.zones[index]
            self.expect(zone.start_pfn <= pfn < zone.start_pfn + zone.spanned_pages, "the wrong zone")
            self.expect(machine.real.min_order <= order <= machine.real.max_page_order, f"a block of order {order}")
        pages = machine.pages_of(blocks)
        self.expect(len(np.unique(pages)) == len(pages), "a page twice in one report")
        machine.at_host[pages] = True
        try:
            self.expect(not machine.taken[pages].any(), "a page is reported that is not free")
            self.expect(not machine.closed[pages].any(), "a page is reported that is isolated")
            self.expect(machine.untold[pages >> machine.real.min_order].all(), "a granule is reported twice")
            time.sleep(machine.pause)
            self.expect(not machine.taken[pages].any(), "a page is handed out while it is reported")
            taken = answer(machine.mood, blocks)
            told = pages if taken is None else machine.pages_of(blocks[taken])
            # Before it comes back: from then on the machine may touch it again.
            machine.untold[told >> machine.real.min_order] = False
            machine.due[told >> machine.real.min_order] = False
            return taken
        finally:
            machine.at_host[pages] = False


class ThreadedMachine(Operations):
    """The worker's thread reports while the rules run, with and without page sets.

    The rules are one thread, so what is allocated is known exactly; what is out, and where the next block will be, is
    not.
    Both sides write first and read the other's mark then, so that one of them sees it when a page has two owners.
    """

    delays = (None, 0.0, 0.001)
    ROOM = 1 << 16  # pages; zones grow

    @initialize(name=layouts, pcp=st.booleans(), mood=st.just("takes all") | moods, pause=pauses, settings=hintings)
    def begin(self, name, pcp, mood, pause, settings):
        self.build(name, pcp=pcp)
        self.pcp, self.mood, self.pause = pcp, mood, pause
        self.most, self.reports, self.broken = 0, 0, []
        self.at_host = np.zeros(self.ROOM, bool)
        self.taken = ~self.free_pages()  # allocated or absent
        self.closed = np.zeros(self.ROOM, bool)  # isolated, and every batch from before is back
        # By granule: what may be reported, as it has been touched since; and what must be by the end of a flush.
        self.untold = np.ones(self.ROOM >> self.real.min_order, bool)
        self.due = np.ones(self.ROOM >> self.real.min_order, bool)
        self.enable(settings)

    # -- who has what

    @staticmethod
    def pages_of(blocks):
        runs = [np.arange(block["pfn"], block["pfn"] + (1 << block["order"]), dtype=np.int64) for block in blocks]
        return np.concatenate([*runs, np.empty(0, np.int64)])

    def of_zones(self, name):
        """A property of pages, by PFN, as the oracle has it."""
        pages = np.zeros(self.ROOM, bool)
        for zone in self.oracle.zones:
            span = slice(zone.start_pfn, zone.end_pfn)  # the arrays reach further, perhaps into the next zone
            pages[span] = getattr(zone, name)[zone.start_pfn - zone.base : zone.end_pfn - zone.base]
        return pages

    def free_pages(self):
        return self.of_zones("free")

    def touch(self, pages):
        for granules in (self.untold, self.due):
            granules[np.flatnonzero(pages) >> self.real.min_order] = True

    def release(self):
        """What the oracle has free is nobody's, before the real one may give it to the host."""
        free = self.free_pages()
        self.closed &= self.of_zones("isolate")
        self.touch(free & self.taken)
        self.taken &= ~free

    def claim(self):
        """What the oracle has not free is ours, once the real one has answered."""
        new = ~self.free_pages() & ~self.taken
        self.taken |= new
        assert not self.at_host[new].any(), "a page is handed out that is out for reporting"
        self.touch(new)
        if self.pcp:
            # Page sets take more than was asked for: what is not in the buddy has been touched, or is just out.
            self.untold[self.not_in_buddy()] = True

    def not_in_buddy(self):
        """Granules of which the real one has not every page in its zones."""
        absent = np.ones(self.ROOM, bool)
        for zone in self.real.zones:
            absent[self.pages_of(zone.free_blocks())] = False
        return absent.reshape(-1, 1 << self.real.min_order).any(axis=1)

    def both(self, name, *args):
        """As for manual work, but the oracle first: what it frees may be reported before the real one returns."""
        expected = refusal(self.oracle, name, *args)
        self.release()
        outcome = refusal(self.real, name, *args)
        assert outcome == expected, (name, args, outcome, expected)
        self.claim()
        return outcome is None

    def took(self, pfns, nr_pages):
        super().took(pfns, nr_pages)
        self.claim()

    def alloc_bulk_real(self, *args):
        """If a batch goes out in its midst, it gives back what it has and begins again: anything may be touched."""
        before = self.reports
        try:
            return super().alloc_bulk_real(*args)
        finally:
            if self.reports != before:
                self.untold[:] = True

    # -- hinting

    def switch_on(self, most, **options):
        host = OwningHost(self, most)
        if self.on:
            host.live = False
            with pytest.raises(ph.HintingActiveError):
                self.real.enable_hinting(host.callbacks, **options)
            return
        self.host, self.most = host, most
        # Nothing is out now. What is free already is reported if it is marked, or touched once more.
        self.untold[:] = options["mark_free"] or self.not_in_buddy()
        self.due[:] = self.untold
        self.closed = self.of_zones("isolate")
        self.real.enable_hinting(host.callbacks, **options)

    def switch_off(self):
        self.real.disable_hinting()
        if self.on:
            self.host.live = False
            assert not self.host.prepared, "no cleanup"
        assert not self.at_host.any()

    def set(self, name, value):
        if name == "max_pages":
            self.most = max(self.most, value)  # a batch of the old size may be out
        setattr(self.real, name, value)

    @rule()
    def flush(self):
        if not self.on:
            with pytest.raises(ph.HintingInactiveError):
                self.real.flush_hinting()
            return
        self.real.flush_hinting()
        self.closed = self.of_zones("isolate")

    @precondition(lambda self: self.on)
    @rule()
    def everything_reportable_is_reported(self):
        self.mood = "takes all"
        self.flush()
        assert not self.broken, self.broken
        self.same_free_blocks()
        order = self.real.min_order
        for zone, real in zip(self.oracle.zones, self.real.zones, strict=True):
            bits = np.unpackbits(real.hint_bitmap.view(np.uint8), bitorder="little")
            for granule in range(len(zone.free) >> order):
                reportable = zone.granule_is_free(granule) and not zone.isolate[granule << order]
                if reportable and zone.usable_free >= zone.watermarks.low + (self.real.max_pages << order):
                    assert not self.due[(zone.base >> order) + granule], "not reported"
                    assert not bits[granule], "still to be reported"

    @rule(pause=pauses)
    def change_pause(self, pause):
        """How long a report takes; not under one switch of threads."""
        self.pause = pause

    @rule(seed=picks, top=orders)
    def churn(self, seed, top):
        """A burst, without the checks between, so that much happens while one report is out."""
        rng = np.random.default_rng(seed)
        for pick, order in zip(rng.integers(0, 10**6, 20).tolist(), rng.integers(0, top + 1, 20).tolist(), strict=True):
            if pick % 4 < 2:
                self.free(pick)
            elif pick % 4 == 2:
                self.alloc(order, "movable", None)
            else:
                self.alloc_at(pick, order, True)

    @rule()
    def drain(self):
        self.real.drain_pcp()

    # -- always

    def same_free_blocks(self):
        """While nothing is out for reporting or in a page set."""
        for real, oracle in zip(self.real.zones, self.oracle.zones, strict=True):
            assert real.free_blocks().tolist() == oracle.free_blocks().tolist()

    @invariant()
    def nothing_is_lost(self):
        if not hasattr(self, "real"):
            return
        assert not self.broken, self.broken
        self.real.verify()
        real, oracle = self.real.stats(), self.oracle.stats()
        assert real.managed_pages == oracle.managed_pages
        assert real.allocated_pages == oracle.allocated_pages
        assert not (self.free_pages() & self.taken).any()
        if not self.on:
            assert real.isolated_pages == real.hints_pending == 0
            if real.pcp_pages == 0:
                self.same_free_blocks()

    def teardown(self):
        if hasattr(self, "real"):
            self.switch_off()
            self.on = False
            self.real.drain_pcp()
            self.nothing_is_lost()


TestAllocator = AllocatorMachine.TestCase
TestThreadedAllocator = ThreadedMachine.TestCase
