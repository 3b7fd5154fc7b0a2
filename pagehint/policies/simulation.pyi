from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

@disjoint_base
class Lists:
    def __new__(
        cls,
        table: NDArray[np.void],
        free_words: NDArray[np.uint64],
        blocks: NDArray[np.void],
        zones: NDArray[np.void],
        types: NDArray[np.uint8],
        order: int,
        max_order: int,
        pageblock_order: int,
        isolate_type: int,
    ) -> Self: ...
    def listed(self) -> list[tuple[int, int, int, int, int, int]]: ...
    def linux(
        self,
        begin: int,
        begin_time: int,
        *,
        min_order: int,
        capacity: int,
        delay: int,
        wheel: int,
        phase: int,
        call_time: int,
        steps: NDArray[np.uint32] | None,
        begins: NDArray[np.uint8] | None,
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]: ...
    def series_2019(self, begin: int, *, max_pages: int) -> tuple[NDArray[np.uint8], dict[str, Any]]: ...
    def threshold(
        self, begin: int, begin_time: int, end_time: int, *, max_pages: int, threshold: int, delay: int
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]: ...
