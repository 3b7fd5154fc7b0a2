"""The state machine that performs any sequence of operations, and checks every invariant after each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

import pagehint as ph
from pagehint.testing.checker import Checker
from pagehint.testing.layouts import ZoneLayout
from pagehint.testing.manual_checker import ManualChecker
from pagehint.testing.operations import OPERATIONS
from pagehint.testing.page_marks import pages_of
from pagehint.testing.runner import CHECKERS, destroying_callbacks
from pagehint.testing.strategies import argument_strategies, callback_failures, zone_layouts
from pagehint.testing.threaded_checker import ThreadedChecker

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
    checker : Checker
        What does the operations, and checks; your own rules may call its methods.

    Notes
    -----
    An `AssertionError` in a callback is a finding. Another exception is a host that fails: it must lose nothing.
    """

    workqueue: ClassVar[Literal["manual", "thread"]] = "manual"
    layouts: ClassVar[st.SearchStrategy[ZoneLayout]] = zone_layouts()
    failures: ClassVar[st.SearchStrategy[str]] = callback_failures()
    checker: Checker

    def callbacks(self) -> ph.PageHintingCallbacks:
        """Return the callbacks under test; called for every enable. By default the host destroys what it gets."""
        return destroying_callbacks(self.checker)

    @property
    def pages(self) -> ph.PageAllocator:
        """The allocator; what you change in it without the checker, the oracle does not know."""
        return self.checker.pages

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The memory of the machine: row ``pfn`` are 4096 bytes, aligned, that stand for that page."""
        return self.checker.memory

    @staticmethod
    def pages_of(blocks: Any) -> NDArray[np.int64]:
        """Return the PFN of every page in the blocks that `hint_pages` got."""
        return pages_of(blocks)

    @initialize(
        layout=st.runner().flatmap(lambda machine: machine.layouts),
        pcp=st.runner().flatmap(lambda machine: st.sampled_from([False, machine.workqueue == "thread"])),
        failure=_FAILURES,
        settings=st.fixed_dictionaries(argument_strategies(OPERATIONS["enable"])) | st.none(),
    )
    def begin(self, layout: ZoneLayout, pcp: bool, failure: str, settings: dict[str, Any] | None) -> None:
        """Build the machine; with settings, hinting is on from the beginning."""
        self._sound = False
        self.checker = CHECKERS[self.workqueue](layout, self.callbacks, pcp=pcp)
        self.checker.failure = failure
        if settings:
            self.checker.enable(**settings)

    @invariant()
    def every_invariant_holds(self) -> None:
        """Let the checker check; after every step."""
        if hasattr(self, "checker"):
            self.checker.check()
            self._sound = True

    def teardown(self) -> None:
        """Switch hinting off, and check once more, unless there is a finding already."""
        if hasattr(self, "checker"):
            if self._sound:
                self.checker.close()
            else:
                self.checker.pages.disable_hinting()


def _add_rule(name: str, arguments: dict[str, Any], when: Callable[[Any], bool]) -> None:
    def perform(self: HintingMachine, **values: Any) -> None:
        self._sound = False
        getattr(self.checker, name)(**values)

    perform.__name__ = name
    perform.__doc__ = getattr(Checker, name, perform).__doc__
    decorate: Callable[[Callable[..., None]], Callable[..., None]] = rule(**arguments)
    setattr(HintingMachine, name, precondition(when)(decorate(perform)))


def _may_run(name: str) -> Callable[[Any], bool]:
    """Return the precondition of an operation: only where the checker has it, and if it is of interest now."""
    if name in ("disable", "restart", "change_max_pages", "change_threshold", "change_delay", _ALL_REPORTED):
        return lambda machine: machine.checker.on
    return lambda machine: name in machine.checker.operations


_ALL_REPORTED = "everything_reportable_is_reported"

for _name, _arguments in {**ManualChecker.operations, **ThreadedChecker.operations}.items():
    _add_rule(_name, argument_strategies(_arguments), _may_run(_name))
_add_rule("fail", {"failure": _FAILURES, "at_once": st.booleans()}, lambda machine: True)
