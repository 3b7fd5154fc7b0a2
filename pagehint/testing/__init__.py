"""For fuzzing what you build on pagehint: Hypothesis strategies, and a state machine that checks every invariant.

`HintingMachine` performs any sequence of operations, on the allocator and on an oracle in plain Python, around your
callbacks, and checks after each that

- what a caller wrote to its pages is still there (every page has a frame of real memory, for your host to use),
- no page has two owners: nothing is reported that is in use, isolated or reported already, nor allocated meanwhile,
- state, answers and statistics are the oracle's, and `PageAllocator.verify` finds nothing,
- every hint is reported in the end, whatever fails.

Needs the extra "test" (Hypothesis).

Begin with `machine.py`, then `operations.py` and `checker.py`. Uses pagehint as its users do, and
`layout` and `sizes`.

Examples
--------
A host that clears blocks one call too late, when they may be in use again. pytest, collecting ``TestHost``, fails with
the shortest sequence of operations that shows it::

    from pagehint import PageHintingCallbacks
    from pagehint.testing import HintingMachine

    class Host(HintingMachine):
        late = ()
        def callbacks(self):
            return PageHintingCallbacks(self.hint_pages, max_pages=4)
        def hint_pages(self, blocks):
            self.memory[self.pages_of(self.late)] = 0  # these went back when the last call returned
            self.late = blocks
    TestHost = Host.TestCase
"""

try:
    import hypothesis  # noqa: F401
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError("pagehint.testing needs Hypothesis: pip install 'pagehint[test]'") from _missing

from pagehint.testing.layouts import LAYOUTS, ZoneLayout
from pagehint.testing.machine import HintingMachine
from pagehint.testing.runner import Operation, run_operations
from pagehint.testing.strategies import callback_failures, operation_lists, zone_layouts

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
