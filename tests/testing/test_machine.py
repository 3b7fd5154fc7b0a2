"""Any sequence of operations, with manual work and with the worker's thread: `pagehint.testing` on ourselves."""

from __future__ import annotations

from pagehint.testing import HintingMachine


class ManualMachine(HintingMachine):
    workqueue = "manual"


class ThreadedMachine(HintingMachine):
    workqueue = "thread"


TestAllocator = ManualMachine.TestCase
TestThreadedAllocator = ThreadedMachine.TestCase
