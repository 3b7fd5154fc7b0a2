from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pagehint._core import PageAllocator
from pagehint.stats.stats import Stats

_Numbers = Sequence[int] | NDArray[Any]

MOST_PAGES: Final[int]

def whole_ranges(
    addresses: _Numbers, lengths: _Numbers, page_bytes: int, own: int, own_bytes: int
) -> list[tuple[int, int]]: ...
def encode_pfns(pages: PageAllocator, pfns: NDArray[np.uint64]) -> NDArray[np.uint32]: ...
def whole_pages(numbers: NDArray[np.uint32], most: int, nr_pages: int) -> int: ...
def encode_statistics(stats: Stats) -> NDArray[np.void]: ...
def chains(ranges: Iterable[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]: ...
