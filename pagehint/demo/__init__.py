"""The demo: a bursty workload with hinting off and on, measured; a table and a picture of it.

Begin with `workload.py`; `processes.py` has it run twice, in processes of their own, and `measuring.py` is what happens
there. Uses `arena`, `qemu` and the rooms below them. The table needs rich, the picture Matplotlib: the extra "demo".
"""

from pagehint.demo.outcome import Measured, Outcome
from pagehint.demo.processes import run_both
from pagehint.demo.workload import MIB, ROUNDS
from pagehint.process_memory import available_bytes, rss_bytes

__all__ = ["MIB", "ROUNDS", "Measured", "Outcome", "available_bytes", "rss_bytes", "run_both"]
