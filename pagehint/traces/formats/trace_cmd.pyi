from typing import Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

_Stop: TypeAlias = Literal["end", "full", "lost", "mark", "event", "line"]

@disjoint_base
class TraceCmdFile:
    def __new__(cls, path: str) -> Self: ...
    @property
    def cpus(self) -> int: ...
    @property
    def lines(self) -> int: ...
    def read(self, out: NDArray[np.uint8], row: int) -> tuple[int, _Stop, bytes, int, int, int]: ...
    def name_of(self, pid: int) -> bytes: ...
