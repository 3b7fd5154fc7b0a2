from typing import Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

_Stop: TypeAlias = Literal["end", "full", "name", "mark", "event", "line"]

@disjoint_base
class LineParser:
    def __new__(cls, perf: bool) -> Self: ...
    @property
    def lines(self) -> int: ...
    @property
    def backwards(self) -> int: ...
    def parse(
        self, text: bytes, begin: int, out: NDArray[np.uint8], row: int
    ) -> tuple[int, int, _Stop, bytes, bytes]: ...
