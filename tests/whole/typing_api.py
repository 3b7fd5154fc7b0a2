"""Every name of SPEC section 6 in use, with its types: `mypy --strict` reads this file, and the tests run it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_type

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import pagehint as ph
from pagehint import observing, testing
from pagehint.observing.holdings import Holdings
from pagehint.observing.metrics import this_process

if TYPE_CHECKING:
    from typing_extensions import CapsuleType

Mask = NDArray[np.bool_]


class RecordingHost:
    """Takes everything, in each of the ways a host may say so."""

    def __init__(self) -> None:
        self.blocks = 0
        self.calls: list[str] = []

    def takes(self, blocks: NDArray[np.void]) -> None:
        assert blocks.dtype == ph.BLOCK_DTYPE
        assert not blocks.flags.writeable
        self.blocks += len(blocks)

    def answers_for_all(self, blocks: NDArray[np.void]) -> bool:
        self.takes(blocks)
        return True

    def answers_for_each(self, blocks: NDArray[np.void]) -> Mask | list[bool]:
        self.takes(blocks)
        return np.ones(len(blocks), bool) if self.blocks % 2 else [True] * len(blocks)

    def prepare(self) -> int:
        self.calls.append("prepare")
        return 0

    def cleanup(self) -> None:
        self.calls.append("cleanup")


def allocators() -> list[ph.PageAllocator]:
    dma = ph.ZoneSpec("DMA", 1, 4095)
    normal = ph.ZoneSpec("Normal", 4096, 1 << 20, node=0, holes=[(8192, 512)])
    assert_type(dma.name, str)
    assert_type(dma.start_pfn, int)
    assert_type(normal.spanned_pages, int)
    assert_type(normal.node, int)
    assert_type(normal.holes, Sequence[tuple[int, int]])
    return [
        ph.PageAllocator("16GiB"),
        ph.PageAllocator(1 << 30, watermarks="linux"),
        ph.PageAllocator(
            [dma, normal],
            page_size=4096,
            max_page_order=10,
            min_order=None,
            pcp=True,
            watermarks=None,
        ),
        ph.PageAllocator((zone for zone in (dma, normal)), watermarks=(16, 32, 48), min_order=np.int64(9), pcp=False),
        ph.PageAllocator.x86_64("16GiB", nodes=1),
        ph.PageAllocator.x86_64(np.uint64(8 << 30), 2, watermarks=ph.Watermarks(1, 2, 3), pcp=False, min_order=9),
    ]


def allocate(pages: ph.PageAllocator) -> None:
    assert_type(pages.page_size, int)
    assert_type(pages.max_page_order, int)
    assert_type(pages.min_order, int)
    pfn = assert_type(pages.alloc_pages(), int)
    pages.free_pages(pfn)
    pfn = pages.alloc_pages(order=3, migratetype="unmovable", zone=pages.zones[-1])
    pages.free_pages(np.uint64(pfn), order=3)
    pfn = pages.alloc_pages(order=1, migratetype="reclaimable", zone="Normal")
    pages.free_pages(pfn, 1)
    pages.drain_pcp()
    pages.free_pages(assert_type(pages.alloc_pages_at(pfn, order=0), int), order=0)

    trace = np.array([(0, 3, ph.OP_ALLOC), (0, 3, ph.OP_FREE)], ph.OP_DTYPE)
    pages.run_ops(trace, np.zeros(1, np.uint64), migratetype="unmovable", zone="Normal")

    pfns = assert_type(pages.alloc_pages_bulk(8, order=0), NDArray[np.uint64])
    pages.free_pages_bulk(pfns[:2], order=0)
    pages.free_pages_bulk(pfns[2:4], order=np.zeros(2, np.uint32))
    pages.free_pages_bulk([int(pfn) for pfn in pfns[4:]], order=[0, 0, 0, 0])
    pages.free_pages_bulk(pages.alloc_pages_bulk(np.int32(2), 1, migratetype="movable", zone="Normal"), 1)

    pages.alloc_pages_at_bulk([int(pfn) for pfn in pages.zones[0].free_blocks()["pfn"][:1]], 1, order=0)
    pages.alloc_pages_at_bulk(np.empty(0, np.uint64), nr_pages=np.empty(0, np.uint64))

    first = assert_type(pages.alloc_pages_exact(700, migratetype="movable", zone=None), int)
    pages.free_pages_exact(first, 700)
    pages.drain_pcp()

    section = (128 << 20) // pages.page_size
    start = pages.zones[-1].start_pfn + pages.zones[-1].spanned_pages
    start -= start % section + section
    pages.offline(start, section)
    pages.online(start, nr_pages=section)
    pages.set_migratetype(start, 512, "isolate")
    pages.set_migratetype(start, 512, migratetype="movable")
    pages.set_watermarks(pages.zones[0], (1, 2, 3))
    pages.set_watermarks(pages.zones[0].name, None)
    pages.verify()


def look(pages: ph.PageAllocator) -> None:
    assert_type(pages.zones, tuple[ph.Zone, ...])
    for zone in pages.zones:
        assert_type(zone.name, str)
        assert_type(zone.node, int)
        assert_type(zone.start_pfn, int)
        assert_type(zone.spanned_pages, int)
        assert_type(zone.present_pages, int)
        assert_type(zone.managed_pages, int)
        assert_type(zone.free_pages, int)
        assert_type(zone.nr_free, tuple[int, ...])
        assert_type(zone.free_bitmap(), NDArray[np.uint64])
        assert_type(pages.free_block_at(zone.start_pfn), tuple[int, int] | None)
        assert_type(zone.watermarks, ph.Watermarks)
        assert_type(zone.watermarks.min + zone.watermarks.low + zone.watermarks.high, int)
        assert_type(zone.metadata_bytes, int)
        assert_type(zone.hint_bitmap, NDArray[np.uint64])
        assert_type(zone.reported_bitmap(), NDArray[np.uint64])
        blocks = assert_type(zone.free_blocks(), NDArray[np.void])
        assert int((1 << blocks["order"].astype(np.uint64)).sum()) == zone.free_pages
    assert_type(pages.free_bitmap(), NDArray[np.uint64])
    text = pages.buddyinfo() + pages.pagetypeinfo() + pages.zoneinfo()
    assert_type(text, str)
    locks = assert_type(pages.stats(locks=True).locks, ph.LockStats | None)
    assert locks is not None
    assert_type(locks.longest_wait_ns, int)
    assert_type(locks.holds, tuple[tuple[int, int], ...])
    stats = assert_type(pages.stats(), ph.Stats)
    assert_type(stats.nr_free, tuple[int, ...])
    assert_type(stats.to_dict(), dict[str, Any])
    count = stats.managed_pages - stats.free_pages - stats.pcp_pages - stats.reporting_pages - stats.allocated_pages
    assert assert_type(count, int) == 0
    hints = stats.hints_pending + stats.hints_set + stats.hints_cleared_by_alloc
    work = stats.work_queued + stats.work_runs + stats.scans + stats.blocks_isolated + stats.isolation_refused
    reports = stats.reports + stats.blocks_reported + stats.pages_reported + stats.blocks_failed
    rest = stats.report_errors + stats.prepare_errors + stats.blocks_returned + stats.lock_acquired
    assert_type(hints + work + reports + rest + stats.lock_contended, int)
    explanation = assert_type(pages.explain(), ph.Explanation)
    assert_type(explanation["reported"].pages, Any)
    assert_type(explanation[0].name, Any)
    assert_type(explanation.to_dict(), dict[str, int])
    html = stats._repr_html_() + explanation._repr_html_() + pages._repr_html_()
    assert assert_type(html, str)


def hint(pages: ph.PageAllocator) -> None:
    host = RecordingHost()
    callbacks = ph.PageHintingCallbacks(host.takes, max_pages=16, prepare=host.prepare, cleanup=host.cleanup)
    assert_type(callbacks.max_pages, int)
    pages.enable_hinting(
        callbacks,
        workqueue="thread",
        threshold=None,
        delay=2.0,
        max_report_order=None,
        mark_free=True,
        min_age=None,
        reserve="64MiB",
        reserve_age=1.5,
        clock=None,
    )
    pages.flush_hinting()
    assert assert_type(pages.min_age, float | Literal["auto"] | None) is None
    assert assert_type(pages.cost, float | None) is None
    assert assert_type(pages.reserve, int | None) == 64 << 20
    assert assert_type(pages.reserve_age, float) == 1.5
    pages.reserve, pages.reserve_age = None, 2.0
    assert assert_type(pages.hinting_enabled, bool)
    assert assert_type(pages.last_error, BaseException | None) is None
    pages.max_pages, pages.threshold, pages.delay = 8, 4, None
    assert_type(pages.delay, None)
    pages.threshold = None
    pages.disable_hinting()
    assert host.blocks
    assert host.calls[0] == "prepare"
    for answer in (host.answers_for_all, host.answers_for_each):
        manual = ph.PageHintingCallbacks(answer, 4)
        with pages.hinting(manual, workqueue="manual", delay=None, threshold=1, min_age=0, clock=lambda: 0.0) as same:
            assert assert_type(same, ph.PageAllocator) is pages
            assert_type(pages.mark_free(), int)
            assert_type(pages.run_pending(), int)
            assert_type(pages.run_until(2.5), int)
            assert_type(pages.next_due, float | None)
            assert_type(pages.now, float)
    replayed = ph.PageAllocator("64MiB", pcp=False).replay(
        np.zeros(0, ph.traces.OPERATION_DTYPE), host_rate="4GiB", progress=lambda done, total: None
    )
    assert_type(replayed.waits, int)
    assert not pages.hinting_enabled


def real_memory(advice: Literal["dontneed", "free"]) -> None:
    arena = ph.Arena("64MiB", hugepages=True)
    assert_type(arena.pages, ph.PageAllocator)
    assert_type(arena.address(0), int)
    assert_type(arena.resident_bytes, int)
    arena.close()
    with ph.Arena(64 << 20, hugepages=False) as arena, arena.hinting(advice=advice, max_pages=4, delay=None) as pages:
        assert assert_type(pages, ph.PageAllocator) is arena.pages
        a = arena.empty((1000, 1000), dtype="f8")
        a[:] = 1
        assert_type(arena.empty(10), NDArray[Any])
        assert_type(arena.empty((2, 3), np.float32, order="F"), NDArray[Any])
        del a
        with arena.numpy() as same:
            assert_type(same, ph.Arena)
            assert_type(np.zeros(10**5), np.ndarray[tuple[int], np.dtype[np.float64]])
        counts = assert_type(arena.numpy_counts, ph.numpy.Counts)
        assert assert_type(counts.arena, int) == 1
        ph.numpy.install(arena)
        ph.numpy.uninstall()
        arena.pages.flush_hinting()
        assert_type(arena.trim(), int)
        arena.limit = "32MiB"
        assert_type(arena.limit, int | None)
        arena.limit = None


def fail(pages: ph.PageAllocator) -> None:
    errors: list[type[ph.PageHintError]] = []
    for pfn in (1 << 51, 1 << 60):
        try:
            pages.free_pages(pfn)
        except ph.BadPageError as error:
            value: ValueError = error
            errors.append(type(error))
            assert hex(pfn) in str(value)
    try:
        pages.alloc_pages_bulk(1 << 50)
    except ph.OutOfMemoryError as error:
        memory: MemoryError = error
        assert "Normal" in str(memory)
    try:
        pages.flush_hinting()
    except ph.HintingInactiveError as error:
        inactive: RuntimeError = error
        assert "off" in str(inactive)
    try:
        with pages.hinting(ph.PageHintingCallbacks(RecordingHost().takes)):
            pages.enable_hinting(ph.PageHintingCallbacks(RecordingHost().takes))
    except ph.HintingActiveError as error:
        active: RuntimeError = error
        assert "already" in str(active)
    assert errors == [ph.BadPageError, ph.BadPageError]


if TYPE_CHECKING:

    def compiled(capsule: CapsuleType) -> ph.PageHintingCallbacks:
        return ph.PageHintingCallbacks(capsule, 16)

    def refused(pages: ph.PageAllocator, zone: ph.Zone) -> None:
        # Each line must be an error: `mypy --strict` complains of an ignore that is not needed.
        pages.alloc_pages(migratetype="isolate")  # type: ignore[arg-type]
        pages.alloc_pages(1.0)  # type: ignore[arg-type]
        pages.set_migratetype(0, 512, "highatomic")  # type: ignore[arg-type]
        pages.free_pages_bulk(3)  # type: ignore[arg-type]
        pages.hinting(ph.PageHintingCallbacks(RecordingHost().takes), threshhold=1)  # type: ignore[call-arg]
        pages.enable_hinting(ph.PageHintingCallbacks(RecordingHost().takes), "manual")  # type: ignore[call-arg]
        pages.hinting_enabled = True  # type: ignore[misc]
        pages.zones[0].free_pages = 0  # type: ignore[misc]
        ph.PageHintingCallbacks(1)  # type: ignore[arg-type]
        ph.PageHintingCallbacks(lambda blocks: "taken")  # type: ignore[arg-type, return-value]
        ph.PageAllocator("1GiB", 4096)  # type: ignore[call-arg]
        ph.PageAllocator.x86_64("1GiB", nodes=1, hugepages=True)  # type: ignore[call-arg]
        ph.Zone(1)  # type: ignore[arg-type]


class Fuzzed(testing.HintingMachine):
    """A user's machine."""

    workqueue = "thread"
    layouts = st.just(testing.ZoneLayout([ph.ZoneSpec("Normal", 0, 100)], max_page_order=3))
    failures = st.just("none")

    def callbacks(self) -> ph.PageHintingCallbacks:
        return ph.PageHintingCallbacks(self.hint_pages, 4)

    def hint_pages(self, blocks: NDArray[np.void]) -> None:
        self.memory[self.pages_of(blocks)] = 0


def fuzz() -> None:
    operations: list[testing.Operation] = [
        ("alloc", {"order": 3, "migratetype": "movable", "zone": None}),
        ("flush", {}),
    ]
    testing.run_operations(testing.LAYOUTS["one zone"], operations, workqueue="thread", pcp=True)


def recordings(folder: Path) -> None:
    events = np.zeros(3, ph.traces.EVENT_DTYPE)
    events["event"] = ph.traces.Event.FREE
    trace = ph.traces.Trace(events, {1: ("init",)}, snapshots={"before": b""})
    trace.to_parquet(folder / "a.parquet")
    reading = assert_type(ph.traces.convert(folder / "a.parquet", folder / "b.parquet"), ph.traces.Reading)
    assert assert_type(reading.damage, str | None) is None
    again = assert_type(ph.traces.read(str(folder / "b.parquet")), ph.traces.Trace)
    assert assert_type(again.counts, dict[ph.traces.Event, int]) == {ph.traces.Event.FREE: 3}
    operations = assert_type(ph.traces.operations_of(again, "kmem", passes=1), ph.traces.Operations)
    assert assert_type(operations.wrong_pages_end, int | None) is None
    checked = assert_type(ph.traces.check(again), ph.traces.Check)
    assert assert_type(checked.ok, bool) is False
    assert_type(checked.views[0].contradictions, Mapping[str, int])
    assert_type(again.names, dict[int, tuple[str, ...]])
    with ph.traces.open_source(folder / "b.parquet") as source:
        assert sum(len(piece) for piece in source.pieces()) == 3


class KeepNewest(ph.policies.Policy):
    """A user's policy: every second all but the granules that became free last."""

    def __init__(self, kept: int) -> None:
        self.kept = kept

    def start(self, recording: ph.policies.Recording) -> None:
        self.free: dict[int, int] = {}
        self.due = recording.begin

    def whole(self, pfn: int, time: int) -> None:
        self.free[pfn] = time

    def broken(self, pfn: int, time: int) -> None:
        self.free.pop(pfn, None)

    def next_time(self) -> int | None:
        return self.due

    def report(self, now: int) -> list[int]:
        self.due = now + ph.policies.SECOND
        old = list(self.free)[: -self.kept]
        for pfn in old:
            del self.free[pfn]
        return old


def policies(folder: Path) -> None:
    events = np.zeros(2, ph.traces.EVENT_DTYPE)
    events["event"], events["order"] = ph.traces.Event.FREE, 9
    events["pfn"], events["time"] = (0, 512), (0, 4 * ph.policies.SECOND)
    ph.traces.Trace(events).to_parquet(folder / "two.parquet")
    trace, before, after = ph.traces.read_recording(folder / "two.parquet")
    assert before is after is None
    found = assert_type(ph.replay(trace, ["age:1s", KeepNewest(1)], events="user"), ph.policies.Comparison)
    assert [score.policy for score in assert_type(found.scores, list[ph.policies.Score])] == ["age:1s", "keepnewest"]
    assert assert_type(found.wrong_pages_end, int | None) is None
    assert_type(found.floor.fragmented, float)
    assert_type(found.contradictions, Mapping[str, int])
    difference = ph.policies.compare(found.decisions["age:1s"], found.decisions["keepnewest"])
    assert assert_type(difference, ph.policies.Difference).same == 1
    curve = assert_type(ph.policies.age_curve(found.recording, [0.1, 1.0]), ph.policies.AgeCurve)
    assert len(curve.kept) == 2


def process_memory() -> None:
    with ph.memory.watch() as left:
        found = assert_type(ph.memory.owners(), ph.memory.Owners)
    assert_type(left, ph.memory.Watch)
    assert_type(left.after, ph.memory.Owners | None)
    assert assert_type(found.owners["unknown"].in_use, int) <= found.anonymous_rss
    assert_type(ph.memory.release().errors, Mapping[str, str])


def observed() -> None:
    observing.answer()
    [holdings] = assert_type(this_process(), list[Holdings])
    assert assert_type(holdings.resident, int) > 0
    assert [family.name for family in observing.Collector(lambda: [holdings]).collect()]


def main() -> None:
    fuzz()
    for pages in allocators():
        allocate(pages)
        look(pages)
        hint(pages)
        look(pages)
        fail(pages)
    real_memory("dontneed")
    real_memory("free")
    with tempfile.TemporaryDirectory() as folder:
        recordings(Path(folder))
        policies(Path(folder))
    process_memory()
    observed()
    assert ph.get_include()


if __name__ == "__main__":
    main()
