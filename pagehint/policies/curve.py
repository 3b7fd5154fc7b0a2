"""All ages at once: how much memory stays charged, and how much is used again too soon, by the age of reporting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pagehint.policies.policy import SECOND
from pagehint.policies.recording import Recording
from pagehint.policies.scores import BREAK_EVENS, WINDOWS
from pagehint.traces.intervals.table import OPEN


@dataclass(frozen=True, eq=False)
class AgeCurve:
    """What each age would have done with a recording; all arrays are by age.

    Attributes
    ----------
    ages : ndarray of float
        Seconds.
    reported : ndarray of int
        Bytes.
    kept : ndarray of float
        GiB·s of granules that were entirely free, and charged as a whole, until their report.
    reused : dict of float to ndarray of int
        Bytes used within so many seconds of their report.
    cost, optimum : dict
        As `Score` has them, by break-even age: arrays of costs, and one number each.
    """

    ages: NDArray[np.float64]
    reported: NDArray[np.int64]
    kept: NDArray[np.float64]
    reused: dict[float, NDArray[np.int64]]
    cost: dict[float, NDArray[np.float64]]
    optimum: dict[float, float]


def age_curve(
    recording: Recording,
    ages: ArrayLike,
    *,
    break_evens: Iterable[float] = BREAK_EVENS,
    windows: Iterable[float] = WINDOWS,
) -> AgeCurve:
    """Evaluate the policy `Age` for many ages.

    Parameters
    ----------
    recording : Recording
        Its intervals are all that is needed.
    ages : array_like of float
        Seconds.
    break_evens, windows : iterable of float
        Seconds.

    Returns
    -------
    AgeCurve

    Notes
    -----
    O(intervals) for each age, some 10 ns an interval. Figures that need every page, such as refaults, come from
    `evaluate`.
    """
    table = recording.intervals.table
    lengths, ended = recording.intervals.lengths, table["end_position"] != OPEN
    costs = recording.charged_intervals
    seconds = np.atleast_1d(np.asarray(ages, float))
    granule = recording.page_size << recording.granule_order
    gib_s = granule / 2**30 / SECOND
    at = np.round(seconds * SECOND).astype(np.int64)
    windows = [float(window) for window in windows]
    reported, kept = np.zeros(len(at), np.int64), np.zeros(len(at))
    reused = {window: np.zeros(len(at), np.int64) for window in windows}
    for number, age in enumerate(at.tolist()):
        lasts = np.where(ended, lengths > age, lengths >= age)
        reported[number] = np.count_nonzero(lasts) * granule
        kept[number] = float(np.where(lasts, age, lengths)[costs].sum()) * gib_s
        for window in windows:
            soon = lasts & ended & (lengths - age <= round(window * SECOND))
            reused[window][number] = np.count_nonzero(soon) * granule
    break_evens = [float(age) for age in break_evens]
    return AgeCurve(
        ages=seconds,
        reported=reported,
        kept=kept,
        reused=reused,
        cost={age: kept + reported * (age / 2**30) for age in break_evens},
        optimum={age: float(np.minimum(lengths, age * SECOND)[costs].sum()) * gib_s for age in break_evens},
    )
