from collections.abc import Callable
from typing import Literal, Self, SupportsIndex

from typing_extensions import disjoint_base

from pagehint.allocator.memory import Memory
from pagehint.hinting.callbacks import PageHintingCallbacks

_Order = SupportsIndex
_Workqueue = Literal["thread", "manual"]

@disjoint_base
class HintingEngine:
    def __new__(cls, memory: Memory) -> Self: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def last_error(self) -> BaseException | None: ...
    def run_pending(self) -> int: ...
    def flush(self) -> None: ...
    def require_hinting(self, what: str) -> None: ...
    def enable(
        self,
        callbacks: PageHintingCallbacks,
        workqueue: _Workqueue,
        threshold: SupportsIndex | None,
        delay: float | None,
        max_report_order: _Order | None,
        mark_free: bool,
        min_age: float | None,
        clock: Callable[[], float] | None,
    ) -> None: ...
    def disable(self) -> None: ...
    def abandon(self) -> None: ...
    def change(
        self,
        max_pages: SupportsIndex | None = None,
        threshold: SupportsIndex | None = None,
        delay: float | None = None,
        any_threshold: bool = False,
        any_delay: bool = False,
    ) -> None: ...
