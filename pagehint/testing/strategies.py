"""Hypothesis strategies: machines, failures of callbacks, lists of operations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from hypothesis import strategies as st

import pagehint as ph
from pagehint.testing.layouts import LAYOUTS, ZoneLayout
from pagehint.testing.operations import FAILURES, Arguments
from pagehint.testing.runner import CHECKERS, Operation

_ZONES = (
    [("Normal", 0)],
    [("DMA", 0), ("Normal", 0)],
    [("DMA", 0), ("DMA32", 0), ("Normal", 0)],
    [("Normal", 0), ("Normal", 1)],
    [("DMA", 1), ("Normal", 1), ("Normal", 0)],
)


@st.composite
def _interleaving(draw: st.DrawFn) -> list[ph.ZoneSpec]:
    """Zones that share out the pieces of a span: what another has, or none, is a hole."""
    names = draw(st.sampled_from(_ZONES[1:]))
    cuts = draw(st.lists(st.integers(0, 3000), min_size=2, max_size=12, unique=True).map(sorted))
    pieces = list(pairwise(cuts))
    owners = draw(st.lists(st.integers(-1, len(names) - 1), min_size=len(pieces) - 1, max_size=len(pieces) - 1))
    zones = []
    for i, (name, node) in enumerate(names):
        own = [piece for piece, owner in zip(pieces, [0, *owners], strict=True) if owner == i]
        if own:
            holes = [(end, start - end) for (_, end), (start, _) in pairwise(own) if start > end]
            zones.append(ph.ZoneSpec(name, own[0][0], own[-1][1] - own[0][0], node, holes))
    return zones


@st.composite
def _apart(draw: st.DrawFn) -> list[ph.ZoneSpec]:
    """Zones one after the other, with holes."""
    zones = []
    end = 0
    for name, node in draw(st.sampled_from(_ZONES)):
        start = end + draw(st.integers(0, 700))
        spanned = draw(st.integers(1, 1500))
        end = start + spanned
        cuts = draw(st.lists(st.integers(start, end), max_size=6, unique=True).map(sorted))
        holes = [(first, last - first) for first, last in zip(cuts[::2], cuts[1::2], strict=False)]
        if sum(nr_pages for _, nr_pages in holes) == spanned:
            holes = []
        zones.append(ph.ZoneSpec(name, start, spanned, node, holes))
    return zones


@st.composite
def _any_layouts(draw: st.DrawFn) -> ZoneLayout:
    zones = draw(_apart() | _interleaving())
    top = draw(st.integers(0, 12))
    marks = st.lists(st.integers(0, 60), min_size=3, max_size=3).map(sorted).map(tuple)
    return ZoneLayout(
        zones,
        max_page_order=top,
        min_order=draw(st.integers(0, top)),
        watermarks=draw(st.none() | st.just("linux") | marks),
    )


def zone_layouts() -> st.SearchStrategy[ZoneLayout]:
    """Return machines of up to three zones and a few thousand pages: those of `LAYOUTS`, and any others.

    Zones begin and end anywhere, have holes and watermarks, lie on one node or two, one after the other or interleaved;
    blocks and granules have any order.
    """
    return st.sampled_from(list(LAYOUTS.values())) | _any_layouts()


def callback_failures() -> st.SearchStrategy[str]:
    """Return what goes wrong in callbacks from now on: "none", or one of what a host may do to the engine."""
    return st.sampled_from(FAILURES)


def operation_lists(
    *, workqueue: Literal["manual", "thread"] = "manual", max_size: int = 50
) -> st.SearchStrategy[list[Operation]]:
    """Return lists of operations for `run_operations`, the callbacks' failures among them.

    Parameters
    ----------
    workqueue : {"manual", "thread"}
        What they are for.
    max_size : int, default 50
        Operations at most.
    """
    kinds = [
        st.tuples(st.just(name), st.fixed_dictionaries(argument_strategies(arguments)))
        for name, arguments in CHECKERS[workqueue].operations.items()
    ]
    return st.lists(st.one_of(kinds), max_size=max_size)


def argument_strategies(arguments: Arguments) -> dict[str, st.SearchStrategy[Any]]:
    """Return a strategy for each argument of an operation."""
    return {name: st.sampled_from(values) for name, values in arguments.items()}
