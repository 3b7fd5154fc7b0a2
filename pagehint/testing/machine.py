"""Strategies of operations, and the state machine that performs them and checks every invariant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

import pagehint as ph
from pagehint.testing.checker import Judge, ManualJudge, ThreadedJudge, destroying_callbacks, pages_of
from pagehint.testing.operations import FAILURES, OPERATIONS, Arguments, ZoneLayout

try:
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError("pagehint.testing needs Hypothesis: pip install 'pagehint[test]'") from _missing

__all__ = [
    "LAYOUTS",
    "HintingMachine",
    "Operation",
    "ZoneLayout",
    "callback_failures",
    "operation_lists",
    "run_operations",
    "zone_layouts",
]

Operation = tuple[str, Mapping[str, Any]]
"""A name and its arguments, as `operation_lists` makes them and `run_operations` does them."""

# With pages of 1 MiB a section (128 MiB) is 128 pages, so that hotplug happens in zones of a few hundred pages.
LAYOUTS: Mapping[str, ZoneLayout] = {
    "one zone": ZoneLayout([ph.ZoneSpec("Normal", 0, 2048)]),
    "unaligned with holes": ZoneLayout(
        [
            ph.ZoneSpec("DMA", 1, 299),
            ph.ZoneSpec("Normal", 333, 1777, holes=[(400, 30), (1000, 1), (1024, 128), (2100, 10)]),
        ],
        max_page_order=8,
        min_order=6,
    ),
    "two nodes": ZoneLayout(
        [
            ph.ZoneSpec("DMA", 1, 511),
            ph.ZoneSpec("Normal", 1024, 640, node=0),
            ph.ZoneSpec("Normal", 2000, 700, node=1, holes=[(2048, 64)]),
        ],
        max_page_order=7,
        min_order=5,
        watermarks=(20, 40, 60),
    ),
    "single pages": ZoneLayout([ph.ZoneSpec("Normal", 7, 400, holes=[(9, 1)])], max_page_order=3, min_order=0),
    "small granules": ZoneLayout([ph.ZoneSpec("Normal", 64, 700)], max_page_order=6, min_order=2),
    "large granules": ZoneLayout(
        [ph.ZoneSpec("Normal", 512, 6000, holes=[(2048, 256)])], max_page_order=12, min_order=11
    ),
    "orders 0 to 5": ZoneLayout([ph.ZoneSpec("Normal", 100, 900)], max_page_order=5, min_order=4),
}
"""Small machines, so that every page matters, and awkward ones, so that every edge is met."""


_ZONES = (
    [("Normal", 0)],
    [("DMA", 0), ("Normal", 0)],
    [("DMA", 0), ("DMA32", 0), ("Normal", 0)],
    [("Normal", 0), ("Normal", 1)],
    [("DMA", 1), ("Normal", 1), ("Normal", 0)],
)


@st.composite
def _any_layouts(draw: st.DrawFn) -> ZoneLayout:
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

    Zones begin and end anywhere, have holes and watermarks, lie on one node or two; blocks and granules have any order.
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
        st.tuples(st.just(name), st.fixed_dictionaries(_strategies(arguments)))
        for name, arguments in _JUDGES[workqueue].operations.items()
    ]
    return st.lists(st.one_of(kinds), max_size=max_size)


def _strategies(arguments: Arguments) -> dict[str, st.SearchStrategy[Any]]:
    return {name: st.sampled_from(values) for name, values in arguments.items()}


_FAILURES = st.runner().flatmap(lambda machine: machine.failures)


class HintingMachine(RuleBasedStateMachine):
    """Any sequence of operations around your callbacks, every invariant checked after each; subclass it.

    ``YourMachine.TestCase`` is a test that pytest and unittest run.

    Attributes
    ----------
    workqueue : {"manual", "thread"}, default "manual"
        Of the class. With "manual" everything is deterministic, and compared with the oracle exactly; with "thread" the
        worker calls you while operations go on, with and without per-CPU page sets.
    layouts, failures : SearchStrategy
        Of the class: machines, default `zone_layouts`; how callbacks fail, default `callback_failures`. Yours are not
        called then, or told only of the blocks that are taken.
    judge : Judge
        What does the operations, and checks; your own rules may call its methods.

    Notes
    -----
    An `AssertionError` in a callback is a finding. Another exception is a host that fails: it must lose nothing.
    """

    workqueue: ClassVar[Literal["manual", "thread"]] = "manual"
    layouts: ClassVar[st.SearchStrategy[ZoneLayout]] = zone_layouts()
    failures: ClassVar[st.SearchStrategy[str]] = callback_failures()
    judge: Judge

    def callbacks(self) -> ph.PageHintingCallbacks:
        """Return the callbacks under test; called for every enable. By default the host destroys what it gets."""
        return destroying_callbacks(self.judge)

    @property
    def pages(self) -> ph.PageAllocator:
        """The allocator; what you change in it without the judge, the oracle does not know."""
        return self.judge.pages

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The memory of the machine: row ``pfn`` are 4096 bytes, aligned, that stand for that page."""
        return self.judge.frames.memory

    @staticmethod
    def pages_of(blocks: Any) -> NDArray[np.int64]:
        """Return the PFN of every page in the blocks that `hint_pages` got."""
        return pages_of(blocks)

    @initialize(
        layout=st.runner().flatmap(lambda machine: machine.layouts),
        pcp=st.runner().flatmap(lambda machine: st.sampled_from([False, machine.workqueue == "thread"])),
        failure=_FAILURES,
        settings=st.fixed_dictionaries(_strategies(OPERATIONS["enable"])) | st.none(),
    )
    def begin(self, layout: ZoneLayout, pcp: bool, failure: str, settings: dict[str, Any] | None) -> None:
        """Build the machine; with settings, hinting is on from the beginning."""
        self._sound = False
        self.judge = _JUDGES[self.workqueue](layout, self.callbacks, pcp=pcp)
        self.judge.failure = failure
        if settings:
            self.judge.enable(**settings)

    @invariant()
    def every_invariant_holds(self) -> None:
        """Let the judge check; after every step."""
        if hasattr(self, "judge"):
            self.judge.check()
            self._sound = True

    def teardown(self) -> None:
        """Switch hinting off, and check once more, unless there is a finding already."""
        if hasattr(self, "judge"):
            if self._sound:
                self.judge.close()
            else:
                self.judge.pages.disable_hinting()


def _add_rule(name: str, arguments: dict[str, Any], when: Callable[[Any], bool]) -> None:
    def perform(self: HintingMachine, **values: Any) -> None:
        self._sound = False
        getattr(self.judge, name)(**values)

    perform.__name__ = name
    perform.__doc__ = getattr(Judge, name, perform).__doc__
    decorate: Callable[[Callable[..., None]], Callable[..., None]] = rule(**arguments)
    setattr(HintingMachine, name, precondition(when)(decorate(perform)))


def _may_run(name: str) -> Callable[[Any], bool]:
    """Return the precondition of an operation: only where the judge has it, and if it is of interest now."""
    if name in ("disable", "restart", "change_max_pages", "change_threshold", "change_delay", _ALL_REPORTED):
        return lambda machine: machine.judge.on
    return lambda machine: name in machine.judge.operations


_JUDGES: Mapping[str, type[ManualJudge | ThreadedJudge]] = {"manual": ManualJudge, "thread": ThreadedJudge}
_ALL_REPORTED = "everything_reportable_is_reported"

for _name, _arguments in {**ManualJudge.operations, **ThreadedJudge.operations}.items():
    _add_rule(_name, _strategies(_arguments), _may_run(_name))
_add_rule("fail", {"failure": _FAILURES, "at_once": st.booleans()}, lambda machine: True)


def run_operations(
    layout: ZoneLayout,
    operations: Iterable[Operation],
    callbacks: Callable[[Judge], ph.PageHintingCallbacks] | None = None,
    *,
    workqueue: Literal["manual", "thread"] = "manual",
    pcp: bool = False,
    check_every: int = 1,
) -> None:
    """Do operations one by one, and check every invariant after each, as `HintingMachine` does.

    Parameters
    ----------
    layout : ZoneLayout
        The machine.
    operations : iterable of (name, arguments)
        As `operation_lists` makes them.
    callbacks : callable, optional
        Returns the callbacks under test, given the judge: ``judge.frames.memory`` is the machine's memory. By default
        the host destroys what it gets.
    workqueue : {"manual", "thread"}
        As in `HintingMachine`.
    pcp : bool, default False
        With per-CPU page sets; for "thread" only.
    check_every : int, default 1
        Operations between two checks of everything; answers are compared, and reports judged, always.

    Raises
    ------
    AssertionError, PageHintError
        At the first finding.
    """
    new_callbacks = callbacks or destroying_callbacks
    judge: Judge = _JUDGES[workqueue](layout, lambda: new_callbacks(judge), pcp=pcp)
    try:
        for number, (name, arguments) in enumerate(operations):
            getattr(judge, name)(**arguments)
            if number % check_every == 0:
                judge.check()
        judge.close()
    finally:
        judge.pages.disable_hinting()
