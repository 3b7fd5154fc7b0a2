import numpy as np
from numpy.typing import NDArray

def find_intervals(
    table: NDArray[np.void], words: NDArray[np.uint64], granule_order: int, position: int, begin: int, end: int
) -> tuple[NDArray[np.uint8], int]: ...
