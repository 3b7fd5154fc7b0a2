"""What the host has dropped, and has again: a flush asks, and hints and reports it once more."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
from allocators import real, refuse
from hosts import RecordingHost
from processes import run_code

import pagehint as ph
from pagehint.testing.oracle import OracleAllocator

GRANULE = 512


class ForgetfulHost(RecordingHost):
    """Takes what is reported, and has some of it again when told to, by granules."""

    def __init__(self, max_pages: int = 4) -> None:
        super().__init__(max_pages)
        self.memory: set[int] = set()  # first PFNs of granules that it has memory for again
        self.asked: list[list[tuple[int, int, int]]] = []
        self.say = lambda dropped: dropped
        self.callbacks = ph.PageHintingCallbacks(self.hint_pages, max_pages, is_dropped=self.is_dropped)

    def hint_pages(self, blocks):
        for pfn, order, _ in blocks.tolist():
            self.memory -= set(range(pfn, pfn + (1 << order), GRANULE))
        return super().hint_pages(blocks)

    def is_dropped(self, blocks):
        assert not blocks.flags.writeable
        self.asked.append(blocks.tolist())
        answer = self.say(np.array([pfn not in self.memory for pfn in blocks["pfn"].tolist()]))
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def forgetful():
    return ForgetfulHost()


@pytest.fixture
def pages(forgetful):
    """32 granules, the second one in use, and all others reported."""
    pages = real("64MiB")
    pages.alloc_pages_at(GRANULE, 9)
    with pages.hinting(forgetful.callbacks, workqueue="manual", delay=None):
        pages.flush_hinting()
        assert sorted(forgetful.take())[0] == (0, 9)
        forgetful.asked.clear()
        yield pages
        pages.verify()


def granules(blocks):
    return sorted(at for pfn, order in blocks for at in range(pfn, pfn + (1 << order), GRANULE))


def test_a_flush_reports_again_what_came_back_and_nothing_else(pages, forgetful):
    forgetful.memory = {4 * GRANULE, 5 * GRANULE, 9 * GRANULE}
    before = pages.stats()
    pages.flush_hinting()
    assert forgetful.asked == [[(at * GRANULE, 9, 0) for at in range(32) if at != 1]]
    assert granules(forgetful.take()) == [4 * GRANULE, 5 * GRANULE, 9 * GRANULE]
    assert pages.stats().hints_set - before.hints_set == 3
    pages.flush_hinting()
    assert forgetful.take() == []
    assert pages.last_error is None


def test_what_is_hinted_or_in_use_is_not_asked_about(pages, forgetful):
    pages.free_pages(pages.alloc_pages_at(2 * GRANULE, 9), 9)
    taken = pages.alloc_pages_at(3 * GRANULE)
    pages.flush_hinting()
    assert [pfn // GRANULE for pfn, _, _ in forgetful.asked[0]] == [0, *range(4, 32)]
    pages.free_pages(taken)


def test_the_worker_asks_for_a_flush_only(forgetful):
    pages = real("64MiB")
    with pages.hinting(forgetful.callbacks, threshold=1, delay=0.0):
        pages.flush_hinting()
        asked = len(forgetful.asked)
        forgetful.memory = {0}
        for _ in range(100):
            pages.free_pages(pages.alloc_pages_at(GRANULE, 9), 9)
        assert len(forgetful.asked) == asked
        pages.flush_hinting()
        assert forgetful.memory == set()


@pytest.mark.parametrize(
    "answer", [None, False, ValueError("no"), np.zeros(3, bool), np.zeros(31), "yes"], ids=lambda value: str(value)[:8]
)
def test_a_host_that_cannot_say_changes_nothing(pages, forgetful, answer):
    forgetful.memory = {0}
    forgetful.say = lambda dropped: answer
    before = pages.stats()
    pages.flush_hinting()
    if answer is False:  # all of it: one answer stands for all
        assert len(granules(forgetful.take())) == 31
        return
    assert forgetful.take() == []
    assert pages.stats().hints_set == before.hints_set
    assert (pages.last_error is None) == (answer is None)
    pages.free_pages(pages.alloc_pages_at(2 * GRANULE, 9), 9)
    pages.flush_hinting()
    assert granules(forgetful.take()) == [2 * GRANULE]


def test_what_is_used_or_freed_while_the_host_is_asked(pages, forgetful):
    """The blocks are not out of circulation meanwhile. What is in use gets no hint, what was freed has it already."""

    def say(dropped):
        pages.alloc_pages_at(4 * GRANULE, 9)
        pages.alloc_pages_at(6 * GRANULE, 0)
        pages.free_pages(GRANULE, 9)
        pages.free_pages(pages.alloc_pages_at(8 * GRANULE, 9), 9)
        return np.zeros(len(dropped), bool)

    forgetful.say = say
    pages.flush_hinting()
    pages.verify()
    reported = granules(forgetful.take())
    assert reported == [at * GRANULE for at in range(32) if at not in (4, 6)]
    assert len(set(reported)) == len(reported)


def test_what_came_back_under_the_gate_or_in_isolation_waits_with_its_hint(forgetful):
    pages = real("64MiB", watermarks=(0, 13000, 13000))
    with pages.hinting(forgetful.callbacks, workqueue="manual", delay=None):
        pages.flush_hinting()
        forgetful.take()
        pages.set_migratetype(31 * GRANULE, GRANULE, "isolate")
        forgetful.memory = {20 * GRANULE, 31 * GRANULE}
        held = pages.alloc_pages_at(0, 10)
        pages.flush_hinting()
        assert forgetful.take() == []
        assert pages.stats().hints_pending == 2
        pages.free_pages(held, 10)
        pages.set_watermarks("Normal", None)
        pages.set_migratetype(31 * GRANULE, GRANULE, "movable")
        pages.flush_hinting()
        assert forgetful.memory == set()


def test_a_refusal_after_coming_back_is_retried_like_any_other(pages, forgetful, caplog):
    forgetful.memory = {3 * GRANULE}
    forgetful.answer = False
    pages.flush_hinting()
    assert granules(forgetful.take()) == [3 * GRANULE]
    assert pages.stats().hints_pending == 1
    forgetful.answer = None
    pages.flush_hinting()
    assert granules(forgetful.take()) == [3 * GRANULE]


def test_a_callback_that_asks_may_not_wait_for_its_own_pass(pages, forgetful):
    refused = []

    def say(dropped):
        for call in (pages.flush_hinting, pages.disable_hinting, pages.run_pending):
            try:
                call()
            except ph.HintingActiveError:
                refused.append(call)
        return dropped

    forgetful.say = say
    pages.flush_hinting()
    assert len(refused) == 3


def test_an_interrupt_while_the_host_is_asked_ends_the_flush_and_is_raised(pages, forgetful):
    forgetful.say = lambda dropped: KeyboardInterrupt()
    forgetful.memory = {0}
    with pytest.raises(KeyboardInterrupt):
        pages.flush_hinting()
    forgetful.say = lambda dropped: dropped
    pages.flush_hinting()
    assert granules(forgetful.take()) == [0]


def test_a_fork_while_the_host_is_asked():
    code = """
        import os
        import pagehint as ph
        pages = ph.PageAllocator("64MiB")
        children = []
        def is_dropped(blocks):
            pid = os.fork()
            children.append(pid)
            return False
        with pages.hinting(ph.PageHintingCallbacks(lambda blocks: None, 4, is_dropped=is_dropped), workqueue="manual"):
            pages.flush_hinting()
            try:
                pages.flush_hinting()
            except ph.HintingInactiveError:
                assert children == [0]
        pages.verify()
        pages.free_pages(pages.alloc_pages(9), 9)
        if children == [0]:
            os._exit(0)
        print(os.waitpid(children[0], 0)[1], pages.stats().pages_reported)
    """
    status, out, said = run_code(code)
    assert (status, out) == (0, f"0 {2 * (64 << 8)}\n"), said


def test_each_hold_of_the_lock_is_of_a_group_of_granules(forgetful):
    """A zone of many granules is asked about, and marked, in many rounds; the host gets a group at once at most."""
    pages = real("128GiB")
    host = ForgetfulHost(1024)
    with pages.hinting(host.callbacks, workqueue="manual", delay=None):
        pages.flush_hinting()
        before = sum(count for _, count in pages.stats(locks=True).locks.holds)
        host.asked.clear()
        host.memory = {at * GRANULE for at in (0, 5000, 65535)}
        pages.flush_hinting()
        groups = 65536 // 4096
        assert [len(blocks) for blocks in host.asked] == [4096] * groups
        assert host.memory == set()
        assert sum(count for _, count in pages.stats(locks=True).locks.holds) - before >= groups + 3


def test_disabling_does_not_wait_until_all_of_a_zone_has_been_asked_about():
    pages = real("1TiB")
    asked, all_is_reported = [], threading.Event()

    def is_dropped(blocks):
        asked.append(len(blocks))
        if all_is_reported.is_set():
            if len(asked) == 1:
                disabler.start()
            time.sleep(0.01)  # so that all groups would take longer than it takes to disable
        return True

    disabler = threading.Thread(target=pages.disable_hinting)
    pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: None, 1024, is_dropped=is_dropped), delay=None)
    pages.flush_hinting()
    asked.clear()
    all_is_reported.set()
    with pytest.raises(ph.HintingInactiveError):
        pages.flush_hinting()
    disabler.join()
    assert 1 <= len(asked) < 128
    assert not pages.hinting_enabled


@pytest.mark.parametrize("seed", range(6))
def test_what_comes_back_at_random_is_reported_as_the_oracle_says(seed):
    """Use, isolation, hints by hand and memory that comes back, in both; every count agrees after each step."""
    rng = np.random.default_rng(seed)
    made, options = [real("64MiB"), OracleAllocator("64MiB")], {"workqueue": "manual", "delay": None, "threshold": 5}
    hosts = [ForgetfulHost(2), ForgetfulHost(2)]
    for pages, host in zip(made, hosts, strict=True):
        pages.enable_hinting(host.callbacks, **options, clock=lambda: 0.0)
    used = {}
    for _ in range(150):
        step, granule, order = rng.integers(6), int(rng.integers(32)) * GRANULE, int(rng.integers(10))
        mine = [pfn for pfn in used if pfn // GRANULE == granule // GRANULE]
        for pages, host in zip(made, hosts, strict=True):
            if step == 0 and not mine:
                with contextlib.suppress(ph.BadPageError):  # isolate
                    used[pages.alloc_pages_at(granule, order)] = order
            elif step == 1 and mine:
                pages.free_pages(mine[0], used[mine[0]])
            elif step == 2:
                host.memory.add(granule)
                pages.flush_hinting()
            elif step == 3:
                pages.set_migratetype(granule, GRANULE, "isolate" if order < 3 else "movable")
            elif step == 4:
                pages.mark_free(granule, min(2 * GRANULE, 32 * GRANULE - granule))
            else:
                pages.run_pending()
        if step == 1 and mine:
            del used[mine[0]]
        stats, expected = made[0].stats().to_dict(), vars(made[1].stats())
        assert {name: count for name, count in stats.items() if name in expected} == expected
        assert hosts[0].asked == hosts[1].asked
        assert hosts[0].take() == hosts[1].take()
        made[0].verify()


# ---- by hand


def test_marked_by_hand_it_is_hinted_and_reported_again(pages, forgetful):
    assert pages.mark_free() == 31
    assert pages.stats().hints_pending == 31
    assert pages.mark_free() == 0
    pages.flush_hinting()
    assert len(granules(forgetful.take())) == 31
    assert pages.mark_free(3 * GRANULE + 5, 1) == 1
    assert pages.mark_free(GRANULE - 1, GRANULE + 2) == 2  # the one in between is in use
    assert pages.run_pending() == 0
    pages.threshold = 3
    assert pages.run_pending() == 1
    assert granules(forgetful.take()) == [0, 2 * GRANULE, 3 * GRANULE]


def test_marking_by_hand_reaches_the_threshold_and_arms_the_delay(few_host, clock):
    pages = real("64MiB")
    with pages.hinting(few_host.callbacks, workqueue="manual", threshold=4, delay=1.0, clock=clock):
        pages.flush_hinting()
        few_host.take()
        pages.mark_free(0, 2 * GRANULE)
        assert pages.run_pending() == 0
        clock.now += 1.5
        assert pages.run_pending() == 1
        assert granules(few_host.take()) == [0, GRANULE]
        pages.mark_free(0, 4 * GRANULE)
        assert pages.run_pending() == 1
        assert len(granules(few_host.take())) == 4


def test_marking_by_hand_counts_its_age_from_now(few_host, clock):
    pages = real("64MiB")
    with pages.hinting(few_host.callbacks, workqueue="manual", threshold=1, min_age=5.0, clock=clock):
        pages.flush_hinting()
        few_host.take()
        clock.now += 100
        pages.mark_free(0, GRANULE)
        clock.now += 4.9
        pages.run_pending()
        assert few_host.take() == []
        clock.now += 0.2
        pages.run_pending()
        assert granules(few_host.take()) == [0]


@pytest.mark.parametrize("min_order", [0, 3, 6, 9, 10])
def test_what_is_marked_by_hand_is_what_a_new_session_would_mark(min_order):
    """Over random use, at ragged ends and holes, for granules of each size."""
    rng = np.random.default_rng(min_order)
    specs = [ph.ZoneSpec("DMA", 77, 5000, holes=[(1000, 33)]), ph.ZoneSpec("Normal", 6000, 9001, holes=[(9000, 2048)])]
    pages = real(specs, min_order=min_order)
    used = [(pages.alloc_pages(int(order)), int(order)) for order in rng.integers(0, 9, 120)]
    for at in rng.permutation(len(used))[:60]:
        pages.free_pages(*used[at])
    with pages.hinting(RecordingHost(1).callbacks, workqueue="manual", delay=None):
        wanted = [zone.hint_bitmap.copy() for zone in pages.zones]
    with pages.hinting(RecordingHost(1).callbacks, workqueue="manual", delay=None, mark_free=False):
        assert pages.mark_free() == sum(int(np.bitwise_count(bits).sum()) for bits in wanted)
        for zone, bits in zip(pages.zones, wanted, strict=True):
            assert (zone.hint_bitmap == bits).all()
        pages.verify()


def test_mark_free_refused(pages):
    refuse(pages, pages.mark_free, 31 * GRANULE, GRANULE + 1)
    refuse(pages, pages.mark_free, 1 << 40, 1)
    refuse(pages, pages.mark_free, 0, 0, error=ValueError)
    refuse(pages, pages.mark_free, 0, error=TypeError)
    pages.disable_hinting()
    refuse(pages, pages.mark_free, error=ph.HintingInactiveError)


# ---- the bitmap of what is with the host


def bits_of(words):
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


def test_the_bitmap_of_what_is_with_the_host(pages, forgetful):
    [zone] = pages.zones
    words = zone.reported_bitmap()
    assert (words.dtype, words.shape, words.flags.writeable) == (np.uint64, (1,), False)
    assert bits_of(words) == [0, *range(2, 32)]
    pages.alloc_pages_at(5 * GRANULE + 7)
    pages.free_pages(pages.alloc_pages_at(6 * GRANULE, 9), 9)
    assert bits_of(words) == [0, *range(2, 32)]  # a copy
    assert bits_of(zone.reported_bitmap()) == [0, 2, 3, 4, *range(7, 32)]
    assert bits_of(zone.hint_bitmap) == [6]
    pages.flush_hinting()
    assert bits_of(zone.reported_bitmap()) == [0, 2, 3, 4, *range(6, 32)]
    pages.disable_hinting()
    assert not zone.reported_bitmap().any()


def test_the_bitmap_has_nothing_that_is_out(forgetful):
    pages = real("64MiB")
    seen = []
    forgetful.answer = lambda blocks: seen.append((blocks["pfn"].tolist(), bits_of(pages.zones[0].reported_bitmap())))
    with pages.hinting(forgetful.callbacks, workqueue="manual", delay=None):
        pages.flush_hinting()
    for out, bits in seen:
        assert not {pfn // GRANULE for pfn in out} & set(bits)
    assert sum(len(bits) for _, bits in seen) > 0


@pytest.mark.parametrize("min_order", [0, 3, 6, 9])
def test_the_bitmap_and_the_hints_are_all_that_is_free(min_order):
    """Over random use in a zone of a ragged start, and more than one group of granules for the small ones."""
    rng = np.random.default_rng(min_order)
    pages = real([ph.ZoneSpec("Normal", 333, 20000, holes=[(7000, 100)])], min_order=min_order)
    [zone] = pages.zones
    with pages.hinting(RecordingHost(1).callbacks, workqueue="manual", delay=None):
        pages.flush_hinting()
        used = [(pages.alloc_pages(int(order)), int(order)) for order in rng.integers(0, 9, 200)]
        for at in rng.permutation(len(used))[:120]:
            pages.free_pages(*used[at])
        free = np.zeros(-(-(20333 >> min_order) // 64) * 64 << min_order, bool)
        for pfn, order in zone.free_blocks().tolist():
            free[pfn - zone.hint_base_pfn : pfn - zone.hint_base_pfn + (1 << order)] = True
        whole = np.flatnonzero(free.reshape(-1, 1 << min_order).all(axis=1))
        hinted, with_host = bits_of(zone.hint_bitmap), bits_of(zone.reported_bitmap())
        assert not set(hinted) & set(with_host)
        assert sorted(hinted + with_host) == whole.tolist()
        reported = sum(r.pages for r in pages.explain() if r.name == "reported")
        assert reported == len(with_host) << min_order


def test_explain_of_a_model_takes_what_was_reported_for_gone(pages, forgetful):
    forgetful.memory = {0}
    assert pages.explain()["came back"].pages == 0
    assert forgetful.asked == []
    assert pages.explain()["reported"].pages == 31 * GRANULE
