"""`min_age="auto"`: the age is learnt in each zone, from pauses that are counted exactly, and its regret is told."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from allocators import real
from hosts import RecordingHost
from processes import survives
from waiting import wait_for

import pagehint as ph
from pagehint.stats.regret import regret_of

AUTO = {"workqueue": "manual", "min_age": "auto", "mark_free": False}
GRANULE = 2 << 20


def is_near(value: float, wanted: float) -> bool:
    return wanted <= value <= wanted * 1.13


# ---- what it does


def test_what_a_loop_takes_again_is_kept_and_what_stays_free_is_not(host, clock):
    pages = real("64MiB")
    with pages.hinting(host.callbacks, clock=clock, **AUTO):
        for _ in range(30):
            block = pages.alloc_pages_at(1024, 10)
            clock.sleep(0.01)
            pages.free_pages(block, 10)
            for _ in range(30):
                clock.sleep(0.01)
                pages.run_pending()
        assert is_near(pages.stats().regret.ages[0], 0.3)
        before = len(host.blocks)
        assert before <= 4  # until it knew
        clock.sleep(0.2)
        pages.run_pending()
        assert host.blocks[before:] == [(1024, 10)]


def test_memory_that_is_not_wanted_again_is_reported_sooner_and_sooner(host, clock):
    pages = real("256MiB")
    blocks = [pages.alloc_pages_at(i * 512, 9) for i in range(100)]
    with pages.hinting(host.callbacks, clock=clock, **AUTO):
        ages = [pages.stats().regret.ages[0]]
        for block in blocks:
            pages.free_pages(block, 9)
            for _ in range(10):
                clock.sleep(0.05)
                pages.run_pending()
            ages.append(pages.stats().regret.ages[0])
    assert len(host.blocks) == 100
    assert 0.05 < ages[0] < 0.08
    assert ages[-1] < 0.01


def test_a_flush_reports_at_any_age_and_the_pause_goes_on(host, clock):
    pages = real("64MiB")
    block = pages.alloc_pages_at(1024, 9)
    with pages.hinting(host.callbacks, clock=clock, **AUTO):
        pages.free_pages(block, 9)
        pages.flush_hinting()
        assert host.blocks == [(1024, 9)]
        clock.sleep(0.25)
        pages.run_pending()  # an allocation does not read the clock
        pages.alloc_pages_at(1024, 0)
        regret = pages.stats().regret
        assert (sum(regret.short_pauses), sum(regret.too_soon), regret.long_pauses) == (1, 1, 0)
        assert regret.within(1.0) == GRANULE
        assert regret.within(0.2) == 0


def test_memory_that_is_hinted_again_by_hand_begins_another_pause(host, clock):
    pages = real("64MiB")
    block = pages.alloc_pages_at(1024, 9)
    with pages.hinting(host.callbacks, clock=clock, **AUTO):
        pages.free_pages(block, 9)
        pages.flush_hinting()
        clock.sleep(0.3)
        pages.mark_free(1024, 512)
        pages.verify()
        clock.sleep(0.3)
        pages.run_pending()
        pages.alloc_pages_at(1024, 9)
        pages.verify()
        regret = pages.stats().regret
        assert sum(regret.short_pauses) == 1
        [bin_of_it] = np.flatnonzero(regret.short_pauses)
        assert regret.edges[bin_of_it] <= 0.3 < regret.edges[bin_of_it + 1]


def test_switched_on_again_it_knows_nothing(host, clock):
    pages = real("64MiB")
    block = pages.alloc_pages_at(1024, 9)
    for _ in range(2):
        with pages.hinting(host.callbacks, clock=clock, **AUTO):
            assert sum(pages.stats().regret.short_pauses) == 0
            assert 0.05 < pages.stats().regret.ages[0] < 0.08
            pages.free_pages(block, 9)
            clock.sleep(0.01)
            block = pages.alloc_pages_at(1024, 9)
            assert sum(pages.stats().regret.short_pauses) == 1
            pages.verify()
        assert pages.stats().regret is None
    with pages.hinting(host.callbacks, clock=clock, workqueue="manual", min_age=1.0):
        assert pages.stats().regret is None


# ---- every pause is counted, once


class Books:
    """What has happened to each granule, kept apart from the allocator."""

    def __init__(self, granules: int, cost: float) -> None:
        self.used = np.zeros(granules * 512, bool)
        self.since = np.full(granules, np.nan)  # nan: in use, or not known
        self.reported_at = np.full(granules, np.nan)
        self.cost, self.short, self.too_soon, self.long, self.reported, self.kept = cost, 0, 0, 0, 0, 0.0

    def give(self, pfn: int, order: int, now: float) -> None:
        self.used[pfn : pfn + (1 << order)] = False
        for granule in range(pfn >> 9, (pfn + (1 << order) - 1 >> 9) + 1):
            if not self.used[granule * 512 : granule * 512 + 512].any():
                self.since[granule] = now

    def take(self, pfn: int, order: int, now: float) -> None:
        for granule in range(pfn >> 9, (pfn + (1 << order) - 1 >> 9) + 1):
            if not np.isnan(self.since[granule]):
                reported = not np.isnan(self.reported_at[granule])
                if now - self.since[granule] >= self.cost - 1e-9:
                    self.long += 1
                else:
                    self.short += 1
                    self.too_soon += reported
                    self.kept += 0 if reported else now - self.since[granule]
            self.since[granule] = self.reported_at[granule] = np.nan
        self.used[pfn : pfn + (1 << order)] = True

    def report(self, blocks: np.ndarray, now: float) -> None:
        for pfn, order in zip(blocks["pfn"].tolist(), blocks["order"].tolist(), strict=True):
            for granule in range(pfn >> 9, pfn + (1 << order) >> 9):
                assert np.isnan(self.reported_at[granule])
                if not np.isnan(self.since[granule]):
                    self.reported_at[granule] = now
                    self.reported += 1
                    self.kept += now - self.since[granule]


@pytest.mark.parametrize("seed", range(6))
def test_pauses_and_reports_are_those_of_books_that_are_kept_apart(clock, seed):
    rng = np.random.default_rng(seed)
    pages, cost = real("128MiB"), [0.1, 1.0, 5.0][seed % 3]
    books = Books(64, cost)
    begin = clock()
    callbacks = ph.PageHintingCallbacks(lambda blocks: books.report(blocks, clock() - begin), max_pages=16)
    held: list[tuple[int, int]] = []
    with pages.hinting(callbacks, clock=clock, cost=cost, **AUTO):
        for _ in range(800):
            order = int(rng.choice([0, 3, 9, 9, 9, 10, 10]))
            if rng.random() < 0.5:
                pfn = int(rng.integers(64 * 512 >> order)) << order
                if not books.used[pfn : pfn + (1 << order)].any():
                    pages.alloc_pages_at(pfn, order)
                    books.take(pfn, order, clock() - begin)
                    held.append((pfn, order))
            elif held:
                pfn, order = held.pop(int(rng.integers(len(held))))
                pages.free_pages(pfn, order)
                books.give(pfn, order, clock() - begin)
            clock.sleep(float(rng.choice([0, 2**-10, 2**-6, 2**-3, 0.5])))
            pages.run_pending()
            if rng.random() < 0.02:
                pages.flush_hinting()
            pages.verify()
        clock.sleep(2 * cost)  # what is free has been so for long enough to count
        pages.run_pending()
        regret = pages.stats().regret
        still_free = int((~np.isnan(books.since)).sum())
        assert sum(regret.short_pauses) == books.short > 4
        assert sum(regret.too_soon) == books.too_soon
        assert regret.reported == books.reported > 20
        paid = (books.kept + books.reported * cost) * GRANULE / 2**30
        assert books.long <= regret.long_pauses <= books.long + still_free
        assert regret.cost == pytest.approx(paid, rel=1e-3, abs=1e-3 * cost * GRANULE / 2**30 * len(books.since))


@pytest.mark.parametrize("granules", [1, 16])
def test_whoever_takes_memory_just_after_its_report_gains_no_more_than_the_bound(host, clock, granules):
    pages = real("64MiB")
    with pages.hinting(host.callbacks, clock=clock, **AUTO):
        blocks = [pages.alloc_pages_at(i * 512, 9) for i in range(granules)]
        for _ in range(150):
            for block in blocks:
                pages.free_pages(block, 9)
            before, waited = len(host.blocks), 0.0
            while len(host.blocks) == before and waited < 2.0:
                clock.sleep(2**-9)
                waited += 2**-9
                pages.run_pending()
            blocks = [pages.alloc_pages_at(i * 512, 9) for i in range(granules)]
            clock.sleep(2**-8)
        regret = pages.stats().regret
        assert sum(regret.too_soon) > 2 * granules
        gib = granules * GRANULE / 2**30
        late = 150 * 2**-4 * gib  # looks are a while apart, and bins have a width
        assert regret.cost <= 2 * regret.optimum + 3 * gib + late


def test_the_figures_of_other_ages_are_what_the_pauses_would_have_cost():
    zones = [{"break_even": 10**9, "age": 10**8, "edges": [0, 10**8, 5 * 10**8, 10**9], "short_pauses": [8, 4, 0],
              "too_soon": [2, 1, 0], "long_pauses": 2, "reported": 5, "kept": 3.0 * 10**9}] * 2  # fmt: skip
    regret = regret_of(zones, 2**30)
    assert regret.cost == 2 * (3 + 5)
    assert regret.cost_of(0.0) == 2 * (8 + 4 + 2)
    assert regret.cost_of(0.1) == pytest.approx(2 * (8 * 0.05 + 4 * 1.1 + 2 * 1.1))
    assert regret.cost_of(1.0) == pytest.approx(2 * (8 * 0.05 + 4 * 0.3 + 2 * 2))
    assert regret.optimum == pytest.approx(2 * (8 * 0.05 + 4 * 0.3 + 2))
    assert (regret.within(0.1), regret.within(0.5), regret.within(0.3)) == (4 << 30, 6 << 30, 4 << 30)
    assert "reported at an age of 0.1, 0.1 s now" in repr(regret)
    with pytest.raises(ValueError, match="break-even age of 1 s"):
        regret.cost_of(1.5)


def test_explain_and_stats_tell_it(host, clock):
    pages = real("64MiB")
    with pages.hinting(host.callbacks, clock=clock, **AUTO):
        assert "a report costs 1 s" in repr(pages.explain())
        assert "a report costs 1 s" in repr(pages.stats())
        assert "<pre>Regret" in pages.explain()._repr_html_()
        assert "<pre>Regret" in pages.stats()._repr_html_()
        assert "regret" not in pages.stats().to_dict()
        assert pages.stats().regret.to_dict()["break_even"] == 1.0


# ---- its settings


def test_its_settings_are_shown_and_may_be_changed(host, clock):
    pages = real("64MiB")
    with pages.hinting(host.callbacks, clock=clock, cost=0.25, **AUTO):
        assert (pages.min_age, pages.cost, pages.threshold) == ("auto", 0.25, 1)
        pages.min_age = "auto"
        assert pages.cost == 0.25
        pages.max_pages, pages.delay, pages.threshold = 4, None, 7
        assert (pages.min_age, pages.threshold) == ("auto", 7)
        pages.cost = 0.5
        assert (pages.min_age, pages.cost, pages.stats().regret.break_even) == ("auto", 0.5, 0.5)
        for bad in (0, -1.0, float("nan")):
            with pytest.raises(ValueError, match="cost"):
                pages.cost = bad
        assert pages.cost == 0.5
        pages.min_age = 2.0
        assert (pages.min_age, pages.cost, pages.stats().regret) == (2.0, None, None)
        with pytest.raises(ValueError, match="min_age='auto'"):
            pages.cost = 1.0
        pages.min_age = "auto"
        assert (pages.min_age, pages.cost) == ("auto", 1.0)
        pages.verify()
    with pytest.raises(ph.HintingInactiveError):
        pages.cost = 1.0


@pytest.mark.parametrize("first", [None, 3.0, "auto"])
@pytest.mark.parametrize("then", [None, 2.0, "auto"])
def test_what_is_warm_when_the_age_begins_or_ends_to_be_learnt_goes_back_and_is_counted(host, clock, first, then):
    pages = real("64MiB")
    blocks = [pages.alloc_pages_at(512 * i, 9) for i in range(2, 8)]
    with pages.hinting(host.callbacks, clock=clock, **{**AUTO, "min_age": first, "threshold": 8, "delay": None}):
        pages.free_pages(blocks[0], 9)
        pages.free_pages(blocks[1], 9)
        pages.flush_hinting()
        pages.alloc_pages_at(blocks[1], 9)  # its stamp, from before, stands for nothing
        for block in blocks[2:4]:
            pages.free_pages(block, 9)
        clock.sleep(0.01)
        pages.min_age = then
        pages.verify()
        pages.alloc_pages_at(blocks[2], 9)
        pages.free_pages(blocks[1], 9)
        pages.verify()
        clock.sleep(4.0)
        pages.free_pages(blocks[4], 9)
        pages.threshold = 1
        pages.run_pending()
        pages.verify()
        told = {page for pfn, order in host.blocks for page in range(pfn, pfn + (1 << order), 512)}
        assert {blocks[1], blocks[3]} <= told
        assert blocks[2] not in told
        regret = pages.stats().regret
        assert (regret is not None) == (then == "auto")
        if first == then == "auto":
            assert sum(regret.short_pauses) == 2
        elif then == "auto":
            assert sum(regret.short_pauses) == 1  # that of blocks[2]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"min_age": "auto", "cost": 0}, ValueError),
        ({"min_age": "auto", "cost": 1e10}, ValueError),
        ({"min_age": "auto", "cost": float("nan")}, ValueError),
        ({"min_age": "auto", "cost": "1s"}, TypeError),
        ({"min_age": 1.0, "cost": 1.0}, ValueError),
        ({"cost": 1.0}, ValueError),
        ({"min_age": "Auto"}, TypeError),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_hinting_off(host, options, error):
    pages = real("64MiB")
    with pytest.raises(error):
        pages.enable_hinting(host.callbacks, **options)
    assert not pages.hinting_enabled


def test_a_reserve_stays_for_its_own_age(host, clock):
    pages = real("64MiB")
    block = pages.alloc_pages_at(1024, 9)
    with pages.hinting(host.callbacks, clock=clock, reserve=GRANULE, reserve_age=3.0, **AUTO):
        pages.free_pages(block, 9)
        clock.sleep(2.9)
        pages.run_pending()
        assert host.blocks == []
        clock.sleep(0.2)
        pages.run_pending()
        assert host.blocks == [(1024, 9)]
        pages.verify()


# ---- with threads, real memory and forks


def test_an_arena_keeps_what_a_loop_uses_and_gives_back_the_rest():
    with ph.Arena("64MiB") as arena, arena.hinting(min_age="auto", cost=0.2):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            array = arena.empty(8 << 20, dtype=np.uint8)
            array[:] = 1
            del array
            time.sleep(0.002)
        regret = arena.pages.stats().regret
        assert sum(regret.short_pauses) > 100
        assert sum(regret.too_soon) < sum(regret.short_pauses) / 4
        wait_for(lambda: arena.resident_bytes < 4 << 20)
        arena.pages.verify()


def test_threads_that_take_and_free_while_the_age_is_learnt():
    pages = ph.PageAllocator("256MiB")
    host = RecordingHost()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            order = int(rng.choice([0, 9, 10]))
            pfns = pages.alloc_pages_bulk(4, order=order)
            if rng.random() < 0.1:
                time.sleep(0.002)
            pages.free_pages_bulk(pfns, order=order)

    with pages.hinting(host.callbacks, min_age="auto", cost=0.02):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            pages.verify()
            repr(pages.explain())
        for thread in threads:
            thread.join()
        pages.verify()
        pages.flush_hinting()
        pages.verify()


def test_the_age_begins_and_ends_to_be_learnt_while_threads_work_and_the_worker_reports():
    pages = ph.PageAllocator("256MiB")
    host = RecordingHost()
    over = threading.Event()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not over.is_set():
            order = int(rng.choice([0, 9, 10]))
            pfns = pages.alloc_pages_bulk(4, order=order)
            if rng.random() < 0.1:
                time.sleep(0.002)
            pages.free_pages_bulk(pfns, order=order)

    with pages.hinting(host.callbacks, threshold=1):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        try:
            for step in range(150):
                pages.min_age = ("auto", None, 0.01)[step % 3]
                if step % 3 == 0:
                    pages.cost = (1e-3, 0.1, 1e6)[step // 3 % 3]
                time.sleep(0.005)
                pages.verify()
        finally:
            over.set()
            for thread in threads:
                thread.join()
        pages.min_age = "auto"
        pages.flush_hinting()
        pages.verify()


def test_a_forked_child_may_learn_for_itself():
    survives(
        """
        import os
        import pagehint as ph

        pages = ph.PageAllocator("64MiB", pcp=False)
        host = ph.PageHintingCallbacks(lambda blocks: None)
        pages.enable_hinting(host, min_age="auto")
        pages.free_pages(pages.alloc_pages_at(1024, 9), 9)
        child = os.fork()
        pages.verify()
        if child == 0:
            with pages.hinting(host, min_age="auto"):
                pages.free_pages(pages.alloc_pages_at(4096, 9), 9)
                pages.verify()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        pages.verify()
        """
    )
