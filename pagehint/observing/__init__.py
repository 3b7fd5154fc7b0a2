"""What a running process holds, told to others who ask: `pagehint status`, metrics, traces.

Begin with `answering.pyx`, the thread that answers, and `figures.pxd`, what it says; then `asking.py`, who asks and
how, and `holdings.py`, what is made of an answer. `metrics.py` and `trace.py` pass it on. Uses `arena` and the rooms
below it.
"""

from pagehint.observing.answering import answer
from pagehint.observing.metrics import Collector

__all__ = ["Collector", "answer"]
