"""`PageAllocator.replay` against the same calls one by one in plain Python, hinting by a clock that is set by hand."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from replay_model import ReplayModel, random_rows

import pagehint as ph
from pagehint.testing.oracle import COUNTS
from pagehint.testing.strategies import ZoneLayout, zone_layouts
from pagehint.traces.operations import OPERATION_DTYPE


def as_table(rows):
    table = np.zeros(len(rows), OPERATION_DTYPE)
    for name, column in zip(("time", "op", "pfn", "order", "migratetype"), zip(*rows, strict=True), strict=False):
        table[name] = column
    table["row"] = np.arange(len(rows)) + 100
    return table


def isolate_some(pages, model, rng):
    """Give a pageblock of one zone the type isolate in both, if there is one."""
    zone = model.zones[int(rng.integers(len(model.zones)))]
    unit = max(512, 1 << pages.min_order)
    start = max(int(rng.integers(zone.start_pfn, zone.end_pfn)) // unit * unit, zone.start_pfn)
    end = min((start // unit + 1) * unit, zone.end_pfn)
    for each in (pages, model):
        with suppress(ph.BadPageError):  # of several zones, which both have to refuse
            each.set_migratetype(start, end - start, "isolate")


def same(pages, model):
    for real, zone in zip(pages.zones, model.zones, strict=True):
        assert real.free_blocks().tolist() == zone.free_blocks().tolist()
        bits = np.unpackbits(real.hint_bitmap.view(np.uint8), bitorder="little")
        assert set(np.flatnonzero(bits).tolist()) == zone.hints
    stats = pages.stats()
    assert {name: getattr(stats, name) for name in COUNTS} == vars(model.count)
    assert stats.reporting_pages == 0
    pages.verify()
    model.verify()


def both(layout, seed):
    """An allocator and its model, with some memory in use, and some pageblocks isolate."""
    rng = np.random.default_rng(seed)
    pages = ph.PageAllocator(layout.zones, pcp=False, **layout.options)
    model = ReplayModel(layout.zones, **layout.options)
    model.start(0)
    for _ in range(int(rng.integers(0, 40))):
        order = int(rng.integers(0, pages.max_page_order + 1))
        place = model.can_alloc(order)
        if place is not None:
            pfn = place[0].base + place[1]
            pages.alloc_pages_at(pfn, order)
            model.alloc_pages_at(pfn, order)
    if rng.random() < 0.5:
        isolate_some(pages, model, rng)
    return pages, model, rng


@given(zone_layouts(), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 1.0]))
def test_operations_without_hinting(layout, seed, wrong):
    pages, model, rng = both(layout, seed)
    rows = random_rows(model.zones, rng, 300, pages.max_page_order, wrong)
    result = pages.replay(as_table(rows))
    model.replay(rows)
    same(pages, model)
    assert result.contradictions == model.causes
    assert result.wrong_pages_at_reports == model.wrong
    assert result.operations == len(rows)
    assert sum(result.counts.values()) + sum(model.causes.values()) - model.causes["time falls"] == len(rows)


SETTINGS = st.fixed_dictionaries(
    {
        "most": st.sampled_from([1, 2, 3, 16]),
        "threshold": st.sampled_from([None, 1, 3]),
        "delay": st.sampled_from([None, 0.0, 0.5, 2.0]),
        "min_age": st.sampled_from([None, None, 0.05, 1.0]),
        "mark_free": st.booleans(),
    }
)
HOSTS = st.fixed_dictionaries(
    {
        "latency": st.sampled_from([0, 0, 10**6, 4 * 10**8]),
        "rate": st.sampled_from([None, None, 1 << 28, 1 << 34]),
        "fails": st.sampled_from([(False,), (False, True), (True, True, False)]),
    }
)


@given(zone_layouts(), st.integers(0, 10**6), SETTINGS, HOSTS, st.sampled_from([0.0, 0.2]))
@example(  # a gate that opens when nothing is hinted any more
    ZoneLayout([ph.ZoneSpec("Normal", 0, 32)], 1 << 20, 5, 4, (0, 1, 1)), 40,
    {"most": 1, "threshold": None, "delay": 0.0, "min_age": None, "mark_free": False},
    {"latency": 0, "rate": None, "fails": (False,)}, 0.0,
)  # fmt: skip
def test_hinting_by_the_operations_times(layout, seed, settings, host, wrong):
    if host["latency"] or host["rate"]:
        # The oracle takes what is too young when a look begins; what is freed while a report takes its time is younger.
        settings["min_age"] = None
    pages, model, rng = both(layout, seed)
    rows = random_rows(model.zones, rng, 200, pages.max_page_order, wrong)
    begin = rows[0][0] - seed % 3 * 10**8 if rows else 0
    told = []

    def hint_pages(blocks):
        told.append((round(pages.now * 1e9), blocks[["pfn", "order"]].tolist()))
        return not host["fails"][(len(told) - 1) % len(host["fails"])]

    options = {name: value for name, value in settings.items() if name != "most"}
    pages.enable_hinting(
        ph.PageHintingCallbacks(hint_pages, settings["most"]), workqueue="manual", clock=begin / 1e9, **options
    )
    model.start(begin, **host)
    model.enable(settings["most"], **options)
    result = pages.replay(as_table(rows), host_latency=host["latency"] / 1e9, host_rate=host["rate"])
    model.replay(rows)
    assert told == model.calls
    same(pages, model)
    assert result.contradictions == model.causes
    assert result.wrong_pages_at_reports == model.wrong
    assert (result.waits, round(result.wait_seconds * 1e9)) == (len(model.waits), sum(model.waits))
    assert result.bytes_reported == model.count.pages_reported * pages.page_size
    assert (result.passes, result.reports) == (model.count.work_runs, model.count.reports)
    assert result.bytes_again == 0
    pages.disable_hinting()


@given(zone_layouts(), st.integers(0, 10**6), st.sampled_from([0.05, 1.0]), st.sampled_from([1e-3, 0.4]))
@example(
    ZoneLayout([ph.ZoneSpec("DMA", 0, 74), ph.ZoneSpec("Normal", 74, 439)], 1 << 20, 0, 0, None), 0, 0.05, 1e-3
)  # fmt: skip
def test_what_is_too_young_is_not_reported_however_long_reports_take(layout, seed, min_age, latency):
    pages, model, rng = both(layout, seed)
    rows = random_rows(model.zones, rng, 200, pages.max_page_order, 0.0)
    reports = []

    def hint_pages(blocks):
        reports.extend((pages.now, int(block["pfn"]), 1 << int(block["order"])) for block in blocks)

    begin = rows[0][0] / 1e9 if rows else 0.0
    callbacks = ph.PageHintingCallbacks(hint_pages, 4)
    pages.enable_hinting(callbacks, workqueue="manual", clock=begin, min_age=min_age, threshold=1)
    result = pages.replay(as_table(rows), host_latency=latency)
    model.replay(rows)
    assert [zone.free_blocks().tolist() for zone in pages.zones] == [z.free_blocks().tolist() for z in model.zones]
    assert (result.contradictions, result.bytes_again, pages.stats().reporting_pages) == ({}, 0, 0)
    pages.verify()
    for now, pfn, nr_pages in reports:
        moves = [(time / 1e9, op) for time, op, at, order, _ in rows if at < pfn + nr_pages and pfn < at + (1 << order)]
        # A pass comes before the operations of its moment: what is taken and freed just then was free until then.
        freed = [time for time, op in moves if op == 2 and (time < now or (time == now and (now, 1) not in moves))]
        assert now >= max(freed, default=begin) + min_age - 1e-6


@given(zone_layouts(), st.integers(0, 10**6))
def test_strict_stops_at_the_first_contradiction(layout, seed):
    pages, model, rng = both(layout, seed)
    rows = random_rows(model.zones, rng, 200, pages.max_page_order, 0.05)
    model.rows = rows
    model.last = rows[0][0] if rows else 0
    while model.at < len(rows) and not model.causes:
        model.step()
    if not model.causes:
        pages.replay(as_table(rows), strict=True)
    else:
        with pytest.raises(ph.BadPageError, match=f"operation {model.at - 1}, row {model.at + 99}") as refused:
            pages.replay(as_table(rows), strict=True)
        assert refused.value.index == model.at - 1
        if "time falls" in model.causes:  # the model carries that one out, too
            return
    same(pages, model)
