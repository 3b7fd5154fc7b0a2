import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import disjoint_base

def ask_for_huge_pages(address: int, nr_bytes: int) -> None: ...

@disjoint_base
class Holes:
    def __new__(cls, fd: int, nr_bytes: int, hugetlb_page: int = 0) -> Holes: ...
    def are(self, fd: int, offsets: ArrayLike, lengths: ArrayLike) -> NDArray[np.bool_]: ...
