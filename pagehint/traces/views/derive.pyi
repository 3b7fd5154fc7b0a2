import numpy as np
from numpy.typing import NDArray

from pagehint.traces.operations import OPERATION_DTYPE as OPERATION_DTYPE

def derive(
    events: NDArray[np.void],
    view: int,
    places: NDArray[np.uint8],
    types: NDArray[np.uint8],
    pageblock_order: int,
    corrections: NDArray[np.void],
) -> tuple[
    NDArray[np.void],
    NDArray[np.void],
    list[tuple[int, list[tuple[int, int, int]]]],
    int,
    NDArray[np.uint32],
    tuple[int, int, int, int],
]: ...
