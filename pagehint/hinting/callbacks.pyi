from collections.abc import Callable, Sequence
from typing import Any, Final, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from typing_extensions import CapsuleType, disjoint_base

_Taken = bool | np.bool_ | Sequence[bool] | NDArray[np.bool_] | None
# A compiled function is a capsule, or the tuple that scipy.LowLevelCallable is.
_HintPages = Callable[[NDArray[np.void]], _Taken] | CapsuleType | tuple[Any, ...]

FOREIGN: Final[tuple[str, ...]]
BLOCK_DTYPE: Final[np.dtype[np.void]]

@disjoint_base
class PageHintingCallbacks:
    def __new__(
        cls,
        hint_pages: _HintPages,
        max_pages: SupportsIndex = 16,
        prepare: Callable[[], int | None] | None = None,
        cleanup: Callable[[], object] | None = None,
        is_dropped: Callable[[NDArray[np.void]], _Taken] | None = None,
    ) -> Self: ...
    @property
    def hint_pages(self) -> _HintPages: ...
    @property
    def prepare(self) -> Callable[[], int | None] | None: ...
    @property
    def cleanup(self) -> Callable[[], object] | None: ...
    @property
    def is_dropped(self) -> Callable[[NDArray[np.void]], _Taken] | None: ...
    @property
    def max_pages(self) -> int: ...
