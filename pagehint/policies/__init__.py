"""Hinting policies on a recording: what each would have reported, how soon, and at what cost.

`replay`, in `comparison.py`, does all of it. Begin with `recording.py`, `policy.py` and `scores.py`; `rules.py` has the
built-in ones. Uses `traces`, `replaying`, `_core`, `hinting` and `errors`.
"""

from pagehint.policies.comparison import Comparison, replay
from pagehint.policies.curve import AgeCurve, age_curve
from pagehint.policies.learning import LearntAge
from pagehint.policies.names import BUILT_IN, parse_seconds, policy_of
from pagehint.policies.policy import SECOND, Decisions, Policy, Rule
from pagehint.policies.recording import CHANGE_DTYPE, LISTED_DTYPE, ZONE_DTYPE, Recording
from pagehint.policies.reports import REPORT_DTYPE
from pagehint.policies.rules import Age, Auto, Delay, Linux, Optimum, Recorded, Series2019, Threshold
from pagehint.policies.scores import BREAK_EVENS, WINDOWS, Difference, Floor, Score, compare, evaluate, floor_of, score
from pagehint.policies.sweep import sweep

__all__ = [
    "BREAK_EVENS",
    "BUILT_IN",
    "CHANGE_DTYPE",
    "LISTED_DTYPE",
    "REPORT_DTYPE",
    "SECOND",
    "WINDOWS",
    "ZONE_DTYPE",
    "Age",
    "AgeCurve",
    "Auto",
    "Comparison",
    "Decisions",
    "Delay",
    "Difference",
    "Floor",
    "LearntAge",
    "Linux",
    "Optimum",
    "Policy",
    "Recorded",
    "Recording",
    "Rule",
    "Score",
    "Series2019",
    "Threshold",
    "age_curve",
    "compare",
    "evaluate",
    "floor_of",
    "parse_seconds",
    "policy_of",
    "replay",
    "score",
    "sweep",
]
