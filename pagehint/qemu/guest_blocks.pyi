from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from pagehint.hinting.callbacks import BLOCK_DTYPE as BLOCK_DTYPE

class GuestBlocks(NamedTuple):
    addresses: list[int]
    lengths: list[int]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    nr_pages: int

@disjoint_base
class Places:
    def __new__(cls, parts: Sequence[tuple[int, int, int]]) -> Places: ...
    def of(self, blocks: NDArray[np.void]) -> GuestBlocks: ...
