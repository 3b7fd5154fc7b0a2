from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def run_scoring(
    table: NDArray[np.void],
    reports: NDArray[np.void],
    free_words: NDArray[np.uint64],
    charged_words: NDArray[np.uint64],
    granule_order: int,
    begin_position: int,
    begin_time: int,
    end_time: int,
    ages: Sequence[int],
    windows: Sequence[int],
) -> tuple[int, dict[str, Any]]: ...
